package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
)

// Network is one element of the networks annotation.
type Network struct {
	// Namespace and Name select the NetworkAttachmentDefinition.
	Namespace, Name string
	// Interface is the requested name of the link in the pod; "" means that
	// Multus numbers it (net1, net2, …).
	Interface string
	// DefaultRoute is set when the element has a default-route, even an empty
	// one: Multus then takes the default route away from the cluster network.
	DefaultRoute bool
}

// element is the JSON form, with the types Multus decodes it to: a value that
// does not fit one of them makes Multus refuse the whole annotation. Keys that
// are not here are ignored by Multus too.
type element struct {
	Name             string   `json:"name"`
	Namespace        string   `json:"namespace"`
	IPs              []string `json:"ips"`
	MAC              string   `json:"mac"`
	InfinibandGUID   string   `json:"infiniband-guid"`
	Interface        string   `json:"interface"`
	InterfaceRequest string   `json:"interfaceRequest"` // before Multus 3.2, still read
	PortMappings     []*struct {
		HostPort      int    `json:"hostPort"`
		ContainerPort int    `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP"`
	} `json:"portMappings"`
	Bandwidth *struct {
		IngressRate  int `json:"ingressRate"`
		IngressBurst int `json:"ingressBurst"`
		EgressRate   int `json:"egressRate"`
		EgressBurst  int `json:"egressBurst"`
	} `json:"bandwidth"`
	DeviceID     string          `json:"deviceID"`
	CNIArgs      *map[string]any `json:"cni-args"`
	DefaultRoute *[]net.IP       `json:"default-route"`
	IPAMClaim    string          `json:"ipam-claim-reference"`
}

// ParseNetworks reads the networks annotation by Multus's own rules: JSON if it
// contains one of [ { " and otherwise a comma list of [namespace/]name[@interface].
// Elements without a namespace get defaultNamespace, the pod's.
//
// An empty annotation and an empty JSON list are no networks and no error, as
// they are to Multus. What makes Multus fail the pod later is an error here: an
// element without a name, null elements (at which Multus itself panics), and
// interface names that CNI refuses. It never panics, whatever the input.
func ParseNetworks(annotation, defaultNamespace string) ([]Network, error) {
	if annotation == "" {
		return nil, nil
	}
	parse := parseList
	if strings.ContainsAny(annotation, `[{"`) {
		parse = parseJSON
	}
	networks, err := parse(annotation)
	if err != nil {
		return nil, err
	}
	for i := range networks {
		if networks[i].Namespace == "" {
			networks[i].Namespace = defaultNamespace
		}
		if networks[i].Interface == "" {
			continue
		}
		if err := checkInterface(networks[i].Interface); err != nil {
			return nil, fmt.Errorf("network %d: %w", i+1, err)
		}
	}
	return networks, nil
}

func parseJSON(annotation string) ([]Network, error) {
	var elements []*element
	if err := json.Unmarshal([]byte(annotation), &elements); err != nil {
		return nil, fmt.Errorf("not a JSON list of networks: %w", jsonError(err))
	}
	var networks []Network
	for i, e := range elements {
		n, err := e.network()
		if err != nil {
			return nil, fmt.Errorf("network %d: %w", i+1, err)
		}
		networks = append(networks, n)
	}
	return networks, nil
}

// jsonError leaves out the names of our own types, which mean nothing to users.
func jsonError(err error) error {
	var wrongType *json.UnmarshalTypeError
	if !errors.As(err, &wrongType) {
		return err
	}
	where := ""
	if wrongType.Field != "" {
		where = " in " + wrongType.Field
	}
	return fmt.Errorf("unexpected %s%s at byte %d", wrongType.Value, where, wrongType.Offset)
}

func (e *element) network() (Network, error) {
	if e == nil {
		return Network{}, errors.New("null is not a network")
	}
	if e.Name == "" {
		return Network{}, errors.New("it has no name")
	}
	for _, mac := range []string{e.MAC, e.InfinibandGUID} {
		if mac == "" {
			continue
		}
		if _, err := net.ParseMAC(mac); err != nil {
			return Network{}, fmt.Errorf("%q is not a hardware address", Shorten(mac))
		}
	}
	for _, ip := range e.IPs {
		if !isAddress(ip) {
			return Network{}, fmt.Errorf("%q is neither an address nor a CIDR", Shorten(ip))
		}
	}
	name := e.Interface
	if name == "" {
		name = e.InterfaceRequest
	}
	return Network{Namespace: e.Namespace, Name: e.Name, Interface: name, DefaultRoute: e.DefaultRoute != nil}, nil
}

func isAddress(s string) bool {
	if strings.Contains(s, "/") {
		_, _, err := net.ParseCIDR(s)
		return err == nil
	}
	return net.ParseIP(s) != nil
}

func parseList(annotation string) ([]Network, error) {
	var networks []Network
	i := 0
	for item := range strings.SplitSeq(annotation, ",") {
		i++
		n, err := parseItem(strings.TrimSpace(item))
		if err != nil {
			return nil, fmt.Errorf("network %d %q: %w", i, Shorten(item), err)
		}
		networks = append(networks, n)
	}
	return networks, nil
}

// parseItem reads [namespace/]name[@interface].
func parseItem(item string) (Network, error) {
	var n Network
	rest := item
	if ns, after, ok := strings.Cut(item, "/"); ok {
		n.Namespace, rest = strings.TrimSpace(ns), after
	}
	if strings.Contains(rest, "/") {
		return n, errors.New("more than one '/'")
	}
	name, link, _ := strings.Cut(rest, "@")
	if strings.Contains(link, "@") {
		return n, errors.New("more than one '@'")
	}
	n.Name, n.Interface = strings.TrimSpace(name), strings.TrimSpace(link)
	switch {
	case n.Name == "":
		return n, errors.New("it has no name")
	case !isLabel(n.Name), n.Namespace != "" && !isLabel(n.Namespace):
		return n, errors.New("names consist of lower case letters, digits and '-', and begin and end with a letter or digit")
	}
	return n, nil
}

// isLabel is Multus's rule for names in the comma list: no dots, any length.
func isLabel(s string) bool {
	for i := range len(s) {
		c := s[i]
		alphanumeric := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alphanumeric && (c != '-' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return s != ""
}
