package aws

import (
	"net/netip"
	"slices"
	"strings"
)

// maxCount bounds what EC2 is asked to choose, for interfaces that no instance limits.
const maxCount = 4096

// wish is what an Assign call asks for, of either family.
type wish struct {
	v6            bool
	eni           string
	addrs         []string
	count         *int
	prefixes      []string
	prefixCount   *int
	allowReassign bool // IPv4 only
}

// outcome is what an Assign or Unassign call does and answers.
type outcome struct {
	edits    []edit
	addrs    []netip.Addr   // for the answer
	prefixes []netip.Prefix // for the answer
}

// decideAssign says what EC2 makes of an Assign call. It is all or nothing: one bad address refuses the whole call.
func decideAssign(s *state, w wish, q Quirks) (outcome, *APIError) {
	e, err := s.target(w.eni, q)
	if err != nil {
		return outcome{}, err
	}
	if err := w.check(); err != nil {
		return outcome{}, err
	}
	sub := s.subnets[e.SubnetID]
	if len(sub.blocksOf(w.v6)) == 0 {
		return outcome{}, errNoBlocks(sub, w.v6)
	}
	switch {
	case len(w.prefixes) > 0 || w.prefixCount != nil:
		return decidePrefixes(s, e, sub, w, q)
	case w.count != nil:
		return decideCount(s, e, sub, w, q)
	default:
		return decideAddrs(s, e, sub, w, q)
	}
}

// target finds the interface that a call is about.
func (s *state) target(id string, q Quirks) (*eni, *APIError) {
	if id == "" {
		return nil, missingParameter("networkInterfaceId")
	}
	if !strings.HasPrefix(id, "eni-") {
		return nil, badRequest("InvalidNetworkInterfaceId.Malformed", "Invalid id: %q (expecting \"eni-...\")", id)
	}
	e, ok := s.enis[id]
	if !ok {
		return nil, errNoENI(id)
	}
	busy := e.AttachStatus == "attaching" || e.AttachStatus == "detaching"
	if busy && q.BusyAttachmentFails {
		return nil, badRequest("IncorrectState", "The network interface '%s' is currently %s", id, e.AttachStatus)
	}
	return e, nil
}

// check refuses calls that ask in no way, or in several.
func (w wish) check() *APIError {
	ways := 0
	for _, used := range []bool{len(w.addrs) > 0, w.count != nil, len(w.prefixes) > 0, w.prefixCount != nil} {
		if used {
			ways++
		}
	}
	names := "secondaryPrivateIpAddressCount, privateIpAddresses, ipv4PrefixCount or ipv4Prefixes"
	if w.v6 {
		names = "ipv6AddressCount, ipv6Addresses, ipv6PrefixCount or ipv6Prefixes"
	}
	switch {
	case ways == 0:
		return badRequest("InvalidParameter", "One of %s must be specified", names)
	case ways > 1:
		return badRequest(codeInvalidCombination, "Only one of %s may be specified", names)
	}
	for _, n := range []*int{w.count, w.prefixCount} {
		if n != nil && *n < 1 {
			return invalidValue("Value (%d) for the count of addresses or prefixes is invalid. It must be greater than 0.", *n)
		}
		if n != nil && *n > maxCount {
			return badRequest(codeAddressLimit, "Number of private addresses will exceed limit.")
		}
	}
	return nil
}

// decideAddrs handles addresses that are named.
func decideAddrs(s *state, e *eni, sub Subnet, w wish, q Quirks) (outcome, *APIError) {
	addrs, err := parseAddrs(w.addrs, w.v6)
	if err != nil {
		return outcome{}, err
	}
	var out outcome
	var immovable, primaries []netip.Addr
	for _, a := range addrs {
		if err := fits(sub, a); err != nil {
			return outcome{}, err
		}
		h, taken := s.holder(sub.VPCID, a)
		from := ""
		switch {
		case !taken:
		case h.InPrefix:
			return outcome{}, invalidValue("The address %s is part of the prefix %s, which is assigned to a network interface", a, h.Prefix)
		case h.ENI == e.ID:
			if err := w.again(a, q); err != nil {
				return outcome{}, err
			}
			if !w.v6 && !q.IPv4AnswerNewOnly {
				out.addrs = append(out.addrs, a)
			}
			continue
		case w.v6:
			return outcome{}, errHeldV6(a, q)
		case !w.allowReassign:
			immovable = append(immovable, a)
		case h.Primary:
			primaries = append(primaries, a)
		}
		if taken {
			from = h.ENI
		}
		out.edits = append(out.edits, edit{block: single(a), from: from, to: e.ID})
		out.addrs = append(out.addrs, a)
	}
	if len(immovable) > 0 {
		return outcome{}, invalidValue("[%s] assigned, but move is not allowed.", join(immovable))
	}
	if len(primaries) > 0 {
		return outcome{}, invalidValue("[%s] assigned as the primary private IP address of another network interface; "+
			"only secondary addresses can be reassigned.", join(primaries))
	}
	return out, s.room(e, w.v6, len(out.edits), q)
}

// again judges an address that the interface already has.
func (w wish) again(a netip.Addr, q Quirks) *APIError {
	switch {
	case w.v6 && q.IPv6SameENIFails:
		return errHeldV6(a, q)
	case !w.v6 && q.IPv4SameENIFails && !w.allowReassign:
		return invalidValue("[%s] assigned, but move is not allowed.", a)
	}
	return nil
}

func errHeldV6(a netip.Addr, q Quirks) *APIError {
	code := q.IPv6HeldCode
	if code == "" {
		code = codeInvalidValue
	}
	return badRequest(code, "The address '%s' is already assigned to another network interface", a)
}

func errNoBlocks(sub Subnet, v6 bool) *APIError {
	family := "IPv4"
	if v6 {
		family = "IPv6"
	}
	return invalidValue("The subnet '%s' does not have an %s CIDR block", sub.ID, family)
}

// decideCount lets EC2 choose the addresses.
func decideCount(s *state, e *eni, sub Subnet, w wish, q Quirks) (outcome, *APIError) {
	if err := s.room(e, w.v6, *w.count, q); err != nil {
		return outcome{}, err
	}
	addrs, err := s.pick(sub, w.v6, *w.count)
	if err != nil {
		return outcome{}, err
	}
	out := outcome{addrs: addrs}
	for _, a := range addrs {
		out.edits = append(out.edits, edit{block: single(a), to: e.ID})
	}
	return out, nil
}

// decidePrefixes handles prefix delegation, named or counted.
func decidePrefixes(s *state, e *eni, sub Subnet, w wish, q Quirks) (outcome, *APIError) {
	var prefixes []netip.Prefix
	var err *APIError
	if w.prefixCount != nil {
		if err = s.room(e, w.v6, *w.prefixCount, q); err == nil {
			prefixes, err = s.pickPrefixes(sub, w.v6, *w.prefixCount)
		}
	} else if prefixes, err = parsePrefixes(w.prefixes, w.v6); err == nil {
		prefixes, err = s.checkPrefixes(e, sub, prefixes)
	}
	if err != nil {
		return outcome{}, err
	}
	out := outcome{prefixes: prefixes}
	for _, p := range prefixes {
		if !slices.Contains(e.prefixes, p) {
			out.edits = append(out.edits, edit{block: p, to: e.ID})
		}
	}
	return out, s.room(e, w.v6, len(out.edits), q)
}

// checkPrefixes refuses named prefixes that lie outside the subnet or hold something.
func (s *state) checkPrefixes(e *eni, sub Subnet, prefixes []netip.Prefix) ([]netip.Prefix, *APIError) {
	for _, p := range prefixes {
		i := slices.IndexFunc(sub.blocksOf(p.Addr().Is6()), func(b netip.Prefix) bool { return b.Overlaps(p) && b.Bits() <= p.Bits() })
		if i < 0 {
			return nil, invalidValue("The prefix %s does not fall within the subnet's address range", p)
		}
		if slices.Contains(e.prefixes, p) {
			continue
		}
		if holdsReserved(sub.blocksOf(p.Addr().Is6())[i], p) || s.occupied(sub.VPCID, p) {
			return nil, invalidValue("The prefix %s is not available", p)
		}
	}
	return prefixes, nil
}

// room refuses what exceeds the interface's slots. The primary address and each prefix take one.
func (s *state) room(e *eni, v6 bool, more int, q Quirks) *APIError {
	limit, limited := s.limit(e, v6)
	if !limited || more == 0 || e.used(v6)+more <= limit {
		return nil
	}
	code := codeAddressLimit
	if v6 && q.IPv6LimitCode != "" {
		code = q.IPv6LimitCode
	}
	return badRequest(code, "Number of private addresses will exceed limit.")
}

// fits refuses an address that is not one of the subnet's, or that EC2 keeps for itself.
func fits(sub Subnet, a netip.Addr) *APIError {
	for _, block := range sub.blocksOf(a.Is6()) {
		if !block.Contains(a) {
			continue
		}
		if reserved(block, a) {
			return invalidValue("Address %s is in subnet's reserved address range", a)
		}
		return nil
	}
	return invalidValue("Address does not fall within the subnet's address range")
}

// farewell is what an Unassign call asks for, of either family.
type farewell struct {
	v6       bool
	eni      string
	addrs    []string
	prefixes []string
}

// decideUnassign says what EC2 makes of an Unassign call; one bad address refuses the whole call.
func decideUnassign(s *state, f farewell, q Quirks) (outcome, *APIError) {
	e, err := s.target(f.eni, q)
	if err != nil {
		return outcome{}, err
	}
	if len(f.addrs)+len(f.prefixes) == 0 {
		if f.v6 {
			return outcome{}, badRequest(codeMissingParameter, "The request must contain the ipv6Addresses parameter")
		}
		return outcome{}, badRequest(codeMissingParameter, "The request must contain the privateIpAddressSet parameter")
	}
	addrs, err := parseAddrs(f.addrs, f.v6)
	if err != nil {
		return outcome{}, err
	}
	prefixes, err := parsePrefixes(f.prefixes, f.v6)
	if err != nil {
		return outcome{}, err
	}
	out := outcome{addrs: addrs, prefixes: prefixes}
	for _, a := range addrs {
		h, ok := e.find(a)
		switch {
		case !ok:
			return outcome{}, errNotHere(e.ID, a.String(), f.v6, q)
		case h.primary && f.v6:
			return outcome{}, invalidValue("The primary IPv6 address of an interface cannot be unassigned.")
		case h.primary:
			return outcome{}, invalidValue("The primary IP address of an interface cannot be unassigned.")
		}
		out.edits = append(out.edits, edit{block: single(a), from: e.ID})
	}
	for _, p := range prefixes {
		if !slices.Contains(e.prefixes, p) {
			return outcome{}, errNotHere(e.ID, p.String(), f.v6, q)
		}
		out.edits = append(out.edits, edit{block: p, from: e.ID})
	}
	return out, nil
}

func errNotHere(id, what string, v6 bool, q Quirks) *APIError {
	if !v6 {
		return invalidValue("Some of the specified addresses are not assigned to interface %s", id)
	}
	code := q.IPv6UnassignCode
	if code == "" {
		code = codeInvalidValue
	}
	return badRequest(code, "The address '%s' is not mapped to interface ID '%s'", what, id)
}

// parseAddrs reads addresses of one family; naming one twice is naming it once.
func parseAddrs(texts []string, v6 bool) ([]netip.Addr, *APIError) {
	var out []netip.Addr
	seen := map[netip.Addr]bool{}
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" || a.Is4In6() || a.Is6() != v6 {
			return nil, invalidValue("invalid value for parameter address: %s", text)
		}
		if !seen[a] {
			seen[a] = true
			out = append(out, a)
		}
	}
	return out, nil
}

// parsePrefixes reads delegated prefixes of one family.
func parsePrefixes(texts []string, v6 bool) ([]netip.Prefix, *APIError) {
	var out []netip.Prefix
	seen := map[netip.Prefix]bool{}
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Addr().Is6() != v6 || p.Bits() != delegationBits(p.Addr()) || p != p.Masked() {
			return nil, invalidValue("invalid value for parameter prefix: %s", text)
		}
		if !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	return out, nil
}

func join(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, ", ")
}
