package ns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Current is a handle of the network namespace this process runs in, for instance to join it to others with [Veth]. Closing the
// handle does not end the namespace.
func Current() (*Namespace, error) {
	file, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("namespace current: open: %w", err)
	}
	return FromFile("current", file)
}

// FromFile is a handle of a network namespace that somebody else made, such as a container runtime. It owns the file from here on,
// also after an error; closing the handle does not end the namespace.
func FromFile(name string, file *os.File) (*Namespace, error) {
	n := &Namespace{name: name, file: file}
	err := n.Do(func() error {
		var err error
		n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return n.wrap("open", err)
	})
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Uplink gives the namespace this process runs in a link with the address p and a default route, which lead nowhere. Programs
// that look for the machine's own address want both, kube-apiserver for one: lo is not enough for it. The link is gone when the
// namespace returned, its other end, has been closed.
func Uplink(link string, p netip.Prefix) (*Namespace, error) {
	own, err := Current()
	if err != nil {
		return nil, err
	}
	defer func() { _ = own.Close() }()
	nowhere, err := New("uplink")
	if err != nil {
		return nil, err
	}
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	via := netip.AddrFrom4([4]byte{169, 254, 1, 1})
	if p.Addr().Is6() {
		all, via = netip.PrefixFrom(netip.IPv6Unspecified(), 0), netip.MustParseAddr("fe80::1")
	}
	err = Veth(own, link, nowhere, "uplink", VethOpts{})
	if err == nil {
		err = own.AddAddr(link, p, NoDAD)
	}
	if err == nil {
		err = own.AddRoute(Route{Dst: all, Via: via, Link: link})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("uplink %s: %w", link, err), nowhere.Close())
	}
	return nowhere, nil
}
