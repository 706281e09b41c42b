package aws

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

const maxPage = 1000

// describeENIs is DescribeNetworkInterfaces, as late as the settings make it.
func describeENIs(c *Cloud, q *request) (any, *APIError) {
	ids := q.list("NetworkInterfaceId")
	p, err := q.page(ids, "networkInterfaceIds", 5, maxPage)
	if err != nil {
		return nil, err
	}
	if err := allow(p.filters, eniFilters()); err != nil {
		return nil, err
	}
	if err := shaped(ids, "eni-", "InvalidNetworkInterfaceId.Malformed"); err != nil {
		return nil, err
	}
	view := c.describeView()
	listed, err := chosen(ids, view, errNoENI)
	if err != nil {
		return nil, err
	}
	limit := c.settings.UnpaginatedLimit
	if limit > 0 && len(view) > limit && len(ids) == 0 && p.max == 0 && !exempt(p.filters) {
		return nil, badRequest("OperationNotPermitted", "The number of network interfaces is too large. "+
			"Use pagination by specifying the MaxResults parameter.")
	}
	listed = slices.DeleteFunc(listed, func(id string) bool { return !c.state.eniFacets(view[id]).matches(p.filters) })
	out := &describeENIsXML{}
	listed, out.NextToken = p.cut(listed)
	for _, id := range listed {
		out.Items.Item = append(out.Items.Item, c.eniXML(view[id]))
	}
	return out, nil
}

// exempt says whether a filter narrows the search so that EC2 allows it without pagination in big accounts.
func exempt(filters []filter) bool {
	return slices.ContainsFunc(filters, func(f filter) bool {
		return slices.Contains([]string{"group-id", "mac-address", "private-dns-name", "private-ip-address", "subnet-id", "vpc-id"}, f.name)
	})
}

func eniFilters() []string {
	return []string{"attachment.instance-id", "attachment.device-index", "attachment.status", "attachment.attachment-id",
		"attachment.attach-time", "attachment.delete-on-termination", "attachment.instance-owner-id",
		"attachment.network-card-index",
		"network-interface-id", "mac-address", "subnet-id", "vpc-id", "availability-zone", "addresses.private-ip-address",
		"addresses.primary", "addresses.association.public-ip", "association.public-ip", "private-ip-address",
		"private-dns-name", "ipv6-addresses.ipv6-address", "ipv4-prefix.ipv4-prefix", "ipv6-prefix.ipv6-prefix", "status",
		"group-id", "owner-id", "description", "interface-type", "source-dest-check", "requester-managed", "requester-id",
		"group-name", "tag"}
}

func (s *state) eniFacets(e *eni) facets {
	sub := s.subnets[e.SubnetID]
	f := facets{
		"network-interface-id": {e.ID}, "mac-address": {e.MAC}, "subnet-id": {e.SubnetID}, "vpc-id": {sub.VPCID},
		"availability-zone": {sub.AZ}, "status": {e.status()}, "group-id": e.SecurityGroups, "group-name": e.SecurityGroups,
		"description": {e.Description}, "interface-type": {e.Type}, "requester-managed": {"false"},
		"source-dest-check": {strconv.FormatBool(!e.SourceDestCheckOff)},
	}
	if e.InstanceID != "" {
		f["attachment.instance-id"] = []string{e.InstanceID}
		f["attachment.device-index"] = []string{strconv.Itoa(e.DeviceIndex)}
		f["attachment.network-card-index"] = []string{strconv.Itoa(e.NetworkCard)}
		f["attachment.status"] = []string{e.AttachStatus}
		f["attachment.attachment-id"] = []string{e.attachmentID()}
		f["attachment.attach-time"] = []string{stamp(e.attached)}
		f["attachment.delete-on-termination"] = []string{strconv.FormatBool(e.DeviceIndex == 0)}
	}
	for _, h := range e.v4 {
		f["addresses.private-ip-address"] = append(f["addresses.private-ip-address"], h.addr.String())
		f["addresses.primary"] = append(f["addresses.primary"], strconv.FormatBool(h.primary))
		if h.primary {
			f["private-ip-address"] = []string{h.addr.String()}
			f["private-dns-name"] = []string{s.dnsName(h)}
		}
		if h.eip.IsValid() {
			f["addresses.association.public-ip"] = append(f["addresses.association.public-ip"], h.eip.String())
			f["association.public-ip"] = f["addresses.association.public-ip"]
		}
	}
	for _, h := range e.v6 {
		f["ipv6-addresses.ipv6-address"] = append(f["ipv6-addresses.ipv6-address"], h.addr.String())
	}
	for _, p := range e.prefixes {
		name := "ipv4-prefix.ipv4-prefix"
		if p.Addr().Is6() {
			name = "ipv6-prefix.ipv6-prefix"
		}
		f[name] = append(f[name], p.String())
	}
	f.tags(e.Tags)
	return f
}

func (e *eni) status() string {
	switch {
	case e.InstanceID == "":
		return "available"
	case e.AttachStatus == "attaching":
		return "attaching"
	case e.AttachStatus == "detaching":
		return "detaching"
	}
	return "in-use"
}

func (e *eni) attachmentID() string { return "eni-attach-" + strings.TrimPrefix(e.ID, "eni-") }

// dnsName is an address's private name, which is also what EKS calls the node that has it.
func (s *state) dnsName(h held) string {
	domain := s.region + ".compute.internal"
	if s.region == "us-east-1" {
		domain = "ec2.internal" // it is older than the others
	}
	return "ip-" + strings.ReplaceAll(h.addr.String(), ".", "-") + "." + domain
}

// publicName is the name of an Elastic IP.
func (s *state) publicName(eip netip.Addr) string {
	domain := s.region + ".compute"
	if s.region == "us-east-1" {
		domain = "compute-1"
	}
	return "ec2-" + strings.ReplaceAll(eip.String(), ".", "-") + "." + domain + ".amazonaws.com"
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func tagsXML(tags map[string]string) *set[tagXML] {
	out := &set[tagXML]{}
	for _, k := range sortedKeys(tags) {
		out.Item = append(out.Item, tagXML{k, tags[k]})
	}
	return out
}

func (c *Cloud) eniXML(e *eni) eniXML {
	sub := c.state.subnets[e.SubnetID]
	x := eniXML{ID: e.ID, Subnet: e.SubnetID, VPC: sub.VPCID, AZ: sub.AZ, Description: e.Description, Owner: c.account,
		Status: e.status(), MAC: e.MAC, SourceDestCheck: !e.SourceDestCheckOff, InterfaceType: e.Type, Tags: tagsXML(e.Tags)}
	for _, g := range e.SecurityGroups {
		x.Groups.Item = append(x.Groups.Item, groupXML{g, g})
	}
	if e.InstanceID != "" {
		x.Attachment = &attachmentXML{ID: e.attachmentID(), Instance: e.InstanceID, Owner: c.account,
			DeviceIndex: e.DeviceIndex, NetworkCardIndex: e.NetworkCard, Status: e.AttachStatus,
			AttachTime: stamp(e.attached), DeleteOnTermination: e.DeviceIndex == 0}
	}
	for _, h := range e.v4 {
		item := privateIPXML{Address: h.addr.String(), DNSName: c.state.dnsName(h), Primary: h.primary}
		if h.eip.IsValid() {
			item.Association = &associationXML{PublicIP: h.eip.String(), Owner: c.account, PublicDNSName: c.state.publicName(h.eip)}
		}
		if h.primary {
			x.PrivateIP, x.PrivateDNSName, x.Association = item.Address, item.DNSName, item.Association
		}
		x.PrivateIPs.Item = append(x.PrivateIPs.Item, item)
	}
	for _, h := range e.v6 {
		x.IPv6.Item = append(x.IPv6.Item, ipv6XML{h.addr.String(), h.primary})
		if x.IPv6Address == "" || h.primary {
			x.IPv6Address = h.addr.String()
		}
	}
	for _, p := range e.prefixes {
		if p.Addr().Is6() {
			x.Prefixes6 = add(x.Prefixes6, prefix6XML{p.String()})
		} else {
			x.Prefixes4 = add(x.Prefixes4, prefix4XML{p.String()})
		}
	}
	return x
}

func describeSubnets(c *Cloud, q *request) (any, *APIError) {
	ids := q.list("SubnetId")
	p, err := q.page(ids, "subnetIds", 5, maxPage)
	if err != nil {
		return nil, err
	}
	if err := allow(p.filters, []string{"subnet-id", "vpc-id", "availability-zone", "availabilityZone", "cidr", "cidr-block",
		"cidrBlock", "ipv6-cidr-block-association.ipv6-cidr-block", "ipv6-cidr-block-association.state", "state", "owner-id",
		"available-ip-address-count", "default-for-az", "ipv6-native", "subnet-arn"}); err != nil {
		return nil, err
	}
	if err := shaped(ids, "subnet-", "InvalidSubnetID.Malformed"); err != nil {
		return nil, err
	}
	listed, err := chosen(ids, c.state.subnets, func(ids ...string) *APIError {
		return errNotFound("InvalidSubnetID.NotFound", "subnet", ids...)
	})
	if err != nil {
		return nil, err
	}
	listed = slices.DeleteFunc(listed, func(id string) bool { return !c.subnetFacets(c.state.subnets[id]).matches(p.filters) })
	out := &describeSubnetsXML{}
	listed, out.NextToken = p.cut(listed)
	for _, id := range listed {
		out.Items.Item = append(out.Items.Item, c.subnetXML(c.state.subnets[id]))
	}
	return out, nil
}

func (c *Cloud) subnetFacets(s Subnet) facets {
	f := facets{"subnet-id": {s.ID}, "vpc-id": {s.VPCID}, "availability-zone": {s.AZ}, "availabilityZone": {s.AZ},
		"state": {"available"}, "owner-id": {c.account}, "default-for-az": {"false"},
		"available-ip-address-count": {strconv.Itoa(c.state.free(s))}, "subnet-arn": {c.subnetARN(s)},
		"ipv6-native": {strconv.FormatBool(!s.IPv4.IsValid())}}
	if s.IPv4.IsValid() {
		for _, name := range []string{"cidr", "cidr-block", "cidrBlock"} {
			f[name] = []string{s.IPv4.String()}
		}
	}
	for _, p := range s.IPv6 {
		name := "ipv6-cidr-block-association."
		f[name+"ipv6-cidr-block"] = append(f[name+"ipv6-cidr-block"], p.String())
		f[name+"state"] = []string{"associated"}
	}
	f.tags(s.Tags)
	return f
}

func (c *Cloud) subnetARN(s Subnet) string {
	return fmt.Sprintf("arn:aws:ec2:%s:%s:subnet/%s", c.region, c.account, s.ID)
}

func (c *Cloud) subnetXML(s Subnet) subnetXML {
	x := subnetXML{ID: s.ID, ARN: c.subnetARN(s), State: "available", Owner: c.account, VPC: s.VPCID, AZ: s.AZ,
		AZID: zoneID(s.AZ), Available: c.state.free(s), IPv6Native: !s.IPv4.IsValid(), Tags: *tagsXML(s.Tags)}
	if s.IPv4.IsValid() {
		x.CIDR = s.IPv4.String()
	}
	for i, p := range s.IPv6 {
		x.CIDR6.Item = append(x.CIDR6.Item, subnetCIDR6XML{
			Association: fmt.Sprintf("subnet-cidr-assoc-%s%d", strings.TrimPrefix(s.ID, "subnet-"), i), CIDR: p.String(), State: "associated"})
	}
	return x
}

// zoneID turns us-east-1a into use1-az1.
func zoneID(az string) string {
	parts := strings.Split(az, "-")
	if len(parts) < 3 || len(parts[2]) < 2 {
		return az
	}
	last := parts[2]
	return parts[0] + parts[1][:1] + last[:len(last)-1] + "-az" + strconv.Itoa(int(last[len(last)-1]-'a')+1)
}

func describeInstances(c *Cloud, q *request) (any, *APIError) {
	ids := q.list("InstanceId")
	p, err := q.page(ids, "instancesSet", 5, maxPage)
	if err != nil {
		return nil, err
	}
	if err := allow(p.filters, []string{"instance-id", "instance-type", "instance-state-name", "instance-state-code", "vpc-id",
		"subnet-id", "availability-zone", "private-ip-address", "private-dns-name", "network-interface.network-interface-id",
		"network-interface.mac-address", "network-interface.subnet-id", "network-interface.vpc-id",
		"network-interface.addresses.private-ip-address", "network-interface.ipv6-addresses.ipv6-address", "image-id",
		"owner-id", "reservation-id"}); err != nil {
		return nil, err
	}
	if err := shaped(ids, "i-", "InvalidInstanceID.Malformed"); err != nil {
		return nil, err
	}
	listed, err := chosen(ids, c.state.instances, func(ids ...string) *APIError {
		return errNotFound("InvalidInstanceID.NotFound", "instance", ids...)
	})
	if err != nil {
		return nil, err
	}
	view := c.describeView()
	listed = slices.DeleteFunc(listed, func(id string) bool {
		return !c.instanceFacets(c.state.instances[id], devices(view, id)).matches(p.filters)
	})
	out := &describeInstancesXML{}
	listed, out.NextToken = p.cut(listed)
	for _, id := range listed {
		x := c.instanceXML(c.state.instances[id], devices(view, id))
		out.Items.Item = append(out.Items.Item, reservationXML{ID: reservationID(id), Owner: c.account,
			Instances: set[instanceXML]{Item: []instanceXML{x}}})
	}
	return out, nil
}

func reservationID(instanceID string) string { return "r-" + strings.TrimPrefix(instanceID, "i-") }

// devices is an instance's interfaces in a view, by card and device index: the first is the primary one.
func devices(view map[string]*eni, instanceID string) []*eni {
	var out []*eni
	for _, e := range view {
		if e.InstanceID == instanceID && instanceID != "" {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *eni) int {
		if a.NetworkCard != b.NetworkCard {
			return a.NetworkCard - b.NetworkCard
		}
		return a.DeviceIndex - b.DeviceIndex
	})
	return out
}

func (c *Cloud) instanceFacets(i Instance, enis []*eni) facets {
	f := facets{"instance-id": {i.ID}, "instance-type": {i.Type}, "instance-state-name": {"running"},
		"instance-state-code": {"16"}, "image-id": {i.ImageID}, "owner-id": {c.account}, "reservation-id": {reservationID(i.ID)}}
	for n, e := range enis {
		own := c.state.eniFacets(e)
		if n == 0 {
			for _, name := range []string{"vpc-id", "subnet-id", "availability-zone", "private-ip-address", "private-dns-name"} {
				f[name] = own[name]
			}
		}
		for _, name := range []string{"network-interface-id", "mac-address", "subnet-id", "vpc-id",
			"addresses.private-ip-address", "ipv6-addresses.ipv6-address"} {
			f["network-interface."+name] = append(f["network-interface."+name], own[name]...)
		}
	}
	f.tags(i.Tags)
	return f
}

func (c *Cloud) instanceXML(i Instance, enis []*eni) instanceXML {
	x := instanceXML{ID: i.ID, Image: i.ImageID, State: stateXML{16, "running"}, Type: i.Type, Architecture: "x86_64",
		Hypervisor: "xen", SourceDestCheck: true, Tags: *tagsXML(i.Tags), Placement: placementXML{Tenancy: "default"},
		Metadata: metadataOptionsXML{State: "applied", HTTPTokens: "optional", HopLimit: i.HopLimit, HTTPEndpoint: "enabled",
			IPv6: "disabled", InstanceTags: "disabled"}}
	if i.TokensRequired {
		x.Metadata.HTTPTokens = "required"
	}
	if i.IMDSDisabled {
		x.Metadata.HTTPEndpoint = "disabled"
	}
	if i.InstanceTags {
		x.Metadata.InstanceTags = "enabled"
	}
	for n, e := range enis {
		item := c.eniXML(e)
		if n == 0 {
			x.Subnet, x.VPC, x.PrivateIP, x.PrivateDNSName = item.Subnet, item.VPC, item.PrivateIP, item.PrivateDNSName
			x.Placement.AZ, x.Groups, x.SourceDestCheck, x.LaunchTime = item.AZ, item.Groups, item.SourceDestCheck, stamp(e.attached)
		}
		item.Tags, item.AZ, item.Attachment.Instance, item.Attachment.Owner = nil, "", "", ""
		x.ENIs.Item = append(x.ENIs.Item, instanceENI{item})
	}
	return x
}

func describeTypes(c *Cloud, q *request) (any, *APIError) {
	types := c.state.types()
	ids := q.list("InstanceType")
	p, err := q.page(ids, "", 5, 100)
	if err != nil {
		return nil, err
	}
	if len(ids) > 100 {
		return nil, invalidValue("The number of instance types specified must not exceed 100")
	}
	if err := allow(p.filters, []string{"instance-type", "bare-metal", "current-generation",
		"network-info.maximum-network-interfaces", "network-info.ipv4-addresses-per-interface",
		"network-info.ipv6-addresses-per-interface", "network-info.ipv6-supported"}); err != nil {
		return nil, err
	}
	listed, err := chosen(ids, types, func(ids ...string) *APIError {
		return badRequest("InvalidInstanceType", "The following supplied instance types do not exist: [%s]", strings.Join(ids, ", "))
	})
	if err != nil {
		return nil, err
	}
	listed = slices.DeleteFunc(listed, func(id string) bool { return !typeFacets(id, types[id]).matches(p.filters) })
	if p.max == 0 {
		p.max = 100 // EC2 pages this call even when it is not asked to
	}
	out := &describeTypesXML{}
	listed, out.NextToken = p.cut(listed)
	for _, name := range listed {
		out.Items.Item = append(out.Items.Item, typeXML(name, types[name]))
	}
	return out, nil
}

// types is the table's types and those that instances bring with them.
func (s *state) types() map[string]Limits {
	out := map[string]Limits{}
	for _, r := range typeTable() {
		out[r.name] = r.limits()
	}
	for _, id := range sortedKeys(s.instances) {
		out[s.instances[id].Type] = *s.instances[id].Limits
	}
	return out
}

func typeFacets(name string, l Limits) facets {
	return facets{"instance-type": {name}, "bare-metal": {strconv.FormatBool(bareMetal(name))}, "current-generation": {"true"},
		"network-info.maximum-network-interfaces":   {strconv.Itoa(l.ENIs)},
		"network-info.ipv4-addresses-per-interface": {strconv.Itoa(l.IPv4PerENI)},
		"network-info.ipv6-addresses-per-interface": {strconv.Itoa(l.IPv6PerENI)},
		"network-info.ipv6-supported":               {strconv.FormatBool(l.IPv6PerENI > 0)}}
}

func bareMetal(name string) bool { return strings.Contains(name, ".metal") }

func typeXML(name string, l Limits) instanceTypeXML {
	x := instanceTypeXML{Name: name, CurrentGeneration: true, BareMetal: bareMetal(name), VCPUs: l.VCPUs, MemoryMiB: l.MemoryMiB,
		Network: networkInfoXML{Maximum: l.ENIs, MaximumCards: max(1, l.Cards), IPv4PerENI: l.IPv4PerENI,
			IPv6PerENI: l.IPv6PerENI, IPv6Supported: l.IPv6PerENI > 0, ENASupport: "required"}}
	if !x.BareMetal {
		x.Hypervisor = "nitro"
	}
	cards := l.PerCardENIs
	if len(cards) == 0 {
		cards = []int{l.ENIs}
	}
	for i, n := range cards {
		x.Network.Cards.Item = append(x.Network.Cards.Item, networkCardXML{i, n})
	}
	return x
}
