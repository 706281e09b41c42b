package observe

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"multus-ip-manager.io/agent/observe"
	"multus-ip-manager.io/test/ns"
)

// The addresses of the pod: one that the tests use, and one that nothing but a wildcard reaches.
const (
	vip4, other4 = "10.0.4.80", "10.0.4.81"
	vip6, other6 = "2001:db8::80", "2001:db8::81"
)

// serving is a pod with two addresses of each family, and the far end of its link with one.
func serving(t *testing.T) (p, fabric *ns.Namespace) {
	t.Helper()
	p, fabric = pod(t)
	for _, a := range []string{vip4 + "/24", other4 + "/24", vip6 + "/64", other6 + "/64"} {
		must(t, p.AddAddr("net1", prefix(a), ns.NoDAD))
	}
	must(t, fabric.AddAddr("eni1", prefix("10.0.4.1/24")))
	must(t, fabric.AddAddr("eni1", prefix("2001:db8::1/64"), ns.NoDAD))
	must(t, p.Set(ns.Sysctl{Key: "net/ipv4/ping_group_range", Value: "0 0"}))
	return p, fabric
}

// used gives who uses each of the four addresses, "-" for nobody.
func used(t *testing.T, n *ns.Namespace) (users [4]string) {
	t.Helper()
	var asked []netip.Addr
	for _, a := range []string{vip4, other4, vip6, other6} {
		asked = append(asked, netip.MustParseAddr(a))
	}
	must(t, n.Do(func() error {
		got, err := observe.Namespace{}.InUse(context.Background(), asked)
		for i, a := range asked {
			users[i] = got[a]
			if users[i] == "" {
				users[i] = "-"
			}
		}
		return err
	}))
	return users
}

// fd is a socket made by system calls.
type fd int

func (f fd) Close() error { return unix.Close(int(f)) }

func open(family, kind, protocol int, bind unix.Sockaddr) func() (io.Closer, error) {
	return func() (io.Closer, error) {
		s, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return nil, os.NewSyscallError("socket", err)
		}
		if bind != nil {
			if err := unix.Bind(s, bind); err != nil {
				_ = unix.Close(s)
				return nil, os.NewSyscallError("bind", err)
			}
		}
		if kind == unix.SOCK_SEQPACKET || kind == unix.SOCK_STREAM {
			if err := unix.Listen(s, 1); err != nil {
				_ = unix.Close(s)
				return nil, os.NewSyscallError("listen", err)
			}
		}
		return fd(s), nil
	}
}

func in4(address string, port int) unix.Sockaddr {
	return &unix.SockaddrInet4{Addr: netip.MustParseAddr(address).As4(), Port: port}
}

func in6(address string, port int) unix.Sockaddr {
	return &unix.SockaddrInet6{Addr: netip.MustParseAddr(address).As16(), Port: port}
}

// Every kind of socket that can use an address is seen, under the kernel's own tables, and gone when it is closed.
func TestSocketsOfEveryKind(t *testing.T) {
	const (
		sctp    = unix.IPPROTO_SCTP
		udplite = unix.IPPROTO_UDPLITE
		mptcp   = unix.IPPROTO_MPTCP
		vrrp    = 112
	)
	tests := []struct {
		name string
		open func() (io.Closer, error)
		want [4]string // what is told of the four addresses begins so
	}{
		{"TCP on the address", open(unix.AF_INET, unix.SOCK_STREAM, 0, in4(vip4, 5060)), [4]string{"tcp 10.0.4.80:5060", "-", "-", "-"}},
		{"TCP on the wildcard", open(unix.AF_INET, unix.SOCK_STREAM, 0, in4("0.0.0.0", 5060)), [4]string{"tcp 0.0.0.0:5060", "tcp 0.0.0.0:5060", "-", "-"}},
		{"TCP on loopback", open(unix.AF_INET, unix.SOCK_STREAM, 0, in4("127.0.0.1", 5060)), [4]string{"-", "-", "-", "-"}},
		{"TCP on the IPv6 address", open(unix.AF_INET6, unix.SOCK_STREAM, 0, in6(vip6, 5060)), [4]string{"-", "-", "tcp6 [2001:db8::80]:5060", "-"}},
		{"TCP on the IPv6 wildcard", open(unix.AF_INET6, unix.SOCK_STREAM, 0, in6("::", 5060)), [4]string{"tcp6 [::]:5060", "tcp6 [::]:5060", "tcp6 [::]:5060", "tcp6 [::]:5060"}},
		{"TCP on the address, mapped", open(unix.AF_INET6, unix.SOCK_STREAM, 0, in6("::ffff:"+vip4, 5060)), [4]string{"tcp6 10.0.4.80:5060", "-", "-", "-"}},
		{"TCP on the IPv4 wildcard, mapped", open(unix.AF_INET6, unix.SOCK_STREAM, 0, in6("::ffff:0.0.0.0", 5060)), [4]string{"tcp6 0.0.0.0:5060", "tcp6 0.0.0.0:5060", "-", "-"}},
		{"MPTCP on the address", open(unix.AF_INET, unix.SOCK_STREAM, mptcp, in4(vip4, 5060)), [4]string{"tcp 10.0.4.80:5060", "-", "-", "-"}},
		{"UDP on the address", open(unix.AF_INET, unix.SOCK_DGRAM, 0, in4(vip4, 2152)), [4]string{"udp 10.0.4.80:2152", "-", "-", "-"}},
		{"UDP on the wildcard", open(unix.AF_INET, unix.SOCK_DGRAM, 0, in4("0.0.0.0", 2152)), [4]string{"udp 0.0.0.0:2152", "udp 0.0.0.0:2152", "-", "-"}},
		{"UDP on the IPv6 address", open(unix.AF_INET6, unix.SOCK_DGRAM, 0, in6(vip6, 2152)), [4]string{"-", "-", "udp6 [2001:db8::80]:2152", "-"}},
		{"UDP on the IPv6 wildcard", open(unix.AF_INET6, unix.SOCK_DGRAM, 0, in6("::", 2152)), [4]string{"udp6 [::]:2152", "udp6 [::]:2152", "udp6 [::]:2152", "udp6 [::]:2152"}},
		{"UDP-Lite on the address", open(unix.AF_INET, unix.SOCK_DGRAM, udplite, in4(vip4, 2152)), [4]string{"udplite 10.0.4.80:2152", "-", "-", "-"}},
		{"UDP-Lite on the IPv6 address", open(unix.AF_INET6, unix.SOCK_DGRAM, udplite, in6(vip6, 2152)), [4]string{"-", "-", "udplite6 [2001:db8::80]:2152", "-"}},
		{"SCTP on the address", open(unix.AF_INET, unix.SOCK_SEQPACKET, sctp, in4(vip4, 36412)), [4]string{"sctp 10.0.4.80:36412", "-", "-", "-"}},
		{"SCTP on the wildcard", open(unix.AF_INET, unix.SOCK_SEQPACKET, sctp, in4("0.0.0.0", 36412)), [4]string{"sctp 0.0.0.0:36412", "sctp 0.0.0.0:36412", "-", "-"}},
		{"SCTP on the IPv6 address", open(unix.AF_INET6, unix.SOCK_SEQPACKET, sctp, in6(vip6, 36412)), [4]string{"-", "-", "sctp [2001:db8::80]:36412", "-"}},
		{"ping from the address", open(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, in4(vip4, 7)), [4]string{"icmp 10.0.4.80:7", "-", "-", "-"}},
		{"ping from the IPv6 address", open(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, in6(vip6, 7)), [4]string{"-", "-", "icmp6 [2001:db8::80]:7", "-"}},
		{"raw", open(unix.AF_INET, unix.SOCK_RAW, vrrp, nil), [4]string{"raw socket", "raw socket", "raw socket", "raw socket"}},
		{"raw on another address", open(unix.AF_INET, unix.SOCK_RAW, vrrp, in4(other4, 0)), [4]string{"raw socket", "raw socket", "raw socket", "raw socket"}},
		{"raw of IPv6", open(unix.AF_INET6, unix.SOCK_RAW, vrrp, nil), [4]string{"raw socket", "raw socket", "raw socket", "raw socket"}},
		{"packet", open(unix.AF_PACKET, unix.SOCK_RAW, 0x0300, nil), [4]string{"packet socket", "packet socket", "packet socket", "packet socket"}},
		{"packet that hears nothing", open(unix.AF_PACKET, unix.SOCK_DGRAM, 0, nil), [4]string{"packet socket", "packet socket", "packet socket", "packet socket"}},
		{"AF_XDP", open(unix.AF_XDP, unix.SOCK_RAW, 0, nil), [4]string{"XDP socket", "XDP socket", "XDP socket", "XDP socket"}},
	}
	p, _ := serving(t)
	nobody := [4]string{"-", "-", "-", "-"}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if before := used(t, p); before != nobody {
				t.Fatalf("before: %q", before)
			}
			var s io.Closer
			err := p.Do(func() (err error) {
				s, err = tt.open()
				return err
			})
			for _, lacking := range []error{unix.EPROTONOSUPPORT, unix.ESOCKTNOSUPPORT, unix.EAFNOSUPPORT} {
				if errors.Is(err, lacking) {
					t.Skipf("this kernel has no such sockets: %v", err)
				}
			}
			must(t, err)
			got := used(t, p)
			must(t, s.Close())
			for i := range got {
				if !strings.HasPrefix(got[i], tt.want[i]) || tt.want[i] == "-" && got[i] != "-" {
					t.Errorf("in use: %q, want %q", got, tt.want)
					break
				}
			}
			waitFor(t, "the socket's end", func() bool { return used(t, p) == nobody })
		})
	}
}

// connect makes a connection from the pod's address to a server in the fabric, or from the fabric to a server in the pod.
func connect(t *testing.T, from *ns.Namespace, local string, to *ns.Namespace, listen, remote string, multipath bool) (near, far net.Conn, l net.Listener) {
	t.Helper()
	must(t, to.Do(func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(multipath)
		l, err = lc.Listen(t.Context(), "tcp", listen)
		return err
	}))
	must(t, from.Do(func() (err error) {
		d := net.Dialer{}
		d.SetMultipathTCP(multipath)
		if local != "" {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(local), 0))
		}
		near, err = d.DialContext(t.Context(), "tcp", remote)
		return err
	}))
	far, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { _ = near.Close(); _ = far.Close(); _ = l.Close() })
	return near, far, l
}

// state tells whether the pod's table has a TCP connection in a state.
func state(t *testing.T, n *ns.Namespace, wanted string) bool {
	t.Helper()
	found := false
	must(t, n.Do(func() error {
		for _, table := range []string{"tcp", "tcp6"} {
			raw, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(raw)) {
				if f := strings.Fields(line); len(f) > 3 && f[3] == wanted {
					found = true
				}
			}
		}
		return nil
	}))
	return found
}

// A connection counts as long as a process holds its end, and no longer.
func TestConnections(t *testing.T) {
	nobody := [4]string{"-", "-", "-", "-"}
	for name, tt := range map[string]struct {
		local, remote string
		multipath     bool
		index         int
	}{
		"TCP":           {vip4, "10.0.4.1:80", false, 0},
		"TCP over IPv6": {vip6, "[2001:db8::1]:80", false, 2},
		"MPTCP":         {vip4, "10.0.4.1:80", true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p, fabric := serving(t)
			near, far, _ := connect(t, p, tt.local, fabric, tt.remote, tt.remote, tt.multipath)
			if multi, _ := near.(*net.TCPConn).MultipathTCP(); multi != tt.multipath {
				t.Skip("this kernel has no MPTCP")
			}
			users := used(t, p)
			if !strings.HasPrefix(users[tt.index], "tcp") || strings.Count(strings.Join(users[:], " "), "-") != 3 {
				t.Fatalf("connected: %q", users)
			}
			must(t, near.Close())
			if !tt.multipath { // MPTCP keeps its subflow open, and without a process, until the peer has closed too
				waitFor(t, "FIN_WAIT2", func() bool { return state(t, p, "05") })
				if users := used(t, p); users != nobody {
					t.Errorf("closed, and the other end is not: %q", users)
				}
			}
			must(t, far.Close())
			waitFor(t, "TIME_WAIT and nobody", func() bool { return state(t, p, "06") && used(t, p) == nobody })
		})
	}
}

// A server behind a wildcard of both families: its connections are IPv4's too, also when it does not listen any more.
func TestAcceptedConnections(t *testing.T) {
	p, fabric := serving(t)
	near, far, l := connect(t, fabric, "", p, "[::]:80", vip4+":80", false)
	must(t, l.Close())
	if users := used(t, p); users != [4]string{"tcp6 10.0.4.80:80", "-", "-", "-"} {
		t.Errorf("accepted: %q", users)
	}
	must(t, near.Close())
	waitFor(t, "CLOSE_WAIT", func() bool { return state(t, p, "08") })
	if users := used(t, p); users != [4]string{"tcp6 10.0.4.80:80", "-", "-", "-"} {
		t.Errorf("the peer has closed, the server has not: %q", users)
	}
	must(t, far.Close())
	waitFor(t, "nobody", func() bool { return used(t, p) == [4]string{"-", "-", "-", "-"} })
}

// An agent in a pod sees the sockets of other users' processes without any privilege.
func TestSocketsUnprivileged(t *testing.T) {
	p, _ := serving(t)
	self, err := os.Executable()
	must(t, err)
	ask := func() string {
		c := p.Command(t.Context(), ns.Opts{Unprivileged: true, Env: append(os.Environ(), inUseCommand+"="+vip4), Stderr: os.Stderr}, self)
		out, err := c.Output()
		must(t, err)
		return string(out)
	}
	if got := ask(); got != "" {
		t.Errorf("in use by %q, want nobody", got)
	}
	l, err := p.Listen(t.Context(), "tcp4", vip4+":80")
	must(t, err)
	defer l.Close()
	if got := ask(); got != "tcp 10.0.4.80:80" {
		t.Errorf("in use by %q, want the server", got)
	}
}
