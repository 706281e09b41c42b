package observe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSwallowed(t *testing.T) {
	tests := map[string]struct {
		err  error
		want bool
	}{
		"dial timeout":        {&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, true},
		"context deadline":    {fmt.Errorf("dial: %w", context.DeadlineExceeded), true},
		"host unreachable":    {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", unix.EHOSTUNREACH)}, true},
		"network unreachable": {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", unix.ENETUNREACH)}, true},
		"lookup timeout":      {&net.DNSError{Err: "i/o timeout", IsTimeout: true}, true},
		"refused":             {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", unix.ECONNREFUSED)}, false},
		"no such host":        {&net.DNSError{Err: "no such host", IsNotFound: true}, false},
		"canceled":            {context.Canceled, false},
	}
	for name, tt := range tests {
		if got := swallowed(tt.err); got != tt.want {
			t.Errorf("%s: %t, want %t", name, got, tt.want)
		}
	}
}

// loopback finds the index of lo, whatever the machine calls it.
func loopback(t *testing.T) int {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Flags&net.FlagLoopback != 0 {
			return l.Index
		}
	}
	t.Fatal("this machine has no loopback interface")
	return 0
}

func TestGuardAsksTheKernelForTheWayOut(t *testing.T) {
	g := &Guard{}
	if _, managed := g.leadsOutBy("127.0.0.1:80"); managed {
		t.Error("nothing is managed yet")
	}
	g.Manage(map[int]string{loopback(t): "net1"})
	if name, managed := g.leadsOutBy("127.0.0.1:80"); !managed || name != "net1" {
		t.Errorf("127.0.0.1 leads out by %q (managed %t), want net1", name, managed)
	}
	for _, bad := range []string{"", "127.0.0.1", "host:80", "[fe80::1%lo]:80"} {
		if _, managed := g.leadsOutBy(bad); managed {
			t.Errorf("%q counts as managed", bad)
		}
	}
}

// A connection over a managed interface is tried all the same, and its success takes back an earlier verdict. A refusal is an
// answer, so the route works.
func TestGuardDial(t *testing.T) {
	g := &Guard{}
	g.Manage(map[int]string{loopback(t): "net1"})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.blocked.Store(&RouteError{Endpoint: "x", Interface: "net1", Err: errors.New("earlier")})
	c, err := g.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if b := g.Blocked(); b != nil {
		t.Errorf("still blocked after a success: %v", b)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.DialContext(t.Context(), "tcp", address); err == nil {
		t.Error("connected to a closed port")
	}
	if b := g.Blocked(); b != nil {
		t.Errorf("a refused connection counts as swallowed: %v", b)
	}
}

func TestRouteErrorSaysWhatToDo(t *testing.T) {
	cause := errors.New("i/o timeout")
	err := &RouteError{Endpoint: netip.MustParseAddrPort("169.254.169.254:80").String(), Interface: "net1", Err: cause}
	for _, w := range []string{"169.254.169.254:80", "net1", "default-route", "i/o timeout"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	if !errors.Is(err, cause) {
		t.Error("the cause is lost")
	}
}
