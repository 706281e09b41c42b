package world

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"multus-ip-manager.io/test/ns"
)

// This file is the VPC's behaviour as a pure function: from who holds what, to the routes and rules of the router.

// peer4 and peer6 mean "whoever is at the other end of this link". Every link between infrastructure namespaces has a permanent
// neighbour entry for them, so that no routed packet waits for address resolution and no link needs an address.
var (
	peer4 = netip.MustParseAddr("169.254.1.1")
	peer6 = netip.MustParseAddr("fe80::1")
)

// peer is the other end of a link, in a's family.
func peer(a netip.Addr) netip.Addr {
	if a.Is4() {
		return peer4
	}
	return peer6
}

var (
	imds4 = netip.MustParseAddr("169.254.169.254")
	imds6 = netip.MustParseAddr("fd00:ec2::254")
	ec2At = netip.MustParseAddr("10.255.255.1")
	stsAt = netip.MustParseAddr("10.255.255.2")

	all4 = netip.MustParsePrefix("0.0.0.0/0")
	all6 = netip.MustParsePrefix("::/0")
)

// Priorities of the router's rules, in the order in which a packet from an ENI meets them.
const (
	prioLocal   = 100  // to another pod of the same ENI: switched by the node's kernel, assigned or not
	prioSource  = 200  // its source is assigned to the ENI: go on at prioAllowed
	prioDrop    = 300  // it is not: drop (left out where the source/destination check is off)
	prioAllowed = 1000 // anchor for prioSource; looks into an empty table
	prioIMDS    = 1001 // to the metadata service of the ENI's node
)

const (
	tableNothing = 900
	tableIMDS    = 1000    // plus the node's number
	tableLocal   = 100_000 // plus the ENI's number, twice, plus one for foreign MACs
)

// port is one link of the router, with an ENI or a part of one behind it.
type port struct {
	name    string // of the router's end
	eni     string
	node    int  // number of the node the ENI is attached to
	device  int  // device index of the ENI
	group   int  // number of the ENI in the world
	owner   bool // the node's own end: gets what no pod has
	foreign bool // the MAC behind it is no ENI's
	// addrs are the addresses of pods behind the port, with the order in which they were seen; guests has them by interface.
	addrs  map[netip.Addr]uint64
	guests map[*guestLink]map[netip.Addr]uint64

	index int // of the router's end
	mac   mac // of the router's end
}

func (p *port) localTable() int {
	t := tableLocal + 2*p.group
	if p.foreign {
		t++
	}
	return t
}

// holdings says who holds what, as the data plane knows it.
type holdings struct {
	blocks  map[netip.Prefix]string // address (/32, /128) or delegated prefix to ENI id
	noCheck map[string]bool         // ENIs with the source/destination check off
}

// routeKey is what makes two routes replace each other.
type routeKey struct {
	dst   netip.Prefix
	table int
}

// table is the routes and rules of one namespace.
type table struct {
	routes map[routeKey]ns.Route
	rules  map[ns.Rule]bool
}

func newTable() table { return table{routes: map[routeKey]ns.Route{}, rules: map[ns.Rule]bool{}} }

func (t table) route(dst netip.Prefix, link string, number int) {
	t.routes[routeKey{dst, number}] = ns.Route{Dst: dst, Via: peer(dst.Addr()), Link: link, Table: number}
}

// rule adds r in the families of its addresses: both without any.
func (t table) rule(r ns.Rule) {
	for _, six := range []bool{false, true} {
		if r.From.IsValid() && r.From.Addr().Is6() != six || r.To.IsValid() && r.To.Addr().Is6() != six {
			continue
		}
		r.IPv6 = six
		t.rules[r] = true
	}
}

// vpcTable is what the router must do.
func vpcTable(ports []*port, h holdings) table {
	t := newTable()
	byENI := map[string][]netip.Prefix{}
	for block, eni := range h.blocks {
		byENI[eni] = append(byENI[eni], block)
	}
	for _, p := range ports {
		t.rule(ns.Rule{Priority: prioLocal, IIf: p.name, Table: p.localTable()})
		if p.foreign || !h.noCheck[p.eni] {
			t.rule(ns.Rule{Priority: prioDrop, IIf: p.name, Blackhole: true})
		}
		if p.foreign {
			continue
		}
		for _, block := range byENI[p.eni] {
			t.rule(ns.Rule{Priority: prioSource, IIf: p.name, From: block, Goto: prioAllowed})
		}
		if p.device != 0 { // behind device 0 the node itself knows the way
			t.rule(ns.Rule{Priority: prioIMDS, IIf: p.name, To: ns.Single(imds4), Table: tableIMDS + p.node})
			t.rule(ns.Rule{Priority: prioIMDS, IIf: p.name, To: ns.Single(imds6), Table: tableIMDS + p.node})
		}
	}
	t.addLocal(ports)
	t.addDelivery(ports, h, byENI)
	return t
}

// addLocal is the node's own switching between the pods of one ENI. It never leads to the node itself: an ipvlan child does not
// reach its master's address either.
func (t table) addLocal(ports []*port) {
	newest := map[routeKey]uint64{}
	for _, p := range ports {
		for a, seen := range p.addrs {
			key := routeKey{ns.Single(a), p.localTable()}
			if seen >= newest[key] {
				newest[key] = seen
				t.route(key.dst, p.name, key.table)
			}
		}
	}
}

// addDelivery leads each assigned address to the pod that has it, on the ENI it is assigned to.
func (t table) addDelivery(ports []*port, h holdings, byENI map[string][]netip.Prefix) {
	newest := map[netip.Prefix]uint64{}
	for _, p := range ports {
		if p.foreign {
			continue
		}
		if p.owner {
			for _, block := range byENI[p.eni] {
				if newest[block] == 0 {
					t.route(block, p.name, 0)
				}
			}
		}
		for a, seen := range p.addrs {
			dst := ns.Single(a)
			if h.holder(a) == p.eni && seen >= newest[dst] {
				newest[dst] = seen
				t.route(dst, p.name, 0)
			}
		}
	}
}

// holder is the ENI that has a, alone or in a delegated prefix; "" when none has.
func (h holdings) holder(a netip.Addr) string {
	if eni, ok := h.blocks[ns.Single(a)]; ok {
		return eni
	}
	for block, eni := range h.blocks {
		if block.Contains(a) {
			return eni
		}
	}
	return ""
}

// imdsTable is the way back from a node's metadata service to what is assigned to the node's extra ENIs; all else goes by the
// node.
func imdsTable(node int, link string, ports []*port, h holdings) table {
	t := newTable()
	extra := map[string]bool{}
	for _, p := range ports {
		if p.node == node && p.device != 0 {
			extra[p.eni] = true
		}
	}
	for block, eni := range h.blocks {
		if extra[eni] {
			t.route(block, link, 0)
		}
	}
	return t
}

// answers reports whether the VPC answers a guest behind p that asks for the hardware address of target. The guest asks with
// the address sender; a zero or unspecified one means duplicate address detection.
func answers(p *port, ports []*port, sender, target netip.Addr) bool {
	if !sender.IsValid() || sender.IsUnspecified() || sender == target || target.IsMulticast() {
		return false
	}
	if _, own := p.addrs[target]; own {
		return false
	}
	if p.foreign {
		return slices.ContainsFunc(ports, func(o *port) bool {
			_, has := o.addrs[target]
			return has && o != p && o.foreign && o.eni == p.eni
		})
	}
	if target.Is6() && target.IsLinkLocalUnicast() {
		return target == peer6 || target == router6
	}
	return true
}

// router6 is the subnet router's fixed IPv6 address in a VPC.
var router6 = netip.MustParseAddr("fe80:ec2::1")

// difference is the steps from one table to another: additions before removals, so that what stays is never interrupted.
type difference struct {
	setRoutes, delRoutes []ns.Route
	addRules, delRules   []ns.Rule
}

func diff(from, to table) difference {
	var d difference
	for _, key := range sortedRoutes(to.routes) {
		if from.routes[key] != to.routes[key] {
			d.setRoutes = append(d.setRoutes, to.routes[key])
		}
	}
	for _, key := range sortedRoutes(from.routes) {
		if _, stays := to.routes[key]; !stays {
			d.delRoutes = append(d.delRoutes, from.routes[key])
		}
	}
	d.addRules = missing(to.rules, from.rules)
	d.delRules = missing(from.rules, to.rules)
	return d
}

func sortedRoutes(routes map[routeKey]ns.Route) []routeKey {
	return slices.SortedFunc(maps.Keys(routes), func(a, b routeKey) int {
		return cmp.Or(cmp.Compare(a.table, b.table), comparePrefix(a.dst, b.dst))
	})
}

// missing is the rules of a that b lacks, in a fixed order.
func missing(a, b map[ns.Rule]bool) []ns.Rule {
	var out []ns.Rule
	for r := range a {
		if !b[r] {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b ns.Rule) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.IIf, b.IIf),
			comparePrefix(a.From, b.From), comparePrefix(a.To, b.To))
	})
	return out
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
