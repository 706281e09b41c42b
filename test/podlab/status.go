package podlab

import (
	"encoding/json"
	"net/netip"

	"multus-ip-manager.io/test/world"
)

// status is one entry of Multus's network-status annotation.
type status struct {
	Name      string       `json:"name"`
	Interface string       `json:"interface,omitempty"`
	IPs       []netip.Addr `json:"ips,omitempty"`
	MAC       string       `json:"mac,omitempty"`
	Default   bool         `json:"default,omitempty"`
	DNS       struct{}     `json:"dns"`
}

// NetworkStatus is the annotation that Multus 4.1 and newer write once all interfaces of the pod are made. It holds what came with the
// pod, never what was added to the interfaces later. With the VPC CNI the pod's own interface has two entries: eth0, whose "MAC" is a
// number of a routing table, and the dummy that carries the device number, without addresses.
func NetworkStatus(p *world.Pod) (string, error) {
	list := []status{
		{Name: "aws-cni", Interface: "eth0", IPs: p.IPs(), MAC: "2", Default: true},
		{Name: "aws-cni", Interface: "dummy5e1f", MAC: "0"},
	}
	for _, n := range p.Networks() {
		s := status{Name: p.Namespace() + "/net", Interface: n.Interface}
		if mac, err := p.NS().MAC(n.Interface); err == nil {
			s.MAC = mac.String()
		}
		for _, a := range n.Addresses {
			s.IPs = append(s.IPs, a.Addr())
		}
		list = append(list, s)
	}
	text, err := json.Marshal(list)
	return string(text), err
}
