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
	ports, err := Ports(IP(), n)
	if err != nil {
		tb.Fatal(err)
	}
	var found []netip.AddrPort
	for _, port := range ports {
		found = append(found, netip.AddrPortFrom(IP(), uint16(port))) //nolint:gosec // a port
	}
	return found
}

// Ports returns n ports that are free at an address.
func Ports(at netip.Addr, n int) ([]int, error) {
	var found []int
	var open []net.Listener // until all are found, or one might be found twice
	defer func() {
		for _, l := range open {
			_ = l.Close()
		}
	}()
	for range n {
		l, err := net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		open = append(open, l)
		found = append(found, l.Addr().(*net.TCPAddr).Port)
	}
	return found, nil
}
