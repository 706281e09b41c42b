package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"multus-ip-manager.io/test/binaries"
	"multus-ip-manager.io/test/plane"
	"multus-ip-manager.io/test/tools"
)

// ToolNames are the built tools that a cluster needs.
func ToolNames() []string {
	return []string{"etcd", "kube-apiserver", "helm", "kubernetes-node", "cni-plugins", "multus", "whereabouts"}
}

// Up brings the cluster up, unless it is up already, and returns when it can be used. It goes on running after this process.
func Up(ctx context.Context, d Dir, out *os.File) error {
	if err := machineFit(); err != nil {
		return err
	}
	if d.Running() {
		fmt.Fprintf(out, "The cluster is up already: export KUBECONFIG=%s\n", d.Kubeconfig())
		return nil
	}
	if err := Down(d); err != nil { // what a crash left
		return err
	}
	if err := prepareDir(ctx, d, out); err != nil {
		return errors.Join(err, Down(d))
	}
	log, err := appendTo(d.path("log", "cluster.log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(d.bin("cluster"), "supervise") //nolint:noctx,gosec // it outlives us
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(gone)
	}()
	if err := awaitReady(ctx, d, gone, out); err != nil {
		return errors.Join(err, Down(d))
	}
	fmt.Fprintf(out, "export KUBECONFIG=%s\n", d.Kubeconfig())
	return nil
}

// machineFit says what is missing on this machine.
func machineFit() error {
	if os.Geteuid() != 0 {
		return errors.New("a cluster needs root: kubelet and containerd do")
	}
	for program, pkg := range map[string]string{"containerd": "containerd", "runc": "runc", "ctr": "containerd", "nft": "nftables"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is not installed (Debian: apt-get install %s): %w", program, pkg, err)
		}
	}
	return nil
}

// prepareDir makes the folder with the programs and images that the cluster starts with.
func prepareDir(ctx context.Context, d Dir, out *os.File) error {
	root, err := tools.Root()
	if err != nil {
		return err
	}
	if err := mkdirs(d.path("bin"), d.path("images"), d.Log(), d.path("nodes")); err != nil {
		return err
	}
	if err := linkTools(d); err != nil {
		return err
	}
	fmt.Fprintln(out, "building the images from their Dockerfiles")
	if err := productImages(ctx, d, root, out); err != nil {
		return err
	}
	built, err := binaries.Build(ctx, "test/cluster/cni", "test/cluster/app")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(built) }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return errors.Join(
		copyFile(self, d.bin("cluster"), 0o755),
		copyFile(filepath.Join(built, "cni"), d.bin("cni"), 0o755),
		writeImage(image{Name: AppImage, Program: filepath.Join(built, "app")}, d.Image("app")),
		writeImage(image{Name: PauseImage, Program: filepath.Join(built, "app"), Entrypoint: []string{"/app", "pause"}}, d.Image("pause")),
		keepalivedImage(ctx, d.Image("keepalived")),
	)
}

// WriteAppImage writes the image of the tests' application as an archive that `docker load` reads.
func WriteAppImage(ctx context.Context, path string) error {
	built, err := binaries.Build(ctx, "test/cluster/app")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(built) }()
	return writeImage(image{Name: AppImage, Program: filepath.Join(built, "app")}, path)
}

// linkTools puts the tools where the cluster's processes find them: they know no checkout.
func linkTools(d Dir) error {
	for _, name := range ToolNames() {
		path, err := plane.Binary(name)
		if errors.Is(err, tools.ErrNotBuilt) {
			return fmt.Errorf("%w; those of the cluster are built by make cluster-up and make e2e", err)
		}
		if err != nil {
			return err
		}
		if err := os.Symlink(path, d.bin(name)); err != nil {
			return err
		}
	}
	return nil
}

func awaitReady(ctx context.Context, d Dir, gone <-chan struct{}, out *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	told := 0
	for {
		text, err := os.ReadFile(d.path("log", "core.log"))
		if err == nil && len(text) > told {
			_, _ = out.Write(text[told:])
			told = len(text)
		}
		if _, err := os.Stat(d.ready()); err == nil {
			return nil
		}
		select {
		case <-gone:
			return errors.New("the cluster did not start")
		case <-ctx.Done():
			return fmt.Errorf("the cluster did not start: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// Running reports whether the cluster's supervisor lives.
func (d Dir) Running() bool {
	f, err := os.Open(d.lock())
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK) //nolint:gosec // a descriptor fits an int
}

// Supervise is the body of the process that lives outside of the cluster: it holds the port for kubectl, and tidies up.
func Supervise(d Dir) error {
	lock, err := os.OpenFile(d.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil { //nolint:gosec // a descriptor fits an int
		return fmt.Errorf("a cluster runs in %s already: %w", d, err)
	}
	if err := errors.Join(lock.Truncate(0), writeAll(lock, strconv.Itoa(os.Getpid()))); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	port, err := listen()
	if err != nil {
		return err
	}
	defer func() { _ = port.Close() }()
	// The kernel ends the cluster with this very thread, which lasts as long as the process: see package ns.
	cluster, err := startInit(initSpec{Hostname: "cluster", Run: []process{{
		Name: "core", Args: []string{d.bin("cluster"), "core"}, Log: d.path("log", "core.log"), Vital: true, Inherit: 1,
		Env: []string{"MIM_CLUSTER=" + string(d)},
	}}}, d.path("log", "init.log"), true, syscall.SIGKILL, port)
	if err != nil {
		return err
	}
	var ended error
	gone := make(chan struct{})
	go func() {
		ended = cluster.Wait()
		close(gone)
	}()
	select {
	case <-signals:
		err = cluster.Process.Kill()
		<-gone
	case <-gone:
		err = ended
	}
	return errors.Join(err, removeCgroups())
}

func writeAll(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// listen opens the port for kubectl on this machine's loopback.
func listen() (*os.File, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // at once
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }()
	return l.(*net.TCPListener).File()
}

// Down ends the cluster and removes all there is of it. It does nothing where there is none.
func Down(d Dir) error {
	if err := stopSupervisor(d); err != nil {
		return err
	}
	if _, err := os.Stat(string(d)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(removeCgroups(), os.RemoveAll(string(d)), os.RemoveAll(d.lock()))
}

func stopSupervisor(d Dir) error {
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for told := false; d.Running(); {
		text, err := os.ReadFile(d.lock())
		if err != nil {
			return err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err == nil && pid > 1 && !told {
			told = unix.Kill(pid, unix.SIGTERM) == nil // the lock says that it lives, so the id is its own
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the cluster's supervisor, process %d, does not end", pid)
		}
		<-tick.C
	}
	return nil
}
