package run

import (
	"fmt"
	"net/netip"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/report"
)

// origin says why an address is claimed, which decides what it may be taken from.
type origin int

const (
	// came: the address came with the pod, and the agent has just started. Its IPAM vouches that it is the pod's.
	came origin = iota
	// added: the address appeared on the interface while the agent looked. Last claim wins.
	added
	// found: the address was there already and nobody knows for how long. It takes nothing from anybody.
	found
)

// entry is one address of the pod that is to be routed to it.
type entry struct {
	addr netip.Addr
	// pod is true for an address that came with the pod; all others float.
	pod      bool
	addition plan.Addition
	// link is the name of the interface, for those who read.
	link string
	// decision is the plan's last word. Its reason is empty while it is not known which ENI has the interface's MAC.
	decision plan.Decision
	origin   origin
	// from is the only ENI the address may be taken from, "" for any.
	from string
	// heard is when the event arrived that made the claim; zero when none did.
	heard time.Time
	// noticed is when the present addition was first seen.
	noticed time.Time
	// peeked is true once the holder was asked for because the first attempt had to wait; before is what that told, when it told.
	peeked bool
	before *string

	state  string
	since  time.Time
	reason error
	// holder is the ENI that holds the address when it is lost or elsewhere.
	holder string
	// held is true when the ENI held the address in an earlier claim, not long ago.
	held bool
	// assigned is true once EC2 said that the address is on the ENI, in answer to this agent.
	assigned bool

	claim apply.Claim
	// serial counts the claims, so that a look at the holder is not taken for a word on a newer claim.
	serial   int
	attempts int
	backoff  backoff
	due      time.Time // when to try next; zero: not at all
	// busy is true while a call for the address is under way, renewed when it was added anew meanwhile.
	busy, renewed bool
	// spent is the time up to which the allowance for claims of this address is used up.
	spent time.Time

	// gone is when the address left the interface, zero while it is there. touched is true when a call for it was unanswered then.
	gone    time.Time
	touched bool
	// missed is when a look right after EC2's answer showed that the address had left before, of which the news had not come yet; zero
	// otherwise.
	missed time.Time
	// doubled is true when the address left because a neighbour on the link has it.
	doubled bool

	// looks are when to see again who holds the address. doubt is the other ENI that the last look showed.
	looks []time.Time
	doubt string
	// absent counts in how many ticks in a row metadata did not list the address; calm how many ticks need not ask, wait how many
	// are left of those.
	absent, calm, wait int
	// losses counts how often a look found the address with another ENI since it was claimed.
	losses int
	// moves are when the address was put back by the agent's own motion, without any event of the pod's.
	moves []time.Time

	log faultLog
}

func (e *entry) String() string { return fmt.Sprintf("%s on %s", e.addr, e.link) }

// enter changes the state.
func (e *entry) enter(state string, reason error) {
	if e.state != state {
		e.since = time.Now()
	}
	e.state, e.reason = state, reason
	if state != report.StateLost && state != report.StateElsewhere {
		e.holder = ""
	}
}

// fresh makes the claim of the present addition.
func (e *entry) fresh() apply.Claim {
	c := claimOf(e.decision)
	c.Floating, c.TakeNothing, c.Held = e.origin != came, e.origin == found, e.held
	if e.from != "" {
		c = c.Following(e.from)
	}
	return c
}

// press makes the claim be tried, from the beginning.
func (e *entry) press(now time.Time) {
	e.held = e.held || e.assigned
	e.claim = e.fresh().Renewed(e.claim)
	e.serial++
	e.attempts, e.backoff, e.due = 0, backoff{}, now
	e.peeked, e.before = false, nil
	e.looks, e.doubt, e.absent, e.calm, e.wait, e.losses = nil, "", 0, 0, 0, 0
	e.enter(report.StatePending, nil)
}

// age makes a claim whose first attempt comes late one of an address that is merely there: somebody may have claimed it since.
func (e *entry) age(now time.Time) {
	if e.origin == added && e.from == "" && now.Sub(e.noticed) > lateAfter {
		e.origin, e.heard = found, time.Time{}
		if e.pod {
			e.origin = came
		}
		e.claim = e.fresh().Renewed(e.claim)
		return
	}
	if e.before != nil && now.Sub(e.noticed) > peekAfter {
		e.claim = e.claim.Seen(*e.before)
	}
}

// patience is how long after a look that found the address with another ENI the next one comes: what nobody holds any more may be taken up,
// and who holds it may be gone.
func (e *entry) patience() time.Duration {
	d := min(15*time.Minute<<min(e.losses, 4), time.Hour)
	e.losses++
	return d
}

// here tells whether the address is on the interface.
func (e *entry) here() bool { return e.gone.IsZero() }

// wanted tells whether the address is to be on an ENI that is known.
func (e *entry) wanted() bool { return e.here() && e.decision.Reason == plan.ReasonWanted }

// open tells whether the agent still has to do, or to wait for, something before the address is routed.
func (e *entry) open() bool {
	return e.here() && (e.state == report.StatePending || e.state == report.StateWaiting)
}

// allowance bounds the claims of one address: an address that is added and removed without end must not use up the account's EC2 calls.
// The burst is EC2's own (100 calls), and the rate a share of its refill (5 a second).
const (
	claimBurst    = 100
	claimInterval = 500 * time.Millisecond
)

// allowed gives when a claim of the address may be tried.
func (e *entry) allowed(now time.Time) time.Time {
	if at := e.spent.Add(-claimBurst * claimInterval); at.After(now) {
		return at
	}
	return now
}

// spend counts a claim that is tried.
func (e *entry) spend(now time.Time) {
	if e.spent.Before(now) {
		e.spent = now
	}
	e.spent = e.spent.Add(claimInterval)
}

// Holding down what flaps by itself: so many moves of the agent's own motion in so much time, and it rests for as long.
const (
	flapMoves = 3
	flapTime  = time.Minute
)

// own gives when the agent may put the address back by its own motion, and counts it.
func (e *entry) own(now time.Time) time.Time {
	for len(e.moves) > 0 && now.Sub(e.moves[0]) > flapTime {
		e.moves = e.moves[1:]
	}
	at := now
	if len(e.moves) >= flapMoves {
		at = e.moves[len(e.moves)-1].Add(flapTime)
	}
	e.moves = append(e.moves, at)
	return at
}

// lookAgain are the times after a takeover at which the winner sees whether it still holds the address.
func lookAgain(now time.Time) []time.Time {
	return []time.Time{now.Add(time.Second), now.Add(5 * time.Second), now.Add(time.Minute)}
}
