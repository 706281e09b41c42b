package plan

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// The node of most tests: the primary ENI in subnet-a, two ENIs in subnet-b and one in subnet-c.
var (
	primaryENI = ENI{ID: "eni-0", MAC: "02:00:00:00:00:00", DeviceIndex: 0, SubnetID: "subnet-a", Subnets: prefixes("10.0.0.0/24", "2001:db8:0:a::/64")}
	eniB1      = ENI{ID: "eni-b1", MAC: "02:00:00:00:00:b1", DeviceIndex: 1, SubnetID: "subnet-b", Subnets: prefixes("10.0.16.0/20", "2001:db8:0:b::/64")}
	eniB2      = ENI{ID: "eni-b2", MAC: "02:00:00:00:00:b2", DeviceIndex: 2, SubnetID: "subnet-b", Subnets: prefixes("10.0.16.0/20", "2001:db8:0:b::/64")}
	eniC       = ENI{ID: "eni-c", MAC: "02:00:00:00:00:cc", DeviceIndex: 3, SubnetID: "subnet-c", Subnets: prefixes("10.0.3.0/24", "2001:db8:0:c::/64"),
		Prefixes: prefixes("10.0.3.16/28", "2001:db8:0:c:aa::/80")}

	lo   = Link{Index: 1, Name: "lo", Loopback: true}
	eth0 = Link{Index: 2, Name: "eth0", MAC: "ee:00:00:00:00:01", Kind: "veth"}
	net1 = Link{Index: 3, Name: "net1", MAC: eniB1.MAC, Kind: "ipvlan"}
	net2 = Link{Index: 4, Name: "net2", MAC: eniC.MAC, Kind: "ipvlan"}
	net3 = Link{Index: 5, Name: "net3", MAC: eniB1.MAC, Kind: "ipvlan"}
	mac1 = Link{Index: 6, Name: "mac1", MAC: "fa:ce:00:00:00:01", Kind: "macvlan"}
	onB2 = Link{Index: 7, Name: "net7", MAC: eniB2.MAC, Kind: "ipvlan"}
	onP  = Link{Index: 8, Name: "net8", MAC: primaryENI.MAC, Kind: "ipvlan"}
	tun  = Link{Index: 9, Name: "wg0", Kind: "wireguard"}

	podIP  = netip.MustParseAddr("10.0.0.77")
	podIP6 = netip.MustParseAddr("2001:db8:0:a::77")
)

func prefixes(texts ...string) []netip.Prefix {
	ps := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		ps[i] = netip.MustParsePrefix(t)
	}
	return ps
}

// on makes addresses of a link from CIDRs.
func on(l Link, cidrs ...string) []Address {
	as := make([]Address, len(cidrs))
	for i, c := range cidrs {
		p := netip.MustParsePrefix(c)
		as[i] = Address{Addr: p.Addr(), Bits: p.Bits(), Link: l}
	}
	return as
}

func with(a []Address, change func(*Address)) []Address {
	for i := range a {
		change(&a[i])
	}
	return a
}

// snapshot puts the addresses beside those every pod has.
func snapshot(addrs ...[]Address) Snapshot {
	s := Snapshot{Addresses: slices.Concat(append([][]Address{on(lo, "127.0.0.1/8", "::1/128"), on(eth0, podIP.String()+"/32", podIP6.String()+"/128")}, addrs...)...)}
	seen := map[int]bool{}
	for _, a := range s.Addresses {
		if !seen[a.Link.Index] {
			seen[a.Link.Index] = true
			s.Links = append(s.Links, a.Link)
		}
	}
	return s
}

var podIPs = []netip.Addr{podIP, podIP6}

// verdict is a decision as the tables write it.
type verdict struct {
	Addr, Link, ENI string
	Reason          Reason
	Check           bool
}

func verdicts(ds []Decision) []verdict {
	var vs []verdict
	for _, d := range ds {
		vs = append(vs, verdict{d.Address.Addr.String(), d.Address.Link.Name, d.ENI.ID, d.Reason, d.CheckHolder})
	}
	return vs
}

func all(p Plan) []verdict { return verdicts(slices.Concat(p.Assign, p.Routed, p.Refused, p.Skipped)) }

// extra leaves out what every pod has: lo and eth0.
func extra(vs []verdict) []verdict {
	return slices.DeleteFunc(vs, func(v verdict) bool { return v.Link == "lo" || v.Link == "eth0" })
}

func TestMake(t *testing.T) {
	node := []ENI{primaryENI, eniB1, eniC}
	twoInB := []ENI{primaryENI, eniB1, eniB2, eniC}
	tests := map[string]struct {
		addrs []Address
		enis  []ENI // node when nil
		rules Rules
		want  []verdict
	}{
		"ENI's MAC, inside its subnet": {
			addrs: on(net1, "10.0.17.5/20"),
			want:  []verdict{{"10.0.17.5", "net1", "eni-b1", ReasonWanted, false}},
		},
		"NAD mask narrower than the subnet's": {
			addrs: on(net1, "10.0.17.5/24"),
			want:  []verdict{{"10.0.17.5", "net1", "eni-b1", ReasonWanted, false}},
		},
		"NAD mask wider than the subnet's": {
			addrs: on(net1, "10.0.17.5/8", "2001:db8:0:b::5/48"),
			want: []verdict{
				{"10.0.17.5", "net1", "eni-b1", ReasonWanted, false},
				{"2001:db8:0:b::5", "net1", "eni-b1", ReasonWanted, false},
			},
		},
		"a /32 and a /128": {
			addrs: on(net1, "10.0.31.254/32", "2001:db8:0:b::ffff/128"),
			want: []verdict{
				{"10.0.31.254", "net1", "eni-b1", ReasonWanted, false},
				{"2001:db8:0:b::ffff", "net1", "eni-b1", ReasonWanted, false},
			},
		},
		"several addresses on one interface, in order of address": {
			addrs: on(net1, "10.0.17.9/24", "10.0.17.5/24", "10.0.17.7/24"),
			want: []verdict{
				{"10.0.17.5", "net1", "eni-b1", ReasonWanted, false},
				{"10.0.17.7", "net1", "eni-b1", ReasonWanted, false},
				{"10.0.17.9", "net1", "eni-b1", ReasonWanted, false},
			},
		},
		"several interfaces on one ENI": {
			addrs: append(on(net3, "10.0.17.6/24"), on(net1, "10.0.17.7/24")...),
			want: []verdict{
				{"10.0.17.7", "net1", "eni-b1", ReasonWanted, false},
				{"10.0.17.6", "net3", "eni-b1", ReasonWanted, false},
			},
		},
		"several ENIs": {
			addrs: append(on(net1, "10.0.17.6/24"), on(net2, "10.0.3.5/24")...),
			want: []verdict{
				{"10.0.17.6", "net1", "eni-b1", ReasonWanted, false},
				{"10.0.3.5", "net2", "eni-c", ReasonWanted, false},
			},
		},
		"two ENIs in one subnet: the MAC decides": {
			addrs: append(on(net1, "10.0.17.6/24"), on(onB2, "10.0.17.7/24")...),
			enis:  twoInB,
			want: []verdict{
				{"10.0.17.6", "net1", "eni-b1", ReasonWanted, false},
				{"10.0.17.7", "net7", "eni-b2", ReasonWanted, false},
			},
		},
		"ENI's MAC, outside its subnet, inside another's": {
			addrs: on(net1, "10.0.3.5/24", "2001:db8:0:c::5/64"),
			want: []verdict{
				{"10.0.3.5", "net1", "eni-b1", ReasonOutsideSubnet, false},
				{"2001:db8:0:c::5", "net1", "eni-b1", ReasonOutsideSubnet, false},
			},
		},
		"ENI's MAC, outside every subnet": {
			addrs: on(net1, "192.168.7.5/24"),
			want:  []verdict{{"192.168.7.5", "net1", "eni-b1", ReasonOutsideSubnet, false}},
		},
		"ENI's MAC, outside its subnet, ignored": {
			addrs: on(net1, "192.168.7.5/24", "10.0.17.6/24"),
			rules: Rules{Ignore: prefixes("192.168.0.0/16")},
			want: []verdict{
				{"10.0.17.6", "net1", "eni-b1", ReasonWanted, false},
				{"192.168.7.5", "net1", "", ReasonIgnored, false},
			},
		},
		"no IPv6 block known: EC2 judges": {
			addrs: on(net1, "2001:db8:0:b::5/64", "192.168.7.5/24"),
			enis:  []ENI{primaryENI, {ID: "eni-b1", MAC: eniB1.MAC, DeviceIndex: 1, SubnetID: "subnet-b", Subnets: prefixes("10.0.16.0/20")}},
			want: []verdict{
				{"2001:db8:0:b::5", "net1", "eni-b1", ReasonWanted, false},
				{"192.168.7.5", "net1", "eni-b1", ReasonOutsideSubnet, false},
			},
		},
		"unknown subnet blocks: EC2 judges": {
			addrs: on(net1, "192.168.7.5/24"),
			enis:  []ENI{primaryENI, {ID: "eni-b1", MAC: eniB1.MAC, DeviceIndex: 1, SubnetID: "subnet-b"}},
			want:  []verdict{{"192.168.7.5", "net1", "eni-b1", ReasonWanted, false}},
		},
		"foreign MAC, inside an attached subnet": {
			addrs: on(mac1, "10.0.17.5/24"),
			want:  []verdict{{"10.0.17.5", "mac1", "eni-b1", ReasonForeignMAC, false}},
		},
		"foreign MAC, inside the primary ENI's subnet": {
			addrs: on(mac1, "10.0.0.5/24"),
			want:  []verdict{{"10.0.0.5", "mac1", "eni-0", ReasonForeignMAC, false}},
		},
		"foreign MAC, outside": {
			addrs: on(mac1, "172.16.0.5/24", "fd00::5/64"),
			want: []verdict{
				{"172.16.0.5", "mac1", "", ReasonForeignNetwork, false},
				{"fd00::5", "mac1", "", ReasonForeignNetwork, false},
			},
		},
		"no MAC at all is a foreign MAC, also beside an ENI without one": {
			addrs: on(tun, "10.99.0.1/24"),
			enis:  []ENI{primaryENI, {ID: "eni-odd", DeviceIndex: 4, SubnetID: "subnet-z", Subnets: prefixes("10.98.0.0/24")}},
			want:  []verdict{{"10.99.0.1", "wg0", "", ReasonForeignNetwork, false}},
		},
		"foreign MAC, mapped by subnet": {
			addrs: on(mac1, "10.0.17.5/24"),
			rules: Rules{MapBySubnet: true},
			want:  []verdict{{"10.0.17.5", "mac1", "eni-b1", ReasonWanted, false}},
		},
		"foreign MAC, mapped by subnet, inside a delegated prefix": {
			addrs: on(mac1, "10.0.3.17/24"),
			rules: Rules{MapBySubnet: true},
			want:  []verdict{{"10.0.3.17", "mac1", "eni-c", ReasonInPrefix, false}},
		},
		"foreign MAC, mapped by subnet, two ENIs fit": {
			addrs: on(mac1, "10.0.17.5/24"),
			enis:  twoInB,
			rules: Rules{MapBySubnet: true},
			want:  []verdict{{"10.0.17.5", "mac1", "eni-b1", ReasonAmbiguousSubnet, false}},
		},
		"foreign MAC, mapped by subnet, only the primary ENI fits": {
			addrs: on(mac1, "10.0.0.5/24"),
			rules: Rules{MapBySubnet: true},
			want:  []verdict{{"10.0.0.5", "mac1", "eni-0", ReasonPrimaryENI, false}},
		},
		"foreign MAC, mapped by subnet, the primary ENI does not compete": {
			addrs: on(mac1, "10.0.0.5/24"),
			enis:  []ENI{primaryENI, {ID: "eni-a2", MAC: "02:00:00:00:00:a2", DeviceIndex: 1, SubnetID: "subnet-a", Subnets: primaryENI.Subnets}},
			rules: Rules{MapBySubnet: true},
			want:  []verdict{{"10.0.0.5", "mac1", "eni-a2", ReasonWanted, true}},
		},
		"foreign MAC, mapped by subnet, the primary ENI allowed does compete": {
			addrs: on(mac1, "10.0.0.5/24"),
			enis:  []ENI{primaryENI, {ID: "eni-a2", MAC: "02:00:00:00:00:a2", DeviceIndex: 1, SubnetID: "subnet-a", Subnets: primaryENI.Subnets}},
			rules: Rules{MapBySubnet: true, AllowPrimaryENI: true},
			want:  []verdict{{"10.0.0.5", "mac1", "eni-0", ReasonAmbiguousSubnet, false}},
		},
		"foreign MAC, mapped by subnet, outside": {
			addrs: on(mac1, "172.16.0.5/24"),
			rules: Rules{MapBySubnet: true},
			want:  []verdict{{"172.16.0.5", "mac1", "", ReasonForeignNetwork, false}},
		},
		"device index 0": {
			addrs: on(onP, "10.0.0.5/24"),
			want:  []verdict{{"10.0.0.5", "net8", "eni-0", ReasonPrimaryENI, false}},
		},
		"device index 0, ignored": {
			addrs: on(onP, "10.0.0.5/24"),
			rules: Rules{Ignore: prefixes("10.0.0.5/32")},
			want:  []verdict{{"10.0.0.5", "net8", "", ReasonIgnored, false}},
		},
		"device index 0 allowed": {
			addrs: on(onP, "10.0.0.5/24"),
			rules: Rules{AllowPrimaryENI: true},
			want:  []verdict{{"10.0.0.5", "net8", "eni-0", ReasonWanted, true}},
		},
		"inside a delegated prefix of that ENI": {
			addrs: on(net2, "10.0.3.17/24", "2001:db8:0:c:aa::5/64", "10.0.3.32/24"),
			want: []verdict{
				{"10.0.3.32", "net2", "eni-c", ReasonWanted, false},
				{"10.0.3.17", "net2", "eni-c", ReasonInPrefix, false},
				{"2001:db8:0:c:aa::5", "net2", "eni-c", ReasonInPrefix, false},
			},
		},
		"what AWS keeps of each subnet: the first four and the last": {
			addrs: on(net2, "10.0.3.0/24", "10.0.3.3/24", "10.0.3.4/24", "10.0.3.254/24", "10.0.3.255/24", "2001:db8:0:c::3/64", "2001:db8:0:c:ffff:ffff:ffff:ffff/64"),
			want: []verdict{
				{"10.0.3.4", "net2", "eni-c", ReasonWanted, false},
				{"10.0.3.254", "net2", "eni-c", ReasonWanted, false},
				{"10.0.3.0", "net2", "eni-c", ReasonReserved, false},
				{"10.0.3.3", "net2", "eni-c", ReasonReserved, false},
				{"10.0.3.255", "net2", "eni-c", ReasonReserved, false},
				{"2001:db8:0:c::3", "net2", "eni-c", ReasonReserved, false},
				{"2001:db8:0:c:ffff:ffff:ffff:ffff", "net2", "eni-c", ReasonReserved, false},
			},
		},
		"interfaces of the VPC CNI beside eth0": {
			addrs: slices.Concat(
				on(Link{Index: 20, Name: "v4if0", Kind: "veth", MAC: "ee:00:00:00:00:20"}, "10.0.3.5/24"),
				on(Link{Index: 21, Name: "mNicIf1", Kind: "veth", MAC: "ee:00:00:00:00:21"}, "10.0.3.6/24"),
				on(Link{Index: 22, Name: "v6if0", Kind: "ipvlan", MAC: eniC.MAC}, "10.0.3.7/24")),
			want: []verdict{
				{"10.0.3.7", "v6if0", "eni-c", ReasonWanted, false},
				{"10.0.3.5", "v4if0", "", ReasonPodInterface, false},
				{"10.0.3.6", "mNicIf1", "", ReasonPodInterface, false},
			},
		},
		"interfaces setting": {
			addrs: append(on(net1, "10.0.17.6/24"), on(net2, "10.0.3.5/24")...),
			rules: Rules{Interfaces: []string{"net2", "net9"}},
			want: []verdict{
				{"10.0.3.5", "net2", "eni-c", ReasonWanted, false},
				{"10.0.17.6", "net1", "", ReasonNotManaged, false},
			},
		},
		"IPv6 privacy address": {
			addrs: with(on(net1, "2001:db8:0:b::5/64"), func(a *Address) { a.Temporary = true }),
			want:  []verdict{{"2001:db8:0:b::5", "net1", "", ReasonTemporary, false}},
		},
		"failed duplicate address detection": {
			addrs: with(on(net1, "2001:db8:0:b::5/64"), func(a *Address) { a.DADFailed = true }),
			want:  []verdict{{"2001:db8:0:b::5", "net1", "", ReasonDADFailed, false}},
		},
		"link-local, multicast, narrow scope": {
			addrs: slices.Concat(on(net1, "fe80::5/64", "169.254.0.5/16", "224.0.0.5/32"),
				with(on(net1, "10.0.17.8/24"), func(a *Address) { a.LinkScope = true })),
			want: []verdict{
				{"10.0.17.8", "net1", "", ReasonNotGlobal, false},
				{"169.254.0.5", "net1", "", ReasonNotGlobal, false},
				{"224.0.0.5", "net1", "", ReasonNotGlobal, false},
				{"fe80::5", "net1", "", ReasonNotGlobal, false},
			},
		},
		"shared and unique local space are global enough": {
			addrs: on(net1, "100.64.1.5/24", "fd12::5/64"),
			enis:  []ENI{primaryENI, {ID: "eni-b1", MAC: eniB1.MAC, DeviceIndex: 1, SubnetID: "subnet-b", Subnets: prefixes("100.64.0.0/16", "fd12::/64")}},
			want: []verdict{
				{"100.64.1.5", "net1", "eni-b1", ReasonWanted, false},
				{"fd12::5", "net1", "eni-b1", ReasonWanted, false},
			},
		},
		"ENI in the primary ENI's subnet": {
			addrs: on(Link{Index: 10, Name: "net1", MAC: "02:00:00:00:00:a2"}, "10.0.0.5/24"),
			enis:  []ENI{primaryENI, {ID: "eni-a2", MAC: "02:00:00:00:00:a2", DeviceIndex: 1, SubnetID: "subnet-a", Subnets: primaryENI.Subnets}},
			want:  []verdict{{"10.0.0.5", "net1", "eni-a2", ReasonWanted, true}},
		},
		"ENI in a subnet named as the VPC CNI's": {
			addrs: append(on(net1, "10.0.17.6/24"), on(net2, "10.0.3.5/24")...),
			rules: Rules{VPCCNISubnets: []string{"subnet-x", "subnet-c"}},
			want: []verdict{
				{"10.0.17.6", "net1", "eni-b1", ReasonWanted, false},
				{"10.0.3.5", "net2", "eni-c", ReasonWanted, true},
			},
		},
		"unknown primary ENI: every subnet may be the VPC CNI's": {
			addrs: append(on(net1, "10.0.17.6/24"), on(net2, "10.0.3.5/24", "10.0.3.17/24")...),
			enis:  []ENI{eniB1, eniC},
			rules: Rules{VPCCNISubnets: []string{"subnet-x"}},
			want: []verdict{
				{"10.0.17.6", "net1", "eni-b1", ReasonWanted, true},
				{"10.0.3.5", "net2", "eni-c", ReasonWanted, true},
				{"10.0.3.17", "net2", "eni-c", ReasonInPrefix, false},
			},
		},
		"one address on two interfaces: the newer stays": {
			addrs: slices.Concat(
				with(on(net1, "10.0.17.6/24"), func(a *Address) { a.CStamp = 200 }),
				with(on(net3, "10.0.17.6/24"), func(a *Address) { a.CStamp = 100 })),
			want: []verdict{
				{"10.0.17.6", "net1", "eni-b1", ReasonWanted, false},
				{"10.0.17.6", "net3", "eni-b1", ReasonDuplicate, false},
			},
		},
		"one address on two interfaces: stamps wrap": {
			addrs: slices.Concat(
				with(on(net1, "10.0.17.6/24"), func(a *Address) { a.CStamp = 0xfffffff0 }),
				with(on(onB2, "10.0.17.6/24"), func(a *Address) { a.CStamp = 0x10 })),
			enis: twoInB,
			want: []verdict{
				{"10.0.17.6", "net7", "eni-b2", ReasonWanted, false},
				{"10.0.17.6", "net1", "eni-b1", ReasonDuplicate, false},
			},
		},
		"one address on two interfaces: same stamp, the newer interface": {
			addrs: append(on(net1, "10.0.17.6/24"), on(net3, "10.0.17.6/24")...),
			want: []verdict{
				{"10.0.17.6", "net3", "eni-b1", ReasonWanted, false},
				{"10.0.17.6", "net1", "eni-b1", ReasonDuplicate, false},
			},
		},
		"one address twice on one interface, with two masks": {
			addrs: slices.Concat(
				with(on(net1, "10.0.17.6/24"), func(a *Address) { a.CStamp = 100 }),
				with(on(net1, "10.0.17.6/32"), func(a *Address) { a.CStamp = 200 })),
			want: []verdict{
				{"10.0.17.6", "net1", "eni-b1", ReasonWanted, false},
				{"10.0.17.6", "net1", "eni-b1", ReasonDuplicate, false},
			},
		},
		"a refused twin does not hide the good one": {
			addrs: slices.Concat(
				with(on(net1, "10.0.3.5/24"), func(a *Address) { a.CStamp = 200 }),
				with(on(net2, "10.0.3.5/24"), func(a *Address) { a.CStamp = 100 })),
			want: []verdict{
				{"10.0.3.5", "net2", "eni-c", ReasonWanted, false},
				{"10.0.3.5", "net1", "eni-b1", ReasonOutsideSubnet, false},
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.enis == nil {
				tt.enis = node
			}
			tt.rules.PodIPs = podIPs
			got := extra(all(Make(snapshot(tt.addrs), tt.enis, tt.rules)))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("verdicts (-want +got):\n%s", diff)
			}
		})
	}
}

// The pod's own interface is the VPC CNI's, unless Multus replaced the cluster network by an ENI.
func TestMakeOwnInterface(t *testing.T) {
	ownENI := Link{Index: 2, Name: "eth0", MAC: eniB1.MAC, Kind: "ipvlan"}
	tests := map[string]struct {
		addrs  []Address
		podIPs []netip.Addr
		rules  Rules
		want   []verdict
	}{
		"a veth pair of the VPC CNI": {
			addrs: on(eth0, "10.0.0.77/32"), podIPs: podIPs,
			want: []verdict{{"10.0.0.77", "eth0", "", ReasonPodInterface, false}},
		},
		"a further address on it": {
			addrs: on(eth0, "10.0.0.77/32", "10.0.17.9/32"), podIPs: podIPs,
			want: []verdict{
				{"10.0.0.77", "eth0", "", ReasonPodInterface, false},
				{"10.0.17.9", "eth0", "", ReasonPodInterface, false},
			},
		},
		"an ENI's MAC": {
			addrs: on(ownENI, "10.0.17.9/24"), podIPs: []netip.Addr{netip.MustParseAddr("10.0.17.9")},
			want: []verdict{{"10.0.17.9", "eth0", "eni-b1", ReasonWanted, false}},
		},
		"the primary ENI's MAC": {
			addrs: on(Link{Index: 2, Name: "eth0", MAC: primaryENI.MAC}, "10.0.0.77/24"), podIPs: podIPs,
			want: []verdict{{"10.0.0.77", "eth0", "eni-0", ReasonPodInterface, false}},
		},
		"the primary ENI's MAC, allowed": {
			addrs: on(Link{Index: 2, Name: "eth0", MAC: primaryENI.MAC}, "10.0.0.77/24"), podIPs: podIPs,
			rules: Rules{AllowPrimaryENI: true},
			want:  []verdict{{"10.0.0.77", "eth0", "eni-0", ReasonWanted, true}},
		},
		"mapping by subnet does not apply to it": {
			addrs: on(eth0, "10.0.0.77/32", "10.0.17.9/32"), podIPs: podIPs,
			rules: Rules{MapBySubnet: true, AllowPrimaryENI: true},
			want: []verdict{
				{"10.0.0.77", "eth0", "", ReasonPodInterface, false},
				{"10.0.17.9", "eth0", "", ReasonPodInterface, false},
			},
		},
		"any name: the pod's addresses tell": {
			addrs: append(on(eth0, "10.0.3.5/24"), on(Link{Index: 12, Name: "cilium0", MAC: "ee:00:00:00:00:0c"}, "10.0.0.77/32")...), podIPs: podIPs,
			want: []verdict{
				{"10.0.3.5", "eth0", "eni-c", ReasonForeignMAC, false},
				{"10.0.0.77", "cilium0", "", ReasonPodInterface, false},
			},
		},
		"pod addresses unknown: eth0 it is": {
			addrs: append(on(eth0, "10.0.0.77/32"), on(net1, "10.0.17.9/24")...),
			want: []verdict{
				{"10.0.17.9", "net1", "eni-b1", ReasonWanted, false},
				{"10.0.0.77", "eth0", "", ReasonPodInterface, false},
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.rules.PodIPs = tt.podIPs
			got := all(Make(Snapshot{Addresses: tt.addrs, Links: links(tt.addrs)}, []ENI{primaryENI, eniB1, eniC}, tt.rules))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("verdicts (-want +got):\n%s", diff)
			}
		})
	}
}

func links(addrs []Address) []Link {
	var ls []Link
	for _, a := range addrs {
		if !slices.Contains(ls, a.Link) {
			ls = append(ls, a.Link)
		}
	}
	return ls
}

// An agent without metadata still knows that the pod's own interface is not its business.
func TestMakeWithoutENIs(t *testing.T) {
	p := Make(snapshot(), nil, Rules{PodIPs: podIPs})
	if len(p.Assign)+len(p.Refused)+len(p.Routed) != 0 {
		t.Errorf("a pod with its own interface only gets %v", all(p))
	}
}

func TestSort(t *testing.T) {
	c := Sort(snapshot(on(net1, "10.0.17.6/24", "fe80::1/64")), Rules{PodIPs: podIPs})
	got := map[string][]string{}
	for _, a := range c.Wanted {
		got["wanted"] = append(got["wanted"], a.String())
	}
	for _, a := range c.Own {
		got["own"] = append(got["own"], a.String())
	}
	for _, d := range c.Skipped {
		got["skipped"] = append(got["skipped"], d.Address.String())
	}
	want := map[string][]string{
		"wanted":  {"10.0.17.6 on net1"},
		"own":     {"10.0.0.77 on eth0", "2001:db8:0:a::77 on eth0"},
		"skipped": {"127.0.0.1 on lo", "::1 on lo", "fe80::1 on net1"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("candidates (-want +got):\n%s", diff)
	}
	if got := len(c.All()); got != 3 {
		t.Errorf("All gives %d addresses, want wanted and own: 3", got)
	}
}

// The pod's own interface is taken for the VPC CNI's only while it is a veth: an own interface of another kind may be an ENI's, and
// its addresses are waited for.
func TestSortOwnInterface(t *testing.T) {
	for kind, own := range map[string]bool{"veth": true, "ipvlan": false, "device": false, "macvlan": false} {
		l := eth0
		l.Kind = kind
		c := Sort(Snapshot{Links: []Link{l}, Addresses: on(l, podIP.String()+"/32")}, Rules{PodIPs: podIPs})
		if got := len(c.Own) == 1 && len(c.Wanted) == 0; got != own || len(c.All()) != 1 {
			t.Errorf("%s: own %v, wanted %v", kind, c.Own, c.Wanted)
		}
	}
}

// The same input gives the same plan, however the kernel and metadata order their lists.
func TestMakeIsDeterministic(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a seeded test
	s := snapshot(on(net1, "10.0.17.9/24", "10.0.17.6/24", "2001:db8:0:b::5/64", "172.16.0.1/24"), on(net2, "10.0.3.17/24", "10.0.3.5/24"),
		on(net3, "10.0.17.6/24", "10.0.17.8/24"), on(mac1, "10.0.17.44/24", "172.16.1.1/24"))
	enis := []ENI{primaryENI, eniB1, eniC}
	compare := cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}
	want := Make(s, enis, Rules{PodIPs: podIPs})
	for range 200 {
		shuffled := Snapshot{Links: slices.Clone(s.Links), Addresses: slices.Clone(s.Addresses)}
		r.Shuffle(len(shuffled.Addresses), func(i, j int) {
			shuffled.Addresses[i], shuffled.Addresses[j] = shuffled.Addresses[j], shuffled.Addresses[i]
		})
		e := slices.Clone(enis)
		r.Shuffle(len(e), func(i, j int) { e[i], e[j] = e[j], e[i] })
		before := slices.Clone(shuffled.Addresses)
		got := Make(shuffled, e, Rules{PodIPs: podIPs})
		if diff := cmp.Diff(want, got, compare); diff != "" {
			t.Fatalf("another order, another plan (-want +got):\n%s", diff)
		}
		if !slices.Equal(before, shuffled.Addresses) {
			t.Fatal("Make changed its input")
		}
	}
}

// Whatever the input, every address gets exactly one verdict, and what is assigned obeys the rules.
func TestMakeProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // a seeded test
	texts := []string{"10.0.17.5/24", "10.0.17.6/32", "10.0.3.17/28", "10.0.3.5/24", "10.0.0.5/24", "10.0.0.77/32", "172.16.0.1/24", "fe80::1/64",
		"2001:db8:0:b::5/64", "2001:db8:0:c::5/128", "2001:db8:0:c:aa::5/64"}
	allLinks := []Link{lo, eth0, net1, net2, net3, mac1, onB2, onP, tun}
	for range 5000 {
		var s Snapshot
		s.Links = allLinks
		for range r.IntN(8) {
			a := on(allLinks[r.IntN(len(allLinks))], texts[r.IntN(len(texts))])[0]
			a.CStamp, a.DADFailed, a.Temporary = r.Uint32N(3), r.IntN(9) == 0, r.IntN(9) == 0
			s.Addresses = append(s.Addresses, a)
		}
		enis := slices.DeleteFunc([]ENI{primaryENI, eniB1, eniB2, eniC}, func(ENI) bool { return r.IntN(4) == 0 })
		rules := Rules{PodIPs: podIPs, MapBySubnet: r.IntN(2) == 0, AllowPrimaryENI: r.IntN(2) == 0}
		if r.IntN(3) == 0 {
			rules.Interfaces = []string{"net1", "mac1"}
		}
		if r.IntN(3) == 0 {
			rules.Ignore = prefixes("10.0.17.0/24")
		}
		p := Make(s, enis, rules)
		if got := len(all(p)); got != len(s.Addresses) {
			t.Fatalf("%d verdicts for %d addresses: %v", got, len(s.Addresses), all(p))
		}
		seen := map[netip.Addr]bool{}
		for _, d := range p.Assign {
			switch a := d.Address; {
			case seen[a.Addr]:
				t.Fatalf("%s is assigned twice", a)
			case d.ENI.ID == "", d.ENI.DeviceIndex == 0 && !rules.AllowPrimaryENI:
				t.Fatalf("%s is assigned to %q", a, d.ENI)
			case d.ENI.knowsFamily(a.Addr) && !d.ENI.Contains(a.Addr), containsAddr(d.ENI.Prefixes, a.Addr):
				t.Fatalf("%s cannot be assigned to %q", a, d.ENI)
			case d.ENI.MAC != a.Link.MAC && !rules.MapBySubnet:
				t.Fatalf("%s has another MAC than %q", a, d.ENI)
			}
			seen[d.Address.Addr] = true
		}
	}
}

// A refusal is all a user sees of it: it names the address, the interface, the ENI or subnet, and what to do.
func TestExplain(t *testing.T) {
	a := on(net1, "192.168.7.5/24")[0]
	tests := map[Reason][]string{
		ReasonWanted:          {"192.168.7.5", "net1", "eni-b1"},
		ReasonInPrefix:        {"192.168.7.5", "net1", "eni-b1"},
		ReasonOutsideSubnet:   {"192.168.7.5", "net1", "eni-b1", "subnet-b", "10.0.16.0/20", "2001:db8:0:b::/64", "NetworkAttachmentDefinition", "ignore"},
		ReasonReserved:        {"192.168.7.5", "net1", "subnet-b", "10.0.16.0/20", "NetworkAttachmentDefinition"},
		ReasonForeignMAC:      {"192.168.7.5", "net1", net1.MAC, "subnet-b", "NetworkAttachmentDefinition"},
		ReasonAmbiguousSubnet: {"192.168.7.5", "net1", "ipvlan"},
		ReasonPrimaryENI:      {"192.168.7.5", "net1", "eni-b1", "device index 0", "VPC CNI"},
		ReasonIgnored:         {"192.168.7.5", "ignore"},
		ReasonNotManaged:      {"192.168.7.5", "net1", "interfaces"},
		ReasonPodInterface:    {"192.168.7.5", "VPC CNI"},
		ReasonNotGlobal:       {"192.168.7.5"},
		ReasonTemporary:       {"192.168.7.5", "privacy"},
		ReasonDADFailed:       {"192.168.7.5", "duplicate address detection"},
		ReasonForeignNetwork:  {"192.168.7.5", "no ENI"},
		ReasonDuplicate:       {"192.168.7.5"},
		Reason("new"):         {"192.168.7.5", "new"},
	}
	for reason, words := range tests {
		got := Decision{Address: a, ENI: eniB1, Reason: reason}.Explain()
		for _, w := range words {
			if !strings.Contains(got, w) {
				t.Errorf("%s: %q does not say %q", reason, got, w)
			}
		}
		if strings.Contains(got, "\n") {
			t.Errorf("%s: %q is more than one line", reason, got)
		}
	}
}

// A link that has its parent's MAC is no macvlan: it was made on something that is no ENI.
func TestExplainForeignMAC(t *testing.T) {
	for kind, words := range map[string][]string{
		"macvlan": {"macvlan or bridge", "use ipvlan"},
		"ipvlan":  {"NetworkAttachmentDefinition", "master"},
		"device":  {"NetworkAttachmentDefinition", "device"},
	} {
		a := on(Link{Index: 9, Name: "net9", Kind: kind, MAC: "02:00:00:00:00:09"}, "10.0.17.5/24")[0]
		got := Decision{Address: a, ENI: eniB1, Reason: ReasonForeignMAC}.Explain()
		for _, w := range append(words, "10.0.17.5", "net9", kind, "02:00:00:00:00:09", "subnet-b") {
			if !strings.Contains(got, w) {
				t.Errorf("%s: %q does not say %q", kind, got, w)
			}
		}
		if kind != "macvlan" && strings.Contains(got, "use ipvlan") {
			t.Errorf("%s: %q", kind, got)
		}
	}
}

func TestForeign(t *testing.T) {
	tests := map[string]struct {
		wanted []Address
		want   []string
	}{
		"none wanted":  {nil, nil},
		"all known":    {append(on(net1, "10.0.17.5/24"), on(net2, "10.0.3.5/24")...), nil},
		"one unknown":  {append(on(net1, "10.0.17.5/24"), on(mac1, "10.0.17.6/24")...), []string{"10.0.17.6 on mac1"}},
		"all of them":  {append(on(mac1, "10.0.17.6/24"), on(onB2, "10.0.17.7/24")...), []string{"10.0.17.6 on mac1", "10.0.17.7 on net7"}},
		"no MAC":       {on(tun, "10.0.17.5/24"), []string{"10.0.17.5 on wg0"}},
		"not on node":  {on(onB2, "10.0.17.5/24"), []string{"10.0.17.5 on net7"}},
		"primary's is": {on(onP, "10.0.17.5/24"), nil},
	}
	// An ENI that metadata gives without a MAC is no home for interfaces that have none.
	enis := []ENI{primaryENI, eniB1, eniC, {ID: "eni-x"}}
	for name, tt := range tests {
		if diff := cmp.Diff(tt.want, names(Foreign(tt.wanted, enis))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func names(addrs []Address) []string {
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	return texts
}

// Only interfaces that are made on another one, or were moved in whole, surely have an ENI's MAC.
func TestSharesMAC(t *testing.T) {
	for kind, want := range map[string]bool{"ipvlan": true, "device": true, "macvlan": false, "veth": false, "vlan": false, "dummy": false, "": false} {
		if got := (Link{Kind: kind}).SharesMAC(); got != want {
			t.Errorf("%q: %t, want %t", kind, got, want)
		}
	}
}

// Where the VPC CNI may draw from the subnet the holder is checked, and the ENI itself too, unless it is a primary ENI, which is
// never tagged and used only where that is allowed.
func TestMakeChecks(t *testing.T) {
	inA := ENI{ID: "eni-a2", MAC: "02:00:00:00:00:a2", DeviceIndex: 1, SubnetID: "subnet-a", Subnets: primaryENI.Subnets}
	onA := Link{Index: 10, Name: "net10", MAC: inA.MAC, Kind: "ipvlan"}
	type checks struct{ Holder, ENI, PrimaryUnknown bool }
	tests := map[string]struct {
		addr Address
		enis []ENI
		cni  []string
		want checks
	}{
		"another subnet":        {on(net1, "10.0.17.5/24")[0], []ENI{primaryENI, eniB1}, nil, checks{}},
		"the primary's subnet":  {on(onA, "10.0.0.5/24")[0], []ENI{primaryENI, inA}, nil, checks{Holder: true, ENI: true}},
		"a primary ENI allowed": {on(onP, "10.0.0.5/24")[0], []ENI{primaryENI}, nil, checks{Holder: true}},
		"unknown primary ENI":   {on(net1, "10.0.17.5/24")[0], []ENI{eniB1}, nil, checks{Holder: true, ENI: true, PrimaryUnknown: true}},
		"unknown primary ENI, a subnet of the settings": {on(net1, "10.0.17.5/24")[0], []ENI{eniB1}, []string{eniB1.SubnetID},
			checks{Holder: true, ENI: true}},
	}
	for name, tt := range tests {
		p := Make(snapshot([]Address{tt.addr}), tt.enis, Rules{PodIPs: podIPs, AllowPrimaryENI: true, VPCCNISubnets: tt.cni})
		if len(p.Assign) != 1 {
			t.Errorf("%s: %v", name, all(p))
			continue
		}
		if got := (checks{p.Assign[0].CheckHolder, p.Assign[0].CheckENI, p.Assign[0].PrimaryUnknown}); got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
	twins := append(on(onA, "10.0.0.5/24"), on(onP, "10.0.0.5/24")...)
	for _, enis := range [][]ENI{{primaryENI, inA}, {inA}} {
		for _, d := range Make(snapshot(twins), enis, Rules{PodIPs: podIPs, AllowPrimaryENI: true}).Skipped {
			if d.CheckHolder || d.CheckENI || d.PrimaryUnknown {
				t.Errorf("%s is left alone (%s) and would be checked", d.Address, d.Reason)
			}
		}
	}
}
