package loopback

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
)

// IP is this process's own address. Linux has all of 127.0.0.0/8 on its loopback interface, and no two processes have the same id.
func IP() netip.Addr {
	id := os.Getpid()
	return netip.AddrFrom4([4]byte{127, byte(64 + id>>16&63), byte(id >> 8), byte(id)})
}

// Addresses returns n addresses at [IP] with ports that are free.
func Addresses(tb testing.TB, n int) []netip.AddrPort {
	tb.Helper()
	var found []netip.AddrPort
	var open []net.Listener // until all are found, or one might be found twice
	defer func() {
		for _, l := range open {
			_ = l.Close()
		}
	}()
	for range n {
		l, err := net.Listen("tcp", netip.AddrPortFrom(IP(), 0).String())
		if err != nil {
			tb.Fatal(fmt.Errorf("find a free port: %w", err))
		}
		open = append(open, l)
		found = append(found, l.Addr().(*net.TCPAddr).AddrPort())
	}
	return found
}
