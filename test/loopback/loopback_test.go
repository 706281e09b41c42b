package loopback

import (
	"net"
	"net/netip"
	"testing"
)

func TestAddresses(t *testing.T) {
	seen := map[netip.AddrPort]bool{}
	for _, address := range Addresses(t, 3) {
		if seen[address] || address.Addr() != IP() || !IP().IsLoopback() || IP() == netip.MustParseAddr("127.0.0.1") {
			t.Errorf("%s among %v, of %s", address, seen, IP())
		}
		seen[address] = true
		l, err := net.Listen("tcp", address.String())
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
