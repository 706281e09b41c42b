package settings

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// attached is the part of an element of the network-status annotation that says which addresses an interface came with.
// Multus leaves ips out for interfaces without addresses, for example for the dummy interface in which the VPC CNI keeps
// its notes.
type attached struct {
	IPs []string `json:"ips"`
}

// ParseNetworkStatus gives the addresses that the pod came with, each once, in the order of the annotation: those of all
// interfaces, the cluster network's too. Multus writes the annotation once, before the first container starts, and never
// again, so what was added to an interface later is not in it.
//
// An empty text and a list without addresses give none. An error says what cannot be read; the addresses that can be read
// are given with it, because each of them is listed whatever stands beside it. Multus writes addresses without a prefix
// length; one that has it counts too. It never panics, whatever the input.
func ParseNetworkStatus(text string) (addrs []netip.Addr, err error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var interfaces []attached
	// Values of a wrong type are left out, told, and the rest is decoded; anything that is not JSON yields nothing.
	if err = json.Unmarshal([]byte(text), &interfaces); err != nil {
		err = fmt.Errorf("%s is not a JSON list of interfaces: %w", NetworkStatus, jsonError(err))
	}
	known := map[netip.Addr]bool{}
	for i, a := range interfaces {
		for _, s := range a.IPs {
			addr, perr := parseHost(s)
			if perr != nil {
				if err == nil {
					err = fmt.Errorf("%s, interface %d: %w", NetworkStatus, i+1, perr)
				}
				continue
			}
			if !known[addr] {
				known[addr] = true
				addrs = append(addrs, addr)
			}
		}
	}
	return slices.Clip(addrs), err
}

// parseHost reads an address with or without a prefix length, as the kernel tells it: no zone, no IPv4 in IPv6.
func parseHost(s string) (netip.Addr, error) {
	host, _, cidr := strings.Cut(s, "/")
	addr, err := netip.ParseAddr(host)
	if err == nil && cidr {
		_, err = netip.ParsePrefix(s)
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is neither an address nor a CIDR", Shorten(s))
	}
	return addr.WithZone("").Unmap(), nil
}
