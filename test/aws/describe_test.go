package aws

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (make it with -update)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (rewrite with -update):\n%s", path, diff)
	}
}

// found is the texts of an element in a body, in order.
func found(body, element string) []string {
	var out []string
	for _, m := range regexp.MustCompile("<"+element+">([^<]*)</"+element+">").FindAllStringSubmatch(body, -1) {
		out = append(out, m[1])
	}
	return out
}

// TestDescribeGolden shows the whole answer of each describe call.
func TestDescribeGolden(t *testing.T) {
	c := newFixture(t)
	volatile := regexp.MustCompile(`<(requestId|attachTime|launchTime)>[^<]*<`)
	empty := regexp.MustCompile(`<(\w+)></\w+>`)
	for name, params := range map[string][]string{
		"interfaces.xml": {"Action=DescribeNetworkInterfaces", "NetworkInterfaceId.1=" + a1, "NetworkInterfaceId.2=" + b1, "NetworkInterfaceId.3=" + free},
		"subnets.xml":    {"Action=DescribeSubnets"},
		"instances.xml":  {"Action=DescribeInstances", "InstanceId.1=" + nodeA},
		"types.xml":      {"Action=DescribeInstanceTypes", "InstanceType.1=m5.large", "InstanceType.2=c6in.32xlarge"},
	} {
		body := ok(t, c, params...).Body
		golden(t, name, strings.ReplaceAll(empty.ReplaceAllString(volatile.ReplaceAllString(body, "<$1>…<"), "<$1/>"), "><", ">\n<")+"\n")
	}
}

func TestInterfaceFilters(t *testing.T) {
	c := newFixture(t)
	all := []string{a0, a1, a2, free, b0, b1, b2}
	f := func(pairs ...string) []string {
		var out []string
		for i := 0; i < len(pairs); i += 2 {
			n := strconv.Itoa(i/2 + 1)
			out = append(out, "Filter."+n+".Name="+pairs[i], "Filter."+n+".Value.1="+pairs[i+1])
		}
		return out
	}
	cases := map[string]struct {
		params []string
		want   []string
	}{
		"nothing":                       {nil, all},
		"attachment.instance-id":        {f("attachment.instance-id", nodeA), []string{a0, a1, a2}},
		"attachment.device-index":       {f("attachment.device-index", "1"), []string{a1, b1}},
		"attachment.status":             {f("attachment.status", "attached"), []string{a0, a1, a2, b0, b1, b2}},
		"network-interface-id":          {f("network-interface-id", a1), []string{a1}},
		"mac-address":                   {f("mac-address", "02:00:00:00:0b:01"), []string{b1}},
		"subnet-id":                     {f("subnet-id", "subnet-pods"), []string{a1, free, b1, b2}},
		"vpc-id":                        {f("vpc-id", "vpc-1"), all},
		"other vpc":                     {f("vpc-id", "vpc-2"), nil},
		"addresses.private-ip-address":  {f("addresses.private-ip-address", "10.0.16.21"), []string{b1}},
		"private-ip-address secondary":  {f("private-ip-address", "10.0.16.21"), nil},
		"private-ip-address":            {f("private-ip-address", "10.0.16.20"), []string{b1}},
		"ipv6-addresses.ipv6-address":   {f("ipv6-addresses.ipv6-address", "fd00:0:0:1::21"), []string{b1}},
		"v6 is compared as text":        {f("ipv6-addresses.ipv6-address", "FD00:0:0:1::21"), nil},
		"status":                        {f("status", "available"), []string{free}},
		"tag":                           {f("tag:node.k8s.amazonaws.com/no_manage", "true"), []string{a1}},
		"tag-key":                       {f("tag-key", "node.k8s.amazonaws.com/*"), []string{a1}},
		"and":                           {f("subnet-id", "subnet-pods", "attachment.instance-id", nodeB), []string{b1, b2}},
		"or":                            {append(f("mac-address", "02:00:00:00:0b:01"), "Filter.1.Value.2=02:00:00:00:0a:01"), []string{a1, b1}},
		"wildcard":                      {f("addresses.private-ip-address", "10.0.16.2?"), []string{b1}},
		"id and filter":                 {append(f("status", "in-use"), "NetworkInterfaceId.1="+a1, "NetworkInterfaceId.2="+free), []string{a1}},
		"an address inside a prefix":    {f("addresses.private-ip-address", "10.0.17.5"), nil},
		"elastic":                       {f("addresses.association.public-ip", "203.0.113.7"), []string{b1}},
		"ipv4-prefix.ipv4-prefix":       {f("ipv4-prefix.ipv4-prefix", "10.0.17.0/28"), []string{b1}},
		"group-id":                      {f("group-id", "sg-2"), []string{a1}},
		"interface-type and check":      {f("interface-type", "interface", "source-dest-check", "true", "attachment.device-index", "2"), []string{a2, b2}},
		"availability-zone and no such": {f("availability-zone", "us-east-1b"), nil},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			body := ok(t, c, append(tc.params, "Action=DescribeNetworkInterfaces")...).Body
			if diff := cmp.Diff(sortLike(tc.want), sortLike(found(body, "networkInterfaceId"))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestPages walks through pages while interfaces come and go: none is seen twice, none that stays is missed.
func TestPages(t *testing.T) {
	c := newFixture(t)
	var seen []string
	next, calls := "", 0
	for {
		params := []string{"Action=DescribeNetworkInterfaces", "MaxResults=5", "Filter.1.Name=vpc-id", "Filter.1.Value.1=vpc-1"}
		if next != "" {
			params = append(params, "NextToken="+next)
		}
		body := ok(t, c, params...).Body
		seen = append(seen, found(body, "networkInterfaceId")...)
		calls++
		if calls == 1 {
			next = found(body, "nextToken")[0]
			if got := call(t, c, "Action=DescribeNetworkInterfaces", "MaxResults=5", "NextToken="+next); got.Code != "InvalidPaginationToken" {
				t.Errorf("a token was accepted for another search: %+v", got)
			}
			if err := c.DeleteENI(a0); err != nil {
				t.Fatal(err)
			}
			if err := c.DeleteENI(b0); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if len(found(body, "nextToken")) == 0 {
			break
		}
		next = found(body, "nextToken")[0]
	}
	if diff := cmp.Diff([]string{a0, a1, a2, free, b0, b1, b2}, sortLike(seen)); diff != "" || calls != 2 {
		t.Errorf("%d calls\n%s", calls, diff)
	}
}

func sortLike(ids []string) []string {
	order := []string{a0, a1, a2, free, b0, b1, b2}
	slices.SortFunc(ids, func(x, y string) int { return slices.Index(order, x) - slices.Index(order, y) })
	return ids
}

func TestTypePages(t *testing.T) {
	c := newFixture(t)
	body := ok(t, c, "Action=DescribeInstanceTypes", "MaxResults=20").Body
	got := found(body, "instanceType")
	body = ok(t, c, "Action=DescribeInstanceTypes", "MaxResults=100", "NextToken="+found(body, "nextToken")[0]).Body
	if diff := cmp.Diff(InstanceTypes(), append(got, found(body, "instanceType")...)); diff != "" {
		t.Error(diff)
	}
}

func TestOtherFilters(t *testing.T) {
	c := newFixture(t)
	for _, tc := range []struct {
		action, filter, value, element string
		want                           []string
	}{
		{"DescribeSubnets", "cidr-block", "10.0.16.0/20", "subnetId", []string{"subnet-pods"}},
		{"DescribeSubnets", "ipv6-cidr-block-association.ipv6-cidr-block", "fd00:0:0:1::/64", "subnetId", []string{"subnet-pods"}},
		{"DescribeSubnets", "tag:tier", "pods", "subnetId", []string{"subnet-pods"}},
		{"DescribeInstances", "network-interface.addresses.private-ip-address", "10.0.16.21", "reservationId", []string{"r-0b"}},
		{"DescribeInstances", "private-ip-address", "10.0.0.10", "reservationId", []string{"r-0a"}},
		{"DescribeInstances", "tag:Name", nodeB, "reservationId", []string{"r-0b"}},
		{"DescribeInstanceTypes", "instance-type", "t3.*large", "instanceType", []string{"t3.2xlarge", "t3.large", "t3.xlarge"}},
	} {
		body := ok(t, c, "Action="+tc.action, "Filter.1.Name="+tc.filter, "Filter.1.Value.1="+tc.value).Body
		if diff := cmp.Diff(tc.want, found(body, tc.element)); diff != "" {
			t.Errorf("%+v\n%s", tc, diff)
		}
	}
}

func TestWildcard(t *testing.T) {
	for _, tc := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"*", "", true}, {"?", "", false}, {"a*c", "abbc", true}, {"a*c", "abbd", false},
		{"a?c", "abc", true}, {"A", "a", false}, {"*.b", "a.b.b", true}, {"a**", "a", true}, {"[a]", "a", false},
		{"?", "ü", true}, {"??", "ü", false}, {"*ü?", "xüß", true},
		{`a\*c`, "a*c", true}, {`a\*c`, "abc", false}, {`a\?c`, "a?c", true}, {`a\?c`, "abc", false}, {`\\*`, `\x`, true}, {`a\b`, `a\b`, true},
		{`a\`, `a\`, true}, {`\**`, "*x", true}, {`\**`, "xx", false},
	} {
		if got := wildcard(tc.pattern, tc.s); got != tc.want {
			t.Errorf("wildcard(%q, %q) = %t", tc.pattern, tc.s, got)
		}
	}
}

// TestListOrder: lists are in the order of their numbers, not of their names.
func TestListOrder(t *testing.T) {
	var want []string
	p := params{values: form(numbered("A", "10.0.0.1", 30)...)}
	for i := range 30 {
		want = append(want, "10.0.0."+strconv.Itoa(i+1))
	}
	if diff := cmp.Diff(want, p.list("A")); diff != "" {
		t.Error(diff)
	}
}

func TestPrimaryIPv6IsTheInterfacesOwn(t *testing.T) {
	c := newFixture(t)
	if err := c.AddENI(ENI{ID: "eni-0six", SubnetID: "subnet-pods", IPv6: []netip.Addr{ip("fd00:0:0:1::61"), ip("fd00:0:0:1::62")}, PrimaryIPv6: ip("fd00:0:0:1::62")}); err != nil {
		t.Fatal(err)
	}
	body := ok(t, c, "Action=DescribeNetworkInterfaces", "NetworkInterfaceId.1=eni-0six").Body
	if diff := cmp.Diff([]string{"fd00:0:0:1::61", "fd00:0:0:1::62", "fd00:0:0:1::62"}, found(body, "ipv6Address")); diff != "" {
		t.Error(diff)
	}
}
