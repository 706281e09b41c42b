package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/report"
)

// rest is the part at the end of a run in which nothing may happen any more.
const rest = 4 * time.Minute

// claim is one event by which a pod claims an address: it was added while the pod's agent looked, or it came with the pod and the agent
// starts.
type claim struct {
	pod, run int
	eni      string
	addr     netip.Addr
	at       time.Duration
	// came tells the second kind.
	came bool
	// removed is when the address left the interface; next is when the pod claimed it anew. Both are far away if that did not happen.
	removed, next time.Duration
}

const far = 1000 * time.Hour

func (k claim) String() string {
	return fmt.Sprintf("claim of pod %d (agent %d, %s) at %.3f", k.pod, k.run, k.eni, k.at.Seconds())
}

// standing tells whether the claim's address is still on the interface, and was not claimed anew.
func (k claim) standing() bool { return k.removed == far && k.next == far }

// podOrigin tells whether an agent counts the address as having come with the pod.
func (p *Pod) podOrigin(addr netip.Addr, h *Handle) bool {
	if slices.Contains(p.Came, addr) {
		return true
	}
	return h.run == 0 && !p.Restarted && p.has(addr, h.started)
}

// claims gives all claims of an address in order of time.
func (r *Record) claims(addr netip.Addr) []claim {
	var all []claim
	for _, p := range r.pods {
		var mine []claim
		for _, h := range p.agents {
			if p.has(addr, h.started) && p.podOrigin(addr, h) {
				mine = append(mine, claim{pod: p.index, run: h.run, eni: p.ENI, addr: addr, at: h.started, came: true})
			}
			for _, c := range p.changes {
				if c.Addr == addr && c.On && c.At > h.started && h.live(c.At) {
					mine = append(mine, claim{pod: p.index, run: h.run, eni: p.ENI, addr: addr, at: c.At})
				}
			}
		}
		slices.SortFunc(mine, func(a, b claim) int { return int(a.at - b.at) })
		for i := range mine {
			mine[i].removed, mine[i].next = far, far
			if i+1 < len(mine) {
				mine[i].next = mine[i+1].at
			}
			for _, c := range p.changes {
				if c.Addr == addr && !c.On && c.At > mine[i].at && c.At < mine[i].removed {
					mine[i].removed = c.At
				}
			}
		}
		all = append(all, mine...)
	}
	slices.SortStableFunc(all, func(a, b claim) int { return int(a.at - b.at) })
	return all
}

// callsOf gives the calls of an agent about an address in a span of time, by when they were sent.
func (r *Record) callsOf(pod, run int, addr netip.Addr, from, to time.Duration) []*Call {
	var cs []*Call
	for _, c := range r.calls {
		if c.Pod == pod && c.Run == run && c.Sent >= from && c.Sent < to && slices.Contains(c.Addrs, addr) {
			cs = append(cs, c)
		}
	}
	return cs
}

func (k claim) assigns(r *Record) []*Call {
	return slices.DeleteFunc(r.callsOf(k.pod, k.run, k.addr, k.at, k.next), func(c *Call) bool {
		return c.Op != assign4 && c.Op != assign6 || c.ENI != k.eni
	})
}

// effective tells whether the claim put the address on its ENI, or found it there.
func (k claim) effective(r *Record) bool {
	return slices.ContainsFunc(r.callsOf(k.pod, k.run, k.addr, k.at, k.next), func(c *Call) bool {
		return c.landed() && (c.mutates() && c.ENI == k.eni && !r.givesBack(c) || c.Held[k.addr] == k.eni)
	})
}

// decisive tells whether the claim had to prevail by itself: its agent lived to press it, or had pressed it.
func (k claim) decisive(r *Record) bool {
	h := r.pods[k.pod].agents[k.run]
	return k.effective(r) || h.stopped < 0 && h.died < 0
}

// overrules tells whether the claim k may prevail over a later one, because its agent could not know of that. One of k's calls took effect
// after the later addition, and one of these holds:
//   - When the call was sent, the last search by k's agent was answered as of a time when no call of the later claim had taken effect: what
//     is not in EC2's table yet cannot be read.
//   - The agent's first search for k (in IPv6: the first that showed a holder) was answered as of a time after the later addition, because
//     k's calls, or its searches, had failed until then: whom it sees first is to it the holder from before its own claim.
//   - A search for k had shown the later claim's ENI before: EC2 tells who holds an address, not since when, so the return of the holder
//     from before looks like its stay.
//   - In IPv6, which takes several calls, the later addition came in the middle of an attempt for k; or a search had shown k's own ENI, which
//     the agent does not believe before EC2 has accepted the assignment, because searches lag.
func (k claim) overrules(r *Record, later claim) bool {
	first, before := far, map[string]bool{}
	var read []*Call
	for _, c := range r.callsOf(k.pod, k.run, k.addr, k.at, k.next) {
		// What an attempt for an older claim reads is not used for this one.
		if attempt := r.attemptOf(c); c.Op != holders || !c.landed() || c.Got != nil || attempt[len(attempt)-1] < k.at || c.Sent < k.at+r.KernelDelay {
			continue
		}
		read = append(read, c)
		if k.addr.Is4() || c.Held[k.addr] != "" {
			first = min(first, c.View)
			before[c.Held[k.addr]] = before[c.Held[k.addr]] || c.View < later.at
		}
	}
	if k.addr.Is6() && slices.ContainsFunc(read, func(c *Call) bool {
		begun := r.attemptOf(c)
		return begun[len(begun)-1] <= later.at && later.at <= r.attemptEnd(c) || c.Held[k.addr] == k.eni && c.View < later.at
	}) {
		return slices.ContainsFunc(k.assigns(r), func(m *Call) bool { return m.landed() && m.Effected > later.at })
	}
	shown := far // when the later claim could be seen first
	for _, m := range later.assigns(r) {
		if m.landed() {
			shown = min(shown, m.Effected)
		}
	}
	for _, m := range k.assigns(r) {
		if !m.landed() || m.Effected <= later.at {
			continue
		}
		known := k.at
		for _, c := range read {
			if c.Answered <= m.Sent {
				known = max(known, c.View)
			}
		}
		if known < shown || first > later.at || before[later.eni] {
			return true
		}
	}
	return false
}

// cleanly tells whether a claim whose address has left was settled before that: all its calls were answered, and none was without a usable
// answer after which no good one came.
func (k claim) cleanly(r *Record) bool {
	sure := true
	for _, c := range r.callsOf(k.pod, k.run, k.addr, k.at, min(k.next, k.removed)) {
		switch {
		case c.Op == holders:
			sure = sure || c.Got == nil && c.Answered <= k.removed && c.Held[k.addr] == k.eni
		case c.Answered > k.removed || c.Answered < 0:
			return false
		case c.Got == nil:
			sure = !r.Mute || c.Op != assign4
		case !apply.ClassOf(c.Got).Certain():
			sure = false
		}
	}
	return sure
}

// abandoned tells whether the claim's agent ended before it could take back what an unanswered call did: it crashed, or was told to stop,
// and then tries that once.
func (k claim) abandoned(r *Record) bool {
	h := r.pods[k.pod].agents[k.run]
	soon := k.removed + 10*time.Second
	return h.died >= 0 && h.died < soon || h.stopped >= 0 && h.stopped < soon
}

// misled tells whether a search for the claim was answered with what was before the claim.
func (k claim) misled(r *Record) bool {
	return slices.ContainsFunc(r.callsOf(k.pod, k.run, k.addr, k.at, k.next), func(c *Call) bool {
		return c.Op == holders && c.landed() && c.Got == nil && c.View < k.at
	})
}

// Verdict is how the matter of one address ended.
type Verdict string

// Verdicts.
const (
	// Won: the last claim that stands holds the address.
	Won Verdict = "won"
	// Concurrent: an earlier one holds it that could not know of the last.
	Concurrent Verdict = "concurrent"
	// Orphaned: a later claim, or one that could not know of the last, was settled and then withdrawn, by removal or the end of its agent.
	// Nobody may give such an address back, and nobody may take it (rules 2 and 4), so it stays there.
	Orphaned Verdict = "orphaned"
	// Misled: searches lag behind assignments in this run, and an agent that had to search was answered with what was before its own claim.
	Misled Verdict = "misled"
	// PutBack: a claim that overruled others left the interface while a call of it was unanswered, and what it had taken off another ENI
	// was put back there (IPv6).
	PutBack Verdict = "put back"
	// Sibling: a pod that shares the ENI took the address off it, because a call of its own claim had been unanswered; agents of two pods
	// on one ENI do not know of each other.
	Sibling Verdict = "sibling"
	// Unclaimed: nobody who has it ever claimed it, and it is where it was, or where it was taken up.
	Unclaimed Verdict = "unclaimed"
	// TakenUp: nobody held it meanwhile, because it was given back or, in IPv6, in the middle of a move, and one of those who have it took
	// it up without a claim.
	TakenUp Verdict = "taken up"
	// Absent: no pod has it.
	Absent Verdict = "absent"
	// Wrong: none of the above.
	Wrong Verdict = "wrong"
)

// judge decides whether the right ENI holds the address at the end.
func (r *Record) judge(addr netip.Addr) (Verdict, string) {
	have := map[string]bool{} // ENIs of pods that have it and whose agent works
	for _, p := range r.pods {
		if p.has(addr, r.End) && p.agent() != nil {
			have[p.ENI] = true
		}
	}
	holder := r.holder(addr, r.End)
	if len(have) == 0 {
		return Absent, ""
	}
	if holder == "" {
		return Wrong, fmt.Sprintf("%s is on no ENI, though on the interfaces of pods on %v", addr, keys(have))
	}
	claims := r.claims(addr)
	last := -1
	for i, k := range claims {
		if k.standing() && r.pods[k.pod].agent() != nil && k.decisive(r) {
			last = i
		}
	}
	if last < 0 {
		return r.judgeUnclaimed(addr, holder, have, claims)
	}
	k := claims[last]
	if holder == k.eni {
		return Won, ""
	}
	unaware := r.overruling(claims, last)
	for i, other := range claims[:last] {
		if other.eni == holder && have[holder] && unaware[i] {
			return Concurrent, ""
		}
	}
	for i, other := range claims {
		if other.eni == holder && other.effective(r) && (i > last || unaware[i]) && (other.removed == far || other.cleanly(r) || other.abandoned(r)) {
			return Orphaned, ""
		}
	}
	if have[holder] && r.wasGivenBack(addr, k.at) || r.foundFree(addr) {
		return TakenUp, ""
	}
	if hs := r.holds[addr]; slices.ContainsFunc(r.calls, func(c *Call) bool {
		return c.Op == assign6 && c.ENI != r.pods[c.Pod].ENI && c.landed() && c.Effected == hs[len(hs)-1].At
	}) {
		return PutBack, ""
	}
	if slices.ContainsFunc(claims, func(k claim) bool { return k.misled(r) }) {
		return Misled, ""
	}
	if slices.ContainsFunc(r.calls, func(c *Call) bool {
		return r.givesBack(c) && c.ENI == k.eni && c.landed() && c.Effected > k.at && c.Pod != k.pod
	}) {
		return Sibling, ""
	}
	why := ""
	for _, other := range claims {
		if other.eni == holder && other.overrules(r, k) {
			why = "; it was overruled by a " + other.String() + ", which no longer stands"
		}
	}
	return Wrong, fmt.Sprintf("%s is on %s, but the last to claim it was the %s%s", addr, holder, k, why)
}

// overruling gives which of the claims may prevail over the last one, or over one that may.
func (r *Record) overruling(claims []claim, last int) map[int]bool {
	set := map[int]bool{last: true}
	for grown := true; grown; {
		grown = false
		for i, k := range claims {
			for j := range set {
				// It prevails over a later one that it does not know of, and over an earlier one that prevailed so.
				if !set[i] && (i < j && k.overrules(r, claims[j]) || i > j && j < last && k.effective(r)) {
					set[i], grown = true, true
				}
			}
		}
	}
	delete(set, last)
	return set
}

// judgeUnclaimed decides where an address may be that nobody who has it claims.
func (r *Record) judgeUnclaimed(addr netip.Addr, holder string, have map[string]bool, claims []claim) (Verdict, string) {
	if holder == r.holder(addr, 0) {
		return Unclaimed, ""
	}
	for _, k := range claims {
		if k.eni == holder && k.effective(r) && (have[holder] || k.removed == far || k.cleanly(r) || k.abandoned(r)) {
			return Orphaned, ""
		}
	}
	if n := len(r.holds[addr]); n == 1 || n > 1 && r.holds[addr][n-2].ENI == "" || have[holder] && len(have) == 1 {
		return Orphaned, "" // taken up when nobody held it, by one who has lost it since
	}
	if have[holder] {
		for _, h := range r.holds[addr] {
			if h.ENI == "" {
				return TakenUp, ""
			}
		}
		if r.holder(addr, 0) == "" {
			return TakenUp, ""
		}
	}
	if slices.ContainsFunc(claims, func(k claim) bool { return k.misled(r) }) {
		return Misled, ""
	}
	return Wrong, fmt.Sprintf("%s is on %s, but nobody who has it claimed it there", addr, holder)
}

// foundFree tells whether the holder took up the address without a claim when nobody held it. In IPv6 nobody does in the middle of a move.
func (r *Record) foundFree(addr netip.Addr) bool {
	hs := r.holds[addr]
	if n := len(hs); n == 0 || n > 1 && hs[n-2].ENI != "" {
		return false
	}
	last := hs[len(hs)-1]
	i := slices.IndexFunc(r.calls, func(c *Call) bool {
		return (c.Op == assign4 || c.Op == assign6) && c.Effected == last.At && slices.Contains(c.Addrs, addr)
	})
	if i < 0 {
		return false
	}
	c := r.calls[i]
	own := r.pods[c.Pod].agents[c.Run].puts
	return !r.claimed(c, addr) || slices.ContainsFunc(own, func(p Change) bool { return p.Addr == addr && p.At <= c.Sent && c.Sent < p.At+time.Minute })
}

// claimed tells whether the call's agent had seen its pod claim the address.
func (r *Record) claimed(c *Call, addr netip.Addr) bool {
	return slices.ContainsFunc(r.claims(addr), func(k claim) bool { return k.pod == c.Pod && k.run == c.Run && k.at <= c.Sent })
}

// wasGivenBack tells whether an agent took the address off its own ENI after a time.
func (r *Record) wasGivenBack(addr netip.Addr, after time.Duration) bool {
	return slices.ContainsFunc(r.calls, func(c *Call) bool {
		return r.givesBack(c) && c.landed() && c.Effected > after && slices.Contains(c.Addrs, addr)
	})
}

func keys(m map[string]bool) []string {
	var ks []string
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

// Check gives everything that is wrong with a run, and how each address ended.
func (r *Record) Check() (wrong []string, ended map[Verdict]int) {
	wrong = slices.Clone(r.Failed)
	ended = map[Verdict]int{}
	for _, addr := range r.addrs() {
		v, why := r.judge(addr)
		ended[v]++
		if v == Wrong {
			wrong = append(wrong, "rule 6: "+why)
		}
		if hs := r.holds[addr]; len(hs) > 0 && hs[len(hs)-1].At > r.End-rest {
			wrong = append(wrong, fmt.Sprintf("rule 6: %s still moved at %.3f", addr, hs[len(hs)-1].At.Seconds()))
		}
	}
	for _, c := range r.calls {
		// A pod that came with the address does not give it up, but asks from time to time.
		if c.Sent > r.End-rest && (c.landed() && c.mutates() || !r.pods[c.Pod].podOrigin(c.Addrs[0], r.pods[c.Pod].agents[c.Run])) {
			wrong = append(wrong, fmt.Sprintf("rule 7: a call at rest: pod %d %s at %.3f", c.Pod, c, c.Sent.Seconds()))
			break
		}
	}
	for _, c := range r.calls {
		for _, a := range c.Addrs {
			if why := r.checkCall(c, a); why != "" {
				wrong = append(wrong, fmt.Sprintf("%s: pod %d %s at %.3f", why, c.Pod, c, c.Sent.Seconds()))
			}
		}
	}
	return append(wrong, r.checkStatus()...), ended
}

// checkCall judges one call for one of its addresses.
func (r *Record) checkCall(c *Call, addr netip.Addr) string {
	p := r.pods[c.Pod]
	h := p.agents[c.Run]
	switch c.Op {
	case unassign4, unassign6:
		if c.ENI == p.ENI {
			return r.checkGivingBack(c, addr, p, h)
		}
		return r.checkTaking(c, addr, p)
	case assign4, assign6:
		if c.ENI != p.ENI {
			if len(r.tookOff(c, addr)) == 0 {
				return "rule 6: gives an address to an ENI it was not taken off"
			}
			return ""
		}
		if before := c.Before[addr]; c.landed() && before != "" && before != p.ENI {
			if r.blind(c, addr) {
				return "rule 6: an attempt after a failed one takes an address without reading who holds it"
			}
			return r.checkTaking(c, addr, p)
		}
	}
	return ""
}

// blind tells whether the call belongs to an attempt for a floating address before which another one had failed, and no search was answered
// in between.
func (r *Record) blind(c *Call, addr netip.Addr) bool {
	claims := slices.DeleteFunc(r.claims(addr), func(k claim) bool { return k.pod != c.Pod || k.run != c.Run || k.at > c.Sent })
	begun := r.attemptOf(c)
	if len(claims) == 0 || claims[len(claims)-1].came {
		return false
	}
	failed := false
	for _, o := range r.callsOf(c.Pod, c.Run, addr, claims[len(claims)-1].at+r.KernelDelay, c.Sent) {
		switch {
		case o.Op == holders && o.Got == nil:
			failed = false
		case o.Op == assign4 && o.Got != nil && o.Answered < begun[len(begun)-1]:
			failed = true
		}
	}
	return failed
}

func (r *Record) tookOff(c *Call, addr netip.Addr) []*Call {
	return slices.DeleteFunc(r.callsOf(c.Pod, c.Run, addr, 0, c.Sent), func(u *Call) bool {
		return u.Op != unassign6 || u.ENI != c.ENI
	})
}

// checkGivingBack judges a call that takes an address off the pod's own ENI.
func (r *Record) checkGivingBack(c *Call, addr netip.Addr, p *Pod, h *Handle) string {
	since := c.Sent - r.KernelDelay - time.Millisecond // what the agent has seen may be as old
	if h.stopped >= 0 && c.Sent >= h.stopped {
		since = h.stopped // it looks once, and a release is several calls
	}
	on, left := p.had(addr, since, c.Sent), !p.has(addr, since)
	for _, ch := range p.changes {
		left = left || ch.Addr == addr && !ch.On && ch.At > since && ch.At <= c.Sent
	}
	switch {
	case left && r.doubtful(c, addr, p):
		return ""
	case !on:
		return "rule 2: removal from the interface alone released it"
	}
	switch {
	case h.stopped < 0 || c.Sent < h.stopped:
		return "rule 2: taken off the ENI while it is on the interface"
	case !p.podOrigin(addr, h):
		return "rule 2: a floating address was released"
	case p.Keep:
		return "rule 2: released although that is switched off"
	case p.isUsed(addr, h.stopped) && p.isUsed(addr, c.Sent):
		return "rule 2: released while in use"
	}
	if !slices.ContainsFunc(r.callsOf(c.Pod, c.Run, addr, 0, c.Sent), func(a *Call) bool { return a.Got == nil && (a.ENI == p.ENI || a.Held[addr] == p.ENI) }) {
		return "rule 2: released what this agent did not assign"
	}
	return ""
}

func (p *Pod) isUsed(addr netip.Addr, at time.Duration) bool {
	used := false
	for _, u := range p.uses {
		if u.Addr == addr && u.At <= at {
			used = u.On
		}
	}
	return used
}

// doubtful tells whether there was a doubt about the address when it left the interface.
func (r *Record) doubtful(c *Call, addr netip.Addr, p *Pod) bool {
	return slices.ContainsFunc(p.changes, func(ch Change) bool {
		return ch.Addr == addr && !ch.On && ch.At <= c.Sent && r.inDoubt(c, addr, ch.At)
	})
}

// inDoubt tells whether at a time an attempt for the address was under way, or a call for it had had no usable answer and none after it had.
func (r *Record) inDoubt(c *Call, addr netip.Addr, left time.Duration) bool {
	unsure := false
	for _, a := range r.callsOf(c.Pod, c.Run, addr, 0, c.Sent) {
		switch {
		case a.Op == holders:
			unsure = unsure || slices.Min(r.attemptOf(a)) < left+r.KernelDelay && r.attemptEnd(a) > left-time.Millisecond
		case a.ENI != r.pods[c.Pod].ENI || r.givesBack(a):
			unsure = unsure || a.Op == unassign6 && !r.givesBack(a) // it may have been taken off another ENI and come to none
		case r.attemptEnd(a) > left-time.Millisecond:
			unsure = true
		case a.Got == nil:
			unsure = r.Mute && a.Op == assign4
		case !apply.ClassOf(a.Got).Certain():
			unsure = true
		}
	}
	return unsure
}

// checkTaking judges a call that takes an address from another ENI: the pod must have the address when the attempt begins, and this agent
// must have seen it claimed. An agent that was told to stop finishes an IPv6 move, whatever happens to the interface then.
func (r *Record) checkTaking(c *Call, addr netip.Addr, p *Pod) string {
	there := false
	for _, began := range r.attemptOf(c) {
		there = there || p.had(addr, began-r.KernelDelay-time.Millisecond, began)
	}
	h := p.agents[c.Run]
	if finishing := h.stopped >= 0 && c.Sent > h.stopped && addr.Is6() && len(r.callsOf(c.Pod, c.Run, addr, 0, c.Sent)) > 0; !there && !finishing {
		return "rule 4: takes an address that is not on the pod's interface"
	}
	if !r.claimed(c, addr) {
		return "rule 4: takes an address that it found and nobody claimed"
	}
	return ""
}

// attemptOf gives when the calls were sent that may belong to one attempt with c, from c itself back to the first: they follow each other
// without a pause. An attempt is for several addresses, so the calls for one may have to wait for those for another.
func (r *Record) attemptOf(c *Call) []time.Duration {
	began := []time.Duration{c.Sent}
	for i := len(r.calls) - 1; i >= 0; i-- {
		o, next := r.calls[i], began[len(began)-1]
		if o.Pod == c.Pod && o.Run == c.Run && o.Sent < next && !r.givesBack(o) && o.Answered >= 0 && o.Answered <= next && next-o.Answered < 10*time.Microsecond {
			began = append(began, o.Sent)
		}
	}
	return began
}

// givesBack tells whether the call takes addresses off the pod's own ENI.
func (r *Record) givesBack(c *Call) bool {
	return (c.Op == unassign4 || c.Op == unassign6) && c.ENI == r.pods[c.Pod].ENI
}

// attemptEnd gives when the attempt ended that a call is part of: the calls for other addresses of the same attempt follow it without a
// pause.
func (r *Record) attemptEnd(c *Call) time.Duration {
	end := c.Answered
	for again := end >= 0; again; {
		again = false
		for _, o := range r.calls {
			if o.Pod == c.Pod && o.Run == c.Run && o.Sent >= end && o.Sent-end < 10*time.Microsecond && o.Answered > end {
				end, again = o.Answered, true
			}
		}
	}
	return end
}

// checkStatus compares what agents say at the end with EC2's table.
func (r *Record) checkStatus() (wrong []string) {
	for pod, s := range r.Status {
		p := r.pods[pod]
		said := map[netip.Addr]report.AddressStatus{}
		for _, a := range s.Addresses {
			said[netip.MustParseAddr(a.Address)] = a
		}
		for _, addr := range r.addrs() {
			a, told := said[addr]
			ours := r.holder(addr, r.End) == p.ENI
			switch has := p.has(addr, r.End); {
			case has != told:
				wrong = append(wrong, fmt.Sprintf("status: %s of %s is on the interface: %v, told: %v", addr, p.Name, has, told))
			case has && ours != (a.State == report.StateAssigned):
				wrong = append(wrong, fmt.Sprintf("status: %s of %s is %s, but the holder is %s", addr, p.Name, a.State, r.holder(addr, r.End)))
			}
		}
	}
	return wrong
}
