package aws

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	assign4, unassign4 = "Action=AssignPrivateIpAddresses", "Action=UnassignPrivateIpAddresses"
	assign6, unassign6 = "Action=AssignIpv6Addresses", "Action=UnassignIpv6Addresses"
	on                 = "NetworkInterfaceId="
)

// numbered is n parameters name.1 … name.n with addresses counted up from first.
func numbered(name, first string, n int) []string {
	a := ip(first)
	var out []string
	for i := range n {
		out = append(out, name+"."+strconv.Itoa(i+1)+"="+a.String())
		a = a.Next()
	}
	return out
}

// TestRefusals is every error of the four mutating calls, on the wire, and that a refused call changes nothing.
func TestRefusals(t *testing.T) {
	iv := "InvalidParameterValue"
	cases := map[string]struct {
		params  []string
		quirks  Quirks
		code    string
		message string
	}{
		"unknown interface":   {params: []string{assign4, on + "eni-0dead", "PrivateIpAddress.1=10.0.16.50"}, code: "InvalidNetworkInterfaceID.NotFound", message: "The networkInterface ID 'eni-0dead' does not exist"},
		"malformed interface": {params: []string{assign4, on + "foo", "PrivateIpAddress.1=10.0.16.50"}, code: "InvalidNetworkInterfaceId.Malformed", message: `Invalid id: "foo" (expecting "eni-...")`},
		"no interface":        {params: []string{assign4, "PrivateIpAddress.1=10.0.16.50"}, code: "MissingParameter", message: "The request must contain the parameter networkInterfaceId"},
		"v4 held elsewhere":   {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50", "PrivateIpAddress.2=10.0.16.21"}, code: iv, message: "[10.0.16.21] assigned, but move is not allowed."},
		"v4 two held": {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.21", "PrivateIpAddress.2=10.0.16.22", "AllowReassignment=false"}, code: iv,
			message: "[10.0.16.21, 10.0.16.22] assigned, but move is not allowed."},
		"v4 primary of another, no move": {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.20"}, code: iv, message: "[10.0.16.20] assigned, but move is not allowed."},
		"v4 primary of another, move": {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.20", "AllowReassignment=true"}, code: iv,
			message: "[10.0.16.20] assigned as the primary private IP address of another network interface; only secondary addresses can be reassigned."},
		"v4 in another's prefix": {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.17.5", "AllowReassignment=true"}, code: iv,
			message: "The address 10.0.17.5 is part of the prefix 10.0.17.0/28, which is assigned to a network interface"},
		"v4 in own prefix": {params: []string{assign4, on + b1, "PrivateIpAddress.1=10.0.17.5", "AllowReassignment=true"}, code: iv,
			message: "The address 10.0.17.5 is part of the prefix 10.0.17.0/28, which is assigned to a network interface"},
		"v4 over the limit":         {params: append(numbered("PrivateIpAddress", "10.0.18.1", 9), assign4, on+a1), code: "PrivateIpAddressLimitExceeded", message: "Number of private addresses will exceed limit."},
		"v4 count over the limit":   {params: []string{assign4, on + a1, "SecondaryPrivateIpAddressCount=9"}, code: "PrivateIpAddressLimitExceeded", message: "Number of private addresses will exceed limit."},
		"v4 outside the subnet":     {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50", "PrivateIpAddress.2=10.0.32.5"}, code: iv, message: "Address does not fall within the subnet's address range"},
		"v4 network address":        {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.0"}, code: iv, message: "Address 10.0.16.0 is in subnet's reserved address range"},
		"v4 fourth address":         {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.3"}, code: iv, message: "Address 10.0.16.3 is in subnet's reserved address range"},
		"v4 last address":           {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.31.255"}, code: iv, message: "Address 10.0.31.255 is in subnet's reserved address range"},
		"v4 malformed":              {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.300"}, code: iv, message: "invalid value for parameter address: 10.0.16.300"},
		"v4 is v6":                  {params: []string{assign4, on + a1, "PrivateIpAddress.1=fd00:0:0:1::9"}, code: iv, message: "invalid value for parameter address: fd00:0:0:1::9"},
		"v4 nothing asked":          {params: []string{assign4, on + a1}, code: "InvalidParameter", message: "One of secondaryPrivateIpAddressCount, privateIpAddresses, ipv4PrefixCount or ipv4Prefixes must be specified"},
		"v4 too much asked":         {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50", "SecondaryPrivateIpAddressCount=1"}, code: "InvalidParameterCombination", message: "Only one of secondaryPrivateIpAddressCount, privateIpAddresses, ipv4PrefixCount or ipv4Prefixes may be specified"},
		"v4 count zero":             {params: []string{assign4, on + a1, "SecondaryPrivateIpAddressCount=0"}, code: iv, message: "Value (0) for the count of addresses or prefixes is invalid. It must be greater than 0."},
		"v4 count not a number":     {params: []string{assign4, on + a1, "SecondaryPrivateIpAddressCount=many"}, code: iv, message: "invalid value for parameter SecondaryPrivateIpAddressCount: many"},
		"v4 bad boolean":            {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50", "AllowReassignment=maybe"}, code: iv, message: "invalid value for parameter AllowReassignment: maybe"},
		"v4 plural list":            {params: []string{assign4, on + a1, "PrivateIpAddresses.1=10.0.16.50"}, code: "UnknownParameter", message: "The parameter PrivateIpAddresses.1 is not recognized"},
		"v4 dry run":                {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50", "DryRun=true"}, code: "UnknownParameter", message: "The parameter DryRun is not recognized"},
		"v4 prefix taken":           {params: []string{assign4, on + a1, "Ipv4Prefix.1=10.0.17.0/28"}, code: iv, message: "The prefix 10.0.17.0/28 is not available"},
		"v4 prefix over an address": {params: []string{assign4, on + a1, "Ipv4Prefix.1=10.0.16.16/28"}, code: iv, message: "The prefix 10.0.16.16/28 is not available"},
		"v4 prefix outside":         {params: []string{assign4, on + a1, "Ipv4Prefix.1=10.0.64.0/28"}, code: iv, message: "The prefix 10.0.64.0/28 does not fall within the subnet's address range"},
		"v4 prefix not aligned":     {params: []string{assign4, on + a1, "Ipv4Prefix.1=10.0.18.1/28"}, code: iv, message: "invalid value for parameter prefix: 10.0.18.1/28"},
		"v4 no prefix left":         {params: []string{assign4, on + a2, "Ipv4PrefixCount=1"}, code: "InsufficientCidrBlocks", message: "There are not enough free cidr blocks in the specified subnet to satisfy the request."},
		"v4 same again, quirk":      {params: []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.11"}, quirks: Quirks{IPv4SameENIFails: true}, code: iv, message: "[10.0.16.11] assigned, but move is not allowed."},

		"v4 unassign not here": {params: []string{unassign4, on + a1, "PrivateIpAddress.1=10.0.16.11", "PrivateIpAddress.2=10.0.16.21"}, code: iv,
			message: "Some of the specified addresses are not assigned to interface eni-0a1"},
		"v4 unassign primary":       {params: []string{unassign4, on + a1, "PrivateIpAddress.1=10.0.16.10"}, code: iv, message: "The primary IP address of an interface cannot be unassigned."},
		"v4 unassign nothing":       {params: []string{unassign4, on + a1}, code: "MissingParameter", message: "The request must contain the privateIpAddressSet parameter"},
		"v4 unassign unknown":       {params: []string{unassign4, on + "eni-0dead", "PrivateIpAddress.1=10.0.16.11"}, code: "InvalidNetworkInterfaceID.NotFound", message: "The networkInterface ID 'eni-0dead' does not exist"},
		"v4 unassign from a prefix": {params: []string{unassign4, on + b1, "PrivateIpAddress.1=10.0.17.5"}, code: iv, message: "Some of the specified addresses are not assigned to interface eni-0b1"},
		"v4 unassign prefix":        {params: []string{unassign4, on + a1, "Ipv4Prefix.1=10.0.17.0/28"}, code: iv, message: "Some of the specified addresses are not assigned to interface eni-0a1"},

		"v6 held elsewhere":        {params: []string{assign6, on + a1, "Ipv6Addresses.1=fd00:0:0:1::21"}, code: iv, message: "The address 'fd00:0:0:1::21' is already assigned to another network interface"},
		"v6 held elsewhere, quirk": {params: []string{assign6, on + a1, "Ipv6Addresses.1=fd00:0:0:1::21"}, quirks: Quirks{IPv6HeldCode: "InvalidIPAddress.InUse"}, code: "InvalidIPAddress.InUse", message: "The address 'fd00:0:0:1::21' is already assigned to another network interface"},
		"v6 same again, quirk":     {params: []string{assign6, on + a1, "Ipv6Addresses.1=fd00:0:0:1::11"}, quirks: Quirks{IPv6SameENIFails: true}, code: iv, message: "The address 'fd00:0:0:1::11' is already assigned to another network interface"},
		"v6 in a prefix":           {params: []string{assign6, on + a1, "Ipv6Addresses.1=fd00:0:0:1:1::5"}, code: iv, message: "The address fd00::1:1:0:0:5 is part of the prefix fd00:0:0:1:1::/80, which is assigned to a network interface"},
		"v6 outside the subnet":    {params: []string{assign6, on + a1, "Ipv6Addresses.1=fd00:0:0:2::5"}, code: iv, message: "Address does not fall within the subnet's address range"},
		"v6 reserved":              {params: []string{assign6, on + a1, "Ipv6Addresses.1=fd00:0:0:1::3"}, code: iv, message: "Address fd00:0:0:1::3 is in subnet's reserved address range"},
		"v6 subnet without":        {params: []string{assign6, on + a0, "Ipv6AddressCount=1"}, code: iv, message: "The subnet 'subnet-node' does not have an IPv6 CIDR block"},
		"v6 over the limit":        {params: append(numbered("Ipv6Addresses", "fd00:0:0:1::100", 9), assign6, on+a1), code: "PrivateIpAddressLimitExceeded", message: "Number of private addresses will exceed limit."},
		"v6 absurd count":          {params: []string{assign6, on + free, "Ipv6AddressCount=2147483647"}, code: "PrivateIpAddressLimitExceeded", message: "Number of private addresses will exceed limit."},
		"v6 no reassignment":       {params: []string{assign6, on + a1, "Ipv6Addresses.1=fd00:0:0:1::21", "AllowReassignment=true"}, code: "UnknownParameter", message: "The parameter AllowReassignment is not recognized"},
		"v6 singular list":         {params: []string{assign6, on + a1, "Ipv6Address.1=fd00:0:0:1::9"}, code: "UnknownParameter", message: "The parameter Ipv6Address.1 is not recognized"},
		"v6 zone":                  {params: []string{assign6, on + a1, "Ipv6Addresses.1=fd00:0:0:1::9%eth0"}, code: iv, message: "invalid value for parameter address: fd00:0:0:1::9%eth0"},
		"v6 unassign not here":     {params: []string{unassign6, on + a1, "Ipv6Addresses.1=fd00:0:0:1::11", "Ipv6Addresses.2=fd00:0:0:1::21"}, code: iv, message: "The address 'fd00:0:0:1::21' is not mapped to interface ID 'eni-0a1'"},
		"v6 unassign primary":      {params: []string{unassign6, on + a1, "Ipv6Addresses.1=fd00:0:0:1::10"}, code: iv, message: "The primary IPv6 address of an interface cannot be unassigned."},
		"v6 unassign nothing":      {params: []string{unassign6, on + a1}, code: "MissingParameter", message: "The request must contain the ipv6Addresses parameter"},
		"v6 unassign, quirk":       {params: []string{unassign6, on + a1, "Ipv6Addresses.1=fd00:0:0:1::21"}, quirks: Quirks{IPv6UnassignCode: "InvalidIPAddress.NotMapped"}, code: "InvalidIPAddress.NotMapped", message: "The address 'fd00:0:0:1::21' is not mapped to interface ID 'eni-0a1'"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c := newFixture(t, WithSettings(func(s *Settings) { s.Quirks = tc.quirks }))
			before := c.ENIs()
			got := call(t, c, tc.params...)
			if got.Status != 400 || got.Code != tc.code || got.Message != tc.message {
				t.Errorf("got  %d %s: %s\nwant 400 %s: %s", got.Status, got.Code, got.Message, tc.code, tc.message)
			}
			if diff := cmp.Diff(before, c.ENIs(), compareAddrs()); diff != "" {
				t.Errorf("a refused call changed something:\n%s", diff)
			}
			last := c.Journal()[0]
			if last.Code != tc.code || last.Applied || !last.Done() {
				t.Errorf("journal: %+v", last)
			}
		})
	}
}

// TestRequestRefusals is what is wrong with a request whatever its action.
func TestRequestRefusals(t *testing.T) {
	cases := map[string]struct {
		params  []string
		status  int
		code    string
		message string
	}{
		"unknown action":  {[]string{"Action=TerminateEverything"}, 400, "InvalidAction", "The action TerminateEverything is not valid for this web service."},
		"no action":       {nil, 400, "MissingAction", "The request is missing an action or a required parameter."},
		"version":         {[]string{"Action=DescribeSubnets", "Version=2099-01-01"}, 400, "NoSuchVersion", "The requested version (2099-01-01) of service AmazonEC2 does not exist"},
		"no version":      {[]string{"Action=DescribeSubnets", "Version="}, 400, "MissingParameter", "The request must contain the parameter Version"},
		"dry run":         {[]string{"Action=DescribeSubnets", "DryRun=true"}, 412, "DryRunOperation", "Request would have succeeded, but DryRun flag is set."},
		"parameter":       {[]string{"Action=DescribeSubnets", "Colour=red"}, 400, "UnknownParameter", "The parameter Colour is not recognized"},
		"filter":          {[]string{"Action=DescribeSubnets", "Filter.1.Name=colour", "Filter.1.Value.1=red"}, 400, "InvalidParameterValue", "The filter 'colour' is invalid"},
		"filter no value": {[]string{"Action=DescribeSubnets", "Filter.1.Name=vpc-id"}, 400, "InvalidParameterValue", "The filter 'vpc-id' has no value"},
		"filter no name":  {[]string{"Action=DescribeSubnets", "Filter.1.Value.1=x"}, 400, "InvalidParameter", "The filter name is missing"},
		"ids and pages": {[]string{"Action=DescribeNetworkInterfaces", "NetworkInterfaceId.1=" + a1, "MaxResults=5"}, 400, "InvalidParameterCombination",
			"The parameter networkInterfaceIds cannot be used with the parameter maxResults"},
		"page too small": {[]string{"Action=DescribeNetworkInterfaces", "MaxResults=4"}, 400, "InvalidParameterValue", "Value ( 4 ) for parameter maxResults is invalid. Expecting a value greater than 5."},
		"page too large": {[]string{"Action=DescribeNetworkInterfaces", "MaxResults=1001"}, 400, "InvalidParameterValue", "Value ( 1001 ) for parameter maxResults is invalid. Expecting a value less than 1000."},
		"page of types":  {[]string{"Action=DescribeInstanceTypes", "MaxResults=101"}, 400, "InvalidParameterValue", "Value ( 101 ) for parameter maxResults is invalid. Expecting a value less than 100."},
		"filter values": {append([]string{"Action=DescribeNetworkInterfaces", "Filter.201.Name=vpc-id", "Filter.201.Value.1=vpc-1", "Filter.1.Name=private-ip-address"},
			numbered("Filter.1.Value", "10.0.16.1", 200)...), 400, "FilterLimitExceeded", "The maximum number of filter values specified on a single call is 200"},
		"list without a position":    {[]string{assign4, on + a1, "PrivateIpAddress=10.0.16.50"}, 400, "UnknownParameter", "The parameter PrivateIpAddress is not recognized"},
		"position that is no number": {[]string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50", "PrivateIpAddress.x=10.0.16.51"}, 400, "UnknownParameter", "The parameter PrivateIpAddress.x is not recognized"},
		"position spelled oddly":     {[]string{assign4, on + a1, "PrivateIpAddress.+1=10.0.16.50"}, 400, "UnknownParameter", "The parameter PrivateIpAddress.+1 is not recognized"},
		"position out of all bounds": {[]string{assign4, on + a1, "PrivateIpAddress.99999999999999999999=10.0.16.50"}, 400, "UnknownParameter", "The parameter PrivateIpAddress.99999999999999999999 is not recognized"},
		"field of a plain value":     {[]string{assign4, on + a1, "PrivateIpAddress.1.Value=10.0.16.50"}, 400, "UnknownParameter", "The parameter PrivateIpAddress.1.Value is not recognized"},
		"position on no list":        {[]string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.21", "AllowReassignment.1=true"}, 400, "UnknownParameter", "The parameter AllowReassignment.1 is not recognized"},
		"list of what is one":        {[]string{assign4, "NetworkInterfaceId.1=" + a1, "PrivateIpAddress.1=10.0.16.50"}, 400, "UnknownParameter", "The parameter NetworkInterfaceId.1 is not recognized"},
		"filter position":            {[]string{"Action=DescribeSubnets", "Filter.01.Name=vpc-id", "Filter.01.Value.1=vpc-1"}, 400, "UnknownParameter", "The parameter Filter.01.Name is not recognized"},
		"filter value position":      {[]string{"Action=DescribeSubnets", "Filter.1.Name=vpc-id", "Filter.1.Value.1=vpc-1", "Filter.1.Value.x=vpc-2"}, 400, "UnknownParameter", "The parameter Filter.1.Value.x is not recognized"},
		"filter value without one":   {[]string{"Action=DescribeSubnets", "Filter.1.Name=vpc-id", "Filter.1.Value=vpc-1"}, 400, "UnknownParameter", "The parameter Filter.1.Value is not recognized"},
		"token":                      {[]string{"Action=DescribeNetworkInterfaces", "NextToken=xyz"}, 400, "InvalidPaginationToken", "The pagination token is invalid"},
		"interfaces": {[]string{"Action=DescribeNetworkInterfaces", "NetworkInterfaceId.1=eni-0x", "NetworkInterfaceId.2=" + a1, "NetworkInterfaceId.3=eni-0y"}, 400,
			"InvalidNetworkInterfaceID.NotFound", "The networkInterface IDs 'eni-0x, eni-0y' do not exist"},
		"subnet":         {[]string{"Action=DescribeSubnets", "SubnetId.1=subnet-x"}, 400, "InvalidSubnetID.NotFound", "The subnet ID 'subnet-x' does not exist"},
		"instance":       {[]string{"Action=DescribeInstances", "InstanceId.1=i-x"}, 400, "InvalidInstanceID.NotFound", "The instance ID 'i-x' does not exist"},
		"instance shape": {[]string{"Action=DescribeInstances", "InstanceId.1=x"}, 400, "InvalidInstanceID.Malformed", `Invalid id: "x" (expecting "i-...")`},
		"type":           {[]string{"Action=DescribeInstanceTypes", "InstanceType.1=m1.gigantic"}, 400, "InvalidInstanceType", "The following supplied instance types do not exist: [m1.gigantic]"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := call(t, newFixture(t), tc.params...)
			if got.Status != tc.status || got.Code != tc.code || got.Message != tc.message {
				t.Errorf("got  %d %s: %s\nwant %d %s: %s", got.Status, got.Code, got.Message, tc.status, tc.code, tc.message)
			}
			for _, want := range []string{"<Response><Errors><Error><Code>", "</Code><Message>", "</Message></Error></Errors><RequestID>"} {
				if !strings.Contains(got.Body, want) {
					t.Errorf("the body lacks %s: %s", want, got.Body)
				}
			}
		})
	}
}

// TestGaps: positions need not be consecutive.
func TestGaps(t *testing.T) {
	c := newFixture(t)
	body := ok(t, c, assign4, on+a1, "PrivateIpAddress.3=10.0.16.50", "PrivateIpAddress.10=10.0.16.51", "PrivateIpAddress.0=10.0.16.52").Body
	if diff := cmp.Diff([]string{"10.0.16.52", "10.0.16.50", "10.0.16.51"}, found(body, "privateIpAddress")); diff != "" {
		t.Error(diff)
	}
}

// TestMethods: the Query protocol is POST and GET; no other method does anything.
func TestMethods(t *testing.T) {
	for _, method := range []string{http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions} {
		c := newFixture(t)
		r := signed(t, root(), form(assign4, on+a1, "PrivateIpAddress.1=10.0.16.50").Encode())
		r.Method = method
		if got := send(c, r); got.Status != http.StatusMethodNotAllowed || c.Journal()[0].Applied {
			t.Errorf("%s: %d %s", method, got.Status, got.Code)
		}
	}
}

func compareAddrs() cmp.Option {
	return cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
}

func TestUnpaginatedInABigAccount(t *testing.T) {
	c := newFixture(t, WithSettings(func(s *Settings) { s.UnpaginatedLimit = 3 }))
	for _, tc := range []struct {
		params []string
		code   string
	}{
		{nil, "OperationNotPermitted"},
		{[]string{"Filter.1.Name=ipv6-addresses.ipv6-address", "Filter.1.Value.1=fd00::1"}, "OperationNotPermitted"},
		{[]string{"Filter.1.Name=subnet-id", "Filter.1.Value.1=subnet-pods"}, ""},
		{[]string{"MaxResults=5"}, ""},
		{[]string{"NetworkInterfaceId.1=" + a1}, ""},
	} {
		if got := call(t, c, append(tc.params, "Action=DescribeNetworkInterfaces")...); got.Code != tc.code {
			t.Errorf("%v: %q, want %q", tc.params, got.Code, tc.code)
		}
	}
}

func TestBusyAttachment(t *testing.T) {
	c := newFixture(t)
	if err := c.ChangeENI(a1, func(e *ENI) { e.AttachStatus = "attaching" }); err != nil {
		t.Fatal(err)
	}
	params := []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50"}
	c.Tune(func(s *Settings) { s.Quirks.BusyAttachmentFails = true })
	if got := call(t, c, params...); got.Code != "IncorrectState" {
		t.Errorf("got %+v", got)
	}
	c.Tune(func(s *Settings) { s.Quirks.BusyAttachmentFails = false })
	ok(t, c, params...)
}
