package aws

import (
	"net/http"
	"net/url"
	"testing"
)

// FuzzQuery throws query strings at the pipeline behind the signature: whatever comes, an answer comes back, nothing
// panics, and the state stays consistent.
func FuzzQuery(f *testing.F) {
	for _, seed := range [][]string{
		{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50", "AllowReassignment=true"},
		{assign4, on + a1, "SecondaryPrivateIpAddressCount=3"},
		{assign4, on + a1, "Ipv4PrefixCount=1"},
		{unassign4, on + b1, "PrivateIpAddress.1=10.0.16.21", "Ipv4Prefix.1=10.0.17.0/28"},
		{assign6, on + a1, "Ipv6Addresses.1=fd00:0:0:1::50", "Ipv6Addresses.2=fd00:0:0:1::51"},
		{assign6, on + a1, "Ipv6PrefixCount=2147483647"},
		{unassign6, on + b1, "Ipv6Addresses.1=fd00:0:0:1::21"},
		{"Action=DescribeNetworkInterfaces", "Filter.1.Name=subnet-id", "Filter.1.Value.1=*", "MaxResults=5"},
		{"Action=DescribeInstanceTypes", "NextToken=eyJhIjoiIn0="},
		{"Action=DescribeInstances", "Filter.x=1", "Filter.-1.Name=a", "DryRun=true"},
		{"Action=DescribeSubnets", "SubnetId.99999999999999999999=x", "SubnetId.01=subnet-pods"},
	} {
		f.Add(form(seed...).Encode())
	}
	f.Add("%zz&&&==;")
	f.Fuzz(func(t *testing.T, query string) {
		c := newFixture(t)
		values, refusal := parseParams("", []byte(query))
		if refusal != nil {
			return
		}
		q := &request{params: params{values: values}}
		q.call = c.journal.begin(c.describeCall(q))
		if q.resolve() != nil {
			return
		}
		before := len(c.state.holders)
		answer, refusal := c.perform(q)
		if (answer == nil) == (refusal == nil) {
			t.Errorf("answer %v, refusal %v", answer, refusal)
		}
		if refusal != nil && len(c.state.holders) != before {
			t.Error("a refused call changed something")
		}
		checkInvariants(t, c)
	})
}

// FuzzIMDSPath: every path gets an answer.
func FuzzIMDSPath(f *testing.F) {
	for _, p := range []string{"/", "/latest/meta-data/", "/latest/../x", "//", "/latest/meta-data/network/interfaces/macs/02:00:00:00:0a:01/", "/latest/meta-data/%2f"} {
		f.Add(p)
	}
	c := newFixture(f)
	f.Fuzz(func(t *testing.T, path string) {
		u := &url.URL{Path: "/" + path}
		w := ask(c.IMDS(nodeA), http.MethodGet, u.EscapedPath())
		if w.Code != 200 && w.Code != 404 {
			t.Errorf("%q: %d", path, w.Code)
		}
	})
}
