package ns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// marker is the environment variable by which the program recognises that it is already the copy that runs inside. Its value
// names a network namespace, so that a variable left over from somewhere else is not believed.
const marker = "MIM_NETNS"

const (
	markerOutside = "outside:" // followed by the namespace the copy must have left
	markerInside  = "inside:"  // followed by the namespace the copy runs in
)

// Main runs the tests of m inside fresh network and mount namespaces and ends the process with their exit code; it is the
// whole body of a TestMain. See [Reexec] for what happens without root. Where namespaces are not allowed it prints what to
// change on the machine and exits with 1, because tests that silently did not run look like tests that passed.
func Main(m interface{ Run() int }) {
	if err := Reexec(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Reexec makes sure that the calling program runs in network and mount namespaces of its own, by running the program again
// inside them with the same arguments, files and environment. In the outer process it never returns: it passes signals on,
// waits, and exits as the inner process did. In the inner process it returns nil and lo is up. Call it first in main.
//
// As root only network and mount namespaces are made. Anyone else also gets a user namespace in which exactly one uid and
// gid, the caller's own, are mapped (to 0): more would need the setuid helpers newuidmap and newgidmap.
//
// The error says what to do where the kernel forbids this.
func Reexec() error {
	here, err := currentNetNS()
	if err != nil {
		return fmt.Errorf("network namespaces: %w", err)
	}
	value := os.Getenv(marker)
	if value == markerInside+here {
		return nil // a child of the inner process, for instance a fuzzing worker
	}
	if outside, ok := strings.CutPrefix(value, markerOutside); ok && outside != here {
		return enter(here)
	}
	return runInside(here)
}

// enter prepares the inner process.
func enter(here string) error {
	if err := os.Setenv(marker, markerInside+here); err != nil {
		return err
	}
	// Nothing mounted from here on may be seen by the rest of the machine.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return forbidden(fmt.Errorf("make mounts private: %w", err))
	}
	if err := linkUp("lo"); err != nil {
		return forbidden(fmt.Errorf("set lo up: %w", err))
	}
	remountSys()
	return nil
}

func linkUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// remountSys lets /sys/class/net show this namespace's links instead of the machine's. Nothing of ours reads it, programs
// that tests start might; kernels refuse it in some containers, so it is only tried. Control groups stay reachable.
func remountSys() {
	const cgroups = "/sys/fs/cgroup"
	fd, fdErr := unix.Open(cgroups, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err == nil && fdErr == nil {
		_ = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), cgroups, "", unix.MS_BIND|unix.MS_REC, "")
	}
	if fdErr == nil {
		_ = unix.Close(fd)
	}
}

// runInside starts the copy, waits for it and exits as it did; it returns only if the copy could not be started.
func runInside(here string) error {
	// The kernel sends Pdeathsig when the starting thread ends, not the process: keep this thread, for good.
	runtime.LockOSThread()

	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) // the program itself
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(withoutMarker(os.Environ()), marker+"="+markerOutside+here)
	cmd.SysProcAttr = insideAttr()

	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP)
	if err := cmd.Start(); err != nil {
		signal.Stop(signals)
		return forbidden(fmt.Errorf("start %s in new namespaces: %w", os.Args[0], err))
	}
	go passOn(signals, cmd.Process)
	err := cmd.Wait()
	os.Exit(exitCode(cmd.ProcessState, err))
	return nil
}

// insideAttr asks for the namespaces: with a user namespace unless this process may do without.
func insideAttr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL, // a killed test leaves nothing behind
	}
	if !capable(unix.CAP_SYS_ADMIN) || !capable(unix.CAP_NET_ADMIN) {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return attr
}

// passOn hands signals to the inner process. A terminal sends Ctrl-C to both already; handing it on as well would look like a
// second, impatient one.
func passOn(signals <-chan os.Signal, p *os.Process) {
	for s := range signals {
		if s != unix.SIGTERM && ownsTerminal() {
			continue
		}
		_ = p.Signal(s)
	}
}

// ownsTerminal reports whether this process is in the foreground of a terminal.
func ownsTerminal() bool {
	fd, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// exitCode is the inner process's exit code, or 128 plus the signal that ended it, as shells count.
func exitCode(state *os.ProcessState, err error) int {
	if state == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

// withoutMarker is env without our variable.
func withoutMarker(env []string) []string {
	out := make([]string, 0, len(env)+1)
	for _, e := range env {
		if !strings.HasPrefix(e, marker+"=") {
			out = append(out, e)
		}
	}
	return out
}

// currentNetNS identifies the calling thread's network namespace, for instance "net:[4026531840]".
func currentNetNS() (string, error) { return os.Readlink("/proc/thread-self/ns/net") }

// capable reports whether the calling thread has capability c in effect.
func capable(c int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}

// ErrForbidden is wrapped by errors that mean: this machine or container does not let this user make namespaces.
var ErrForbidden = errors.New("namespaces are not allowed here")

// forbidden explains err when it is the kernel's refusal.
func forbidden(err error) error {
	for _, refusal := range []error{unix.EPERM, unix.EACCES, unix.ENOSPC, unix.EINVAL, unix.ENOSYS, unix.EUSERS} {
		if errors.Is(err, refusal) {
			return fmt.Errorf("%w: %w%s", ErrForbidden, err, advice(os.ReadFile))
		}
	}
	return err
}

// knob is a sysctl that can forbid user namespaces: path, name, the value that allows them.
type knob struct{ path, name, want string }

var knobs = [...]knob{
	{"/proc/sys/user/max_user_namespaces", "user.max_user_namespaces", "15000"},
	{"/proc/sys/user/max_net_namespaces", "user.max_net_namespaces", "15000"},
	{"/proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone", "1"},
	{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "kernel.apparmor_restrict_unprivileged_userns", "0"},
}

// advice is what to do, with the sysctls that read shows to be in the way.
func advice(read func(string) ([]byte, error)) string {
	var b strings.Builder
	b.WriteString("\nRun it as root, or let ordinary users make user namespaces:")
	found := false
	for _, k := range knobs {
		raw, err := read(k.path)
		value := strings.TrimSpace(string(raw))
		bad := value == "0" && k.want != "0" || value != "0" && k.want == "0"
		if err != nil || !bad {
			continue
		}
		found = true
		fmt.Fprintf(&b, "\n  sudo sysctl -w %s=%s    (is %s)", k.name, k.want, value)
	}
	if !found {
		b.WriteString("\n  no sysctl is in the way here; in a container its seccomp profile usually is" +
			" (docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or --privileged)")
	}
	return b.String()
}
