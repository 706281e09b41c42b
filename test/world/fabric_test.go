package world

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"multus-ip-manager.io/test/ns"
)

// show renders a table one entry per line, in diff's order.
func show(t table) string {
	d := diff(newTable(), t)
	var b strings.Builder
	for _, r := range d.setRoutes {
		fmt.Fprintf(&b, "%s dev %s table %d\n", r.Dst, r.Link, r.Table)
	}
	for _, r := range d.addRules {
		fmt.Fprintf(&b, "%d: iif %s", r.Priority, r.IIf)
		switch {
		case r.Blackhole:
			b.WriteString(" drop")
		case r.Goto != 0:
			fmt.Fprintf(&b, " from %s goto %d", r.From, r.Goto)
		case r.To.IsValid():
			fmt.Fprintf(&b, " to %s table %d", r.To, r.Table)
		default:
			fmt.Fprintf(&b, " table %d", r.Table)
		}
		if r.IPv6 {
			b.WriteString(" (6)")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func has(addrs ...string) map[netip.Addr]uint64 {
	out := map[netip.Addr]uint64{}
	for i, a := range addrs {
		out[addr(a)] = uint64(i + 1)
	}
	return out
}

func TestVPCTable(t *testing.T) {
	owner := &port{name: "n1e1", eni: "eni-1", node: 1, device: 1, group: 1, owner: true}
	pod := &port{name: "p1", eni: "eni-1", node: 1, device: 1, group: 1, addrs: has("10.0.1.5", "10.0.1.6")}
	foreign := &port{name: "p2", eni: "eni-1", node: 1, device: 1, group: 1, foreign: true, addrs: has("10.0.1.7")}
	device0 := &port{name: "n1e0", eni: "eni-0", node: 1, group: 2, owner: true}
	blocks := func(pairs ...string) map[netip.Prefix]string {
		out := map[netip.Prefix]string{}
		for i := 0; i < len(pairs); i += 2 {
			out[prefix(pairs[i])] = pairs[i+1]
		}
		return out
	}
	for _, test := range []struct {
		name  string
		ports []*port
		h     holdings
		want  []string // lines that must be there; nothing else may
	}{
		{
			name:  "nothing assigned: pods of the ENI are switched, all else is dropped",
			ports: []*port{pod},
			want: []string{
				"10.0.1.5/32 dev p1 table 100002", "10.0.1.6/32 dev p1 table 100002",
				"100: iif p1 table 100002", "100: iif p1 table 100002 (6)", "300: iif p1 drop", "300: iif p1 drop (6)",
				"1001: iif p1 to 169.254.169.254/32 table 1001", "1001: iif p1 to fd00:ec2::254/128 table 1001 (6)",
			},
		},
		{
			name:  "an assigned address goes to the pod that has it, another to the node's own end",
			ports: []*port{pod, owner},
			h:     holdings{blocks: blocks("10.0.1.5/32", "eni-1", "10.0.1.11/32", "eni-1", "10.0.1.6/32", "eni-9")},
			want: []string{
				"10.0.1.5/32 dev p1 table 0", "10.0.1.11/32 dev n1e1 table 0",
				"10.0.1.5/32 dev p1 table 100002", "10.0.1.6/32 dev p1 table 100002",
				"100: iif n1e1 table 100002", "100: iif n1e1 table 100002 (6)", "100: iif p1 table 100002", "100: iif p1 table 100002 (6)",
				"200: iif n1e1 from 10.0.1.5/32 goto 1000", "200: iif n1e1 from 10.0.1.11/32 goto 1000",
				"200: iif p1 from 10.0.1.5/32 goto 1000", "200: iif p1 from 10.0.1.11/32 goto 1000",
				"300: iif n1e1 drop", "300: iif n1e1 drop (6)", "300: iif p1 drop", "300: iif p1 drop (6)",
				"1001: iif n1e1 to 169.254.169.254/32 table 1001", "1001: iif n1e1 to fd00:ec2::254/128 table 1001 (6)",
				"1001: iif p1 to 169.254.169.254/32 table 1001", "1001: iif p1 to fd00:ec2::254/128 table 1001 (6)",
			},
		},
		{
			name:  "a foreign MAC gets nothing and may send nothing, even without the check",
			ports: []*port{foreign},
			h:     holdings{blocks: blocks("10.0.1.7/32", "eni-1"), noCheck: map[string]bool{"eni-1": true}},
			want: []string{
				"10.0.1.7/32 dev p2 table 100003",
				"100: iif p2 table 100003", "100: iif p2 table 100003 (6)", "300: iif p2 drop", "300: iif p2 drop (6)",
			},
		},
		{
			name:  "device 0 without the check: no drop, and the node finds its metadata service itself",
			ports: []*port{device0},
			h:     holdings{blocks: blocks("2001:db8::/80", "eni-0"), noCheck: map[string]bool{"eni-0": true}},
			want: []string{
				"2001:db8::/80 dev n1e0 table 0",
				"100: iif n1e0 table 100004", "100: iif n1e0 table 100004 (6)",
				"200: iif n1e0 from 2001:db8::/80 goto 1000 (6)",
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := map[string]bool{}
			for line := range strings.Lines(show(vpcTable(test.ports, test.h))) {
				got[strings.TrimSuffix(line, "\n")] = true
			}
			want := map[string]bool{}
			for _, line := range test.want {
				want[line] = true
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("table differs (-want +got):\n%s", d)
			}
		})
	}
}

func TestTheNewestPodOfAnENIGetsADuplicate(t *testing.T) {
	old := &port{name: "p1", eni: "eni-1", device: 1, group: 1, addrs: map[netip.Addr]uint64{addr("10.0.1.5"): 1}}
	newer := &port{name: "p2", eni: "eni-1", device: 1, group: 1, addrs: map[netip.Addr]uint64{addr("10.0.1.5"): 2}}
	h := holdings{blocks: map[netip.Prefix]string{prefix("10.0.1.5/32"): "eni-1"}}
	for _, ports := range [][]*port{{old, newer}, {newer, old}} {
		routes := vpcTable(ports, h).routes
		for _, key := range []routeKey{{prefix("10.0.1.5/32"), 0}, {prefix("10.0.1.5/32"), newer.localTable()}} {
			if got := routes[key].Link; got != "p2" {
				t.Errorf("table %d leads to %q, want p2", key.table, got)
			}
		}
	}
}

func TestIMDSTable(t *testing.T) {
	ports := []*port{{name: "a", eni: "eni-0", node: 1}, {name: "b", eni: "eni-1", node: 1, device: 1}, {name: "c", eni: "eni-2", node: 2, device: 1}}
	h := holdings{blocks: map[netip.Prefix]string{prefix("10.0.0.5/32"): "eni-0", prefix("10.0.1.5/32"): "eni-1", prefix("10.0.1.6/32"): "eni-2"}}
	if got, want := show(imdsTable(1, "vpc", ports, h)), "10.0.1.5/32 dev vpc table 0\n"; got != want {
		t.Errorf("got %q, want only the address of the node's own extra ENI, %q", got, want)
	}
}

func TestAnswers(t *testing.T) {
	pod := &port{name: "p1", eni: "eni-1", addrs: has("10.0.1.5", "2001:db8::5")}
	mac1 := &port{name: "p2", eni: "eni-1", foreign: true, addrs: has("10.0.1.7")}
	mac2 := &port{name: "p3", eni: "eni-1", foreign: true, addrs: has("10.0.1.8")}
	mac3 := &port{name: "p4", eni: "eni-2", foreign: true, addrs: has("10.0.1.9")}
	ports := []*port{pod, mac1, mac2, mac3}
	for _, test := range []struct {
		name           string
		p              *port
		sender, target string
		want           bool
	}{
		{"another address", pod, "10.0.1.5", "10.0.1.9", true},
		{"an address nobody has", pod, "10.0.1.5", "10.0.1.200", true},
		{"its own", pod, "10.0.1.6", "10.0.1.5", false},
		{"ARP probe", pod, "0.0.0.0", "10.0.1.9", false},
		{"gratuitous ARP", pod, "10.0.1.9", "10.0.1.9", false},
		{"IPv6", pod, "2001:db8::5", "2001:db8::9", true},
		{"duplicate address detection", pod, "::", "2001:db8::9", false},
		{"the router", pod, "fe80::5", "fe80:ec2::1", true},
		{"a link-local address", pod, "fe80::5", "fe80::9", false},
		{"macvlan to its sibling", mac1, "10.0.1.7", "10.0.1.8", true},
		{"macvlan to the VPC", mac1, "10.0.1.7", "10.0.1.1", false},
		{"macvlan to another ENI's", mac1, "10.0.1.7", "10.0.1.9", false},
		{"macvlan to an ipvlan pod", mac1, "10.0.1.7", "10.0.1.5", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := answers(test.p, ports, addr(test.sender), addr(test.target)); got != test.want {
				t.Errorf("answers = %v, want %v", got, test.want)
			}
		})
	}
}

func TestDiff(t *testing.T) {
	from, to := newTable(), newTable()
	from.route(prefix("10.0.1.1/32"), "stays", 0)
	to.route(prefix("10.0.1.1/32"), "stays", 0)
	from.route(prefix("10.0.1.2/32"), "before", 0)
	to.route(prefix("10.0.1.2/32"), "after", 0)
	from.route(prefix("10.0.1.3/32"), "goes", 0)
	to.route(prefix("10.0.1.3/32"), "comes", 7)
	from.rule(ns.Rule{Priority: 1, IIf: "stays", Blackhole: true})
	to.rule(ns.Rule{Priority: 1, IIf: "stays", Blackhole: true})
	from.rule(ns.Rule{Priority: 2, From: prefix("10.0.1.3/32"), Table: 1})
	to.rule(ns.Rule{Priority: 2, From: prefix("2001:db8::/64"), Table: 1})
	route := func(dst, link string, table int) ns.Route {
		return ns.Route{Dst: prefix(dst), Via: peer4, Link: link, Table: table}
	}
	want := difference{
		setRoutes: []ns.Route{route("10.0.1.2/32", "after", 0), route("10.0.1.3/32", "comes", 7)},
		delRoutes: []ns.Route{route("10.0.1.3/32", "goes", 0)},
		addRules:  []ns.Rule{{Priority: 2, IPv6: true, From: prefix("2001:db8::/64"), Table: 1}},
		delRules:  []ns.Rule{{Priority: 2, From: prefix("10.0.1.3/32"), Table: 1}},
	}
	options := []cmp.Option{cmp.AllowUnexported(difference{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	if d := cmp.Diff(want, diff(from, to), options...); d != "" {
		t.Errorf("difference (-want +got):\n%s", d)
	}
}
