package plan

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMissing(t *testing.T) {
	link := func(index int, name string) Link { return Link{Index: index, Name: name, MAC: "02:00:00:00:00:01"} }
	base := []Link{lo, eth0}
	own := on(eth0, "10.0.0.77/32")
	tests := map[string]struct {
		links  []Link
		podIPs []netip.Addr
		expect Expectation
		want   Shortfall
	}{
		"nothing expected":                    {links: base},
		"named, there":                        {links: append(base, link(3, "net1")), expect: Expectation{Names: []string{"net1"}}},
		"named, not there":                    {links: append(base, link(3, "net1")), expect: Expectation{Names: []string{"n3", "net1", "n6"}}, want: Shortfall{Names: []string{"n3", "n6"}}},
		"unnamed, there under any name":       {links: append(base, link(3, "net7"), link(4, "x")), expect: Expectation{Unnamed: 2}},
		"unnamed, one is missing":             {links: append(base, link(3, "net1")), expect: Expectation{Unnamed: 2}, want: Shortfall{Unnamed: 1}},
		"unnamed, none is there":              {links: base, expect: Expectation{Unnamed: 2}, want: Shortfall{Unnamed: 2}},
		"a named link is no unnamed one":      {links: append(base, link(3, "n3")), expect: Expectation{Names: []string{"n3"}, Unnamed: 1}, want: Shortfall{Unnamed: 1}},
		"more than expected is fine":          {links: append(base, link(3, "net1"), link(4, "net2")), expect: Expectation{Unnamed: 1}},
		"a link without addresses counts":     {links: append(base, link(3, "net1")), expect: Expectation{Unnamed: 1}},
		"eth0 asked for by name":              {links: base, expect: Expectation{Names: []string{"eth0"}}},
		"eth0 asked for is not the extra one": {links: base, expect: Expectation{Names: []string{"eth0"}, Unnamed: 1}, want: Shortfall{Unnamed: 1}},
		"lo is none":                          {links: []Link{lo}, expect: Expectation{Unnamed: 1}, want: Shortfall{Unnamed: 1}},
		"own link by the pod's address": {
			links: []Link{lo, eth0, link(3, "net1")}, podIPs: podIPs, expect: Expectation{Unnamed: 2}, want: Shortfall{Unnamed: 1},
		},
		"fallback tunnels are the kernel's, not Multus's": {
			links: append(base, link(3, "tunl0"), link(4, "gre0"), link(5, "gretap0"), link(6, "erspan0"), link(7, "ip_vti0"),
				link(8, "ip6_vti0"), link(9, "sit0"), link(10, "ip6tnl0"), link(11, "ip6gre0")),
			expect: Expectation{Unnamed: 1}, want: Shortfall{Unnamed: 1},
		},
		"the VPC CNI's second interface is not Multus's": {
			links:  append(base, Link{Index: 3, Name: "v4if0", Kind: "veth"}, Link{Index: 4, Name: "mNicIf1", Kind: "veth"}),
			expect: Expectation{Unnamed: 1}, want: Shortfall{Unnamed: 1},
		},
		"a VRF device, which a CNI plugin makes beside the interface": {
			links:  append(base, Link{Index: 3, Name: "vrf-n6", Kind: "vrf"}),
			expect: Expectation{Unnamed: 1}, want: Shortfall{Unnamed: 1},
		},
		"a tunnel asked for by name is there": {links: append(base, link(3, "tunl0")), expect: Expectation{Names: []string{"tunl0"}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := Missing(Snapshot{Links: tt.links, Addresses: own}, tt.podIPs, tt.expect)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("shortfall (-want +got):\n%s", diff)
			}
			if want := len(tt.want.Names) > 0 || tt.want.Unnamed > 0; got.Any() != want {
				t.Errorf("Any = %t, want %t", got.Any(), want)
			}
		})
	}
}
