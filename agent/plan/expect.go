package plan

import (
	"net/netip"
	"slices"
)

// Expectation is what the pod's networks annotation promises: interfaces that Multus makes before any container starts.
type Expectation struct {
	// Names are interfaces that must exist.
	Names []string
	// Unnamed is how many further interfaces Multus numbers itself. Its numbering is shifted by the cluster's default networks,
	// so they are counted, not named.
	Unnamed int
}

// Shortfall is what is missing of an Expectation.
type Shortfall struct {
	// Names are the missing interfaces that were asked for by name.
	Names []string
	// Unnamed is how many interfaces are missing besides.
	Unnamed int
}

// Any tells whether anything is missing.
func (s Shortfall) Any() bool { return len(s.Names) > 0 || s.Unnamed > 0 }

// fallbackTunnels appear by themselves in every network namespace once their kernel module is loaded; Multus did not make them.
var fallbackTunnels = map[string]bool{
	"tunl0": true, "gre0": true, "gretap0": true, "erspan0": true, "ip_vti0": true,
	"ip6_vti0": true, "sit0": true, "ip6tnl0": true, "ip6gre0": true,
}

// Missing compares the namespace's links with the expectation. A VRF, which a chained plugin puts around an interface, is none. The pod's own interface and lo do not count, unless one was
// asked for by that very name (a replaced cluster network).
func Missing(s Snapshot, podIPs []netip.Addr, e Expectation) Shortfall {
	own := ownLinks(s, podIPs)
	extra := 0
	for _, l := range s.Links {
		if !l.Loopback && !own[l.Index] && !l.byVPCCNI() && l.Kind != "vrf" && !fallbackTunnels[l.Name] && !slices.Contains(e.Names, l.Name) {
			extra++
		}
	}
	var short Shortfall
	for _, name := range e.Names {
		if !slices.ContainsFunc(s.Links, func(l Link) bool { return l.Name == name }) {
			short.Names = append(short.Names, name)
		}
	}
	short.Unnamed = max(0, e.Unnamed-extra)
	return short
}
