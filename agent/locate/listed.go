package locate

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Listing is what metadata says an ENI holds. It is stale both ways, by seconds and sometimes by minutes: an address that is missing
// may be there already, and one that is listed may be gone. It is good for a question, never for an answer.
type Listing struct {
	// ENI is the network interface's id.
	ENI string
	// Addrs are its IPv4 and IPv6 addresses, the primary ones among them.
	Addrs []netip.Addr
}

// Listed gives, by MAC, what the ENIs with these MACs hold according to metadata. A MAC that metadata does not know, or knows half of,
// is left out.
func (m *Metadata) Listed(ctx context.Context, macs []string) (map[string]Listing, error) {
	known, err := m.macs(ctx)
	if err != nil {
		return nil, err
	}
	listed := map[string]Listing{}
	var mu sync.Mutex
	note := func(mac string, change func(*Listing)) {
		mu.Lock()
		defer mu.Unlock()
		l := listed[mac]
		change(&l)
		listed[mac] = l
	}
	var reads []func(context.Context) error
	for _, as := range known {
		mac := strings.ToLower(as)
		if !slices.Contains(macs, mac) {
			continue
		}
		reads = append(reads, func(ctx context.Context) error {
			id, err := m.value(ctx, keyOf(as, "interface-id"))
			note(mac, func(l *Listing) { l.ENI = id })
			return err
		})
		for _, key := range []string{"local-ipv4s", "ipv6s"} {
			reads = append(reads, func(ctx context.Context) error {
				lines, err := m.lines(ctx, keyOf(as, key))
				note(mac, func(l *Listing) { l.Addrs = append(l.Addrs, addrsOf(lines)...) })
				return err
			})
		}
	}
	if err := parallel(ctx, reads...); err != nil {
		return nil, err
	}
	for mac, l := range listed {
		if l.ENI == "" {
			delete(listed, mac)
			continue
		}
		slices.SortFunc(l.Addrs, netip.Addr.Compare)
	}
	return listed, nil
}

// addrsOf leaves out what is no address: the listing is only a hint.
func addrsOf(lines []string) []netip.Addr {
	var addrs []netip.Addr
	for _, l := range lines {
		if a, err := netip.ParseAddr(l); err == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs
}
