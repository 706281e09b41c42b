package ns

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Route is one entry of a routing table.
type Route struct {
	Dst       netip.Prefix // required; 0.0.0.0/0 or ::/0 is the default route
	Via       netip.Addr   // next hop, believed to be on the link whatever its addresses are; zero: Dst itself is on the link
	Link      string       // required unless Blackhole
	Src       netip.Addr   // preferred source address
	Table     int          // 0: main
	Blackhole bool         // drop silently
	Metric    int
}

// AddRoute adds r; the error is EEXIST when there is one for the same destination, table and metric.
func (n *Namespace) AddRoute(r Route) error {
	return n.changeRoute("add", r, n.nl.RouteAdd)
}

// ReplaceRoute adds r or puts it in the place of the one there.
func (n *Namespace) ReplaceRoute(r Route) error {
	return n.changeRoute("replace", r, n.nl.RouteReplace)
}

// DelRoute removes the route that r describes.
func (n *Namespace) DelRoute(r Route) error {
	return n.changeRoute("delete", r, n.nl.RouteDel)
}

func (n *Namespace) changeRoute(verb string, r Route, f func(*netlink.Route) error) error {
	out := &netlink.Route{Dst: ipNet(r.Dst), Table: r.Table, Priority: r.Metric, Family: family(r.Dst.Addr())}
	if r.Blackhole {
		out.Type = unix.RTN_BLACKHOLE
	} else {
		index, err := n.Index(r.Link)
		if err != nil {
			return err
		}
		out.LinkIndex = index
		if r.Via.IsValid() {
			out.Gw, out.Flags = r.Via.AsSlice(), int(netlink.FLAG_ONLINK)
		} else {
			out.Scope = netlink.SCOPE_LINK
		}
	}
	if r.Src.IsValid() {
		out.Src = r.Src.AsSlice()
	}
	return n.wrap(verb+" route to "+r.Dst.String(), f(out))
}

// Rule is one entry of the policy that says which routing table counts.
type Rule struct {
	Priority  int // required; lower counts first
	IPv6      bool
	IIf       string       // packets that came in by this link
	From, To  netip.Prefix // packets with this source, destination
	Table     int          // look here, or
	Goto      int          // go on at this priority, or
	Blackhole bool         // drop silently
}

// AddRule adds r.
func (n *Namespace) AddRule(r Rule) error { return n.wrap("add rule", n.nl.RuleAdd(r.netlink())) }

// DelRule removes the rule that r describes.
func (n *Namespace) DelRule(r Rule) error { return n.wrap("delete rule", n.nl.RuleDel(r.netlink())) }

// ruleBlackhole is the kernel's FR_ACT_BLACKHOLE (linux/fib_rules.h).
const ruleBlackhole = 6

func (r Rule) netlink() *netlink.Rule {
	out := netlink.NewRule()
	out.Priority, out.IifName, out.Table = r.Priority, r.IIf, r.Table
	out.Family = netlink.FAMILY_V4
	if r.IPv6 {
		out.Family = netlink.FAMILY_V6
	}
	if r.From.IsValid() {
		out.Src = ipNet(r.From)
	}
	if r.To.IsValid() {
		out.Dst = ipNet(r.To)
	}
	if r.Goto != 0 {
		out.Goto = r.Goto
	}
	if r.Blackhole {
		out.Type = ruleBlackhole
	}
	return out
}

// AddNeigh tells the kernel for good that addr on link has the hardware address mac, so that it never asks.
func (n *Namespace) AddNeigh(link string, addr netip.Addr, mac net.HardwareAddr) error {
	return n.withLink("add neighbour "+addr.String()+" on", link, func(l netlink.Link) error {
		return n.nl.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, Family: family(addr), State: netlink.NUD_PERMANENT,
			Type: unix.RTN_UNICAST, IP: addr.AsSlice(), HardwareAddr: mac,
		})
	})
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}
