// Package plan decides, without any I/O, which of a pod's addresses are to be put on which ENI.
//
// It is given what the kernel shows ([Snapshot]), what the instance metadata tells of the node's ENIs ([ENI]) and what the
// pod's owner asked for ([Rules]), and answers with a [Plan]. The same input always gives the same plan, in the same order.
package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Link is a network interface as the kernel of the pod's network namespace shows it.
type Link struct {
	// Index is the kernel's interface index; names may change, the index does not.
	Index int
	// Name is used for messages and for the networks a pod asked for by name.
	Name string
	// MAC is the hardware address in lower case, empty for a link without one (loopback, tunnels).
	MAC string
	// Kind is the kernel's link type ("ipvlan", "veth", "macvlan", "device"), for messages only.
	Kind string
	// Loopback tells lo from the others.
	Loopback bool
}

// String gives the name with kind and MAC, as explanations name a link.
func (l Link) String() string {
	if l.MAC == "" {
		return fmt.Sprintf("%s (%s, without a MAC)", l.Name, l.Kind)
	}
	return fmt.Sprintf("%s (%s, %s)", l.Name, l.Kind, l.MAC)
}

// vpcCNILinks are interfaces that the VPC CNI adds to pods beside eth0: the way out to the other address family in IPv4 and IPv6
// clusters. Multus did not make them.
var vpcCNILinks = map[string]bool{"v4if0": true, "v6if0": true}

// byVPCCNI tells whether the VPC CNI made the interface beside the pod's own: one of vpcCNILinks, or one of a pod with an interface on
// each network card (mNicIf1 and so on).
func (l Link) byVPCCNI() bool {
	return l.Kind == "veth" && (vpcCNILinks[l.Name] || strings.HasPrefix(l.Name, "mNicIf"))
}

// Address is one address on one interface.
type Address struct {
	Addr netip.Addr
	// Bits is the prefix length the pod configured. It says nothing about the VPC subnet's mask.
	Bits int
	// Link is the interface that holds the address.
	Link Link
	// CStamp is the kernel's creation stamp (IFA_CACHEINFO, hundredths of a second since boot): a re-added address has a newer
	// one than an address that stayed.
	CStamp uint32
	// Epoch tells additions apart that fall into one tick of CStamp: it differs when the address was heard to be removed and added
	// again since.
	Epoch uint64
	// LinkScope is true for addresses with a scope narrower than site (link, host): they are not meant to be reached from
	// outside.
	LinkScope bool
	// DADFailed is true for an IPv6 address that duplicate address detection found in use elsewhere.
	DADFailed bool
	// Temporary is true for IPv6 privacy addresses. In IPv4 the kernel's bit of the same value means "secondary" and is not
	// reported here.
	Temporary bool
}

// String gives the address with its interface, as log lines and errors name it.
func (a Address) String() string { return fmt.Sprintf("%s on %s", a.Addr, a.Link.Name) }

// Addition tells one addition of an address to an interface from the next: an address that was removed and added again is a new claim,
// also when both fell between two looks.
type Addition struct {
	// Link is the interface's index.
	Link int
	// CStamp and Epoch are those of the [Address].
	CStamp uint32
	Epoch  uint64
}

// Addition gives what tells this addition of the address from others.
func (a Address) Addition() Addition {
	return Addition{Link: a.Link.Index, CStamp: a.CStamp, Epoch: a.Epoch}
}

// Snapshot is one consistent look at a network namespace.
type Snapshot struct {
	Links     []Link
	Addresses []Address
	// Heard is when the first event arrived that led to this look; zero for a look that no event led to.
	Heard time.Time
	// Stamp is the CStamp that an address added at the time of the look would have; 0 when it is not known.
	Stamp uint32
	// Taken is when the look began: what it shows is not older.
	Taken time.Time
}

// Age is how long before the look the address was added, by the kernel's clock; 0 when the look does not tell.
func (s Snapshot) Age(a Address) time.Duration {
	if s.Stamp == 0 || a.CStamp == 0 {
		return 0
	}
	// The stamps wrap after 497 days, so their difference counts, and one below zero is rounding.
	return max(0, time.Duration(int32(s.Stamp-a.CStamp))*10*time.Millisecond) //nolint:gosec // as the comment says
}

// ENI is an elastic network interface of this node, as far as instance metadata vouches for it: who it is, not which addresses
// it holds (those lists are stale both ways).
type ENI struct {
	// ID is the interface id, "eni-…".
	ID string
	// MAC is the hardware address in lower case.
	MAC string
	// DeviceIndex is the device number of the attachment; 0 is the node's primary ENI, which the VPC CNI always manages.
	DeviceIndex int
	// SubnetID is the subnet the ENI was made in; it never changes.
	SubnetID string
	// Subnets are the IPv4 and IPv6 CIDR blocks of that subnet. Metadata may leave out those of a family of which the ENI has no
	// address yet: then EC2 itself judges whether an address fits.
	Subnets []netip.Prefix
	// Prefixes are the prefixes delegated to the ENI; every address inside is routed to it already.
	Prefixes []netip.Prefix
}

// Contains tells whether addr lies in one of the ENI's subnet CIDRs.
func (e ENI) Contains(addr netip.Addr) bool { return containsAddr(e.Subnets, addr) }

// reserved tells whether the address is one of those AWS keeps for itself: the first four and the last one of each CIDR block, in
// IPv4 and IPv6.
func (e ENI) reserved(addr netip.Addr) bool {
	for _, p := range e.Subnets {
		if !p.Contains(addr) {
			continue
		}
		first := p.Masked().Addr()
		for range 4 {
			if addr == first {
				return true
			}
			first = first.Next()
		}
		return !p.Contains(addr.Next())
	}
	return false
}

// knowsFamily tells whether a CIDR block of the address's family is known.
func (e ENI) knowsFamily(addr netip.Addr) bool {
	return slices.ContainsFunc(e.Subnets, func(p netip.Prefix) bool { return p.Addr().Is4() == addr.Is4() })
}

// String gives the id with the MAC, as log lines and errors name an ENI.
func (e ENI) String() string { return e.ID + " (" + e.MAC + ")" }

// Rules is what the pod's owner and the operator asked for.
type Rules struct {
	// PodIPs are the pod's own addresses (status.podIPs), which the VPC CNI manages. The interface that holds one of them is
	// left alone.
	PodIPs []netip.Addr
	// Interfaces, when not empty, names the only interfaces to manage.
	Interfaces []string
	// Ignore lists addresses that need no assignment.
	Ignore []netip.Prefix
	// AllowPrimaryENI permits the use of ENIs with device index 0.
	AllowPrimaryENI bool
	// MapBySubnet permits an interface with a foreign MAC to be mapped to the one attached ENI whose subnet holds its address.
	MapBySubnet bool
	// VPCCNISubnets are subnet ids, besides the primary ENI's, from which the VPC CNI takes its addresses (custom networking).
	VPCCNISubnets []string
}

// Reason says why an address got its verdict. The strings are stable: they appear in logs, metrics and tests.
type Reason string

// The reasons of a [Decision].
const (
	// ReasonWanted: the address is to be assigned.
	ReasonWanted Reason = "wanted"
	// ReasonInPrefix: the address lies in a prefix delegated to its ENI; the VPC routes it already.
	ReasonInPrefix Reason = "in-delegated-prefix"
	// ReasonOutsideSubnet: the interface is an ENI's, the address is not in the ENI's subnet; EC2 would refuse it.
	ReasonOutsideSubnet Reason = "outside-subnet"
	// ReasonReserved: the address is one of the five of each subnet that AWS keeps for itself; EC2 would refuse it.
	ReasonReserved Reason = "reserved"
	// ReasonForeignMAC: the interface has a MAC that no ENI of the node has, the address is in a subnet of the node. That is
	// macvlan in bridge mode or the like: the VPC drops its packets whatever is assigned.
	ReasonForeignMAC Reason = "foreign-mac"
	// ReasonAmbiguousSubnet: mapping by subnet was allowed, but more than one ENI fits.
	ReasonAmbiguousSubnet Reason = "ambiguous-subnet"
	// ReasonPrimaryENI: the ENI has device index 0, which the VPC CNI manages.
	ReasonPrimaryENI Reason = "primary-eni"
	// ReasonIgnored: the ignore setting covers the address.
	ReasonIgnored Reason = "ignored"
	// ReasonNotManaged: the interfaces setting names others.
	ReasonNotManaged Reason = "interface-not-managed"
	// ReasonPodInterface: the interface carries the pod's own addresses.
	ReasonPodInterface Reason = "pod-interface"
	// ReasonNotGlobal: loopback, link-local, multicast or an address of narrower scope.
	ReasonNotGlobal Reason = "not-global"
	// ReasonTemporary: an IPv6 privacy address.
	ReasonTemporary Reason = "temporary"
	// ReasonDADFailed: duplicate address detection found the address in use on the link.
	ReasonDADFailed Reason = "dad-failed"
	// ReasonForeignNetwork: neither the MAC nor the subnet has to do with an ENI of this node.
	ReasonForeignNetwork Reason = "foreign-network"
	// ReasonDuplicate: the same address was added again later, mostly on another interface.
	ReasonDuplicate Reason = "duplicate"
)

// Decision is the verdict on one address.
type Decision struct {
	Address Address
	// ENI is the one concerned; its ID is empty where none is.
	ENI    ENI
	Reason Reason
	// CheckHolder is set where the VPC CNI may draw from the ENI's subnet: then the present holder of the address must be read
	// before it may be moved. CheckENI is set where the ENI itself may be the VPC CNI's besides; a primary ENI always is, and is
	// used only where that is allowed.
	CheckHolder, CheckENI bool
	// PrimaryUnknown says why CheckHolder is set where the node's primary ENI is not known, so that each subnet is taken for one that the
	// VPC CNI may draw from.
	PrimaryUnknown bool
}

// Explain says in one sentence what the verdict means and, for a refusal, what to do.
func (d Decision) Explain() string {
	switch d.Reason {
	case ReasonWanted:
		return fmt.Sprintf("%s is to be assigned to %s", d.Address, d.ENI)
	case ReasonInPrefix:
		return fmt.Sprintf("%s is inside a prefix delegated to %s and routed already", d.Address, d.ENI)
	case ReasonOutsideSubnet:
		return fmt.Sprintf("%s is outside the subnet of %s (%s has %s): EC2 assigns only addresses of the ENI's own subnet; "+
			"correct the range of the NetworkAttachmentDefinition (is the pod in the wrong availability zone?) or list the address in the ignore annotation",
			d.Address, d.ENI, d.ENI.SubnetID, joinPrefixes(d.ENI.Subnets))
	case ReasonReserved:
		return fmt.Sprintf("%s is reserved by AWS, which keeps the first four addresses and the last one of each subnet (%s has %s): "+
			"exclude it from the range of the NetworkAttachmentDefinition", d.Address, d.ENI.SubnetID, joinPrefixes(d.ENI.Subnets))
	case ReasonForeignMAC:
		if d.Address.Link.SharesMAC() {
			return fmt.Sprintf("%s belongs to %s, but the MAC of %s is no ENI's of this node: the VPC drops frames of MACs it does not know; "+
				"correct the master or device in the NetworkAttachmentDefinition, which must be an ENI", d.Address, d.ENI.SubnetID, d.Address.Link)
		}
		return fmt.Sprintf("%s belongs to %s, but the MAC of %s is no ENI's of this node (macvlan or bridge?): "+
			"the VPC drops frames of MACs it does not know; use ipvlan, or host-device, on the ENI",
			d.Address, d.ENI.SubnetID, d.Address.Link)
	case ReasonAmbiguousSubnet:
		return fmt.Sprintf("%s fits more than one ENI of this node by its subnet: use an interface type that shares the ENI's MAC (ipvlan)", d.Address)
	case ReasonPrimaryENI:
		return fmt.Sprintf("%s is on %s with device index 0, which the VPC CNI manages: put the network on another ENI, "+
			"or allow the primary ENI in the agent's settings", d.Address, d.ENI)
	case ReasonIgnored:
		return fmt.Sprintf("%s is covered by the ignore setting", d.Address)
	case ReasonNotManaged:
		return fmt.Sprintf("%s is not on an interface named in the interfaces setting", d.Address)
	case ReasonPodInterface:
		return fmt.Sprintf("%s is on the pod's own interface, which the VPC CNI manages", d.Address)
	case ReasonNotGlobal:
		return fmt.Sprintf("%s is not a global unicast address", d.Address)
	case ReasonTemporary:
		return fmt.Sprintf("%s is an IPv6 privacy address", d.Address)
	case ReasonDADFailed:
		return fmt.Sprintf("%s failed duplicate address detection: another interface on the link holds it", d.Address)
	case ReasonForeignNetwork:
		return fmt.Sprintf("%s belongs to no ENI of this node, by MAC or by subnet", d.Address)
	case ReasonDuplicate:
		return fmt.Sprintf("%s was added again later, mostly on another interface: that one counts", d.Address)
	}
	return fmt.Sprintf("%s: %s", d.Address, d.Reason)
}

// Plan sorts every address of a snapshot into one of four lists, each ordered by interface index and address.
type Plan struct {
	// Assign must be put on their ENIs.
	Assign []Decision
	// Routed need no call: the VPC delivers them already.
	Routed []Decision
	// Refused are wanted by the pod and cannot become reachable. At a pod's start that is a failure.
	Refused []Decision
	// Skipped are none of our business.
	Skipped []Decision
}

func containsAddr(prefixes []netip.Prefix, addr netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

func joinPrefixes(prefixes []netip.Prefix) string {
	s := make([]string, len(prefixes))
	for i, p := range prefixes {
		s[i] = p.String()
	}
	return strings.Join(s, ", ")
}
