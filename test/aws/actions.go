package aws

import "encoding/hex"

// action is a row of the table: everything the pipeline needs to know about one EC2 action.
type action struct {
	params  []string // names of its parameters; lists end in ".N"
	mutates bool     // acts on the interface in NetworkInterfaceId
	// bucket names the token bucket where it is not the action's own.
	bucket func(q *request, name string) string
	// run does it, under the cloud's lock. It returns a value that is written as XML.
	run func(c *Cloud, q *request) (any, *APIError)
}

// actionTable is all actions of the endpoint. The four mutating ones have no DryRun: AWS's model has none.
func actionTable() map[string]action {
	describe := func(own ...string) []string { return append(own, "Filter.N", "DryRun", "NextToken", "MaxResults") }
	return map[string]action{
		"AssignPrivateIpAddresses": {mutates: true, run: assignIPv4, params: []string{"NetworkInterfaceId", "PrivateIpAddress.N",
			"SecondaryPrivateIpAddressCount", "Ipv4Prefix.N", "Ipv4PrefixCount", "AllowReassignment"}},
		"UnassignPrivateIpAddresses": {mutates: true, run: unassignIPv4,
			params: []string{"NetworkInterfaceId", "PrivateIpAddress.N", "Ipv4Prefix.N"}},
		"AssignIpv6Addresses": {mutates: true, run: assignIPv6, params: []string{"NetworkInterfaceId", "Ipv6Addresses.N",
			"Ipv6AddressCount", "Ipv6Prefix.N", "Ipv6PrefixCount"}},
		"UnassignIpv6Addresses": {mutates: true, run: unassignIPv6,
			params: []string{"NetworkInterfaceId", "Ipv6Addresses.N", "Ipv6Prefix.N"}},
		"DescribeNetworkInterfaces": {run: describeENIs, bucket: byFilter,
			params: describe("NetworkInterfaceId.N", "IncludeManagedResources")},
		"DescribeSubnets":       {run: describeSubnets, params: describe("SubnetId.N")},
		"DescribeInstances":     {run: describeInstances, bucket: byFilter, params: describe("InstanceId.N", "IncludeManagedResources")},
		"DescribeInstanceTypes": {run: describeTypes, params: describe("InstanceType.N", "IncludeUnsupportedInRegion")},
	}
}

// byFilter is the bucket of a describe call that is dearer when it is neither filtered nor paginated.
func byFilter(q *request, name string) string {
	if len(q.filters()) > 0 || q.has("MaxResults") || len(q.list("NetworkInterfaceId"))+len(q.list("InstanceId")) > 0 {
		return name
	}
	return name + "/unfiltered"
}

func hexString(b []byte) string { return hex.EncodeToString(b) }

func assignIPv4(c *Cloud, q *request) (any, *APIError) {
	w := wish{eni: q.text("NetworkInterfaceId"), addrs: q.list("PrivateIpAddress"),
		count: q.number("SecondaryPrivateIpAddressCount"), prefixes: q.list("Ipv4Prefix"),
		prefixCount: q.number("Ipv4PrefixCount"), allowReassign: q.boolean("AllowReassignment")}
	out, err := c.assign(q, w)
	if err != nil {
		return nil, err
	}
	answer := &assignIPv4XML{ENI: w.eni, Return: true}
	for _, a := range out.addrs {
		answer.Addresses.Item = append(answer.Addresses.Item, assignedXML{a.String()})
	}
	for _, p := range out.prefixes {
		answer.Prefixes = add(answer.Prefixes, prefix4XML{p.String()})
	}
	return answer, nil
}

func assignIPv6(c *Cloud, q *request) (any, *APIError) {
	w := wish{v6: true, eni: q.text("NetworkInterfaceId"), addrs: q.list("Ipv6Addresses"),
		count: q.number("Ipv6AddressCount"), prefixes: q.list("Ipv6Prefix"), prefixCount: q.number("Ipv6PrefixCount")}
	out, err := c.assign(q, w)
	if err != nil {
		return nil, err
	}
	answer := &assignIPv6XML{ENI: w.eni}
	for _, a := range out.addrs {
		answer.Addresses.Item = append(answer.Addresses.Item, a.String())
	}
	for _, p := range out.prefixes {
		answer.Prefixes = add(answer.Prefixes, p.String())
	}
	return answer, nil
}

func unassignIPv4(c *Cloud, q *request) (any, *APIError) {
	_, err := c.unassign(q, farewell{eni: q.text("NetworkInterfaceId"), addrs: q.list("PrivateIpAddress"),
		prefixes: q.list("Ipv4Prefix")})
	if err != nil {
		return nil, err
	}
	return &plainXML{Return: true}, nil
}

func unassignIPv6(c *Cloud, q *request) (any, *APIError) {
	f := farewell{v6: true, eni: q.text("NetworkInterfaceId"), addrs: q.list("Ipv6Addresses"), prefixes: q.list("Ipv6Prefix")}
	out, err := c.unassign(q, f)
	if err != nil {
		return nil, err
	}
	answer := &unassignIPv6XML{ENI: f.eni}
	for _, a := range out.addrs {
		answer.Addresses.Item = append(answer.Addresses.Item, a.String())
	}
	for _, p := range out.prefixes {
		answer.Prefixes = add(answer.Prefixes, p.String())
	}
	return answer, nil
}

func (c *Cloud) assign(q *request, w wish) (outcome, *APIError) {
	if q.err != nil {
		return outcome{}, q.err
	}
	out, err := decideAssign(c.state, w, c.settings.Quirks)
	if err != nil {
		return outcome{}, err
	}
	if c.settings.Quirks.ReassignNeedsSource {
		for _, ed := range out.edits {
			if ed.from == "" {
				continue
			}
			if err := c.authorize(q.who, q.text("Action"), ed.from); err != nil {
				return outcome{}, err
			}
		}
	}
	c.effect(q, out)
	return out, nil
}

func (c *Cloud) unassign(q *request, f farewell) (outcome, *APIError) {
	out, err := decideUnassign(c.state, f, c.settings.Quirks)
	if err == nil {
		c.effect(q, out)
	}
	return out, err
}

// effect commits what a call does and journals it in the same breath.
func (c *Cloud) effect(q *request, out outcome) {
	c.commit(out.edits)
	c.journal.note(q.call, func(call *Call) { call.Applied, call.Changes = true, len(out.edits) })
}
