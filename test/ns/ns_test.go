package ns

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// helper is the environment variable by which these tests run their own binary as a command; see helpers.
const helper = "NS_TEST_HELPER"

var helpers = map[string]func() int{
	"status": func() int { return copyFile("/proc/self/status") },
	"id": func() int {
		fmt.Println(os.Getuid(), os.Getgid())
		return 0
	},
	"links": func() int {
		for _, l := range made() {
			fmt.Println(l.Name)
		}
		return 0
	},
	"cat":  func() int { return copyFile(os.Args[1]) },
	"exit": func() int { return 7 },
	"forever": func() int {
		fmt.Println("running")
		return forever()
	},
	"write": func() int {
		if err := os.WriteFile(os.Args[1], []byte("told"), 0o600); err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	},
	"addaddr": func() int { // needs CAP_NET_ADMIN
		n := &Namespace{name: "own"}
		fd, _ := os.Open("/proc/self/ns/net")
		n.file = fd
		err := n.Set(Sysctl{"net/ipv4/ip_forward", "1"})
		fmt.Println(err)
		if err != nil {
			return 1
		}
		return 0
	},
	"starter": func() int {
		n, err := New("n")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		c := helperCommand(n, Opts{Unprivileged: true}, "forever")
		if err := c.Start(); err != nil {
			fmt.Println(err)
			return 1
		}
		runtime.GC() // idle threads may go; the one that holds the command must not
		fmt.Println(c.Pid())
		return exitCode(c.State(), c.Wait())
	},
	"limited": func() int {
		if err := os.WriteFile("/proc/sys/user/max_net_namespaces", []byte("0"), 0); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(Reexec())
		return 1
	},
	"reexec": func() int {
		if err := Reexec(); err != nil {
			fmt.Println(err)
			return 1
		}
		names := made()
		fmt.Println(os.Getuid(), len(names), names[0].Name, names[0].Flags&net.FlagUp != 0)
		if len(os.Args) > 1 && os.Args[1] == "hang" {
			fmt.Println(os.Getpid())
			return forever()
		}
		return 3
	},
}

// forever waits for a signal that nobody sends: an empty select would be found out as a deadlock.
func forever() int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1)
	<-signals
	return 1
}

func copyFile(path string) int {
	raw, err := os.ReadFile(path)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Print(string(raw))
	return 0
}

func TestMain(m *testing.M) {
	if f := helpers[os.Getenv(helper)]; f != nil {
		os.Exit(f())
	}
	Main(m)
}

func newNS(t *testing.T, name string) *Namespace {
	t.Helper()
	n, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

// pair is two namespaces joined by a veth with an IPv4 and an IPv6 subnet on it.
func pair(t *testing.T) (a, b *Namespace) {
	t.Helper()
	a, b = newNS(t, "a"), newNS(t, "b")
	must(t, Veth(a, "toB", b, "toA", VethOpts{}))
	for _, x := range []struct {
		n    *Namespace
		link string
		host string
	}{{a, "toB", "1"}, {b, "toA", "2"}} {
		must(t, x.n.AddAddr(x.link, prefix("192.0.2."+x.host+"/24")))
		must(t, x.n.AddAddr(x.link, prefix("2001:db8::"+x.host+"/64"), NoDAD))
	}
	return a, b
}

// made lists the links that somebody made: a kernel with tunnel drivers loaded puts links of its own into every new namespace.
func made() []net.Interface {
	links, _ := net.Interfaces()
	return slices.DeleteFunc(links, func(l net.Interface) bool {
		return slices.Contains([]string{"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}, l.Name)
	})
}

func helperCommand(n *Namespace, o Opts, name string, args ...string) *Cmd {
	o.Env = append(os.Environ(), helper+"="+name)
	return n.Command(context.Background(), o, "/proc/self/exe", args...)
}

func TestReexecLeavesTheMachinesNetworkAlone(t *testing.T) {
	links := made()
	if len(links) != 1 || links[0].Name != "lo" || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("links inside are %v, want lo alone, up", links)
	}
	outside, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", os.Getppid()))
	inside, _ := currentNetNS()
	if err == nil && outside == inside {
		t.Errorf("the tests run in the namespace of their parent process, %s", inside)
	}
}

// runAsNobody runs a helper outside any namespace of ours as an ordinary user; it needs a process that can become one.
func runAsNobody(t *testing.T, o func(*exec.Cmd), name string, args ...string) (string, error) {
	t.Helper()
	if id, err := unprivilegedID(); err != nil || id == 0 {
		t.Skip("needs root: with one mapped uid there is no ordinary user to become")
	}
	exe, err := os.Open("/proc/self/exe")
	must(t, err)
	defer func() { _ = exe.Close() }()
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", exe.Fd()), args...)
	cmd.Env = append(withoutMarker(os.Environ()), helper+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: UnprivilegedID, Gid: UnprivilegedID}}
	if o != nil {
		o(cmd)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestReexecAsAnOrdinaryUserMapsOneUIDAndPassesTheExitCode(t *testing.T) {
	out, err := runAsNobody(t, nil, "reexec")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || out != "0 1 lo true\n" {
		t.Errorf("got %q, %v; want uid 0 with lo alone and up, and exit code 3", out, err)
	}
}

func TestReexecSaysWhatToDoWhereItIsForbidden(t *testing.T) {
	// The limit belongs to a user namespace: the helper lowers it in one of its own.
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(withoutMarker(os.Environ()), helper+"=limited")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), ErrForbidden.Error()) || !strings.Contains(string(out), "sysctl -w user.max_net_namespaces=") {
		t.Errorf("got %q, %v; want the sysctl to change", out, err)
	}
}

func TestAdviceNamesTheSysctlInTheWay(t *testing.T) {
	for _, test := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"user namespaces limited to none", map[string]string{"/proc/sys/user/max_user_namespaces": "0\n"}, "sysctl -w user.max_user_namespaces=15000"},
		{"Debian's switch", map[string]string{"/proc/sys/kernel/unprivileged_userns_clone": "0\n"}, "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"Ubuntu's AppArmor", map[string]string{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{"nothing", map[string]string{"/proc/sys/user/max_user_namespaces": "96365\n"}, "seccomp"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := advice(func(path string) ([]byte, error) {
				if v, ok := test.files[path]; ok {
					return []byte(v), nil
				}
				return nil, os.ErrNotExist
			})
			if !strings.Contains(got, test.want) {
				t.Errorf("advice is %q, want it to contain %q", got, test.want)
			}
			if err := forbidden(fmt.Errorf("x: %w", unix.EPERM)); !errors.Is(err, ErrForbidden) || !errors.Is(err, unix.EPERM) {
				t.Errorf("error %v does not wrap both causes", err)
			}
		})
	}
}

func TestKilledProgramLeavesNoProcessBehind(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "hang")
	cmd.Env = append(withoutMarker(os.Environ()), helper+"=reexec")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	var pid int
	for pid == 0 && lines.Scan() {
		pid, _ = strconv.Atoi(lines.Text())
	}
	fd, err := unix.PidfdOpen(pid, 0)
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	must(t, cmd.Process.Kill())
	waitReadable(t, fd, "the inner process to end with the outer one")
	_ = cmd.Wait()
}

// waitReadable waits until a pidfd says that its process ended.
func waitReadable(t *testing.T, fd int, what string) {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 {
			t.Fatalf("waited 10 s for %s: %v", what, err)
		}
		return
	}
}

func TestDo(t *testing.T) {
	n := newNS(t, "n")
	var inside string
	must(t, n.Do(func() error {
		var err error
		inside, err = currentNetNS()
		return err
	}))
	outside, err := currentNetNS()
	must(t, err)
	if inside == outside {
		t.Error("Do ran outside the namespace")
	}
	if err := n.Do(func() error { return io.EOF }); !errors.Is(err, io.EOF) {
		t.Errorf("Do gave %v, want the function's error", err)
	}
	defer func() {
		if got := recover(); got != "boom" {
			t.Errorf("recovered %v, want the function's panic", got)
		}
	}()
	_ = n.Do(func() error { panic("boom") })
}

func TestPing(t *testing.T) {
	a, _ := pair(t)
	for _, test := range []struct {
		name    string
		dst     string
		timeout time.Duration
		opts    []PingOption
		want    error
	}{
		{"IPv4", "192.0.2.2", 5 * time.Second, nil, nil},
		{"IPv6", "2001:db8::2", 5 * time.Second, nil, nil},
		{"own address", "192.0.2.1", 5 * time.Second, nil, nil},
		{"from an address by a link", "2001:db8::2", 5 * time.Second, []PingOption{From(addr("2001:db8::1")), Via("toB")}, nil},
		{"IPv4 from an address by a link", "192.0.2.2", 5 * time.Second, []PingOption{From(addr("192.0.2.1")), Via("toB"), TTL(1)}, nil},
		{"nobody there", "192.0.2.9", 150 * time.Millisecond, nil, ErrNoAnswer},
		{"no route", "198.51.100.1", 150 * time.Millisecond, nil, unix.ENETUNREACH},
		{"by the wrong link", "192.0.2.2", 150 * time.Millisecond, []PingOption{Via("lo")}, ErrNoAnswer},
		{"from a foreign address", "192.0.2.2", time.Second, []PingOption{From(addr("192.0.2.77"))}, unix.EADDRNOTAVAIL},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := a.Ping(t.Context(), addr(test.dst), test.timeout, test.opts...); !errors.Is(err, test.want) {
				t.Errorf("Ping gave %v, want %v", err, test.want)
			}
		})
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Ping(cancelled, addr("192.0.2.9"), time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Ping gave %v", err)
	}
}

func TestRequestsCarryAValidChecksum(t *testing.T) {
	p := &ping{dst: addr("192.0.2.1"), token: 0xfedcba9876543210}
	b := p.request(0xffff)
	if sum := checksum(b); sum != 0 {
		t.Errorf("the checksum over a request with its checksum is %#x, want 0", sum)
	}
	b[0] = echoReply4
	if !p.isReply(net.ParseIP("192.0.2.1"), b) {
		t.Error("own reply not recognised")
	}
	for name, ok := range map[string]bool{
		"other host":  p.isReply(net.ParseIP("192.0.2.2"), b),
		"short":       p.isReply(net.ParseIP("192.0.2.1"), b[:12]),
		"other token": (&ping{dst: p.dst, token: 1}).isReply(net.ParseIP("192.0.2.1"), b),
	} {
		if ok {
			t.Errorf("%s: taken for a reply", name)
		}
	}
}

func TestListenAndDial(t *testing.T) {
	a, b := pair(t)
	for _, address := range []string{"192.0.2.2:80", "[2001:db8::2]:80"} {
		l, err := b.Listen(t.Context(), "tcp", address)
		must(t, err)
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, c.RemoteAddr().String())
			_ = c.Close()
		}()
		c, err := a.Dial(t.Context(), "tcp", address)
		must(t, err)
		got, err := io.ReadAll(c)
		must(t, err)
		if string(got) != c.LocalAddr().String() {
			t.Errorf("the listener saw %s, the dialler is %s", got, c.LocalAddr())
		}
		_ = c.Close()
		_ = l.Close()
	}
	if _, err := a.Dial(t.Context(), "tcp", "localhost:80"); err == nil || !strings.Contains(err.Error(), "literal") {
		t.Errorf("Dial of a name gave %v", err)
	}
}

func TestLinks(t *testing.T) {
	a, b := newNS(t, "a"), newNS(t, "b")
	mac, _ := net.ParseMAC("06:00:00:00:00:01")
	other, _ := net.ParseMAC("06:00:00:00:00:02")
	must(t, Veth(a, "net1", b, "peer", VethOpts{MACA: mac, MTU: 9001}))
	if got, err := a.MAC("net1"); err != nil || got.String() != mac.String() {
		t.Errorf("MAC is %v, %v", got, err)
	}
	must(t, a.SetMAC("net1", other))
	if got, _ := a.MAC("net1"); got.String() != other.String() {
		t.Errorf("MAC is %v after SetMAC", got)
	}
	must(t, a.AddAddr("net1", prefix("10.0.1.5/24")))
	must(t, a.AddAddr("net1", prefix("10.0.1.9/32")))
	if err := a.AddAddr("net1", prefix("10.0.1.9/32")); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second AddAddr gave %v, want EEXIST", err)
	}
	must(t, a.DelAddr("net1", prefix("10.0.1.5/24")))
	got, err := a.Addrs("net1")
	must(t, err)
	if len(got) == 0 || got[0] != prefix("10.0.1.9/32") {
		t.Errorf("addresses are %v", got)
	}
	must(t, a.Down("net1"))
	must(t, a.Rename("net1", "net7"))
	must(t, a.DelLink("net7"))
	if _, err := b.Index("peer"); err == nil {
		t.Error("the other end survived DelLink")
	}
}

func TestRulesAndRoutes(t *testing.T) {
	a, b := pair(t)
	must(t, b.AddAddr("toA", prefix("198.51.100.1/32"), NoPrefixRoute))
	dst := addr("198.51.100.1")
	must(t, a.AddRoute(Route{Dst: Single(dst), Via: addr("192.0.2.2"), Link: "toB", Table: 77, Src: addr("192.0.2.1")}))
	if err := a.Ping(t.Context(), dst, 100*time.Millisecond); !errors.Is(err, unix.ENETUNREACH) {
		t.Fatalf("table 77 counts without a rule: %v", err)
	}
	rule := Rule{Priority: 10, To: Single(dst), Table: 77}
	must(t, a.AddRule(rule))
	must(t, a.Ping(t.Context(), dst, 5*time.Second))
	drop := Rule{Priority: 5, To: Single(dst), Blackhole: true}
	must(t, a.AddRule(drop))
	if err := a.Ping(t.Context(), dst, 100*time.Millisecond); !errors.Is(err, ErrNoAnswer) {
		t.Fatalf("ping in spite of the blackhole rule: %v", err)
	}
	must(t, a.AddRule(Rule{Priority: 4, To: Single(dst), Goto: 10}))
	must(t, a.Ping(t.Context(), dst, 5*time.Second))
	// A next hop that no address of the link's covers, known for good.
	must(t, b.Set(Sysctl{"net/ipv4/conf/toA/arp_ignore", "8"}))
	mac, err := b.MAC("toA")
	must(t, err)
	must(t, a.AddNeigh("toB", addr("169.254.1.1"), mac))
	must(t, a.ReplaceRoute(Route{Dst: Single(dst), Via: addr("169.254.1.1"), Link: "toB", Table: 77}))
	must(t, a.Ping(t.Context(), dst, 5*time.Second))
	must(t, a.DelRule(Rule{Priority: 4, To: Single(dst), Goto: 10}))
	must(t, a.DelRule(drop))
	must(t, a.ReplaceRoute(Route{Dst: Single(dst), Blackhole: true, Table: 77}))
	if err := a.Ping(t.Context(), dst, 100*time.Millisecond); !errors.Is(err, ErrNoAnswer) {
		t.Fatalf("ping in spite of the blackhole route: %v", err)
	}
	must(t, a.DelRule(rule))
}

func TestSysctl(t *testing.T) {
	n := newNS(t, "n")
	must(t, n.Set(Sysctl{"net.ipv4.ip_forward", "1"}, Sysctl{"net/ipv6/conf/all/forwarding", "1"}))
	if got, err := n.Get("net/ipv4/ip_forward"); err != nil || got != "1" {
		t.Errorf("ip_forward is %q, %v", got, err)
	}
	if raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err != nil || strings.TrimSpace(string(raw)) != "0" {
		t.Errorf("the setting leaked out of the namespace: %q, %v", raw, err)
	}
	if err := n.Set(Sysctl{"net/ipv4/no_such", "1"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unknown key gave %v", err)
	}
}

func TestCommandRunsInTheNamespace(t *testing.T) {
	a, _ := pair(t)
	out, err := helperCommand(a, Opts{}, "links").Output()
	if err != nil || string(out) != "lo\ntoB\n" {
		t.Errorf("the command saw links %q, %v", out, err)
	}
	var exit *exec.ExitError
	if err := helperCommand(a, Opts{}, "exit").Run(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exit code lost: %v", err)
	}
	if err := a.Command(t.Context(), Opts{}, "/no/such/program").Run(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing program gave %v", err)
	}
}

func TestUnprivilegedCommandHasNothing(t *testing.T) {
	n := newNS(t, "n")
	out, err := helperCommand(n, Opts{Unprivileged: true}, "status").Output()
	must(t, err)
	fields := map[string]string{}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(line, ":")
		fields[key] = strings.TrimSpace(value)
	}
	for key, want := range map[string]string{
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1",
	} {
		if fields[key] != want {
			t.Errorf("%s is %s, want %s", key, fields[key], want)
		}
	}
	id, err := unprivilegedID()
	must(t, err)
	out, err = helperCommand(n, Opts{Unprivileged: true}, "id").Output()
	if want := fmt.Sprintf("%d %d\n", id, id); err != nil || string(out) != want {
		t.Errorf("the command ran as %q, %v; want %q", out, err, want)
	}
	if out, err := helperCommand(n, Opts{Unprivileged: true}, "addaddr").Output(); err == nil {
		t.Errorf("an unprivileged command could change the namespace: %s", out)
	}
	if out, err := helperCommand(n, Opts{}, "addaddr").Output(); err != nil {
		t.Errorf("a privileged command could not change the namespace: %s", out)
	}
	if !capable(unix.CAP_NET_ADMIN) {
		t.Error("the test lost its own capabilities")
	}
}

func TestUnprivilegedCommandMayLieWhereItsUserCannotGo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "private")
	must(t, os.Mkdir(dir, 0o700))
	exe, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	path := filepath.Join(dir, "program")
	must(t, os.WriteFile(path, exe, 0o755))
	if reachable(path) {
		t.Error("a directory of mode 0700 is taken for passable")
	}
	n := newNS(t, "n")
	c := n.Command(t.Context(), Opts{Unprivileged: true, Env: []string{helper + "=exit"}}, path)
	var exit *exec.ExitError
	if err := c.Run(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("got %v, want exit code 7", err)
	}
}

func TestMountsAreTheCommandsOwn(t *testing.T) {
	n := newNS(t, "n")
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	resolv, message := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "message")
	must(t, os.WriteFile(resolv, []byte("nameserver 192.0.2.53\n"), 0o644))
	must(t, os.Chmod(resolv, 0o666)) // only the mount forbids writing
	must(t, os.WriteFile(message, nil, 0o644))
	must(t, os.Chmod(message, 0o666))
	opts := Opts{Unprivileged: true, Mounts: []Mount{
		{Source: resolv, Target: "/etc/resolv.conf", ReadOnly: true},
		{Source: message, Target: "/dev/termination-log"},
	}}
	if out, err := helperCommand(n, opts, "cat", "/etc/resolv.conf").Output(); err != nil || string(out) != "nameserver 192.0.2.53\n" {
		t.Errorf("resolv.conf is %q, %v", out, err)
	}
	if out, err := helperCommand(n, opts, "write", "/dev/termination-log").Output(); err != nil {
		t.Errorf("write the termination message: %s%v", out, err)
	}
	if got, err := os.ReadFile(message); err != nil || string(got) != "told" {
		t.Errorf("the message is %q, %v", got, err)
	}
	if out, err := helperCommand(n, opts, "write", "/etc/resolv.conf").Output(); err == nil {
		t.Errorf("a read-only mount was written: %s", out)
	}
	if out, err := helperCommand(n, opts, "cat", "/dev/null").Output(); err != nil || len(out) != 0 {
		t.Errorf("/dev lost its entries: %s%v", out, err)
	}
	if _, err := os.Stat("/dev/termination-log"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the new target is seen outside the command: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	if bytes.Contains(mounts, []byte("termination-log")) {
		t.Error("a command's mount leaked")
	}
}

func TestCommandEndsWithItsContext(t *testing.T) {
	n := newNS(t, "n")
	ctx, cancel := context.WithCancel(t.Context())
	c := n.Command(ctx, Opts{Env: []string{helper + "=forever"}}, "/proc/self/exe")
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	_, err = bufio.NewReader(out).ReadString('\n')
	must(t, err)
	cancel()
	err = c.Wait()
	if status, ok := c.State().Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Errorf("the command ended with %v, want killed", err)
	}
}

func TestUplink(t *testing.T) {
	own := addr("192.0.2.10")
	nowhere, err := Uplink("up0", prefix("192.0.2.10/24"))
	must(t, err)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "udp", "198.51.100.1:53") // sends nothing, asks for the route
	must(t, err)
	if got := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr(); got != own {
		t.Errorf("the default route's own address is %s, want %s", got, own)
	}
	_ = conn.Close()
	current, err := Current()
	must(t, err)
	defer func() { _ = current.Close() }()
	must(t, current.Ping(t.Context(), own, 5*time.Second))
	must(t, current.DelLink("up0"))
	must(t, nowhere.Close())
}

func TestKilledStarterTakesItsCommandsAlong(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helper+"=starter")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	must(t, err)
	fd, err := unix.PidfdOpen(pid, 0)
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	waitReadable(t, fd, "the command to end with the process that started it")
}

func TestTheMainThreadStays(t *testing.T) {
	before := strings.TrimPrefix(os.Getenv(marker), markerInside)
	n := newNS(t, "n")
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() { _ = n.Do(func() error { return nil }) })
	}
	group.Wait()
	if after, _ := os.Readlink("/proc/self/ns/net"); after != before {
		t.Errorf("the main thread moved from %s to %s", before, after)
	}
}

func TestManyNamespacesAreQuick(t *testing.T) {
	start := time.Now()
	for i := range 20 {
		newNS(t, fmt.Sprint(i))
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("20 namespaces took %s", took)
	}
	t.Logf("20 namespaces took %s", time.Since(start))
}
