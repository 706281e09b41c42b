package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/agent/settings"
)

const (
	// tickEvery is how often a sidecar at rest does anything: it compares metadata's lists and keeps the way to EC2 warm. tickJitter
	// spreads the ticks of a node's pods.
	tickEvery  = time.Minute
	tickJitter = 6 * time.Second
	// slowRetry is about the first pause after a fault that waiting alone does not mend, such as a missing permission (which may have been
	// a moment's fault of the credentials all the same), slowCap about the longest: many pods may have it.
	slowRetry = 2 * time.Second
	slowCap   = 5 * time.Minute
	// refusedRetry and refusedCap are the same for an address that EC2 refuses: each of many takes a call, or more, to itself.
	refusedRetry = time.Minute
	refusedCap   = time.Hour
	// stuckAfter is how long one step of the loop may take before the process ends itself.
	stuckAfter = time.Minute
	// believeGone is how long an address must have left the interface before that is believed: links flap.
	believeGone = 3 * time.Second
	// lateAfter is how old an addition may be when it is first seen. An older one is no event any more: somebody may have claimed the
	// address since.
	lateAfter = 10 * time.Second
	// peekAfter is how long a claim may wait for a call under way before it is asked who holds its address.
	peekAfter = 200 * time.Millisecond
	// together is how close two retries must be to share a call.
	together = 50 * time.Millisecond
	// tenureFor is how long after the end of an address's tenure searches may still show it: minutes have been seen.
	tenureFor = 15 * time.Minute
	// never is a time to wait that does not come.
	never = 24 * time.Hour
)

// loop is one run of a sidecar. Everything in it belongs to the one goroutine that runs it, but for the first group; the other
// goroutines post to it.
type loop struct {
	*Sidecar
	life  context.Context //nolint:containedctx // the life of the goroutines that the loop starts
	work  context.Context //nolint:containedctx // the same, but for calls under way when the agent is told to stop
	cut   context.CancelFunc
	mail  *mailbox
	inbox chan func()
	over  chan struct{} // closed when nobody reads the inbox any more
	calls sync.WaitGroup
	dog   *watchdog

	ec2       apply.EC2
	enis      map[string]plan.ENI // by MAC
	asked     map[string]bool     // MACs that metadata knows, or surely does not
	stale     map[string]bool     // MACs to be read again, though known
	asking    []string            // MACs that metadata is being asked about
	stopAsk   context.CancelFunc
	snapshot  plan.Snapshot
	looked    bool
	cameWith  map[netip.Addr]bool
	addresses map[netip.Addr]*entry
	tenures   map[netip.Addr]time.Time // addresses that our ENIs held, and until when at least
	lanes     map[string]*lane         // ENIs for which a call is under way
	told      map[skipped]bool
	want      plan.Expectation
	missing   error                // an interface that is not there
	trouble   map[string]error     // what else is waited for: metadata, the AWS configuration
	faults    map[string]*faultLog // what each ENI's claims wait for
	foreign   map[string]*foreignMAC
	started   time.Time
	ready     bool // was ready once
	worked    bool // since the last tick
	fatal     error
	stopping  bool
}

func newLoop(life context.Context, s *Sidecar) *loop {
	work, cut := context.WithCancel(life)
	return &loop{
		Sidecar: s, life: life, work: work, cut: cut, mail: newMailbox(), inbox: make(chan func()), over: make(chan struct{}), dog: newWatchdog(stuckAfter),
		enis: map[string]plan.ENI{}, asked: map[string]bool{}, stale: map[string]bool{}, cameWith: map[netip.Addr]bool{}, addresses: map[netip.Addr]*entry{},
		tenures: map[netip.Addr]time.Time{}, faults: map[string]*faultLog{}, foreign: map[string]*foreignMAC{}, lanes: map[string]*lane{}, trouble: map[string]error{}, started: time.Now(),
	}
}

// post hands a step to the loop; it is dropped when the loop has ended.
func (l *loop) post(step func()) {
	select {
	case l.inbox <- step:
	case <-l.over:
	}
}

// start runs work beside the loop, and then its outcome in the loop.
func (l *loop) start(what string, limit time.Duration, work func(context.Context) (then func())) {
	l.calls.Go(func() {
		end := l.dog.beginFor(what, limit)
		then := work(l.work)
		end()
		l.post(then)
	})
}

func (l *loop) resync(reason string, err error) {
	l.Meter.Resync(reason)
	l.Log.Warn("events of the kernel were lost, the namespace is read anew", "reason", reason, "error", err)
}

// run handles what happens, one thing after the other, until ctx ends.
func (l *loop) run(ctx context.Context) error {
	defer close(l.over)
	var deadline <-chan time.Time
	if l.Settings.Deadline > 0 {
		t := time.NewTimer(l.Settings.Deadline)
		defer t.Stop()
		deadline = t.C
	}
	tick := time.NewTimer(l.nextTick())
	due := time.NewTimer(never)
	defer func() { tick.Stop(); due.Stop() }()
	for {
		var step func()
		select {
		case <-ctx.Done():
			return l.stop()
		case <-l.mail.has:
			step = func() { l.look(l.mail.take()) }
		case step = <-l.inbox:
		case <-due.C:
			step = func() {}
		case <-tick.C:
			step = l.tick
			tick.Reset(l.nextTick())
		case <-deadline:
			step = l.deadline
		}
		end := l.dog.begin("the loop")
		step()
		l.advance()
		end()
		if l.fatal != nil {
			l.wind()
			return l.fatal
		}
		due.Reset(l.untilDue())
	}
}

func (l *loop) nextTick() time.Duration { return tickEvery - tickJitter + l.Jitter.below(2*tickJitter) }

// deadline ends an agent that was not ready in time.
func (l *loop) deadline() {
	if !l.ready {
		_, err := l.readiness()
		l.fatal = l.stopped(errDeadline, l.codeNow(), err)
	}
}

// codeNow gives the exit code for what is waited for.
func (l *loop) codeNow() report.Code {
	if l.missing != nil {
		return report.InterfaceMissing
	}
	code := report.GaveUp
	for _, e := range l.addresses {
		if !e.open() && e.state != report.StateRefused {
			continue
		}
		c := codeOf(e)
		if trouble := l.trouble[metadataTrouble]; e.decision.Reason == "" && trouble != nil {
			c = report.CodeOf(trouble)
		}
		if slices.Index(severity, c) < slices.Index(severity, code) {
			code = c
		}
	}
	return code
}

func codeOf(e *entry) report.Code {
	var f *report.Failure
	switch class := apply.ClassOf(e.reason); {
	case errors.As(e.reason, &f):
		return f.Code
	case e.state == report.StateRefused:
		return report.AddressRefused
	case class == apply.Denied:
		return report.Permission
	case class == apply.Full:
		return report.ENIFull
	}
	return report.GaveUp
}

// look takes a new snapshot in.
func (l *loop) look(s plan.Snapshot) {
	first := !l.looked
	if first {
		l.want = l.expectation()
	}
	l.snapshot, l.looked, l.worked = s, true, true
	if first {
		l.noteOrigin()
	}
	missing := l.shortfall(s, l.want)
	if missing != nil && (l.missing == nil || missing.Error() != l.missing.Error()) {
		l.Log.Error("not ready", "error", missing)
	}
	l.missing = missing
	l.review(first)
}

// noteOrigin finds out which addresses came with the pod: at its first start all that are there, later those that Multus reported.
func (l *loop) noteOrigin() {
	if l.Settings.NetworkStatus == "" {
		for _, a := range l.snapshot.Addresses {
			l.cameWith[a.Addr] = true
		}
		return
	}
	listed, err := settings.ParseNetworkStatus(l.Settings.NetworkStatus)
	if err != nil {
		l.Log.Warn("the network-status annotation cannot be read whole: what it does not list counts as floating, so it is neither taken from another ENI nor released",
			"listed", len(listed), "error", err)
	}
	for _, a := range listed {
		l.cameWith[a] = true
	}
}

// review brings the entries in line with the snapshot and with what is known of the node's ENIs.
func (l *loop) review(first bool) {
	rules := l.rules()
	candidates := plan.Sort(l.snapshot, rules)
	here := l.here(candidates, candidates.Plan(l.known(), rules))
	for _, d := range here {
		l.meet(d, first)
	}
	for addr, e := range l.addresses {
		if _, still := here[addr]; !still && e.here() {
			l.leave(e)
		}
	}
	l.guard()
	l.locateENIs(candidates)
}

func (l *loop) known() []plan.ENI {
	enis := make([]plan.ENI, 0, len(l.enis))
	for _, e := range l.enis {
		enis = append(enis, e)
	}
	slices.SortFunc(enis, func(a, b plan.ENI) int { return a.DeviceIndex - b.DeviceIndex })
	return enis
}

// here gives the decision on each address that is to be routed to the pod, or cannot be. One whose ENI is not known yet has no reason. Of
// one address on several interfaces the best decision counts, and among equals the addition that is newest.
func (l *loop) here(c plan.Candidates, p plan.Plan) map[netip.Addr]plan.Decision {
	here := make(map[netip.Addr]plan.Decision, len(p.Assign))
	rank := make(map[netip.Addr]int, len(p.Assign))
	note := func(r int, d plan.Decision) {
		if mac := d.Address.Link.MAC; mac != "" && !l.asked[mac] && slices.Contains(c.Wanted, d.Address) {
			r, d = 3, plan.Decision{Address: d.Address}
		}
		a := d.Address.Addr
		if r > rank[a] || r == rank[a] && r > 0 && plan.Newer(d.Address, here[a].Address) {
			here[a], rank[a] = d, r
		}
	}
	for r, ds := range [][]plan.Decision{p.Skipped, p.Refused, p.Routed, p.Assign} {
		for _, d := range ds {
			note([]int{0, 1, 2, 4}[r], d)
		}
	}
	l.tellSkipped(p.Skipped)
	return here
}

// tellSkipped logs once why an address is left alone.
func (l *loop) tellSkipped(ds []plan.Decision) {
	told := map[skipped]bool{}
	for _, d := range ds {
		if mac := d.Address.Link.MAC; mac != "" && !l.asked[mac] {
			continue
		}
		s := skipped{d.Address.Addr, d.Address.Link.Index, d.Reason}
		if told[s] = true; !l.told[s] {
			l.tell(l.life, plan.Plan{Skipped: []plan.Decision{d}})
		}
	}
	l.told = told
}

// skipped is an address that is left alone, and why.
type skipped struct {
	addr   netip.Addr
	link   int
	reason plan.Reason
}

// meet takes in an address that is on an interface.
func (l *loop) meet(d plan.Decision, first bool) {
	addr := d.Address.Addr
	e, known := l.addresses[addr]
	now := time.Now()
	switch {
	case !known:
		e = &entry{addr: addr, pod: l.cameWith[addr], addition: d.Address.Addition(), since: now, log: faultLog{log: l.Log.With("address", addr)}}
		l.addresses[addr] = e
		_, e.held = l.tenures[addr]
		e.origin, e.heard = l.originOf(e, d.Address, first)
		e.noticed = now
		e.enter(report.StatePending, nil)
	case e.addition != d.Address.Addition():
		l.addAnew(e, d)
	case !e.here() && e.touched:
		// It was taken for gone, and may have been taken off the ENI.
		e.renewed, e.touched = e.busy, false
		e.press(now)
	}
	e.gone, e.link = time.Time{}, d.Address.Link.Name
	if l.snapshot.Taken.After(e.missed) {
		e.missed = time.Time{}
	}
	l.place(e, d, now)
}

// originOf tells what kind of claim a newly seen address is.
func (l *loop) originOf(e *entry, a plan.Address, first bool) (origin, time.Time) {
	switch {
	case !first && l.snapshot.Age(a) <= lateAfter:
		return added, l.snapshot.Heard
	case e.pod:
		return came, time.Time{}
	}
	return found, time.Time{}
}

// addAnew makes a new claim of an address that was removed and added again.
func (l *loop) addAnew(e *entry, d plan.Decision) {
	if d.Reason == plan.ReasonWanted && d.ENI.ID == e.decision.ENI.ID && plan.Newer(e.decision.Address, d.Address) {
		// The address was there twice, and the newer of the two is gone: that is no addition.
		e.addition, e.decision = d.Address.Addition(), d
		return
	}
	older := plan.Newer(e.decision.Address, d.Address)
	old, ours := e.addition, e.state == report.StateAssigned || e.busy || e.claim.Unsure() || e.claim.Owed()
	e.addition, e.renewed, e.touched, e.from = d.Address.Addition(), e.busy, false, ""
	e.noticed = time.Now()
	switch e.origin, e.heard = l.originOf(e, d.Address, false); {
	case (older || e.origin == found) && old.Link != e.addition.Link && ours && d.Reason == plan.ReasonWanted:
		// It is on two interfaces, and has left the one that counted.
		e.origin, e.from = added, e.decision.ENI.ID
	case e.pod:
		e.origin = added
	}
	if d.Reason == plan.ReasonWanted {
		e.decision = d
		e.press(e.allowed(time.Now()))
	}
}

// place takes in what the plan says of an address.
func (l *loop) place(e *entry, d plan.Decision, now time.Time) {
	was := e.decision
	e.decision = d
	if was.Reason == d.Reason && was.ENI.ID == d.ENI.ID && (e.claim.ENI != "" || d.Reason != plan.ReasonWanted) {
		return
	}
	switch d.Reason {
	case "":
		e.enter(report.StatePending, fmt.Errorf("it is not known yet which ENI has the MAC %s", d.Address.Link.MAC))
	case plan.ReasonWanted:
		if was.ENI.ID != "" && was.ENI.ID != d.ENI.ID && !e.open() {
			e.origin, e.from = found, "" // the interface's ENI was replaced, which is no claim
		}
		e.renewed = e.busy
		e.press(now)
	case plan.ReasonInPrefix:
		e.enter(report.StateRouted, nil)
		l.tell(l.life, plan.Plan{Routed: []plan.Decision{d}})
	default:
		e.enter(report.StateRefused, errors.New(d.Explain()))
		l.tell(l.life, plan.Plan{Refused: []plan.Decision{d}})
	}
}

// leave takes in that an address has left its interface.
func (l *loop) leave(e *entry) {
	e.gone = time.Now()
	e.touched = e.busy || e.claim.Unsure() || e.claim.Owed() || !e.missed.IsZero()
	e.missed = time.Time{}
	e.looks, e.doubt, e.doubled = nil, "", l.dadFailed(e.addr)
	l.Log.Debug("address has left the interface", "address", e.addr, "interface", e.link, "eni", e.decision.ENI.ID)
}

// dadFailed tells whether the address is still on an interface, where duplicate address detection found that a neighbour on the link has
// it: that may be a pod on the same ENI, so nothing is taken back.
func (l *loop) dadFailed(addr netip.Addr) bool {
	return slices.ContainsFunc(l.snapshot.Addresses, func(a plan.Address) bool { return a.Addr == addr && a.DADFailed })
}

// guard names the interfaces whose addresses do not work yet, for the check of the agent's own routes.
func (l *loop) guard() {
	var waiting []plan.Address
	for _, e := range l.addresses {
		if e.open() {
			waiting = append(waiting, e.decision.Address)
		}
	}
	l.manage(waiting)
}

// advance does what has become due.
func (l *loop) advance() {
	now := time.Now()
	for addr, e := range l.addresses {
		switch {
		case e.here() || e.busy || now.Before(e.gone.Add(believeGone)):
		case !e.touched || e.doubled:
			if e.held || e.assigned {
				l.tenures[addr] = now
			}
			delete(l.addresses, addr)
		case !l.stopping && !now.Before(e.due):
			l.undo(e)
		}
	}
	if l.stopping {
		return
	}
	l.dispatch(now)
	l.inspectDue(now)
	if l.ready {
		return
	}
	if ready, _ := l.readiness(); ready {
		l.ready = true
		l.Log.Info("ready", "addresses", len(l.addresses), "duration", time.Since(l.started).Round(time.Microsecond).String())
	}
}

// untilDue gives the time until something becomes due without any event.
func (l *loop) untilDue() time.Duration {
	next := time.Now().Add(never)
	sooner := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	for _, e := range l.addresses {
		switch {
		case e.busy:
		case !e.here() && (!e.touched || e.doubled):
			sooner(e.gone.Add(believeGone))
		case !e.here():
			if at := e.gone.Add(believeGone); l.ec2 == nil || l.lanes[e.claim.ENI] != nil {
				continue
			} else if at.After(e.due) {
				sooner(at)
			} else {
				sooner(e.due)
			}
		case l.tries(e) && l.lanes[e.claim.ENI] == nil:
			sooner(e.due)
		case l.tries(e) && e.attempts == 0 && e.origin == added && !e.peeked:
			sooner(e.noticed.Add(peekAfter))
		}
		if len(e.looks) > 0 && e.here() {
			sooner(e.looks[0])
		}
	}
	return max(0, time.Until(next))
}

// tries tells whether a claim is to be tried at some time.
func (l *loop) tries(e *entry) bool {
	return l.ec2 != nil && e.wanted() && !e.busy && !e.due.IsZero() && (e.open() || e.state == report.StateRefused)
}

// dispatch starts an attempt on each ENI that has none under way and has claims that are due. Claims that were never tried go before
// those that failed.
func (l *loop) dispatch(now time.Time) {
	due := map[string][]*entry{}
	for _, e := range l.addresses {
		if lane := l.lanes[e.claim.ENI]; lane != nil && l.tries(e) && e.attempts == 0 && !e.due.After(now) {
			lane.newer.Store(true)
			if e.origin == added && !e.peeked && !now.Before(e.noticed.Add(peekAfter)) {
				l.peek(e)
			}
		}
		if l.tries(e) && l.lanes[e.claim.ENI] == nil && !e.due.After(now.Add(together)) {
			due[e.claim.ENI] = append(due[e.claim.ENI], e)
		}
	}
	for eni, es := range due {
		newest := slices.DeleteFunc(slices.Clone(es), func(e *entry) bool { return e.attempts > 0 || e.due.After(now) })
		if len(newest) > 0 {
			es = newest
		} else if !slices.ContainsFunc(es, func(e *entry) bool { return !e.due.After(now) }) {
			continue
		}
		slices.SortFunc(es, func(a, b *entry) int { return a.addr.Compare(b.addr) })
		l.attempt(eni, es)
	}
}

// peek asks who holds an address whose claim has to wait for a call under way, so that whoever claims it meanwhile is known to be newer.
func (l *loop) peek(e *entry) {
	e.peeked = true
	addr, serial, subnet := e.addr, e.serial, e.claim.Subnet
	l.start("looking who holds an address", stuckAfter, func(ctx context.Context) func() {
		held, err := l.ec2.Holders(ctx, subnet, []netip.Addr{addr})
		return func() {
			if now := l.addresses[addr]; err == nil && now != nil && now.serial == serial && now.attempts == 0 {
				holder := held[addr].ENI
				now.before = &holder
			}
		}
	})
}

// lane is an ENI with a call under way. newer tells that a claim waits for it that was never tried.
type lane struct{ newer atomic.Bool }

// attempt makes one attempt for the claims of one ENI.
func (l *loop) attempt(eni string, es []*entry) {
	sent := time.Now()
	claims := make([]apply.Claim, len(es))
	for i, e := range es {
		e.busy = true
		if e.attempts++; e.attempts == 1 {
			e.spend(sent)
			e.age(sent)
		}
		claims[i] = e.claim
	}
	way := &lane{}
	l.lanes[eni] = way
	subnet := es[0].claim.Subnet
	level := slog.LevelInfo
	if es[0].attempts > 1 {
		level = slog.LevelDebug
	}
	l.Log.Log(l.life, level, "assigning addresses", "eni", eni, "subnet", subnet, "addresses", claimed(claims))
	applier := l.applier()
	applier.Newer = way.newer.Load
	// An attempt for many addresses may take many calls, each bounded by itself.
	limit := stuckAfter + time.Duration(len(claims))*10*time.Second
	l.start("an attempt on "+eni, limit, func(ctx context.Context) func() {
		outcomes := applier.Attempt(ctx, eni, subnet, claims)
		answered := time.Now()
		left := l.left(outcomes)
		return func() { l.settled(eni, outcomes, sent, answered, left) }
	})
}

// left looks which of the addresses that EC2 has just put on the ENI are on no interface: news of a removal may come later than the answer
// to a call that ended after it. The times are when that was seen. What leaves between the answer and the look, within a millisecond, counts
// as having left before: until the loop has the outcome, the call is under way.
func (l *loop) left(outcomes []apply.Outcome) map[netip.Addr]time.Time {
	done := func(o apply.Outcome) bool { return o.Verdict == apply.Done }
	if !slices.ContainsFunc(outcomes, done) {
		return nil
	}
	s, err := l.Follow.Snapshot(l.life)
	if err != nil {
		l.Log.Debug("cannot look whether addresses left while EC2 was asked", "error", err)
		return nil
	}
	left := map[netip.Addr]time.Time{}
	for _, o := range outcomes {
		if done(o) {
			left[o.Claim.Addr] = s.Taken
		}
	}
	for _, a := range s.Addresses {
		delete(left, a.Addr)
	}
	return left
}

func (l *loop) applier() *apply.Applier {
	return &apply.Applier{EC2: l.ec2, Log: l.Log, AllowPrimaryENI: l.Settings.AllowPrimaryENI}
}

// settled takes in what came of an attempt.
func (l *loop) settled(eni string, outcomes []apply.Outcome, sent, answered time.Time, left map[netip.Addr]time.Time) {
	delete(l.lanes, eni)
	l.worked = true
	b := batch{eni: eni, sent: sent, now: answered, jitter: l.Jitter, pauses: map[pace]time.Duration{}}
	for _, o := range outcomes {
		e := l.addresses[o.Claim.Addr]
		e.busy = false
		switch {
		case !e.here():
			e.claim, e.renewed = o.Claim, false
			e.touched = o.Verdict == apply.Done || o.Claim.Unsure() || o.Claim.Owed()
			e.due = answered
		case e.renewed:
			// The outcome is about an addition that is over; the present one is a claim of its own.
			e.renewed = false
			e.claim = e.fresh().Renewed(o.Claim)
			e.due = answered
		default:
			e.claim, e.missed = o.Claim, left[o.Claim.Addr]
			l.take(e, o, &b)
		}
	}
	b.tell(l)
	l.guard()
}

// batch is what an attempt's outcomes have in common.
type batch struct {
	eni       string
	sent, now time.Time
	jitter    Jitter
	// pauses are chosen once for each pace, so that claims that failed together are tried together.
	pauses map[pace]time.Duration
	// waiting are the claims that wait for fault, the one of them that is told.
	waiting []apply.Claim
	fault   error
	what    string
}

// pace is how long to wait: for a class of fault, or for one that waiting does not mend.
type pace struct {
	class apply.Class
	slow  bool
}

// wait puts off the next attempt of an entry. It tells how long, and whether that was chosen now.
func (b *batch) wait(e *entry, p pace) (pause time.Duration, chosen bool) {
	pause, before := b.pauses[p]
	if !before {
		next := e.backoff
		if pause = next.pause(b.jitter, p.class); p.slow {
			pause = slowly(b.jitter, e.backoff.failures, slowRetry, slowCap)
			if p.class == apply.Refused {
				pause = slowly(b.jitter, e.backoff.failures, refusedRetry, refusedCap)
			}
		}
		b.pauses[p] = pause
	}
	e.backoff.failures++
	e.due = b.now.Add(pause)
	return pause, !before
}

// note remembers what is waited for, to be told once for all claims.
func (b *batch) note(what string, c apply.Claim, err error) {
	b.waiting = append(b.waiting, c)
	if b.fault == nil {
		b.what, b.fault = what, err
	}
}

func (b *batch) tell(l *loop) {
	if b.fault == nil {
		delete(l.faults, b.eni)
		return
	}
	log := l.faults[b.eni]
	if log == nil {
		log = &faultLog{log: l.Log.With("eni", b.eni)}
		l.faults[b.eni] = log
	}
	log.tell(b.what, b.fault, "addresses", claimed(b.waiting))
}

// take takes in the outcome of a claim that still stands.
func (l *loop) take(e *entry, o apply.Outcome, b *batch) {
	eni, now := e.claim.ENI, b.now
	switch o.Verdict {
	case apply.Done:
		e.enter(report.StateAssigned, nil)
		e.assigned, e.due, e.log.text = true, time.Time{}, ""
		args := []any{"address", e.addr, "interface", e.link, "eni", eni, "duration", now.Sub(b.sent).Round(time.Microsecond).String()}
		if e.origin == added {
			e.looks = lookAgain(now)
			if !e.heard.IsZero() {
				args = append(args, "takeover", now.Sub(e.heard).Round(time.Microsecond).String())
				l.Meter.Takeover(family(e.addr), now.Sub(e.heard))
				e.heard = time.Time{}
			}
		}
		l.Log.Info("address assigned", args...)
	case apply.Rejected:
		e.enter(report.StateRefused, o.Err)
		b.wait(e, pace{slow: true, class: apply.Refused})
		e.log.tell("address refused", o.Err, "eni", eni)
	case apply.Forbidden:
		e.enter(report.StateWaiting, o.Err)
		b.wait(e, pace{slow: true, class: apply.Denied})
		b.note("waiting for a permission", e.claim, o.Err)
	case apply.Yielded:
		if e.origin != came {
			l.yield(e, o.Err, now)
			return
		}
		// Its IPAM vouches that it is the pod's, so this is a conflict to be waited out.
		l.wait(e, o.Err, b)
	case apply.Again:
		l.wait(e, o.Err, b)
	}
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "ipv4"
	}
	return "ipv6"
}

// wait makes a claim be tried again after a pause.
func (l *loop) wait(e *entry, err error, b *batch) {
	if errors.Is(err, apply.ErrPostponed) {
		e.enter(report.StateWaiting, err)
		e.due = b.now
		return
	}
	class := apply.ClassOf(err)
	var call *apply.OpError
	throttled := errors.As(err, &call) && call.Class == apply.Throttled
	if blocked := l.Routes.Blocked(); blocked != nil && !e.claim.Owed() {
		err = &report.Failure{Code: report.NoRoute, Err: blocked}
	}
	e.enter(report.StateWaiting, err)
	p := pace{class: class}
	if e.origin == added && class != apply.Full {
		p.class = apply.Unanswered // a takeover waits two seconds at most
	}
	if pause, chosen := b.wait(e, p); throttled && chosen {
		l.Meter.ThrottleWait(call.Op, pause)
	}
	b.note("waiting to try again", e.claim, err)
	if class == apply.Gone {
		l.readAgain(e.decision.Address.Link.MAC)
	}
}

// yield leaves an address to the ENI that holds it.
func (l *loop) yield(e *entry, err error, now time.Time) {
	var held *apply.HeldError
	state, holder := report.StateElsewhere, ""
	if errors.As(err, &held) {
		holder = held.Holder
	}
	if e.origin != found || e.assigned {
		state = report.StateLost
	}
	l.lose(e, state, holder, err)
	e.looks = slices.Concat(lookAgain(now)[1:], []time.Time{now.Add(e.patience())})
	e.due = time.Time{}
}

// lose tells that another ENI holds the address.
func (l *loop) lose(e *entry, state, holder string, err error) {
	if e.state != state || e.holder != holder {
		if state == report.StateLost {
			l.Meter.Lost()
		}
		l.Log.Warn("another ENI holds the address, and it is left there", "address", e.addr, "interface", e.link, "eni", e.claim.ENI, "holder", holder, "state", state)
	}
	if err == nil {
		err = fmt.Errorf("%s claimed the address after this pod did", holder)
		if state == report.StateElsewhere {
			err = fmt.Errorf("%s holds it, and it is not taken from there: it was found here, not added anew", holder)
		}
	}
	e.enter(state, err)
	e.holder = holder
}

// undo takes back what a call may have done for an address that has left the interface meanwhile.
func (l *loop) undo(e *entry) {
	if l.ec2 == nil || l.lanes[e.claim.ENI] != nil {
		return
	}
	claim, eni := e.claim, e.claim.ENI
	e.busy, l.lanes[eni] = true, &lane{}
	l.Log.Info("taking back what an unanswered call did for an address that has left", "address", e.addr, "eni", eni)
	applier := l.applier()
	l.start("taking back "+e.addr.String(), stuckAfter, func(ctx context.Context) func() {
		err := applier.Undo(ctx, claim)
		return func() {
			delete(l.lanes, eni)
			e.busy, e.touched = false, err != nil && apply.ClassOf(err).Passing()
			if e.renewed {
				e.renewed, e.due = false, time.Now()
			} else if err != nil {
				e.due = time.Now().Add(e.backoff.pause(l.Jitter, apply.ClassOf(err)))
				e.log.tell("cannot take it back", err, "eni", eni)
			}
		}
	})
}

// readiness tells whether all is as it should be, and if not, one thing that is missing.
func (l *loop) readiness() (bool, error) {
	if !l.looked {
		return false, errors.New("the pod's addresses have not been read yet")
	}
	if l.missing != nil {
		return false, l.missing
	}
	var waiting []string
	for _, e := range l.addresses {
		switch {
		case !e.here():
		case e.open(), e.pod && e.state != report.StateAssigned && e.state != report.StateRouted:
			waiting = append(waiting, fmt.Sprintf("%s waits: %s", e, l.explain(e)))
		}
	}
	if len(waiting) == 0 {
		return true, nil
	}
	slices.Sort(waiting)
	if n := len(waiting) - 3; n > 0 {
		waiting = append(waiting[:3], fmt.Sprintf("and %d more", n))
	}
	return false, errors.New(strings.Join(waiting, "; "))
}

// explain says what an address waits for.
func (l *loop) explain(e *entry) string {
	switch {
	case e.decision.Reason == "" && l.trouble[metadataTrouble] != nil:
		return l.trouble[metadataTrouble].Error()
	case e.decision.Reason == "":
		return "it is not known yet which ENI has the MAC " + e.decision.Address.Link.MAC
	case e.reason != nil:
		return e.reason.Error()
	case l.ec2 == nil && l.trouble[configTrouble] != nil:
		return l.trouble[configTrouble].Error()
	case l.ec2 == nil:
		return "the AWS configuration is being read"
	}
	return "EC2 is being asked"
}
