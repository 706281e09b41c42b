package agent

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/world"
)

const (
	assign4   = "AssignPrivateIpAddresses"
	assign6   = "AssignIpv6Addresses"
	unassign6 = "UnassignIpv6Addresses"
	describe  = "DescribeNetworkInterfaces"
)

// pings asserts that the pod's address answers, or does not, from another node's pod on the same network.
func (l *lab) pings(from *world.Pod, to string, answers bool) {
	l.Helper()
	timeout := 2 * time.Second
	if !answers {
		timeout = 300 * time.Millisecond
	}
	err := from.NS().Ping(l.Context(), netip.MustParseAddr(to), timeout)
	if answers && err != nil {
		l.Errorf("%s does not answer %s: %v", to, from.Name(), err)
	}
	if !answers && err == nil {
		l.Errorf("%s answers %s, though nobody assigned it", to, from.Name())
	}
}

// The main job: what a user sees.
func TestPingBetweenNodesNeedsTheAgent(t *testing.T) {
	l := start(t, nil)
	a := l.podOn("one", "a", network(1, "10.0.4.80/22", "fd50:0:0:4::80/64"))
	b := l.podOn("two", "b", network(1, "10.0.4.81/22", "fd50:0:0:4::81/64"))
	l.pings(a, "10.0.4.81", false)
	l.pings(a, "fd50:0:0:4::81", false)
	l.done(l.run(a, how{}))
	l.pings(a, "10.0.4.81", false)
	l.done(l.run(b, how{}))
	l.pings(a, "10.0.4.81", true)
	l.pings(a, "fd50:0:0:4::81", true)
	l.pings(b, "10.0.4.80", true)
}

// Rule 8 and the budget: one call per ENI and address family, no describe, at the first start and at a restart.
func TestOneCallPerENIAndFamily(t *testing.T) {
	for name, opts := range map[string][]aws.Option{
		"the likely EC2": nil,
		"an EC2 that names only new addresses": {aws.WithSettings(func(s *aws.Settings) {
			s.Quirks.IMDSIPv6NeedsAddress = true
		})},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, nil, opts...)
			p := l.pod(
				network(1, "10.0.4.80/22", "10.0.4.90/32", "fd50:0:0:4::80/64"),
				network(2, "10.0.8.80/24", "fd50:0:0:8::80/64", "fd50:0:0:9::80/128"),
			)
			l.done(l.run(p, how{}))
			l.called(assign4, assign4, assign6, assign6)
			l.on("one", 1, "10.0.4.80", "10.0.4.90", "fd50:0:0:4::80")
			l.on("one", 2, "10.0.8.80", "fd50:0:0:8::80", "fd50:0:0:9::80")
			l.done(l.run(p, how{}))
			l.called(assign4, assign4, assign6, assign6, assign4, assign4, assign6, assign6)
		})
	}
}

func TestWhatIsAssigned(t *testing.T) {
	type addresses = []string
	for name, test := range map[string]struct {
		change   func(*world.Spec)
		networks []world.Network
		how      how
		eni      map[int]addresses // device index → what must be there
		nowhere  addresses
	}{
		"a mask that differs from the subnet's": {
			networks: []world.Network{network(1, "10.0.5.80/28", "10.0.6.80/16")},
			eni:      map[int]addresses{1: {"10.0.5.80", "10.0.6.80"}},
		},
		"host masks, as keepalived adds them": {
			networks: []world.Network{network(1, "10.0.4.80/32", "fd50:0:0:4::80/128")},
			eni:      map[int]addresses{1: {"10.0.4.80", "fd50:0:0:4::80"}},
		},
		"several addresses on an interface": {
			networks: []world.Network{network(1, "10.0.4.80/22", "10.0.4.81/22", "10.0.4.82/22", "fd50:0:0:4::80/64", "fd50:0:0:4::81/64")},
			eni:      map[int]addresses{1: {"10.0.4.80", "10.0.4.81", "10.0.4.82", "fd50:0:0:4::80", "fd50:0:0:4::81"}},
		},
		"several interfaces on one ENI": {
			networks: []world.Network{network(1, "10.0.4.80/22"), network(1, "10.0.5.80/22")},
			eni:      map[int]addresses{1: {"10.0.4.80", "10.0.5.80"}},
		},
		"two ENIs in one subnet: the MAC decides": {
			change: func(s *world.Spec) {
				s.Nodes[0].ENIs = append(s.Nodes[0].ENIs, world.ENISpec{Index: 3, Subnet: "subnet-b", Primary: netip.MustParseAddr("10.0.4.13")})
			},
			networks: []world.Network{network(1, "10.0.4.80/22"), network(3, "10.0.4.83/22")},
			eni:      map[int]addresses{1: {"10.0.4.80"}, 3: {"10.0.4.83"}},
		},
		"an address inside a prefix of the ENI is routed already": {
			change: func(s *world.Spec) {
				s.Nodes[0].ENIs[1].Prefixes = []netip.Prefix{netip.MustParsePrefix("10.0.7.16/28")}
			},
			networks: []world.Network{network(1, "10.0.7.17/22", "10.0.4.80/22")},
			eni:      map[int]addresses{1: {"10.0.4.80"}},
		},
		"ignored addresses": {
			networks: []world.Network{network(1, "10.0.4.80/22", "192.168.7.1/24")},
			how:      how{annotations: map[string]string{"multus-ip-manager.io/ignore": "192.168.0.0/16"}},
			eni:      map[int]addresses{1: {"10.0.4.80"}},
			nowhere:  addresses{"192.168.7.1"},
		},
		"only the named interfaces": {
			networks: []world.Network{network(1, "10.0.4.80/22"), network(2, "10.0.8.80/24")},
			how:      how{annotations: map[string]string{"multus-ip-manager.io/interfaces": "net2"}},
			eni:      map[int]addresses{2: {"10.0.8.80"}},
			nowhere:  addresses{"10.0.4.80"},
		},
		"a foreign MAC outside the attached subnets is none of our business": {
			networks: []world.Network{network(1, "10.0.4.80/22"), {ENI: 2, Kind: world.Macvlan, Addresses: []netip.Prefix{netip.MustParsePrefix("172.31.0.5/24")}}},
			eni:      map[int]addresses{1: {"10.0.4.80"}},
			nowhere:  addresses{"172.31.0.5"},
		},
		"a foreign MAC inside an attached subnet, mapped because the settings ask": {
			networks: []world.Network{{ENI: 1, Kind: world.Macvlan, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.4.80/22")}}},
			how:      how{agent: map[string]string{"map-by-subnet": "true"}},
			eni:      map[int]addresses{1: {"10.0.4.80"}},
		},
		"the primary ENI, because the settings allow it": {
			networks: []world.Network{network(0, "10.0.1.80/24")},
			how:      how{agent: map[string]string{"allow-primary-eni": "true"}},
			eni:      map[int]addresses{0: {"10.0.1.80"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, test.change)
			l.done(l.run(l.pod(test.networks...), test.how))
			for _, eni := range slices.Sorted(maps.Keys(test.eni)) {
				l.on("one", eni, test.eni[eni]...)
			}
			l.nowhere(test.nowhere...)
		})
	}
}

func TestNothingToAssignIsSuccess(t *testing.T) {
	for name, networks := range map[string][]world.Network{
		"an interface without an address":     {network(1)},
		"link-local addresses":                {network(1, "169.254.7.7/16")},
		"no interface, no network asked for":  nil,
		"all in a prefix, IPv4":               {network(2, "10.0.8.17/24")},
		"foreign network on a foreign device": {{ENI: 2, Kind: world.Macvlan, Addresses: []netip.Prefix{netip.MustParsePrefix("172.31.0.5/24")}}},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, func(s *world.Spec) {
				s.Nodes[0].ENIs[2].Prefixes = []netip.Prefix{netip.MustParsePrefix("10.0.8.16/28")}
			})
			l.done(l.run(l.pod(networks...), how{}))
			l.called()
		})
	}
}

func TestWhatIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		change   func(*world.Spec)
		before   func(*lab)
		networks []world.Network
		how      how
		code     report.Code
		words    []string
		good     []string          // on device 1 all the same
		kept     map[string]string // address → "node/device index" or ENI id, where it must still be
	}{
		"outside the subnet": {
			networks: []world.Network{network(1, "10.0.4.80/22", "10.0.9.5/24")},
			code:     report.AddressRefused, words: []string{"10.0.9.5", "outside the subnet", "subnet-b", "10.0.4.0/22"},
			good: []string{"10.0.4.80"},
		},
		"macvlan": {
			networks: []world.Network{network(1, "10.0.4.80/22"), {ENI: 2, Kind: world.Macvlan, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.8.80/24")}}},
			code:     report.AddressRefused, words: []string{"10.0.8.80", "net2", "macvlan", "ipvlan"},
			good: []string{"10.0.4.80"},
		},
		"the primary ENI": {
			networks: []world.Network{network(0, "10.0.1.80/24"), network(1, "10.0.4.80/22")},
			code:     report.AddressRefused, words: []string{"10.0.1.80", "device index 0"},
			good: []string{"10.0.4.80"},
		},
		"another ENI's primary address among good ones": {
			networks: []world.Network{network(1, "10.0.4.80/22", "10.0.4.81/22", "10.0.4.11/22", "10.0.4.82/22", "10.0.4.83/22")},
			code:     report.AddressRefused, words: []string{"10.0.4.11", "primary"},
			good: []string{"10.0.4.80", "10.0.4.81", "10.0.4.82", "10.0.4.83"},
			kept: map[string]string{"10.0.4.11": "two/1"},
		},
		"an address AWS keeps for itself": {
			networks: []world.Network{network(1, "10.0.4.2/22", "10.0.4.80/22")},
			code:     report.AddressRefused, words: []string{"10.0.4.2", "reserved by AWS"},
			good: []string{"10.0.4.80"},
		},
		"an ENI of the VPC CNI": {
			change: func(s *world.Spec) {
				s.Nodes[0].ENIs[2].Subnet, s.Nodes[0].ENIs[2].Primary = "subnet-a", netip.MustParseAddr("10.0.1.12")
				s.Nodes[0].ENIs[2].Tags = nil
			},
			networks: []world.Network{network(2, "10.0.1.80/24"), network(1, "10.0.4.80/22")},
			code:     report.AddressRefused, words: []string{"10.0.1.80", "no_manage", "VPC CNI"},
			good: []string{"10.0.4.80"},
		},
		"an address of the VPC CNI's pool": {
			change: func(s *world.Spec) {
				s.Nodes[0].ENIs[2].Subnet, s.Nodes[0].ENIs[2].Primary = "subnet-a", netip.MustParseAddr("10.0.1.12")
				s.Nodes[1].ENIs[0].Secondary = []netip.Addr{netip.MustParseAddr("10.0.1.80")}
			},
			networks: []world.Network{network(2, "10.0.1.80/24", "10.0.1.81/24"), network(1, "10.0.4.80/22")},
			code:     report.AddressRefused, words: []string{"10.0.1.80", "the VPC CNI manages"},
			good: []string{"10.0.4.80"},
			kept: map[string]string{"10.0.1.80": "two/0", "10.0.1.81": "one/2"},
		},
		"an address of the VPC CNI's pool in a subnet that the settings name": {
			change: func(s *world.Spec) {
				s.Nodes[1].ENIs[2].Tags = nil
				s.Nodes[1].ENIs[2].Secondary = []netip.Addr{netip.MustParseAddr("10.0.8.80")}
			},
			networks: []world.Network{network(2, "10.0.8.80/24"), network(1, "10.0.4.80/22")},
			how:      how{agent: map[string]string{"vpc-cni-subnets": "subnet-c"}},
			code:     report.AddressRefused, words: []string{"10.0.8.80", "VPC CNI's pool"},
			good: []string{"10.0.4.80"},
			kept: map[string]string{"10.0.8.80": "two/2"},
		},
		"a primary IPv6 address of another ENI": {
			before: func(l *lab) {
				if err := l.cloud.AddENI(aws.ENI{ID: "eni-0a", SubnetID: "subnet-b", PrimaryIPv6: netip.MustParseAddr("fd50:0:0:4::80")}); err != nil {
					l.Fatal(err)
				}
			},
			networks: []world.Network{network(1, "fd50:0:0:4::80/64", "fd50:0:0:4::81/64")},
			code:     report.AddressRefused, words: []string{"fd50:0:0:4::80", "primary"},
			good: []string{"fd50:0:0:4::81"},
			kept: map[string]string{"fd50:0:0:4::80": "eni-0a"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, test.change)
			if test.before != nil {
				test.before(l)
			}
			l.fails(l.run(l.pod(test.networks...), test.how), test.code, test.words...)
			l.on("one", 1, test.good...)
			for addr, where := range test.kept {
				h, _ := l.cloud.Holder(netip.MustParseAddr(addr))
				if node, index, ok := strings.Cut(where, "/"); ok {
					where = l.world.Node(node).ENI(int(index[0] - '0'))
				}
				if h.ENI != where {
					t.Errorf("%s is on %s now, want it left on %s", addr, h.ENI, where)
				}
			}
		})
	}
}

// A pod takes its addresses over from wherever a former pod left them.
func TestMovesFromAnotherENI(t *testing.T) {
	for name, opts := range map[string][]aws.Option{
		"IPv6 held elsewhere: InvalidParameterValue":   nil,
		"IPv6 held elsewhere: InvalidIPAddress.InUse":  {aws.WithSettings(func(s *aws.Settings) { s.Quirks.IPv6HeldCode = "InvalidIPAddress.InUse" })},
		"IPv6 and IPv4 already here are errors":        {aws.WithSettings(func(s *aws.Settings) { s.Quirks.IPv6SameENIFails, s.Quirks.IPv4SameENIFails = true, true })},
		"IPv4 answers name only new addresses":         {aws.WithSettings(func(s *aws.Settings) { s.Quirks.IPv4AnswerNewOnly = true })},
		"searches lag two seconds behind assignments":  {aws.WithSettings(func(s *aws.Settings) { s.Delays.Describe = 2 * time.Second })},
		"assignments take 300 ms":                      {aws.WithSettings(func(s *aws.Settings) { s.Latency = 300 * time.Millisecond })},
		"all of the open questions answered otherwise": {aws.WithSettings(otherwise)},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, nil, opts...)
			p := l.pod(network(1, "10.0.4.80/22", "10.0.4.81/22", "fd50:0:0:4::80/64", "fd50:0:0:4::81/64"))
			l.assign(l.world.Node("two").ENI(1), "10.0.4.80", "fd50:0:0:4::80")
			l.cloud.Tune(func(s *aws.Settings) { s.FreezeIMDS = true }) // metadata's lists are no proof of anything
			l.done(l.run(p, how{}))
			l.on("one", 1, "10.0.4.80", "10.0.4.81", "fd50:0:0:4::80", "fd50:0:0:4::81")
			l.done(l.run(p, how{})) // a restarted agent finds everything there
			l.on("one", 1, "10.0.4.80", "10.0.4.81", "fd50:0:0:4::80", "fd50:0:0:4::81")
		})
	}
}

func otherwise(s *aws.Settings) {
	s.Quirks = aws.Quirks{
		IPv6HeldCode: "InvalidIPAddress.InUse", IPv6SameENIFails: true, IPv4SameENIFails: true, IPv4AnswerNewOnly: true,
		IPv6LimitCode: "Ipv6AddressLimitExceeded", ReassignNeedsSource: true, ExpiredToken: true, IMDSIPv6NeedsAddress: true,
	}
}

// Where the VPC CNI may draw from the subnet, the ENI and the holder are read before the one call that assigns.
func TestChecksHolderInTheVPCCNIsSubnet(t *testing.T) {
	l := start(t, func(s *world.Spec) {
		s.Nodes[0].ENIs[2].Subnet, s.Nodes[0].ENIs[2].Primary = "subnet-a", netip.MustParseAddr("10.0.1.12")
	})
	l.done(l.run(l.pod(network(2, "10.0.1.80/24")), how{}))
	l.called(describe, describe, assign4)
	l.on("one", 2, "10.0.1.80")
}

// The pod's own interface is left alone whatever it is called, unless it is an ENI's: Multus can replace the cluster network.
func TestReplacedClusterNetwork(t *testing.T) {
	l := start(t, nil)
	p := l.pod(network(1, "10.0.4.80/22"))
	l.done(l.run(p, how{podIPs: []netip.Addr{netip.MustParseAddr("10.0.4.80")}, annotations: map[string]string{"multus-ip-manager.io/ignore": p.IPs()[0].String()}}))
	l.on("one", 1, "10.0.4.80")
}

// An agent that is started by hand, without the downward API, takes eth0 for the pod's own interface.
func TestWithoutTheDownwardAPI(t *testing.T) {
	l := start(t, nil)
	p := l.pod(network(1, "10.0.4.80/22"))
	own := p.IPs()[0]
	before, _ := l.cloud.Holder(own)
	l.done(l.run(p, how{podIPs: []netip.Addr{}}))
	l.on("one", 1, "10.0.4.80")
	if after, _ := l.cloud.Holder(own); after != before {
		t.Errorf("the pod's own address went from %v to %v", before, after)
	}
}

// While duplicate address detection runs, which a VPC carries no answers for, the address is assigned already.
func TestTentativeAddressesAreAssigned(t *testing.T) {
	l := start(t, nil)
	p, err := l.world.AddPod(world.PodSpec{Name: "app", Namespace: "telco", Node: "one", DAD: true, Networks: []world.Network{network(1)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.NS().AddAddr("net1", netip.MustParsePrefix("fd50:0:0:4::80/64")); err != nil {
		t.Fatal(err)
	}
	l.done(l.run(p, how{}))
	l.on("one", 1, "fd50:0:0:4::80")
}
