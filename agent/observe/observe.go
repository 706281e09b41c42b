// Package observe reads the links and addresses of one network namespace by netlink. Reading needs no capability.
package observe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"multus-ip-manager.io/agent/plan"
)

// dumpTries bounds how often an interrupted dump is read again. The kernel interrupts a dump whenever the list changes under
// it; what it gave so far may then be incomplete.
const dumpTries = 30

// ethernetLen is the length of a MAC, in bytes.
const ethernetLen = 6

// dumpPause lets a burst of changes pass before the dump is read again.
const dumpPause = time.Millisecond

// Namespace reads the network namespace it runs in.
type Namespace struct{}

// Snapshot lists links and addresses. The two lists are read until they agree: an address whose link is in neither list has
// appeared or gone in between. The error says which list could not be read.
func (Namespace) Snapshot(ctx context.Context) (plan.Snapshot, error) {
	var err error
	for range dumpTries {
		var s plan.Snapshot
		var consistent bool
		taken := time.Now()
		s, consistent, err = look()
		if err == nil && consistent {
			s.Stamp, s.Taken = stampNow(), taken
			return s, nil
		}
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return plan.Snapshot{}, err
		}
		select {
		case <-ctx.Done():
			return plan.Snapshot{}, ctx.Err()
		case <-time.After(dumpPause):
		}
	}
	return plan.Snapshot{}, fmt.Errorf("links and addresses changed under %d looks in a row: %w", dumpTries, errors.Join(err, netlink.ErrDumpInterrupted))
}

func look() (s plan.Snapshot, consistent bool, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return s, false, fmt.Errorf("list links by netlink: %w", err)
	}
	byIndex := map[int]plan.Link{}
	for _, l := range links {
		a := l.Attrs()
		link := plan.Link{
			Index:    a.Index,
			Name:     a.Name,
			MAC:      strings.ToLower(a.HardwareAddr.String()),
			Kind:     l.Type(),
			Loopback: a.RawFlags&unix.IFF_LOOPBACK != 0,
		}
		if link.Loopback || len(a.HardwareAddr) != ethernetLen {
			link.MAC = "" // a tunnel's "hardware address" is its endpoint's
		}
		byIndex[link.Index] = link
		s.Links = append(s.Links, link)
	}
	slices.SortFunc(s.Links, func(a, b plan.Link) int { return cmp.Compare(a.Index, b.Index) })

	msgs, err := dumpAddresses()
	if err != nil {
		return s, false, fmt.Errorf("list addresses by netlink: %w", err)
	}
	for _, m := range msgs {
		a, index, err := parseAddress(m)
		if err != nil {
			return s, false, err
		}
		link, known := byIndex[index]
		if !known {
			return s, false, nil
		}
		a.Link = link
		s.Addresses = append(s.Addresses, a)
	}
	// The kernel's order changes when a first address of a subnet goes; that alone is no change.
	slices.SortFunc(s.Addresses, func(a, b plan.Address) int {
		return cmp.Or(cmp.Compare(a.Link.Index, b.Link.Index), a.Addr.Compare(b.Addr), cmp.Compare(a.Bits, b.Bits), cmp.Compare(a.CStamp, b.CStamp))
	})
	return s, true, nil
}

func dumpAddresses() ([][]byte, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
}

// parseAddress decodes one RTM_NEWADDR message. The netlink library's own parser drops the creation stamp, which is what tells
// an address that was removed and added again from one that stayed. It gives the address, without its link, and the link's
// index.
func parseAddress(msg []byte) (a plan.Address, linkIndex int, err error) {
	// The kernel pads every attribute, also the last one. The library's parser panics where that padding is missing.
	if len(msg) < unix.SizeofIfAddrmsg || len(msg)%unix.RTA_ALIGNTO != 0 {
		return a, 0, fmt.Errorf("address message of %d bytes is cut off", len(msg))
	}
	head := nl.DeserializeIfAddrmsg(msg)
	attrs, err := nl.ParseRouteAttr(msg[head.Len():])
	if err != nil {
		return a, 0, fmt.Errorf("address message: %w", err)
	}
	a = plan.Address{
		Bits:      int(head.Prefixlen),
		LinkScope: head.Scope >= unix.RT_SCOPE_LINK,
	}
	flags := uint32(head.Flags)
	var local, peer netip.Addr
	for _, attr := range attrs {
		switch attr.Attr.Type {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(attr.Value)
		case unix.IFA_ADDRESS:
			peer, _ = netip.AddrFromSlice(attr.Value)
		case unix.IFA_FLAGS:
			if len(attr.Value) >= 4 {
				flags = nl.NativeEndian().Uint32(attr.Value)
			}
		case unix.IFA_CACHEINFO:
			if len(attr.Value) >= unix.SizeofIfaCacheinfo {
				a.CStamp = nl.DeserializeIfaCacheInfo(attr.Value).Cstamp
			}
		}
	}
	// IFA_ADDRESS is the peer's address on a point-to-point link and the same as IFA_LOCAL elsewhere; IPv6 sends no IFA_LOCAL
	// without a peer.
	a.Addr = local
	if !local.IsValid() {
		a.Addr = peer
	}
	if head.Family == unix.AF_INET6 {
		a.Temporary = flags&unix.IFA_F_TEMPORARY != 0
		a.DADFailed = flags&unix.IFA_F_DADFAILED != 0
	}
	if !a.Addr.IsValid() {
		return a, 0, fmt.Errorf("address message of interface %d holds no address", head.Index)
	}
	return a, int(head.Index), nil
}
