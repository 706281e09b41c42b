package world

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"sigs.k8s.io/yaml"
)

// Spec is a world as its YAML file describes it. Names, ids and MACs that are left out are derived from the position in the
// file, so that a file means the same world every time.
type Spec struct {
	Region  string       `json:"region,omitempty"` // default us-east-1
	VPC     VPCSpec      `json:"vpc,omitempty"`
	Subnets []SubnetSpec `json:"subnets"`
	Nodes   []NodeSpec   `json:"nodes"`
	Pods    []PodSpec    `json:"pods,omitempty"`
}

// VPCSpec is the one network of the world.
type VPCSpec struct {
	ID   string         `json:"id,omitempty"`
	IPv4 []netip.Prefix `json:"ipv4,omitempty"` // default: the subnets' own blocks
	IPv6 []netip.Prefix `json:"ipv6,omitempty"`
}

// SubnetSpec is a range of addresses; its first four and its last IPv4 address are AWS's, the second is the router.
type SubnetSpec struct {
	ID   string            `json:"id"`
	AZ   string            `json:"az,omitempty"`
	IPv4 netip.Prefix      `json:"ipv4"`
	IPv6 []netip.Prefix    `json:"ipv6,omitempty"`
	Tags map[string]string `json:"tags,omitempty"`
}

// NodeSpec is a worker: an EC2 instance with its network interfaces and its metadata service.
type NodeSpec struct {
	Name     string   `json:"name"`
	Instance string   `json:"instance,omitempty"` // id; default i-…
	Type     string   `json:"type,omitempty"`     // instance type; default m5.large
	HopLimit int      `json:"hopLimit,omitempty"` // of the metadata service's token answer; default 2
	IMDS     IMDSMode `json:"imds,omitempty"`
	Role     string   `json:"role,omitempty"` // IAM role; default node
	// PodIdentity runs the EKS Pod Identity agent on the node: its link-local addresses, reached by pods through their eth0.
	PodIdentity bool              `json:"podIdentity,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
	ENIs        []ENISpec         `json:"enis"`
}

// IMDSMode is what a node's metadata service wants of its clients.
type IMDSMode string

const (
	// IMDSOptional answers with and without a session token; the default.
	IMDSOptional IMDSMode = "optional"
	// IMDSRequired wants a session token (IMDSv2 only).
	IMDSRequired IMDSMode = "required"
	// IMDSDisabled refuses everything.
	IMDSDisabled IMDSMode = "disabled"
)

// ENISpec is a network interface attached to a node. Index 0 is the node's own one, whose secondary addresses are the pool from
// which pods get their eth0 address.
type ENISpec struct {
	Index             int               `json:"index"`
	ID                string            `json:"id,omitempty"`
	MAC               string            `json:"mac,omitempty"`
	Subnet            string            `json:"subnet"`
	Primary           netip.Addr        `json:"primary,omitempty"` // default: a free address of the subnet
	Secondary         []netip.Addr      `json:"secondary,omitempty"`
	IPv6              []netip.Addr      `json:"ipv6,omitempty"`
	Prefixes          []netip.Prefix    `json:"prefixes,omitempty"`
	Tags              map[string]string `json:"tags,omitempty"`
	NoSourceDestCheck bool              `json:"noSourceDestCheck,omitempty"`
	Description       string            `json:"description,omitempty"`
	AddressesOnNode   bool              `json:"addressesOnNode,omitempty"` // the node's ethN has the ENI's primary address
}

// PodSpec is a pod with its networks, as the VPC CNI and Multus leave it.
type PodSpec struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"` // default: default
	Node      string `json:"node"`
	// Eth0 is the pod's own addresses (status.podIPs), assigned to the node's device 0. Default: the next free secondary IPv4
	// address of device 0.
	Eth0     []netip.Addr `json:"eth0,omitempty"`
	Networks []Network    `json:"networks,omitempty"`
	// DAD leaves duplicate address detection on: IPv6 addresses are tentative for one to two seconds, as in real pods.
	DAD bool `json:"dad,omitempty"`
}

// NetworkKind is how a pod's interface hangs on its ENI.
type NetworkKind string

const (
	// IPVlan shares the ENI's MAC (real ipvlan, or a veth that looks so); the default.
	IPVlan NetworkKind = "ipvlan"
	// Macvlan has a MAC of its own, which a VPC does not know.
	Macvlan NetworkKind = "macvlan"
)

// Network is one extra interface of a pod.
type Network struct {
	Interface    string         `json:"interface,omitempty"` // default net1, net2, …
	ENI          int            `json:"eni"`                 // device index on the pod's node
	Kind         NetworkKind    `json:"kind,omitempty"`
	Addresses    []netip.Prefix `json:"addresses,omitempty"`    // with prefix length; assigned to no ENI by this
	Routes       []netip.Prefix `json:"routes,omitempty"`       // by way of the subnet's router
	DefaultRoute bool           `json:"defaultRoute,omitempty"` // the pod's default routes leave by this interface
}

// Load reads and checks a world file.
func Load(path string) (*Spec, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("world file: %w", err)
	}
	s, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("world file %s: %w", path, err)
	}
	return s, nil
}

// Parse reads and checks a world; unknown and repeated keys are errors.
func Parse(raw []byte) (*Spec, error) {
	var s Spec
	if err := yaml.UnmarshalStrict(raw, &s); err != nil {
		return nil, err
	}
	s.complete()
	if err := s.check(); err != nil {
		return nil, err
	}
	return &s, nil
}

// clone is a copy as deep as complete reaches.
func (s *Spec) clone() Spec {
	out := *s
	out.Nodes, out.Pods = slices.Clone(s.Nodes), slices.Clone(s.Pods)
	for i := range out.Nodes {
		out.Nodes[i].ENIs = slices.Clone(out.Nodes[i].ENIs)
	}
	for i := range out.Pods {
		out.Pods[i].Networks = slices.Clone(out.Pods[i].Networks)
	}
	return out
}

// complete fills in what was left out. It changes nothing on a complete spec.
func (s *Spec) complete() {
	for n := range s.Nodes {
		node := &s.Nodes[n]
		if node.Instance == "" {
			node.Instance = fmt.Sprintf("i-0%016x", n+1)
		}
		if node.IMDS == "" {
			node.IMDS = IMDSOptional
		}
		for e := range node.ENIs {
			node.ENIs[e].complete(n)
		}
	}
	for p := range s.Pods {
		s.Pods[p].complete()
	}
}

// complete derives id and MAC from the place of the node in the file and the device index.
func (e *ENISpec) complete(node int) {
	if e.ID == "" {
		e.ID = fmt.Sprintf("eni-0%012x%04x", node+1, e.Index)
	}
	if e.MAC == "" {
		e.MAC = fmt.Sprintf("06:ee:00:%02x:%02x:%02x", (node+1)>>8, (node+1)&0xff, e.Index)
	}
}

func (p *PodSpec) complete() {
	if p.Namespace == "" {
		p.Namespace = "default"
	}
	for i := range p.Networks {
		if p.Networks[i].Interface == "" {
			p.Networks[i].Interface = fmt.Sprintf("net%d", i+1)
		}
		if p.Networks[i].Kind == "" {
			p.Networks[i].Kind = IPVlan
		}
	}
}

// check finds what package aws would not: it checks ids, subnets and addresses itself when the cloud is built.
func (s *Spec) check() error {
	var problems []error
	say := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	names := map[string]bool{}
	for _, n := range s.Nodes {
		if n.Name == "" || names[n.Name] {
			say("node %q: the name is empty or used twice", n.Name)
		}
		names[n.Name] = true
		if !slices.Contains([]IMDSMode{IMDSOptional, IMDSRequired, IMDSDisabled}, n.IMDS) {
			say("node %s: imds is %q, want optional, required or disabled", n.Name, n.IMDS)
		}
		if !slices.ContainsFunc(n.ENIs, func(e ENISpec) bool { return e.Index == 0 }) {
			say("node %s: no ENI with index 0", n.Name)
		}
		for _, e := range n.ENIs {
			if _, err := net.ParseMAC(e.MAC); err != nil {
				say("node %s, ENI %d: %w", n.Name, e.Index, err)
			}
			if !slices.ContainsFunc(s.Subnets, func(sub SubnetSpec) bool { return sub.ID == e.Subnet }) {
				say("node %s, ENI %d: no subnet %q", n.Name, e.Index, e.Subnet)
			}
		}
	}
	for _, p := range s.Pods {
		if err := p.check(s); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

func (p *PodSpec) check(s *Spec) error {
	at := slices.IndexFunc(s.Nodes, func(n NodeSpec) bool { return n.Name == p.Node })
	if at < 0 {
		return fmt.Errorf("pod %s/%s: no node %q", p.Namespace, p.Name, p.Node)
	}
	if p.Name == "" {
		return fmt.Errorf("a pod on node %s has no name", p.Node)
	}
	seen := map[string]bool{"lo": true, "eth0": true}
	for _, n := range p.Networks {
		if seen[n.Interface] || len(n.Interface) > 15 {
			return fmt.Errorf("pod %s/%s: interface name %q is taken or longer than 15 characters", p.Namespace, p.Name, n.Interface)
		}
		seen[n.Interface] = true
		if n.Kind != IPVlan && n.Kind != Macvlan {
			return fmt.Errorf("pod %s/%s: kind of %s is %q, want ipvlan or macvlan", p.Namespace, p.Name, n.Interface, n.Kind)
		}
		for _, a := range n.Addresses {
			if !a.IsValid() {
				return fmt.Errorf("pod %s/%s: %s has an invalid address", p.Namespace, p.Name, n.Interface)
			}
		}
	}
	return nil
}
