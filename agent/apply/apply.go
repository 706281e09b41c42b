// Package apply puts addresses on ENIs through the EC2 API, IPv4 and IPv6, and says for each address what came of it.
//
// [Applier.Attempt] makes one attempt for one ENI: as few calls as possible, no waiting, no retry of what EC2 did not settle.
// Waiting and trying again is the caller's, so that a mode can choose what it waits for.
package apply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"
)

// EC2 is what an [Applier] needs of EC2. Failures are [*OpError]. [*Client] is the real one.
type EC2 interface {
	AssignIPv4(ctx context.Context, eni string, addrs []netip.Addr, reassign bool) ([]netip.Addr, error)
	AssignIPv6(ctx context.Context, eni string, addrs []netip.Addr) error
	UnassignIPv4(ctx context.Context, eni string, addrs []netip.Addr) error
	UnassignIPv6(ctx context.Context, eni string, addrs []netip.Addr) error
	Holders(ctx context.Context, subnet string, addrs []netip.Addr) (map[netip.Addr]Holder, error)
	Unmanaged(ctx context.Context, eni string) (bool, error)
	IPv6Slots(ctx context.Context, eni string) (int, error)
}

// Claim is one address that is to be on one ENI. A claim is carried from attempt to attempt until it is settled.
type Claim struct {
	// Addr is the address.
	Addr netip.Addr
	// ENI is the network interface that is to hold it, Subnet that ENI's subnet.
	ENI, Subnet string
	// CheckHolder demands that the present holder of the address is known not to be the VPC CNI's before anything is assigned or
	// moved, CheckENI the same of the ENI itself.
	CheckHolder, CheckENI bool
	// PrimaryUnknown says why both are demanded where the node's primary ENI is not known; it is for messages only.
	PrimaryUnknown bool
	// Floating marks an address that another pod may claim at any time (a virtual address): after a first attempt that settled nothing,
	// whatever the reason, its holder is read before each further one.
	Floating bool
	// TakeNothing demands that the address is put on the ENI only if no other holds it. That is for addresses that are found, not
	// claimed: after a restart, a resync or drift.
	TakeNothing bool
	// Held tells that the ENI held the address not long before this claim. Searches lag behind assignments, so that one may still show
	// it there although another ENI has it by now.
	Held bool

	// tried is set once an attempt did not settle the claim.
	tried bool
	// unsure is set once a call for the address went without a usable answer: what it did must be read before it is repeated,
	// or a newer claim by somebody else would be undone.
	unsure bool
	// unread is set once the holder of the address, which its IPAM vouches for, may not be read: calls for it are then made without.
	unread bool
	// before is the ENI that held the address when it was first read, "" when none did or nothing was read yet.
	before string
	// read is set once before is known.
	read bool
	// shown counts refusals of an address that searches showed on the ENI all the same.
	shown int
	// alone counts refusals of the address alone while nobody was seen to hold it; refusal is the last of them.
	alone   int
	refusal error
	// full is set once the ENI had no room for the address.
	full bool
	// fullSince is when an address was last given back for want of room, fullTimes how often it was.
	fullSince time.Time
	fullTimes int
	// takenFrom is the ENI that the address was taken off, or may have been, without having come to ours yet.
	takenFrom string
	// fullAt is how many IPv6 slots of the ENI were seen in use, at most, since it had no room for an address that was to be moved to it.
	fullAt int
}

// Owed tells whether the address was taken off another ENI and may be on none now: an agent may not end before it has tried to put
// that right.
func (c Claim) Owed() bool { return c.takenFrom != "" }

// Unsure tells whether an unanswered call may have put the address on the ENI.
func (c Claim) Unsure() bool { return c.unsure }

// Renewed is the claim of an address that was added anew while an older claim of it was not settled. What the older one took off
// another ENI is still to be put somewhere.
func (c Claim) Renewed(old Claim) Claim {
	c.takenFrom = old.takenFrom
	return c
}

// Following is the claim of an address that this agent itself put on another ENI: it may be taken from there, and from nowhere else.
func (c Claim) Following(eni string) Claim {
	c.tried, c.read, c.before = true, true, eni
	return c
}

// Seen is a claim that could not be tried at once, and whose address had this holder ("" for none) when it was made: who holds it later
// is newer.
func (c Claim) Seen(holder string) Claim {
	if c.tried = true; holder != "" || c.Addr.Is4() {
		c.read, c.before = true, holder
	}
	return c
}

// Verdict is what came of a claim in one attempt.
type Verdict int

// The verdicts of an [Outcome].
const (
	// Done: EC2's own answer says that the address is on the ENI.
	Done Verdict = iota
	// Again: not settled; Err says why, and its class how long to wait.
	Again
	// Rejected: the address cannot be on the ENI; Err says why and what to do.
	Rejected
	// Forbidden: the credentials do not permit it.
	Forbidden
	// Yielded: somebody else claimed the address after us and keeps it.
	Yielded
)

// Outcome is the verdict on one claim.
type Outcome struct {
	Claim   Claim
	Verdict Verdict
	// Err is nil for Done.
	Err error
}

// aloneLimit is how often EC2 may refuse an IPv6 address that nobody seems to hold before that is believed: searches lag behind
// assignments, so the true holder may just not be visible yet. With the pauses of a contested address it takes about ten seconds.
const aloneLimit = 9

// shownLimit is how often EC2 may refuse an address that searches show on the ENI all the same before the searches are believed. In that
// time, a few seconds, they do not lag.
const shownLimit = 5

// An address that was given back for want of room stays where it is for fullFirst, and for twice as long after each further time, up to
// fullMost, unless a slot is seen to become free before. That may go unseen: slots are counted only after EC2's refusal, and one that
// became free in between is not missed in any later count. Each try in vain interrupts whoever has the address.
const (
	fullFirst = 10 * time.Second
	fullMost  = 5 * time.Minute
)

// moveRounds bounds how often one attempt takes IPv6 addresses off other ENIs: more than once means that somebody else is
// claiming them at the same time, and that is settled with pauses, not at full speed.
const moveRounds = 2

// Applier makes attempts. It keeps nothing between them.
type Applier struct {
	EC2 EC2
	Log *slog.Logger
	// AllowPrimaryENI permits to take addresses off ENIs with device index 0, of whatever node.
	AllowPrimaryENI bool
	// Newer, when not nil, tells that a newer claim waits for the same ENI: a refused batch is then taken apart later.
	Newer func() bool
}

// ErrPostponed is why a claim was not pressed on: a newer one goes first.
var ErrPostponed = errors.New("a newer claim goes first")

// Attempt tries once to put the claims on their common ENI. Every claim has exactly one outcome, in no particular order.
func (a *Applier) Attempt(ctx context.Context, eni, subnet string, claims []Claim) []Outcome {
	t := &attempt{Applier: a, eni: eni, subnet: subnet}
	for _, family := range [][]Claim{only(claims, netip.Addr.Is4), only(claims, netip.Addr.Is6)} {
		t.full = nil
		if family = t.vet(ctx, family); len(family) == 0 {
			continue
		}
		if family[0].Addr.Is4() {
			t.claimIPv4(ctx, family)
		} else {
			t.assignIPv6(ctx, family, 0, false)
		}
	}
	return t.outcomes
}

// attempt collects the outcomes of one attempt on one ENI.
type attempt struct {
	*Applier
	eni, subnet string
	outcomes    []Outcome
	// full is EC2's word, in this attempt, that the ENI has no room for another address of the family.
	full error
}

func (t *attempt) settle(v Verdict, err error, claims ...Claim) {
	for _, c := range claims {
		c.tried = c.tried || v != Done
		if v == Done {
			c.unsure, c.takenFrom = false, "" // what earlier calls did is of no matter any more
		}
		t.outcomes = append(t.outcomes, Outcome{Claim: c, Verdict: v, Err: err})
	}
}

// fail settles claims whose call failed with something that is not about one of the addresses.
func (t *attempt) fail(err error, claims ...Claim) {
	class := ClassOf(err)
	if class == Denied {
		t.settle(Forbidden, err, claims...)
		return
	}
	for _, c := range claims {
		c.unsure = c.unsure || !class.Certain()
		t.settle(Again, err, c)
	}
}

// failSearch settles claims for which a search failed: that changed nothing.
func (t *attempt) failSearch(err error, claims ...Claim) {
	if ClassOf(err) == Denied {
		t.settle(Forbidden, err, claims...)
		return
	}
	t.settle(Again, err, claims...)
}

// vet reads who holds what where that must be known before a call: in subnets the VPC CNI draws from, and after a call whose
// effect is unknown. It gives the claims that still need a call.
func (t *attempt) vet(ctx context.Context, claims []Claim) []Claim {
	if slices.ContainsFunc(claims, func(c Claim) bool { return c.CheckENI }) {
		unmanaged, err := t.EC2.Unmanaged(ctx, t.eni)
		if err != nil {
			t.fail(err, claims...)
			return nil
		}
		if !unmanaged {
			for _, c := range claims {
				t.settle(Rejected, fmt.Errorf("assign %s to %s: the ENI is not tagged %s=true and lies in a subnet the VPC CNI %s, "+
					"so the VPC CNI manages it and would give the address away: tag the ENI (when it is created)", c.Addr, t.eni, noManageTag, c.draws()), c)
			}
			return nil
		}
	}
	ask, free := partition(claims, func(c Claim) bool {
		if c.unread {
			return false
		}
		return c.CheckHolder || c.unsure || c.alone > 0 || c.Floating && c.tried
	})
	if len(ask) == 0 {
		return free
	}
	held, err := t.EC2.Holders(ctx, t.subnet, addrsOf(ask))
	// The role's policies say so; other denials are of the credentials, and new ones may be allowed to.
	if op := (*OpError)(nil); errors.As(err, &op) && op.Code == unauthorized {
		var ours []Claim
		ours, ask = partition(ask, Claim.vouched)
		free = append(free, t.withoutReading(ctx, ours, err)...)
	}
	if err != nil {
		t.failSearch(err, ask...)
		return free
	}
	for _, c := range ask {
		if c.Held && held[c.Addr].ENI == t.eni {
			if c.Addr.Is4() {
				c.read, c.before = true, t.eni // whoever shows up later is newer
			}
			free = append(free, c) // to assign what is there already does no harm
			continue
		}
		known := c
		c, call := t.judge(c, held)
		if _, somewhere := held[c.Addr]; !somewhere && c.Addr.Is6() {
			// An IPv6 address is on no ENI in the midst of every move, and searches lag: that nobody held it before our claim is not known.
			c.read, c.before = known.read, known.before
		}
		switch {
		case !call:
		case c.alone > 0 && c.alone < aloneLimit-1 && c.before == "":
			// Still nobody is seen to hold it, so EC2 would say the same again. The last time it is asked all the same.
			c.read = false
			t.settleAlone(c, c.refusal)
		default:
			free = append(free, c)
		}
	}
	return free
}

// vouched tells whether the address can be assigned without reading who holds it: an IPv4 address that came with the pod, outside the
// subnets that the VPC CNI draws from. Its IPAM's word is what its first call went by, whoever held it; so may a further one, when an
// earlier one's outcome is not known.
func (c Claim) vouched() bool {
	return c.Addr.Is4() && !c.Floating && !c.TakeNothing && !c.CheckHolder && !c.CheckENI
}

// withoutReading notes, and logs once, that the holders of vouched addresses may not be read.
func (t *attempt) withoutReading(ctx context.Context, claims []Claim, denial error) []Claim {
	if len(claims) == 0 {
		return nil
	}
	for i := range claims {
		claims[i].unread = true
	}
	t.Log.WarnContext(ctx, "assigning addresses again without reading what an unanswered call did: they came with the pod, so their IPAM vouches for them",
		"eni", t.eni, "addresses", addrsOf(claims), "error", denial)
	return claims
}

// spare settles claims without a call when the ENI is known to be full. A claim that met a full ENI before is asked for alone, and the
// others only when it found room: a full ENI must not cost a call for each address, time and again.
func (t *attempt) spare(claims []Claim, assign func([]Claim)) (spared bool) {
	if t.full != nil {
		t.settleFull(claims)
		return true
	}
	if len(claims) == 1 || !claims[0].full {
		return false
	}
	assign(claims[:1])
	rest := slices.Clone(claims[1:])
	for i := range rest {
		rest[i].full = false
	}
	assign(rest)
	return true
}

func (t *attempt) settleFull(claims []Claim) {
	for _, c := range claims {
		c.full = true
		t.settle(Again, t.full, c)
	}
}

// draws says what is known of the VPC CNI and the subnet of a claim whose holder is checked.
func (c Claim) draws() string {
	if c.PrimaryUnknown {
		return "may draw from (the node's primary ENI, which tells its subnet, is not known: neither metadata nor EC2 names one)"
	}
	return "draws from"
}

// judge decides from the present holder whether a claim may still be pressed.
func (t *attempt) judge(c Claim, held map[netip.Addr]Holder) (Claim, bool) {
	h, ok := held[c.Addr]
	owed := c.Owed()
	if ok {
		c.takenFrom = "" // it is somewhere
	}
	switch {
	case ok && h.ENI == t.eni:
		t.settleShown(c)
		return c, false
	case ok && c.TakeNothing && !owed:
		t.settle(Yielded, heldError(t.eni, c.Addr, h.ENI, "holds it, and it is not taken from there: it was found here, not added anew"), c)
		return c, false
	case ok && h.Primary:
		t.settle(Rejected, primaryError(c.Addr, t.eni, h), c)
		return c, false
	case ok && h.DeviceIndex == 0 && !t.AllowPrimaryENI:
		t.settle(Rejected, fmt.Errorf("assign %s to %s: %s holds it, the primary ENI of a node, which the VPC CNI manages: keep the range of the "+
			"NetworkAttachmentDefinition apart from the nodes' own addresses, or allow primary ENIs in the agent's settings", c.Addr, t.eni, h.ENI), c)
		return c, false
	case ok && c.CheckHolder && !h.Unmanaged:
		t.settle(Rejected, fmt.Errorf("assign %s to %s: %s holds it and is not tagged %s=true in a subnet the VPC CNI %s, "+
			"so the address belongs to the VPC CNI's pool: keep the range of the NetworkAttachmentDefinition out of that subnet, "+
			"or reserve it (explicit subnet CIDR reservation)", c.Addr, t.eni, h.ENI, noManageTag, c.draws()), c)
		return c, false
	case ok && c.read && h.ENI != c.before:
		t.settle(Yielded, heldError(t.eni, c.Addr, h.ENI, "claimed the address meanwhile and keeps it"), c)
		return c, false
	}
	c.read, c.before = true, h.ENI
	return c, true
}

// HeldError is why a claim yields: another ENI holds the address.
type HeldError struct {
	// Holder is that ENI.
	Holder string
	why    string
}

// Error implements error.
func (e *HeldError) Error() string { return e.Holder + " " + e.why }

func heldError(eni string, addr netip.Addr, holder, why string) error {
	return &OpError{Op: "claim", ENI: eni, Addrs: []netip.Addr{addr}, Class: Contested, Err: &HeldError{Holder: holder, why: why}}
}

func primaryError(addr netip.Addr, eni string, h Holder) error {
	return fmt.Errorf("assign %s to %s: it is a primary address of %s, which can never move: exclude it from the range of the "+
		"NetworkAttachmentDefinition, or reserve the range (explicit subnet CIDR reservation)", addr, eni, h.ENI)
}

// claimIPv4 makes one call for all addresses, and allows EC2 to move those that other ENIs hold. Only where the VPC CNI draws
// from the subnet, addresses that nobody held a moment ago are assigned without that: the VPC CNI might have taken one since.
func (t *attempt) claimIPv4(ctx context.Context, claims []Claim) {
	careful, free := partition(claims, func(c Claim) bool { return c.TakeNothing || c.CheckHolder && c.before == "" })
	if len(free) > 0 && len(careful) > 0 && t.together(ctx, claims) {
		return
	}
	if len(free) > 0 {
		t.assignIPv4(ctx, free, true)
	}
	if len(careful) > 0 {
		t.assignIPv4(ctx, careful, false)
	}
}

// together tries one call for all of a restarted agent's addresses, those that may be moved and those that may not: mostly all are where
// they belong. It tells whether that settled them.
func (t *attempt) together(ctx context.Context, claims []Claim) bool {
	if slices.ContainsFunc(claims, func(c Claim) bool { return c.CheckHolder || c.tried }) {
		return false
	}
	answered, err := t.EC2.AssignIPv4(ctx, t.eni, addrsOf(claims), false)
	switch class := ClassOf(err); {
	case err == nil:
		t.answered(ctx, claims, answered)
	case class == Refused || class == Full:
		return false
	default:
		t.fail(err, claims...)
	}
	return true
}

// answered settles claims of a call that EC2 accepted.
func (t *attempt) answered(ctx context.Context, claims []Claim, named []netip.Addr) {
	sure, unnamed := partition(claims, func(c Claim) bool { return slices.Contains(named, c.Addr) })
	t.settle(Done, nil, sure...)
	t.verify(ctx, unnamed)
}

func (t *attempt) assignIPv4(ctx context.Context, claims []Claim, reassign bool) {
	if t.spare(claims, func(some []Claim) { t.assignIPv4(ctx, some, reassign) }) {
		return
	}
	answered, err := t.EC2.AssignIPv4(ctx, t.eni, addrsOf(claims), reassign)
	switch class := ClassOf(err); {
	case err == nil:
		t.answered(ctx, claims, answered)
	case class != Refused && class != Full:
		t.fail(err, claims...)
	case len(claims) == 1 && class == Full:
		t.full = err
		t.settleFull(claims)
	case len(claims) == 1:
		t.explainIPv4(ctx, claims[0], err)
	case class == Refused && slices.ContainsFunc(claims, func(c Claim) bool { return c.TakeNothing && !c.read }):
		t.sift(ctx, claims, reassign)
	default:
		// EC2 refuses the whole batch for one address. Halving finds the bad one and lets the good ones pass.
		t.halves(claims, func(some []Claim) { t.assignIPv4(ctx, some, reassign) })
	}
}

// halves takes a refused batch apart. What is left of it is put off when a newer claim has come, but for addresses between two ENIs.
func (t *attempt) halves(claims []Claim, assign func([]Claim)) {
	half := len(claims) / 2
	for _, some := range [][]Claim{claims[:half], claims[half:]} {
		if t.Newer != nil && t.Newer() && !slices.ContainsFunc(some, Claim.Owed) {
			t.settle(Again, ErrPostponed, some...)
			continue
		}
		assign(some)
	}
}

// sift reads who holds addresses that are not to be taken from anybody, and assigns those that nobody holds.
func (t *attempt) sift(ctx context.Context, claims []Claim, reassign bool) {
	held, err := t.EC2.Holders(ctx, t.subnet, addrsOf(claims))
	if err != nil {
		t.failSearch(err, claims...)
		return
	}
	var free []Claim
	for _, c := range claims {
		if c, press := t.judge(c, held); press {
			free = append(free, c)
		}
	}
	if len(free) > 0 {
		t.assignIPv4(ctx, free, reassign)
	}
}

// verify reads the holders of addresses that a successful answer did not name.
func (t *attempt) verify(ctx context.Context, claims []Claim) {
	if len(claims) == 0 {
		return
	}
	held, err := t.EC2.Holders(ctx, t.subnet, addrsOf(claims))
	if ClassOf(err) == Denied {
		// Without permission to search there is EC2's success, which means all addresses or none. IPv4 needs one permission only.
		t.settle(Done, nil, claims...)
		return
	}
	if err != nil {
		for _, c := range claims {
			c.unsure = true // EC2 has accepted it
			t.settle(Again, err, c)
		}
		return
	}
	for _, c := range claims {
		if held[c.Addr].ENI == t.eni {
			t.settle(Done, nil, c)
			continue
		}
		c.unsure = true
		t.settle(Again, fmt.Errorf("assign %s to %s: EC2 accepted the call without naming the address, and does not show it on the ENI yet", c.Addr, t.eni), c)
	}
}

// explainIPv4 settles an address that EC2 refuses alone. What holds it says more than EC2's text.
func (t *attempt) explainIPv4(ctx context.Context, c Claim, refusal error) {
	held, err := t.EC2.Holders(ctx, t.subnet, addrsOf([]Claim{c}))
	if err != nil {
		// The refusal stands without the explanation: a client without permission to search still gets EC2's own words.
		t.Log.DebugContext(ctx, "cannot read the holder of a refused address", "address", c.Addr, "error", err)
		held = nil
	}
	switch h, ok := held[c.Addr]; {
	case ok && h.ENI == t.eni:
		t.settleShown(c)
	case ok && c.TakeNothing:
		t.judge(c, held)
	case ok && h.Primary:
		t.settle(Rejected, primaryError(c.Addr, t.eni, h), c)
	case ok && c.CheckHolder && c.before != h.ENI:
		// Somebody took it between the look and the call; the next attempt looks, and judges, again.
		c.read = false
		t.settle(Again, refusal, c)
	case !ok && (c.CheckHolder || c.TakeNothing):
		// It was assigned without leave to move it, so somebody may hold it whom the search does not show yet.
		c.read = false
		t.settleAlone(c, refusal)
	default:
		t.settle(Rejected, fmt.Errorf("EC2 refuses %s: %w", c.Addr, refusal), c)
	}
}

// assignIPv6 assigns, and on refusal reads the holders, takes the addresses off them and assigns again. Only then: EC2 has no
// reassignment for IPv6, and in the common case nobody holds the address and one call does.
//
// searched tells that the holders were read in this attempt already, and that nobody holds any of the addresses.
func (t *attempt) assignIPv6(ctx context.Context, claims []Claim, round int, searched bool) {
	if t.spare(claims, func(some []Claim) { t.assignIPv6(ctx, some, round, searched) }) {
		return
	}
	err := t.EC2.AssignIPv6(ctx, t.eni, addrsOf(claims))
	switch class := ClassOf(err); {
	case err == nil:
		// The answer names only addresses that are new on the ENI, so success itself is the word that all are there.
		t.settle(Done, nil, claims...)
	case (class == Full || class == Refused && searched) && len(claims) > 1:
		t.halves(claims, func(some []Claim) { t.assignIPv6(ctx, some, round, searched) })
	case class == Full:
		t.full = err
		t.giveBack(ctx, claims[0])
	case class == Refused && searched:
		t.settleAlone(claims[0], err)
	case class == Refused:
		t.resolveIPv6(ctx, claims, round, err)
	case class == Denied:
		owed, others := partition(claims, Claim.Owed)
		t.fail(err, others...)
		t.returnDenied(ctx, owed, err)
	default:
		t.fail(err, claims...)
	}
}

// returnDenied settles addresses that were taken off another ENI by leave, and may not be put on ours: they go back.
func (t *attempt) returnDenied(ctx context.Context, owed []Claim, denial error) {
	for _, c := range owed {
		if err := t.EC2.AssignIPv6(context.WithoutCancel(ctx), c.takenFrom, addrsOf([]Claim{c})); err != nil {
			denial = fmt.Errorf("%w; %s was taken off %s and cannot be given back: %w", denial, c.Addr, c.takenFrom, err)
		}
		c.takenFrom = ""
		t.settle(Forbidden, denial, c)
	}
}

// giveBack settles an address for which there is no room. One that was taken off another ENI goes back there, because our ENI may be
// full for long; it is not taken again before one of the slots in use now is free.
func (t *attempt) giveBack(ctx context.Context, c Claim) {
	c.full = true
	if c.Owed() {
		ctx = context.WithoutCancel(ctx)
		if err := t.EC2.AssignIPv6(ctx, c.takenFrom, addrsOf([]Claim{c})); err != nil {
			t.Log.WarnContext(ctx, "an address for which there is no room cannot be given back", "address", c.Addr, "to", c.takenFrom, "error", err)
			t.settle(Again, t.full, c)
			return
		}
		t.Log.InfoContext(ctx, "no room: given back", "address", c.Addr, "to", c.takenFrom)
		c.takenFrom, c.read, c.before = "", false, ""
		c.fullSince, c.fullTimes = time.Now(), c.fullTimes+1
		c.fullAt = math.MaxInt // not known: whatever is in use next time may be less
		if n, err := t.EC2.IPv6Slots(ctx, t.eni); err == nil {
			c.fullAt = n
		}
	}
	t.settle(Again, t.full, c)
}

// resolveIPv6 finds out why EC2 refused IPv6 addresses, and moves those that can be.
func (t *attempt) resolveIPv6(ctx context.Context, claims []Claim, round int, refusal error) {
	held, err := t.EC2.Holders(ctx, t.subnet, addrsOf(claims))
	if err != nil {
		t.failSearch(err, claims...)
		return
	}
	var unheld []Claim
	elsewhere := map[string][]Claim{}
	for _, known := range claims {
		c, press := t.judge(known, held)
		if !press {
			continue
		}
		if c.before == "" {
			// EC2 has just refused it, so somebody may hold it whom the search does not show yet: that nobody did before our claim
			// is not known, and whoever shows up later is no newer claim for that reason alone.
			c.read, c.before = known.read && known.before != "", known.before
			unheld = append(unheld, c)
		} else {
			elsewhere[c.before] = append(elsewhere[c.before], c)
		}
	}
	t.keepWithoutRoom(ctx, elsewhere)
	moved := t.free(ctx, elsewhere, round, refusal)
	ready := slices.Concat(unheld, moved)
	switch {
	case len(ready) == 0:
	case len(moved) > 0 || len(ready) < len(claims):
		// Something has changed since the refusal, so the rest may pass now, together. What was just taken off its ENI is on none:
		// an agent that is told to stop must not leave it so.
		if len(moved) > 0 {
			ctx = context.WithoutCancel(ctx)
		}
		t.assignIPv6(ctx, ready, round+1, false)
	case len(ready) > 1:
		t.halves(ready, func(some []Claim) { t.assignIPv6(ctx, some, round, true) })
	default:
		t.settleAlone(ready[0], refusal)
	}
}

// keepWithoutRoom leaves addresses where they are that were given back before for want of room, until a slot has become free.
func (t *attempt) keepWithoutRoom(ctx context.Context, elsewhere map[string][]Claim) {
	for holder, claims := range elsewhere {
		barred, free := partition(claims, func(c Claim) bool { return c.fullAt > 0 })
		if len(barred) == 0 {
			continue
		}
		inUse, err := t.EC2.IPv6Slots(ctx, t.eni)
		for _, c := range barred {
			if err == nil && inUse < c.fullAt || time.Since(c.fullSince) > min(fullMost, fullFirst<<min(c.fullTimes-1, 10)) {
				c.fullAt = 0
				free = append(free, c)
				continue
			}
			if err == nil {
				c.fullAt = inUse
			}
			t.settle(Again, &OpError{Op: "move", ENI: t.eni, Addrs: []netip.Addr{c.Addr}, Class: Full,
				Err: fmt.Errorf("the ENI has no room, so the address stays on %s", holder)}, c)
		}
		if elsewhere[holder] = free; len(free) == 0 {
			delete(elsewhere, holder)
		}
	}
}

// free takes addresses off the ENIs that hold them. It gives the claims that nobody holds any more; the others got their outcome here.
func (t *attempt) free(ctx context.Context, elsewhere map[string][]Claim, round int, refusal error) (moved []Claim) {
	for _, holder := range slices.Sorted(maps.Keys(elsewhere)) {
		claims := elsewhere[holder]
		if round >= moveRounds {
			t.settle(Again, fmt.Errorf("move to %s: others keep claiming the address: %w", t.eni, refusal), claims...)
			continue
		}
		t.Log.InfoContext(ctx, "taking IPv6 addresses off the ENI that holds them", "holder", holder, "eni", t.eni, "addresses", addrsOf(claims))
		moved = append(moved, t.unassignIPv6(ctx, holder, claims)...)
	}
	return moved
}

// unassignIPv6 takes addresses off one ENI and gives the claims for which that was done. EC2 takes nothing off an ENI that does
// not hold all of it, so a refused batch is taken apart.
//
// The call outlives the signal to stop: an unanswered one may leave the address on no ENI.
func (t *attempt) unassignIPv6(ctx context.Context, holder string, claims []Claim) (freed []Claim) {
	ctx = context.WithoutCancel(ctx)
	switch err := t.EC2.UnassignIPv6(ctx, holder, addrsOf(claims)); {
	case err == nil:
		return taken(claims, holder)
	case !ClassOf(err).Certain():
		t.fail(err, taken(claims, holder)...)
	case ClassOf(err) != Refused:
		t.fail(err, claims...)
	case len(claims) > 1:
		half := len(claims) / 2
		freed = t.unassignIPv6(ctx, holder, claims[:half])
		return append(slices.Clone(freed), t.unassignIPv6(ctx, holder, claims[half:])...)
	default:
		t.tryIPv6(ctx, claims[0], err)
	}
	return nil
}

// taken marks claims whose addresses were taken off an ENI.
func taken(claims []Claim, holder string) []Claim {
	claims = slices.Clone(claims)
	for i := range claims {
		claims[i].takenFrom = holder
	}
	return claims
}

// tryIPv6 settles an address that is not where the search showed it. The search lags, so it may be free by now (an attempt cut
// off between taking it off and assigning it leaves it so), and then it must not wait for the search, nor for other addresses.
func (t *attempt) tryIPv6(ctx context.Context, c Claim, refusal error) {
	switch err := t.EC2.AssignIPv6(ctx, t.eni, addrsOf([]Claim{c})); {
	case err == nil:
		t.settle(Done, nil, c)
	case ClassOf(err) == Refused:
		// Somebody else has it. What was read is out of date; the next attempt reads afresh.
		c.read, c.before = false, ""
		t.settle(Again, refusal, c)
	case ClassOf(err) == Full:
		t.full = err
		t.settleFull([]Claim{c})
	default:
		t.fail(err, c)
	}
}

// settleShown settles an address that EC2 refused, or was not asked for yet, and that a search shows on our own ENI.
func (t *attempt) settleShown(c Claim) {
	if c.Held {
		if c.shown++; c.shown < shownLimit {
			t.settle(Again, &OpError{Op: "wait for", ENI: t.eni, Addrs: []netip.Addr{c.Addr}, Class: Contested,
				Err: errors.New("EC2 refuses it although searches show it on the ENI: they may lag")}, c)
			return
		}
	}
	t.settle(Done, nil, c)
}

// settleAlone settles an address that EC2 refuses alone and nobody is seen to hold.
func (t *attempt) settleAlone(c Claim, refusal error) {
	c.refusal = refusal
	if c.alone++; c.alone < aloneLimit {
		t.settle(Again, &OpError{Op: "wait for", ENI: t.eni, Addrs: []netip.Addr{c.Addr}, Class: Contested,
			Err: fmt.Errorf("EC2 refuses it, and searches do not show who holds it yet: %w", refusal)}, c)
		return
	}
	t.settle(Rejected, fmt.Errorf("EC2 refuses %s, which no ENI of %s is seen to hold: %w", c.Addr, t.subnet, refusal), c)
}

func addrsOf(claims []Claim) []netip.Addr {
	addrs := make([]netip.Addr, len(claims))
	for i, c := range claims {
		addrs[i] = c.Addr
	}
	return addrs
}

func only(claims []Claim, family func(netip.Addr) bool) []Claim {
	yes, _ := partition(claims, func(c Claim) bool { return family(c.Addr) })
	return yes
}

func partition(claims []Claim, test func(Claim) bool) (yes, no []Claim) {
	for _, c := range claims {
		if test(c) {
			yes = append(yes, c)
		} else {
			no = append(no, c)
		}
	}
	return yes, no
}
