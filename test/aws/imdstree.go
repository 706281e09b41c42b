package aws

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tree is the metadata service's keys: path below the version to value.
type tree map[string]string

// read returns a value, or the listing of a directory: one child a line, those with children of their own with a "/".
// Role names and tag keys list without one, which comes out of this by itself.
func (t tree) read(path string) (string, bool) {
	if v, ok := t[path]; ok {
		return v, true
	}
	prefix := path + "/"
	if path == "" {
		prefix = ""
	}
	var names []string
	for k := range t {
		rest, ok := strings.CutPrefix(k, prefix)
		if !ok {
			continue
		}
		name, _, deeper := strings.Cut(rest, "/")
		// The services of the top level are listed bare.
		if deeper && path != "" {
			name += "/"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return strings.Join(names, "\n"), len(names) > 0
}

// metadata renders the tree of an instance from what the metadata service knows now.
func (c *Cloud) metadata(inst Instance) tree {
	t := tree{}
	enis := devices(c.imdsView(), inst.ID)
	const meta = "meta-data/"
	set := func(key, value string) { t[meta+key] = value }
	set("ami-id", inst.ImageID)
	set("ami-launch-index", "0")
	set("instance-action", "none")
	set("instance-id", inst.ID)
	set("instance-life-cycle", "on-demand")
	set("instance-type", inst.Type)
	set("profile", "default-hvm")
	set("reservation-id", reservationID(inst.ID))
	set("placement/region", c.region)
	set("services/domain", "amazonaws.com")
	set("services/partition", "aws")
	if inst.InstanceTags {
		for k, v := range inst.Tags {
			set("tags/instance/"+k, v)
		}
	}
	for i, e := range enis {
		if i == 0 {
			c.primaryMetadata(e, set)
		}
		c.eniMetadata(e, set)
	}
	t["dynamic/instance-identity/document"] = c.identity(inst, enis)
	c.roleMetadata(inst, set)
	return t
}

// primaryMetadata is the keys that come from the instance's first interface.
func (c *Cloud) primaryMetadata(e *eni, set func(key, value string)) {
	az := c.state.subnets[e.SubnetID].AZ
	set("placement/availability-zone", az)
	set("placement/availability-zone-id", zoneID(az))
	set("mac", e.MAC)
	if len(e.v4) > 0 {
		set("local-ipv4", e.v4[0].addr.String())
		set("hostname", c.state.dnsName(e.v4[0]))
		set("local-hostname", c.state.dnsName(e.v4[0]))
		if e.v4[0].eip.IsValid() {
			set("public-ipv4", e.v4[0].eip.String())
		}
	}
	if len(e.v6) > 0 {
		set("ipv6", e.v6[0].addr.String())
	}
	if len(e.SecurityGroups) > 0 {
		set("security-groups", strings.Join(e.SecurityGroups, "\n"))
	}
}

// eniMetadata is network/interfaces/macs/<mac>/…; what an interface does not have is absent.
func (c *Cloud) eniMetadata(e *eni, set func(key, value string)) {
	sub := c.state.subnets[e.SubnetID]
	vpc := c.state.vpcs[sub.VPCID]
	own := func(key string, lines ...string) {
		if len(lines) > 0 {
			set("network/interfaces/macs/"+e.MAC+"/"+key, strings.Join(lines, "\n"))
		}
	}
	own("mac", e.MAC)
	own("interface-id", e.ID)
	own("device-number", strconv.Itoa(e.DeviceIndex))
	if e.NetworkCard != 0 {
		own("network-card", strconv.Itoa(e.NetworkCard))
	}
	if e.AttachStatus == "attaching" {
		return // while it is being attached, an interface is seen half populated
	}
	own("subnet-id", e.SubnetID)
	own("vpc-id", sub.VPCID)
	own("owner-id", c.account)
	own("security-group-ids", e.SecurityGroups...)
	own("security-groups", e.SecurityGroups...)
	if len(e.v4) > 0 {
		own("local-hostname", c.state.dnsName(e.v4[0]))
	}
	own("local-ipv4s", addrLines(e.v4)...)
	own("ipv6s", addrLines(e.v6)...)
	own("ipv4-prefix", lines(e.prefixesOf(false))...)
	own("ipv6-prefix", lines(e.prefixesOf(true))...)
	own("subnet-ipv4-cidr-block", lines(sub.blocksOf(false))...)
	own("vpc-ipv4-cidr-blocks", lines(vpc.IPv4)...)
	if len(vpc.IPv4) > 0 {
		own("vpc-ipv4-cidr-block", vpc.IPv4[0].String())
	}
	if len(sub.IPv6) > 0 && (len(e.v6) > 0 || !c.settings.Quirks.IMDSIPv6NeedsAddress) {
		own("subnet-ipv6-cidr-blocks", lines(sub.IPv6)...)
		own("vpc-ipv6-cidr-blocks", lines(vpc.IPv6)...)
	}
	for _, h := range e.v4 {
		if h.eip.IsValid() {
			own("ipv4-associations/"+h.eip.String(), h.addr.String())
		}
	}
}

func addrLines(list []held) []string {
	out := make([]string, len(list))
	for i, h := range list {
		out[i] = h.addr.String()
	}
	return out
}

func lines(prefixes []netip.Prefix) []string {
	out := make([]string, len(prefixes))
	for i, p := range prefixes {
		out[i] = p.String()
	}
	return out
}

// roleMetadata is the instance's role and its credentials.
func (c *Cloud) roleMetadata(inst Instance, set func(key, value string)) {
	creds := c.roleCredentials(inst.ID)
	if creds.AccessKeyID == "" {
		return
	}
	ttl := c.settings.CredentialsTTL
	if ttl <= 0 {
		ttl = 6 * time.Hour
	}
	updated := creds.Expires.Add(-ttl).UTC().Format(time.RFC3339)
	set("iam/info", asJSON(map[string]string{"Code": "Success", "LastUpdated": updated, "InstanceProfileId": "AIPAEXAMPLE",
		"InstanceProfileArn": fmt.Sprintf("arn:aws:iam::%s:instance-profile/%s", c.account, inst.Role)}))
	set("iam/security-credentials/"+inst.Role, asJSON(map[string]string{"Code": "Success", "LastUpdated": updated,
		"Type": "AWS-HMAC", "AccessKeyId": creds.AccessKeyID, "SecretAccessKey": creds.SecretAccessKey,
		"Token": creds.SessionToken, "Expiration": creds.Expires.UTC().Format(time.RFC3339)}))
}

// identity is the instance identity document (unsigned here).
func (c *Cloud) identity(inst Instance, enis []*eni) string {
	doc := map[string]any{"accountId": c.account, "architecture": "x86_64", "imageId": inst.ImageID, "instanceId": inst.ID,
		"instanceType": inst.Type, "region": c.region, "version": "2017-09-30", "availabilityZone": nil, "privateIp": nil,
		"pendingTime": nil, "billingProducts": nil, "devpayProductCodes": nil, "marketplaceProductCodes": nil,
		"kernelId": nil, "ramdiskId": nil}
	if len(enis) > 0 {
		doc["availabilityZone"] = c.state.subnets[enis[0].SubnetID].AZ
		doc["pendingTime"] = enis[0].attached.UTC().Format(time.RFC3339)
		if len(enis[0].v4) > 0 {
			doc["privateIp"] = enis[0].v4[0].addr.String()
		}
	}
	return asJSON(doc)
}

func asJSON(v any) string {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return "{}" // these values are strings: they always marshal
	}
	return string(b)
}
