package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/test/aws"
)

// spec is the configuration file: what is in the cloud. Field names are those of package aws, in any letter case.
type spec struct {
	VPCs       []aws.VPC      `json:"vpcs"`
	Subnets    []aws.Subnet   `json:"subnets"`
	Instances  []aws.Instance `json:"instances"`
	Interfaces []aws.ENI      `json:"interfaces"`
	Users      []user         `json:"users"`
	// Roles are taken by pods; Associations are EKS Pod Identity's, from a service account ("namespace:name") to a role's name.
	Roles        []aws.Role        `json:"roles"`
	Associations map[string]string `json:"associations"`
}

type user struct {
	AccessKeyID     string      `json:"accessKeyId"`
	SecretAccessKey string      `json:"secretAccessKey"`
	Policy          *aws.Policy `json:"policy"`
}

// defaultSpec is one instance with its interfaces in subnets of their own: 10.0.<n>.0/24, the first is the node's.
func defaultSpec(o options) spec {
	s := spec{
		Instances: []aws.Instance{{ID: "i-0a000000000000001", Type: o.instanceType, HopLimit: o.hopLimit, TokensRequired: o.tokens,
			Tags: map[string]string{"Name": "worker-1"}}},
		Users: []user{{AccessKeyID: "AKIAEXAMPLE000000001", SecretAccessKey: "example-secret"}},
		Roles: []aws.Role{{Name: "pods", Trusts: []string{"*:*", aws.AudiencePodIdentity}}},
		// That of the tokens, which are for one service account only.
		Associations: map[string]string{strings.Join(o.serviceAccount[:], ":"): "pods"},
	}
	for i := range o.enis {
		sub := aws.Subnet{ID: fmt.Sprintf("subnet-0%016x", i), AZ: o.region + "a",
			IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24)}
		eni := aws.ENI{ID: fmt.Sprintf("eni-0%016x", i), SubnetID: sub.ID, InstanceID: s.Instances[0].ID, DeviceIndex: i}
		if o.ipv6 {
			sub.IPv6 = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("fd00:10:0:%x::/64", i))}
		}
		if i > 0 {
			eni.Tags = map[string]string{"node.k8s.amazonaws.com/no_manage": "true"}
		}
		s.Subnets, s.Interfaces = append(s.Subnets, sub), append(s.Interfaces, eni)
	}
	return s
}

func load(path string) (spec, error) {
	var s spec
	text, err := os.ReadFile(path) //nolint:gosec // the user names the file
	if err != nil {
		return s, err
	}
	if err := yaml.UnmarshalStrict(text, &s); err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// build makes the cloud.
func (s spec) build(o options) (*aws.Cloud, error) {
	c := aws.New(aws.WithRegion(o.region), aws.WithSettings(func(set *aws.Settings) {
		set.Throttle, set.AnyRegion = o.throttle, !o.strictRegion
		set.MaxClockSkew = 5 * time.Minute // AWS's own
	}))
	for _, v := range s.VPCs {
		if err := c.AddVPC(v); err != nil {
			return nil, err
		}
	}
	for _, sub := range s.Subnets {
		if err := c.AddSubnet(sub); err != nil {
			return nil, err
		}
	}
	for _, i := range s.Instances {
		if err := c.AddInstance(i); err != nil {
			return nil, err
		}
	}
	for _, e := range s.Interfaces {
		if err := c.AddENI(e); err != nil {
			return nil, err
		}
	}
	for _, u := range s.Users {
		var opts []aws.UserOption
		if u.Policy != nil {
			opts = append(opts, aws.WithPolicy(*u.Policy))
		}
		c.AddUser(u.AccessKeyID, u.SecretAccessKey, opts...)
	}
	for _, r := range s.Roles {
		if !slices.ContainsFunc(r.Trusts, func(t string) bool { return strings.Contains(t, ":") || t == aws.AudiencePodIdentity }) {
			return nil, fmt.Errorf("role %q: want trusts, service accounts as \"namespace:name\" or %q", r.Name, aws.AudiencePodIdentity)
		}
		c.PutRole(r)
	}
	for account, role := range s.Associations {
		if !slices.ContainsFunc(s.Roles, func(r aws.Role) bool { return r.Name == role }) {
			return nil, fmt.Errorf("association of %s: there is no role %q", account, role)
		}
		c.Associate(account, role)
	}
	return c, nil
}

// writeTokens puts the tokens of a pod of the service account into a directory, one for each audience, and returns their paths.
func writeTokens(c *aws.Cloud, o options) (tokens, error) {
	if o.tokenDir == "" {
		return tokens{}, nil
	}
	t := tokens{sts: filepath.Join(o.tokenDir, "sts"), podIdentity: filepath.Join(o.tokenDir, "pod-identity")}
	for path, audience := range map[string]string{t.sts: aws.AudienceSTS, t.podIdentity: aws.AudiencePodIdentity} {
		text := c.ServiceAccountToken(aws.TokenRequest{Namespace: o.serviceAccount[0], ServiceAccount: o.serviceAccount[1], PodUID: "awsemu", Audience: audience})
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return tokens{}, err
		}
	}
	return t, nil
}

// tokens are paths of files, empty without -token-dir.
type tokens struct{ sts, podIdentity string }
