package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// initSpec is what an init process starts: the first process of its own process, mount, IPC and host name namespaces. When it ends,
// however it ends, the kernel ends everything else in them.
type initSpec struct {
	Hostname string    `json:"hostname"`
	Binds    []bind    `json:"binds,omitempty"`
	Run      []process `json:"run"`
}

// bind shows a folder at another place.
type bind struct{ From, To string }

// process is a program that an init keeps running.
type process struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	Log  string   `json:"log"`
	// Vital processes are not started again: the init ends with them.
	Vital bool `json:"vital,omitempty"`
	// Inherit is how many further descriptors the process gets, from 3 on.
	Inherit int `json:"inherit,omitempty"`
}

// restartDelay is waited before a process that ended is started again.
const restartDelay = time.Second

// startInit starts this program as the init of new namespaces, and of a new network namespace where one is asked for; else it stays
// in that of the calling thread. The files become its descriptors from 3 on.
func startInit(spec initSpec, log string, network bool, dies syscall.Signal, files ...*os.File) (*exec.Cmd, error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	out, err := appendTo(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command("/proc/self/exe", "init", string(text)) //nolint:noctx // its owner ends it
	cmd.Args[0] = spec.Hostname
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS, Setsid: true, Pdeathsig: dies,
	}
	if network {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the init of %s: %w", spec.Hostname, err)
	}
	return cmd, nil
}

// Init is the body of an init process.
func Init(text string) error {
	var spec initSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := prepareInit(spec); err != nil {
		return fmt.Errorf("init of %s: %w", spec.Hostname, err)
	}
	running := map[int]process{}
	for _, p := range spec.Run {
		pid, err := p.start()
		if err != nil {
			return err
		}
		running[pid] = p
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		p, ours := running[pid]
		if !ours {
			continue // an orphan that ended
		}
		delete(running, pid)
		fmt.Fprintf(os.Stderr, "%s: %s ended: %s\n", time.Now().Format(time.TimeOnly), p.Name, describe(status))
		if p.Vital {
			return fmt.Errorf("%s ended", p.Name)
		}
		<-time.After(restartDelay)
		if pid, err = p.start(); err != nil {
			return err
		}
		running[pid] = p
	}
}

func describe(s unix.WaitStatus) string {
	if s.Signaled() {
		return "signal " + s.Signal().String()
	}
	return fmt.Sprintf("exit code %d", s.ExitStatus())
}

// start starts the process without anybody waiting for it but the init's own loop.
func (p process) start() (int, error) {
	log, err := appendTo(p.Log)
	if err != nil {
		return 0, err
	}
	defer func() { _ = log.Close() }()
	nothing, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer func() { _ = nothing.Close() }()
	files := []*os.File{nothing, log, log}
	for i := range p.Inherit {
		files = append(files, os.NewFile(uintptr(3+i), "inherited")) //nolint:gosec // a small number
	}
	started, err := os.StartProcess(p.Args[0], p.Args, &os.ProcAttr{Env: append(os.Environ(), p.Env...), Files: files, Dir: "/"})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", p.Name, err)
	}
	pid := started.Pid
	return pid, started.Release()
}

// prepareInit makes the mounts and the host name of the calling process's new namespaces.
func prepareInit(spec initSpec) error {
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := mountSys(); err != nil {
		return err
	}
	for _, b := range spec.Binds {
		if err := mkdirs(b.From); err != nil {
			return err
		}
		if err := unix.Mount(b.From, b.To, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", b.From, b.To, err)
		}
	}
	return nil
}

// mountSys lets /sys show the links of this network namespace. Control groups stay where they are.
func mountSys() error {
	fd, err := unix.Open(cgroupMount, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), cgroupMount, "", unix.MS_BIND|unix.MS_REC, "")
}

func appendTo(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644) //nolint:gosec // logs are for everybody
}
