package plan

import (
	"cmp"
	"net/netip"
	"slices"
)

// podInterfaceName is what the kubelet and every CNI runtime call a pod's first interface. It stands in for the pod's own
// addresses only where those are unknown (an agent started by hand without the downward API).
const podInterfaceName = "eth0"

// Candidates are the addresses of a snapshot, sorted by what can be said of them before anything is known about ENIs.
type Candidates struct {
	// Wanted need an ENI. An agent whose pod has none of them need not wait for anybody.
	Wanted []Address
	// Own are on the pod's own interface, a veth. They are the VPC CNI's, unless that interface turns out to be an ENI's. One of
	// another kind is wanted like any other: Multus can replace the cluster network, by an ipvlan for instance.
	Own []Address
	// Skipped are left alone whatever ENIs there are.
	Skipped []Decision

	own map[int]bool // the pod's own interfaces
}

// All gives Wanted and Own together.
func (c Candidates) All() []Address { return slices.Concat(c.Wanted, c.Own) }

// Sort makes the Candidates of a snapshot.
func Sort(s Snapshot, r Rules) Candidates {
	c := Candidates{own: ownLinks(s, r.PodIPs), Wanted: make([]Address, 0, len(s.Addresses))}
	for _, a := range sorted(s.Addresses) {
		reason, unwanted := unwanted(a, r)
		switch {
		case unwanted:
			c.Skipped = append(c.Skipped, Decision{Address: a, Reason: reason})
		case c.own[a.Link.Index] && a.Link.Kind == "veth":
			c.Own = append(c.Own, a)
		default:
			c.Wanted = append(c.Wanted, a)
		}
	}
	return c
}

// unwanted gives the reason why an address is left alone whatever ENIs there are.
func unwanted(a Address, r Rules) (Reason, bool) {
	switch {
	case a.Link.Loopback, a.LinkScope, !a.Addr.IsGlobalUnicast():
		return ReasonNotGlobal, true
	case a.Link.byVPCCNI():
		return ReasonPodInterface, true
	case len(r.Interfaces) > 0 && !slices.Contains(r.Interfaces, a.Link.Name):
		return ReasonNotManaged, true
	case containsAddr(r.Ignore, a.Addr):
		return ReasonIgnored, true
	case a.Temporary:
		return ReasonTemporary, true
	case a.DADFailed:
		return ReasonDADFailed, true
	}
	return "", false
}

// Make plans for every address of the snapshot; see [Candidates.Plan].
func Make(s Snapshot, enis []ENI, r Rules) Plan { return Sort(s, r).Plan(enis, r) }

// Plan plans for every address of a snapshot, by the rules that its candidates were sorted by. ENIs must hold those whose MACs the
// snapshot shows, the primary ENI (its subnet is the VPC CNI's), and, when a foreign MAC is among the wanted addresses, all others.
func (c Candidates) Plan(enis []ENI, r Rules) Plan {
	all := c.All()
	p := Plan{Skipped: c.Skipped, Assign: make([]Decision, 0, len(all))}
	cni := cniSubnets(enis, r)
	for _, a := range all {
		d := decide(a, c.own[a.Link.Index], enis, r)
		d.CheckHolder = d.Reason == ReasonWanted && (cni == nil || cni[d.ENI.SubnetID])
		d.CheckENI = d.CheckHolder && d.ENI.DeviceIndex != 0
		d.PrimaryUnknown = d.CheckHolder && cni == nil && !slices.Contains(r.VPCCNISubnets, d.ENI.SubnetID)
		switch d.Reason {
		case ReasonWanted:
			p.Assign = append(p.Assign, d)
		case ReasonInPrefix:
			p.Routed = append(p.Routed, d)
		case ReasonOutsideSubnet, ReasonReserved, ReasonForeignMAC, ReasonAmbiguousSubnet, ReasonPrimaryENI:
			p.Refused = append(p.Refused, d)
		default:
			p.Skipped = append(p.Skipped, d)
		}
	}
	p.Assign, p.Skipped = dropDuplicates(p.Assign, p.Skipped)
	return p
}

// decide is the table of verdicts for one wanted address.
func decide(a Address, own bool, enis []ENI, r Rules) Decision {
	d := Decision{Address: a}
	if i := slices.IndexFunc(enis, func(e ENI) bool { return a.Link.MAC != "" && e.MAC == a.Link.MAC }); i >= 0 {
		d.ENI = enis[i]
		d.Reason = onENI(a.Addr, d.ENI, own, r)
		return d
	}
	if own {
		d.Reason = ReasonPodInterface
		return d
	}
	var holding []ENI
	for _, e := range enis {
		if e.Contains(a.Addr) {
			holding = append(holding, e)
		}
	}
	if len(holding) == 0 {
		d.Reason = ReasonForeignNetwork
		return d
	}
	d.ENI = holding[0]
	if !r.MapBySubnet {
		d.Reason = ReasonForeignMAC
		return d
	}
	usable := slices.DeleteFunc(holding, func(e ENI) bool { return e.DeviceIndex == 0 && !r.AllowPrimaryENI })
	switch len(usable) {
	case 0:
		d.Reason = ReasonPrimaryENI
	case 1:
		d.ENI = usable[0]
		d.Reason = onENI(a.Addr, d.ENI, false, r)
	default:
		d.Reason = ReasonAmbiguousSubnet
	}
	return d
}

// onENI judges an address whose ENI is known.
func onENI(addr netip.Addr, e ENI, own bool, r Rules) Reason {
	switch {
	case e.DeviceIndex == 0 && !r.AllowPrimaryENI && own:
		return ReasonPodInterface
	case e.DeviceIndex == 0 && !r.AllowPrimaryENI:
		return ReasonPrimaryENI
	case containsAddr(e.Prefixes, addr):
		return ReasonInPrefix
	case e.knowsFamily(addr) && !e.Contains(addr):
		return ReasonOutsideSubnet
	case e.reserved(addr):
		return ReasonReserved
	}
	return ReasonWanted
}

// cniSubnets is the set of subnets from which the VPC CNI may take addresses: the primary ENI's and the configured ones. It is
// nil when the primary ENI is unknown: then every subnet must be suspected.
func cniSubnets(enis []ENI, r Rules) map[string]bool {
	set := map[string]bool{}
	for _, id := range r.VPCCNISubnets {
		set[id] = true
	}
	i := slices.IndexFunc(enis, func(e ENI) bool { return e.DeviceIndex == 0 })
	if i < 0 {
		return nil
	}
	set[enis[i].SubnetID] = true
	return set
}

// ownLinks finds the interfaces that carry the pod's own addresses.
func ownLinks(s Snapshot, podIPs []netip.Addr) map[int]bool {
	own := map[int]bool{}
	if len(podIPs) == 0 {
		for _, l := range s.Links {
			if l.Name == podInterfaceName {
				own[l.Index] = true
			}
		}
		return own
	}
	for _, a := range s.Addresses {
		if slices.Contains(podIPs, a.Addr) {
			own[a.Link.Index] = true
		}
	}
	return own
}

// dropDuplicates keeps, of one address on several interfaces, the one that was added last: in the VPC an address can be in one
// place only, and two calls would fight. Several interfaces on one ENI are no conflict, but need one call only; nor is one
// address with two prefix lengths on one interface, which the kernel allows in IPv4.
func dropDuplicates(assign, skipped []Decision) (kept, rest []Decision) {
	latest := make(map[netip.Addr]int, len(assign))
	for i, d := range assign {
		if l, ok := latest[d.Address.Addr]; !ok || Newer(d.Address, assign[l].Address) {
			latest[d.Address.Addr] = i
		}
	}
	for i, d := range assign {
		if latest[d.Address.Addr] != i {
			d.Reason, d.CheckHolder, d.CheckENI, d.PrimaryUnknown = ReasonDuplicate, false, false, false
			skipped = append(skipped, d)
			continue
		}
		assign[len(kept)] = d
		kept = assign[:len(kept)+1]
	}
	return kept, skipped
}

// Newer tells whether a was added after b, by creation stamps compared the way the kernel's wrapping counter demands.
func Newer(a, b Address) bool {
	if a.CStamp != b.CStamp {
		return int32(a.CStamp-b.CStamp) > 0
	}
	return a.Link.Index > b.Link.Index
}

// Foreign gives the wanted addresses that sit on interfaces whose MAC is none of these ENIs': then all ENIs of the node are needed
// to judge them.
func Foreign(wanted []Address, enis []ENI) []Address {
	var foreign []Address
	for _, a := range wanted {
		if !slices.ContainsFunc(enis, func(e ENI) bool { return a.Link.MAC != "" && e.MAC == a.Link.MAC }) {
			foreign = append(foreign, a)
		}
	}
	return foreign
}

// SharesMAC tells whether an interface of this kind has the MAC of the interface it was made on: a MAC that no ENI has is then
// more likely an ENI that metadata does not list yet than a network of another sort.
func (l Link) SharesMAC() bool { return l.Kind == "ipvlan" || l.Kind == "device" }

func sorted(addrs []Address) []Address {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, func(a, b Address) int {
		return cmp.Or(cmp.Compare(a.Link.Index, b.Link.Index), a.Addr.Compare(b.Addr), cmp.Compare(a.Bits, b.Bits), cmp.Compare(a.CStamp, b.CStamp))
	})
	return addrs
}
