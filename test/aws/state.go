package aws

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// held is one address of an interface.
type held struct {
	addr    netip.Addr
	primary bool
	eip     netip.Addr // Elastic IP associated with it; invalid = none
}

// eni is one version of an interface. It is never changed once it is in the state: apply puts a new one in its place,
// so that old versions stay valid for delayed views and for answers that are being written.
type eni struct {
	ENI             // everything but addresses and prefixes, which are below
	v4       []held // primary first, then in order of assignment
	v6       []held // in order of assignment
	prefixes []netip.Prefix
	attached time.Time
}

func (e *eni) clone() *eni {
	d := *e
	d.v4, d.v6, d.prefixes = slices.Clone(e.v4), slices.Clone(e.v6), slices.Clone(e.prefixes)
	return &d
}

// find returns the address as this interface holds it.
func (e *eni) find(a netip.Addr) (held, bool) {
	list := e.v4
	if a.Is6() {
		list = e.v6
	}
	if i := slices.IndexFunc(list, func(h held) bool { return h.addr == a }); i >= 0 {
		return list[i], true
	}
	return held{}, false
}

// prefixesOf returns the delegated prefixes of one family.
func (e *eni) prefixesOf(v6 bool) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range e.prefixes {
		if p.Addr().Is6() == v6 {
			out = append(out, p)
		}
	}
	return out
}

// used is the number of slots taken in one family.
func (e *eni) used(v6 bool) int {
	if v6 {
		return len(e.v6) + len(e.prefixesOf(true))
	}
	return len(e.v4) + len(e.prefixesOf(false))
}

// export gives the interface in the form it was configured in.
func (e *eni) export() ENI {
	out := e.ENI
	out.Secondary, out.IPv6, out.Prefixes = nil, nil, slices.Clone(e.prefixes)
	out.ElasticIPs, out.Tags = nil, maps.Clone(e.Tags)
	for _, h := range e.v4 {
		if h.primary {
			out.Primary = h.addr
		} else {
			out.Secondary = append(out.Secondary, h.addr)
		}
		if h.eip.IsValid() {
			if out.ElasticIPs == nil {
				out.ElasticIPs = map[netip.Addr]netip.Addr{}
			}
			out.ElasticIPs[h.addr] = h.eip
		}
	}
	for _, h := range e.v6 {
		out.IPv6 = append(out.IPv6, h.addr)
		if h.primary {
			out.PrimaryIPv6 = h.addr
		}
	}
	return out
}

// place is where a block lives: the same address may exist in two VPCs.
type place struct {
	vpc   string
	block netip.Prefix
}

// edit is one block that changes hands. From and to are ENI ids, "" = nobody.
type edit struct {
	block    netip.Prefix
	from, to string
	primary  bool
	vpc      string // set by located
}

// state is everything EC2 knows. It is not safe for concurrent use; Cloud locks.
type state struct {
	region    string // part of DNS names
	vpcs      map[string]VPC
	subnets   map[string]Subnet
	instances map[string]Instance
	enis      map[string]*eni
	holders   map[place]string // block (single address or delegated prefix) to ENI id
}

func newState() *state {
	return &state{vpcs: map[string]VPC{}, subnets: map[string]Subnet{}, instances: map[string]Instance{},
		enis: map[string]*eni{}, holders: map[place]string{}}
}

const (
	v4PrefixBits = 28 // delegated IPv4 prefixes are /28
	v6PrefixBits = 80 // delegated IPv6 prefixes are /80
)

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func delegationBits(a netip.Addr) int {
	if a.Is6() {
		return v6PrefixBits
	}
	return v4PrefixBits
}

// holder finds who has an address in a VPC, by itself or inside a delegated prefix.
func (s *state) holder(vpc string, a netip.Addr) (Holder, bool) {
	if id, ok := s.holders[place{vpc, single(a)}]; ok {
		e := s.enis[id]
		h, _ := e.find(a)
		return Holder{ENI: id, Instance: e.InstanceID, Primary: h.primary}, true
	}
	p := netip.PrefixFrom(a, delegationBits(a)).Masked()
	if id, ok := s.holders[place{vpc, p}]; ok {
		return Holder{ENI: id, Instance: s.enis[id].InstanceID, Prefix: p, InPrefix: true}, true
	}
	return Holder{}, false
}

// vpcOf is the VPC an interface is in.
func (s *state) vpcOf(e *eni) string { return s.subnets[e.SubnetID].VPCID }

// limit is the number of slots of one family, and false for an interface that no instance limits.
func (s *state) limit(e *eni, v6 bool) (int, bool) {
	inst, ok := s.instances[e.InstanceID]
	if !ok {
		return 0, false
	}
	if v6 {
		return inst.Limits.IPv6PerENI, true
	}
	return inst.Limits.IPv4PerENI, true
}

// blocksOf is the CIDR blocks of a subnet in one family.
func (s Subnet) blocksOf(v6 bool) []netip.Prefix {
	if v6 {
		return s.IPv6
	}
	if s.IPv4.IsValid() {
		return []netip.Prefix{s.IPv4}
	}
	return nil
}

// reserved says whether EC2 keeps the address: the first four and the last one of a block.
func reserved(block netip.Prefix, a netip.Addr) bool {
	first := block.Masked().Addr()
	for range 4 {
		if a == first {
			return true
		}
		first = first.Next()
	}
	return a == lastOf(block)
}

// lastOf is the highest address of a block.
func lastOf(block netip.Prefix) netip.Addr {
	b := block.Masked().Addr().AsSlice()
	for bit := block.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// pick chooses n free addresses of a subnet, from the top of the block downwards: unlike EC2's choice it is the same
// in every run, and it keeps out of the way of the low addresses that people write into tests.
func (s *state) pick(sub Subnet, v6 bool, n int) ([]netip.Addr, *APIError) {
	var out []netip.Addr
	for _, block := range sub.blocksOf(v6) {
		for a := lastOf(block); len(out) < n && block.Contains(a); a = a.Prev() {
			if !reserved(block, a) && !sub.setAside(a) && !s.taken(sub.VPCID, a) {
				out = append(out, a)
			}
		}
	}
	if len(out) < n {
		return nil, badRequest("InsufficientFreeAddressesInSubnet",
			"The specified subnet does not have enough free addresses to satisfy the request.")
	}
	return out, nil
}

func (s *state) taken(vpc string, a netip.Addr) bool {
	_, ok := s.holder(vpc, a)
	return ok
}

// setAside says whether a CIDR reservation keeps the address from automatic assignment.
func (s Subnet) setAside(a netip.Addr) bool {
	return slices.ContainsFunc(s.Reservations, func(r Reservation) bool { return r.CIDR.Contains(a) })
}

// pickPrefixes chooses n free prefixes of a subnet, from the top down, in "prefix" reservations first.
func (s *state) pickPrefixes(sub Subnet, v6 bool, n int) ([]netip.Prefix, *APIError) {
	var out []netip.Prefix
	for _, block := range sub.blocksOf(v6) {
		bits := delegationBits(block.Addr())
		if block.Bits() > bits {
			continue
		}
		// A subnet that can be enumerated has few /28s; of an IPv6 /64 only the top is looked at.
		p := netip.PrefixFrom(lastOf(block), bits).Masked()
		for tries := 0; len(out) < n && tries < 1<<16 && block.Overlaps(p); tries++ {
			if s.prefixFree(sub, block, p) {
				out = append(out, p)
			}
			prev := p.Addr().Prev()
			if !prev.IsValid() {
				break
			}
			p = netip.PrefixFrom(prev, bits).Masked()
		}
	}
	if len(out) < n {
		return nil, badRequest("InsufficientCidrBlocks",
			"There are not enough free cidr blocks in the specified subnet to satisfy the request.")
	}
	return out, nil
}

// prefixFree says whether nothing in a prefix is reserved or held. Holders are far fewer than addresses of a /80.
func (s *state) prefixFree(sub Subnet, block, p netip.Prefix) bool {
	for _, r := range sub.Reservations {
		if !r.Prefix && r.CIDR.Overlaps(p) {
			return false
		}
	}
	return !holdsReserved(block, p) && !s.occupied(sub.VPCID, p)
}

// holdsReserved says whether a prefix covers an address that EC2 keeps for itself.
func holdsReserved(block, p netip.Prefix) bool {
	return p.Contains(block.Masked().Addr()) || p.Contains(lastOf(block))
}

// occupied says whether anything inside a prefix is held.
func (s *state) occupied(vpc string, p netip.Prefix) bool {
	for at := range s.holders {
		if at.vpc == vpc && at.block.Overlaps(p) {
			return true
		}
	}
	return false
}

// free is AvailableIpAddressCount: IPv4 addresses that nobody has.
func (s *state) free(sub Subnet) int {
	if !sub.IPv4.IsValid() {
		return 0
	}
	n := 1<<(32-sub.IPv4.Bits()) - 5
	for at := range s.holders {
		if at.vpc == sub.VPCID && sub.IPv4.Contains(at.block.Addr()) {
			n -= 1 << (32 - at.block.Bits())
		}
	}
	return n
}

// located returns the edits with the VPC they happen in.
func (s *state) located(edits []edit) []edit {
	edits = slices.Clone(edits)
	for i, ed := range edits {
		edits[i].vpc = s.vpcOf(s.enis[cmp.Or(ed.to, ed.from)])
	}
	return edits
}

// apply makes edits true. It is the only place where addresses change hands, and it cannot fail: whatever could be
// refused was refused before. Edits must be located. An Elastic IP follows its private address to the new interface.
func (s *state) apply(edits []edit) {
	fresh := map[string]*eni{}
	get := func(id string) *eni {
		if fresh[id] == nil {
			fresh[id] = s.enis[id].clone()
		}
		return fresh[id]
	}
	for _, ed := range edits {
		h := held{addr: ed.block.Addr(), primary: ed.primary}
		if ed.from != "" {
			h.eip = get(ed.from).drop(ed.block)
			delete(s.holders, place{ed.vpc, ed.block})
		}
		if ed.to != "" {
			get(ed.to).take(ed.block, h)
			s.holders[place{ed.vpc, ed.block}] = ed.to
		}
	}
	maps.Copy(s.enis, fresh)
}

// drop removes a block and returns the Elastic IP it had.
func (e *eni) drop(block netip.Prefix) (eip netip.Addr) {
	if !block.IsSingleIP() {
		e.prefixes = slices.DeleteFunc(e.prefixes, func(p netip.Prefix) bool { return p == block })
		return eip
	}
	if h, ok := e.find(block.Addr()); ok {
		eip = h.eip
	}
	gone := func(h held) bool { return h.addr == block.Addr() }
	e.v4, e.v6 = slices.DeleteFunc(e.v4, gone), slices.DeleteFunc(e.v6, gone)
	return eip
}

func (e *eni) take(block netip.Prefix, h held) {
	switch {
	case !block.IsSingleIP():
		e.prefixes = append(e.prefixes, block)
	case block.Addr().Is6():
		e.v6 = append(e.v6, h)
	default:
		e.v4 = append(e.v4, h)
	}
}
