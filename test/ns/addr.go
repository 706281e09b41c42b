package ns

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddrFlag changes how an address is added; flags can be or-ed.
type AddrFlag int

const (
	// NoDAD makes an IPv6 address usable at once, without duplicate address detection (about a second).
	NoDAD AddrFlag = unix.IFA_F_NODAD
	// NoPrefixRoute adds the address without a route to its prefix.
	NoPrefixRoute AddrFlag = unix.IFA_F_NOPREFIXROUTE
)

// AddAddr adds an address with its prefix length (10.0.1.5/24, 10.0.1.9/32) to a link. The error is EEXIST when the link has it.
func (n *Namespace) AddAddr(link string, p netip.Prefix, flags ...AddrFlag) error {
	l, err := n.link(link)
	if err != nil {
		return err
	}
	return n.AddAddrTo(l, p, flags...)
}

// AddAddrTo is AddAddr for a link that was looked up before: one system call less, for whoever adds many.
func (n *Namespace) AddAddrTo(l netlink.Link, p netip.Prefix, flags ...AddrFlag) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	for _, f := range flags {
		a.Flags |= int(f)
	}
	return n.wrap("add "+p.String()+" to "+l.Attrs().Name, n.nl.AddrAdd(l, a))
}

// DelAddr removes an address; the prefix length must be the one it was added with.
func (n *Namespace) DelAddr(link string, p netip.Prefix) error {
	l, err := n.link(link)
	if err != nil {
		return err
	}
	return n.DelAddrFrom(l, p)
}

// DelAddrFrom is DelAddr for a link that was looked up before.
func (n *Namespace) DelAddrFrom(l netlink.Link, p netip.Prefix) error {
	return n.wrap("remove "+p.String()+" from "+l.Attrs().Name, n.nl.AddrDel(l, &netlink.Addr{IPNet: ipNet(p)}))
}

// Addrs lists a link's addresses, IPv4 first, link-local ones included, in the kernel's order.
func (n *Namespace) Addrs(link string) ([]netip.Prefix, error) {
	l, err := n.link(link)
	if err != nil {
		return nil, err
	}
	list, err := retryDump(func() ([]netlink.Addr, error) { return n.nl.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, n.wrap("list addresses of "+link, err)
	}
	out := make([]netip.Prefix, 0, len(list))
	for _, a := range list {
		out = append(out, Prefix(a.IPNet))
	}
	return out, nil
}

// Prefix converts the standard library's older type. An invalid value gives the zero Prefix.
func Prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Single is the prefix that holds a alone: /32 or /128.
func Single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
