package ns

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// VethOpts describes a veth pair. Zero values leave the choice to the kernel.
type VethOpts struct {
	MACA, MACB net.HardwareAddr // of a's and b's end
	MTU        int              // bytes, both ends
	Down       bool             // leave both ends down (default: up)
}

// Veth connects two namespaces (they may be the same) by a veth pair whose ends are called nameA in a and nameB in b.
func Veth(a *Namespace, nameA string, b *Namespace, nameB string, o VethOpts) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = nameA, o.MACA, o.MTU
	if attrs.MTU == 0 {
		attrs.MTU = 1500
	}
	if !o.Down {
		attrs.Flags = net.FlagUp
	}
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerHardwareAddr, pair.PeerMTU = nameB, o.MACB, uint32(attrs.MTU) // an MTU is small
	pair.PeerNamespace = netlink.NsFd(b.Fd())
	if err := a.nl.LinkAdd(pair); err != nil {
		return a.wrap(fmt.Sprintf("veth %s to %s in %s", nameA, nameB, b.name), err)
	}
	if o.Down {
		return nil
	}
	return errors.Join(a.Up(nameA), b.Up(nameB))
}

// IPVlan adds an ipvlan child (mode l2, as Multus networks on AWS use) of the link called master in parent, and brings it up.
// Ask [IPVlanAvailable] first: many kernels lack the driver.
func (n *Namespace) IPVlan(name string, parent *Namespace, master string) error {
	link, err := parent.link(master)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.Namespace = name, link.Attrs().Index, netlink.NsFd(n.Fd())
	child := &netlink.IPVlan{LinkAttrs: attrs, Mode: netlink.IPVLAN_MODE_L2}
	if err := parent.nl.LinkAdd(child); err != nil {
		return n.wrap("ipvlan "+name+" on "+master, err)
	}
	return n.Up(name)
}

// IPVlanAvailable reports whether the kernel can make ipvlan links, by making one in throw-away namespaces.
func IPVlanAvailable() bool {
	parent, err := New("ipvlan-probe")
	if err != nil {
		return false
	}
	defer func() { _ = parent.Close() }()
	if err := Veth(parent, "a", parent, "b", VethOpts{}); err != nil {
		return false
	}
	child, err := New("ipvlan-probe-child")
	if err != nil {
		return false
	}
	defer func() { _ = child.Close() }()
	return child.IPVlan("c", parent, "a") == nil
}

// MAC is the hardware address of a link.
func (n *Namespace) MAC(link string) (net.HardwareAddr, error) {
	l, err := n.link(link)
	if err != nil {
		return nil, err
	}
	return l.Attrs().HardwareAddr, nil
}

// SetMAC changes the hardware address of a link.
func (n *Namespace) SetMAC(link string, mac net.HardwareAddr) error {
	return n.withLink("set address of", link, func(l netlink.Link) error { return n.nl.LinkSetHardwareAddr(l, mac) })
}

// Up brings a link up.
func (n *Namespace) Up(link string) error { return n.withLink("set up", link, n.nl.LinkSetUp) }

// Down takes a link down; the kernel then forgets its IPv6 addresses.
func (n *Namespace) Down(link string) error { return n.withLink("set down", link, n.nl.LinkSetDown) }

// DelLink deletes a link, with a veth also its other end.
func (n *Namespace) DelLink(link string) error { return n.withLink("delete", link, n.nl.LinkDel) }

// Rename changes a link's name.
func (n *Namespace) Rename(link, name string) error {
	return n.withLink("rename to "+name, link, func(l netlink.Link) error { return n.nl.LinkSetName(l, name) })
}

// MoveLink puts a link into another namespace under the same name. The kernel takes its addresses from it and sets it down.
func (n *Namespace) MoveLink(link string, to *Namespace) error {
	return n.withLink("move to "+to.name, link, func(l netlink.Link) error { return n.nl.LinkSetNsFd(l, to.Fd()) })
}

// Index is the link's interface index.
func (n *Namespace) Index(link string) (int, error) {
	l, err := n.link(link)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}

func (n *Namespace) link(name string) (netlink.Link, error) {
	l, err := n.nl.LinkByName(name)
	return l, n.wrap("find link "+name, err)
}

func (n *Namespace) withLink(what, name string, f func(netlink.Link) error) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	return n.wrap(what+" "+name, f(l))
}

// retryDump repeats a netlink list that the kernel says changed under way: its result may lack entries.
func retryDump[T any](list func() ([]T, error)) ([]T, error) {
	for range 100 {
		out, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return out, err
		}
	}
	return nil, errors.New("the list kept changing while it was read")
}
