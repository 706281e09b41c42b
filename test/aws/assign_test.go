package aws

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestAssign is what assigning and unassigning does: the answer and who has what then.
func TestAssign(t *testing.T) {
	cases := map[string]struct {
		params  []string
		quirks  Quirks
		answer  string            // must be in the body
		holders map[string]string // address to ENI, "" = nobody
		changes int
	}{
		"v4 new": {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50", "PrivateIpAddress.2=10.0.16.51"},
			answer:  "<networkInterfaceId>eni-0a1</networkInterfaceId><assignedPrivateIpAddressesSet><item><privateIpAddress>10.0.16.50</privateIpAddress></item><item><privateIpAddress>10.0.16.51</privateIpAddress></item></assignedPrivateIpAddressesSet><return>true</return>",
			holders: map[string]string{"10.0.16.50": a1, "10.0.16.51": a1}, changes: 2},
		"v4 move": {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.21", "AllowReassignment=true"},
			holders: map[string]string{"10.0.16.21": a1, "10.0.16.22": b1}, changes: 1},
		"v4 again": {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.11"},
			answer: "<item><privateIpAddress>10.0.16.11</privateIpAddress></item>", holders: map[string]string{"10.0.16.11": a1}},
		"v4 again, only new in the answer": {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.11", "PrivateIpAddress.2=10.0.16.50"},
			quirks:  Quirks{IPv4AnswerNewOnly: true},
			answer:  "<assignedPrivateIpAddressesSet><item><privateIpAddress>10.0.16.50</privateIpAddress></item></assignedPrivateIpAddressesSet>",
			holders: map[string]string{"10.0.16.50": a1}, changes: 1},
		"v4 again with permission to move": {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.11", "AllowReassignment=true"},
			quirks: Quirks{IPv4SameENIFails: true}, holders: map[string]string{"10.0.16.11": a1}},
		"v4 own primary": {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.10", "AllowReassignment=true"},
			holders: map[string]string{"10.0.16.10": a1}},
		"v4 to the limit": {params: append(numbered("PrivateIpAddress", "10.0.18.1", 8), assign4, on+a1),
			holders: map[string]string{"10.0.18.8": a1}, changes: 8},
		"v4 the limit counts only new ones": {params: append(numbered("PrivateIpAddress", "10.0.18.1", 8), assign4, on+a1, "PrivateIpAddress.9=10.0.16.11"),
			holders: map[string]string{"10.0.18.8": a1}, changes: 8},
		"v4 unattached has no limit": {params: append(numbered("PrivateIpAddress", "10.0.18.1", 20), assign4, on+free),
			holders: map[string]string{"10.0.18.20": free}, changes: 20},
		"v4 twice in one call": {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50", "PrivateIpAddress.2=10.0.16.50"},
			holders: map[string]string{"10.0.16.50": a1}, changes: 1},
		"v4 reserved explicitly can be named": {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.31.200"},
			holders: map[string]string{"10.0.31.200": a1}, changes: 1},
		"v4 count picks outside reservations": {params: []string{assign4, on + a1, "SecondaryPrivateIpAddressCount=2"},
			answer:  "<item><privateIpAddress>10.0.31.127</privateIpAddress></item><item><privateIpAddress>10.0.31.126</privateIpAddress></item>",
			holders: map[string]string{"10.0.31.127": a1, "10.0.31.126": a1}, changes: 2},
		"v4 prefix": {params: []string{assign4, on + a1, "Ipv4Prefix.1=10.0.18.16/28"},
			answer:  "<assignedIpv4PrefixSet><item><ipv4Prefix>10.0.18.16/28</ipv4Prefix></item></assignedIpv4PrefixSet>",
			holders: map[string]string{"10.0.18.17": a1}, changes: 1},
		"v4 prefix count": {params: []string{assign4, on + a1, "Ipv4PrefixCount=1"},
			answer:  "<item><ipv4Prefix>10.0.31.112/28</ipv4Prefix></item>",
			holders: map[string]string{"10.0.31.113": a1}, changes: 1},
		"v4 unassign": {params: []string{unassign4, on + b1, "PrivateIpAddress.1=10.0.16.21", "PrivateIpAddress.2=10.0.16.22"},
			answer: "<return>true</return>", holders: map[string]string{"10.0.16.21": "", "10.0.16.22": ""}, changes: 2},
		"v4 unassign a prefix": {params: []string{unassign4, on + b1, "Ipv4Prefix.1=10.0.17.0/28"},
			holders: map[string]string{"10.0.17.5": ""}, changes: 1},

		"v6 new": {params: []string{assign6, on + a1, "Ipv6Addresses.1=FD00:0:0:1:0::50"},
			answer:  "<networkInterfaceId>eni-0a1</networkInterfaceId><assignedIpv6Addresses><item>fd00:0:0:1::50</item></assignedIpv6Addresses></AssignIpv6AddressesResponse>",
			holders: map[string]string{"fd00:0:0:1::50": a1}, changes: 1},
		"v6 again": {params: []string{assign6, on + a1, "Ipv6Addresses.1=fd00:0:0:1::11"},
			answer: "<assignedIpv6Addresses></assignedIpv6Addresses>", holders: map[string]string{"fd00:0:0:1::11": a1}},
		"v6 again and new": {params: []string{assign6, on + a1, "Ipv6Addresses.1=fd00:0:0:1::11", "Ipv6Addresses.2=fd00:0:0:1::50"},
			answer: "<assignedIpv6Addresses><item>fd00:0:0:1::50</item></assignedIpv6Addresses>", holders: map[string]string{"fd00:0:0:1::50": a1}, changes: 1},
		"v6 count": {params: []string{assign6, on + a1, "Ipv6AddressCount=1"}, answer: "<item>fd00::1:ffff:ffff:ffff:fffe</item>",
			holders: map[string]string{"fd00:0:0:1:ffff:ffff:ffff:fffe": a1}, changes: 1},
		"v6 prefix": {params: []string{assign6, on + a1, "Ipv6Prefix.1=fd00:0:0:1:2::/80"},
			answer: "<assignedIpv6PrefixSet><item>fd00:0:0:1:2::/80</item></assignedIpv6PrefixSet>", holders: map[string]string{"fd00:0:0:1:2::9": a1}, changes: 1},
		"v6 unassign": {params: []string{unassign6, on + b1, "Ipv6Addresses.1=fd00:0:0:1::21"},
			answer: "<networkInterfaceId>eni-0b1</networkInterfaceId><unassignedIpv6Addresses><item>fd00:0:0:1::21</item></unassignedIpv6Addresses>", holders: map[string]string{"fd00:0:0:1::21": ""}, changes: 1},
		"v6 unassign a prefix": {params: []string{unassign6, on + b1, "Ipv6Prefix.1=fd00:0:0:1:1::/80"},
			answer: "<unassignedIpv6PrefixSet><item>fd00:0:0:1:1::/80</item></unassignedIpv6PrefixSet>", holders: map[string]string{"fd00:0:0:1:1::5": ""}, changes: 1},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c := newFixture(t, WithSettings(func(s *Settings) { s.Quirks = tc.quirks }))
			var seen []Change
			defer c.Watch(func(ch Change) { seen = append(seen, ch) })()
			got := ok(t, c, tc.params...)
			if !strings.Contains(got.Body, tc.answer) || !strings.Contains(got.Body, `Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>`) {
				t.Errorf("answer: %s\nwant: %s", got.Body, tc.answer)
			}
			for a, want := range tc.holders {
				if h, _ := c.Holder(ip(a)); h.ENI != want {
					t.Errorf("%s is held by %q, want %q", a, h.ENI, want)
				}
			}
			call := c.Journal()[0]
			if len(seen) != tc.changes || call.Changes != tc.changes || !call.Applied {
				t.Errorf("%d changes watched, journal %+v; want %d", len(seen), call, tc.changes)
			}
			checkInvariants(t, c)
		})
	}
}

// TestMoveTakesElasticIPAlong: any Elastic IP associated with the address moves with it.
func TestMoveTakesElasticIPAlong(t *testing.T) {
	c := newFixture(t)
	ok(t, c, assign4, on+a1, "PrivateIpAddress.1=10.0.16.21", "AllowReassignment=true")
	e, _ := c.ENI(a1)
	want := map[netip.Addr]netip.Addr{ip("10.0.16.21"): ip("203.0.113.7")}
	if diff := cmp.Diff(want, e.ElasticIPs, compareAddrs()); diff != "" {
		t.Error(diff)
	}
	if e, _ = c.ENI(b1); len(e.ElasticIPs) != 0 {
		t.Errorf("%s still has %v", b1, e.ElasticIPs)
	}
	ok(t, c, unassign4, on+a1, "PrivateIpAddress.1=10.0.16.21")
	ok(t, c, assign4, on+a1, "PrivateIpAddress.1=10.0.16.21")
	if e, _ = c.ENI(a1); len(e.ElasticIPs) != 0 {
		t.Errorf("an address that was given up came back with %v", e.ElasticIPs)
	}
}

func TestHolder(t *testing.T) {
	c := newFixture(t)
	for a, want := range map[string]Holder{
		"10.0.16.20":      {ENI: b1, Instance: nodeB, Primary: true},
		"10.0.16.21":      {ENI: b1, Instance: nodeB},
		"10.0.17.15":      {ENI: b1, Instance: nodeB, Prefix: cidr("10.0.17.0/28"), InPrefix: true},
		"fd00:0:0:1::10":  {ENI: a1, Instance: nodeA, Primary: true},
		"fd00:0:0:1:1::9": {ENI: b1, Instance: nodeB, Prefix: cidr("fd00:0:0:1:1::/80"), InPrefix: true},
		"10.0.16.40":      {ENI: free, Primary: true},
	} {
		if got, ok := c.Holder(ip(a)); !ok || got != want {
			t.Errorf("%s: %+v, want %+v", a, got, want)
		}
	}
	if h, ok := c.Holder(ip("10.0.17.16")); ok {
		t.Errorf("10.0.17.16 is held by %+v", h)
	}
}

// TestRandomCalls keeps the invariants under thousands of calls, good and bad.
func TestRandomCalls(t *testing.T) {
	c := newFixture(t)
	r := rand.New(rand.NewPCG(7, 7))
	enis := []string{a0, a1, a2, b0, b1, b2, free, "eni-0dead"}
	refused := 0
	for range 3000 {
		id := enis[r.IntN(len(enis))]
		n := 1 + r.IntN(3)
		var params []string
		switch r.IntN(5) {
		case 0:
			params = append(numbered("PrivateIpAddress", fmt.Sprintf("10.0.16.%d", 2+r.IntN(60)), n), assign4, "AllowReassignment=true")
		case 1:
			params = append(numbered("PrivateIpAddress", fmt.Sprintf("10.0.16.%d", 2+r.IntN(60)), n), unassign4)
		case 2:
			params = append(numbered("Ipv6Addresses", fmt.Sprintf("fd00:0:0:1::%x", 2+r.IntN(40)), n), assign6)
		case 3:
			params = append(numbered("Ipv6Addresses", fmt.Sprintf("fd00:0:0:1::%x", 2+r.IntN(40)), n), unassign6)
		case 4:
			params = []string{fmt.Sprintf("Ipv4Prefix.1=10.0.%d.%d/28", 16+r.IntN(2), 16*r.IntN(8)), []string{assign4, unassign4}[r.IntN(2)]}
		}
		if got := call(t, c, append(params, on+id)...); got.Status != 200 {
			refused++
		}
	}
	checkInvariants(t, c)
	if refused < 300 || refused > 2700 {
		t.Errorf("%d of 3000 calls were refused: the mix proves nothing", refused)
	}
}

// checkInvariants compares the index of holders with the interfaces, and the interfaces with their limits.
func checkInvariants(t *testing.T, c *Cloud) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	want := map[place]string{}
	for id, e := range c.state.enis {
		vpc := c.state.vpcOf(e)
		for _, h := range slices.Concat(e.v4, e.v6) {
			if other, twice := want[place{vpc, single(h.addr)}]; twice {
				t.Errorf("%s is on %s and %s", h.addr, other, id)
			}
			want[place{vpc, single(h.addr)}] = id
		}
		for _, p := range e.prefixes {
			want[place{vpc, p}] = id
		}
		for _, v6 := range []bool{false, true} {
			if limit, limited := c.state.limit(e, v6); limited && e.used(v6) > limit {
				t.Errorf("%s uses %d of %d slots", id, e.used(v6), limit)
			}
		}
	}
	if diff := cmp.Diff(want, c.state.holders, cmp.AllowUnexported(place{}), compareAddrs()); diff != "" {
		t.Errorf("the index differs from the interfaces:\n%s", diff)
	}
}

// TestImpossible is configuration that no cloud could have.
func TestImpossible(t *testing.T) {
	c := newFixture(t)
	limits := Limits{ENIs: 3, IPv4PerENI: 2, IPv6PerENI: 2}
	if err := c.AddInstance(Instance{ID: "i-tiny", Limits: &limits, Type: "own.tiny"}); err != nil {
		t.Fatal(err)
	}
	if err := c.AddSubnet(Subnet{ID: "subnet-b", VPCID: "vpc-1", AZ: "us-east-1b", IPv4: cidr("10.0.60.0/24")}); err != nil {
		t.Fatal(err)
	}
	for want, err := range map[string]error{
		"exists already":                      c.AddENI(ENI{ID: a1, SubnetID: "subnet-pods"}),
		"no subnet":                           c.AddENI(ENI{ID: "eni-1", SubnetID: "subnet-x"}),
		"no instance":                         c.AddENI(ENI{ID: "eni-1", SubnetID: "subnet-pods", InstanceID: "i-x"}),
		"is held by eni-0b1":                  c.AddENI(ENI{ID: "eni-1", SubnetID: "subnet-pods", Secondary: []netip.Addr{ip("10.0.16.21")}}),
		"does not fall within":                c.AddENI(ENI{ID: "eni-1", SubnetID: "subnet-pods", Primary: ip("10.0.0.33")}),
		"reserved address":                    c.AddENI(ENI{ID: "eni-1", SubnetID: "subnet-pods", Primary: ip("10.0.16.1")}),
		"listed twice":                        c.AddENI(ENI{ID: "eni-1", SubnetID: "subnet-pods", Secondary: []netip.Addr{ip("10.0.19.1"), ip("10.0.19.1")}}),
		"MAC 02:00:00:00:0a:01":               c.AddENI(ENI{ID: "eni-1", SubnetID: "subnet-pods", MAC: "02:00:00:00:0A:01"}),
		"device index 1 of card 0 is eni-0a1": c.AddENI(ENI{ID: "eni-1", SubnetID: "subnet-pods", InstanceID: nodeA, DeviceIndex: 1}),
		"allows 3 interfaces":                 c.AddENI(ENI{ID: "eni-1", SubnetID: "subnet-pods", InstanceID: nodeA, DeviceIndex: 7}),
		"allows 2 and 2":                      c.AddENI(ENI{ID: "eni-1", SubnetID: "subnet-pods", InstanceID: "i-tiny", Secondary: []netip.Addr{ip("10.0.19.1"), ip("10.0.19.2")}}),
		"another availability zone":           c.AddENI(ENI{ID: "eni-1", SubnetID: "subnet-b", InstanceID: nodeB, DeviceIndex: 3}),
		"overlaps subnet-pods":                c.AddSubnet(Subnet{ID: "subnet-1", VPCID: "vpc-1", IPv4: cidr("10.0.16.0/24")}),
		"between /16 and /28":                 c.AddSubnet(Subnet{ID: "subnet-1", IPv4: cidr("10.0.16.0/29")}),
		"want a network address between /44":  c.AddSubnet(Subnet{ID: "subnet-1", IPv6: []netip.Prefix{cidr("fd00::/96")}}),
		"needs Limits":                        c.AddInstance(Instance{ID: "i-1", Type: "m1.gigantic"}),
		"hop limit 65":                        c.AddInstance(Instance{ID: "i-1", HopLimit: 65}),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want …%s…", err, want)
		}
	}
	checkInvariants(t, c)
}

// TestOperator is the Go API that plays the operator: hot-plug, removal, addresses by hand.
func TestOperator(t *testing.T) {
	c := newFixture(t)
	var seen []string
	defer c.Watch(func(ch Change) { seen = append(seen, fmt.Sprintf("%s %s>%s", ch.Block.Addr(), ch.From, ch.To)) })()
	for _, err := range []error{
		c.Assign(a1, ip("10.0.16.21"), ip("fd00:0:0:1::21")), // both are moved from b1
		c.Unassign(a1, ip("10.0.16.21")),
		c.Detach(a2),
		c.Attach(free, nodeA, 2),
		c.DeleteENI(a2),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []string{"10.0.16.21 eni-0b1>eni-0a1", "fd00:0:0:1::21 eni-0b1>", "fd00:0:0:1::21 >eni-0a1", "10.0.16.21 eni-0a1>", "10.0.48.10 eni-0a2>"}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Error(diff)
	}
	if err := c.Attach(a2, nodeA, 2); err == nil {
		t.Error("a deleted interface was attached")
	}
	if h, _ := c.Holder(ip("10.0.16.40")); h.Instance != nodeA {
		t.Errorf("after the hot-plug: %+v", h)
	}
	if len(c.Journal()) != 0 {
		t.Error("the operator's deeds are in the journal")
	}
	checkInvariants(t, c)
}
