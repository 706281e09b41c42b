package run

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/report"
)

const (
	// callsEnd bounds the wait for calls under way once the agent is told to stop: one EC2 attempt, and then what it may still owe.
	callsEnd = 3500 * time.Millisecond
	// windTime bounds the end of everything that is under way, of which settleTime at least is for what must not be left as it is. With
	// the release after it, it is well within the 30 s that the kubelet gives a pod to end.
	windTime   = 16 * time.Second
	settleTime = 6 * time.Second
	// releaseTime bounds the attempt to give addresses back.
	releaseTime = 3 * time.Second
)

// stop ends the loop as told: calls under way are finished, nothing is left between two ENIs, and what may be released is.
func (l *loop) stop() error {
	l.Log.Info("told to stop")
	// What can be released is, at once; calls under way for other ENIs do not hold it up.
	var first sync.WaitGroup
	idle := l.ours()
	first.Go(func() { l.release(idle) })
	l.wind()
	first.Wait()
	l.release(slices.DeleteFunc(l.ours(), func(a assignment) bool { return slices.Contains(idle, a) }))
	return nil
}

// wind ends what is under way.
func (l *loop) wind() {
	l.stopping = true
	if l.stopAsk != nil {
		l.stopAsk()
	}
	until := time.Now().Add(windTime)
	l.drain(callsEnd)
	if len(l.lanes) > 0 {
		l.cut() // what is in the middle of a move is finished all the same
		l.drain(time.Until(until) - settleTime)
	}
	l.settleOpen(time.Until(until))
}

// drain takes in outcomes until no call is under way, or the time is over.
func (l *loop) drain(limit time.Duration) {
	over := time.NewTimer(limit)
	defer over.Stop()
	for len(l.lanes) > 0 {
		select {
		case step := <-l.inbox:
			step()
		case <-over.C:
			l.Log.Warn("calls to EC2 are left unanswered", "enis", len(l.lanes))
			return
		}
	}
}

// settleOpen goes on for addresses that were taken off another ENI and are on none, and takes back what unanswered calls may have done for
// addresses that have left.
func (l *loop) settleOpen(limit time.Duration) {
	owed := map[string][]*entry{}
	for _, e := range l.addresses {
		if (e.claim.Owed() || !e.here() && e.touched || !e.missed.IsZero()) && !e.busy {
			owed[e.claim.ENI] = append(owed[e.claim.ENI], e)
		}
	}
	if len(owed) == 0 {
		return
	}
	grace, cancel := context.WithTimeout(l.life, limit)
	defer cancel()
	// Nobody has looked since the agent was told to stop: an address may have left, or have come back. In doubt nothing is taken back.
	now, err := l.Follow.Snapshot(grace)
	var wg sync.WaitGroup
	for _, es := range owed {
		var claims []apply.Claim
		for _, e := range es {
			on := slices.ContainsFunc(now.Addresses, func(a plan.Address) bool { return a.Addr == e.addr })
			switch {
			case e.here() && (err != nil || on):
				if e.claim.Owed() {
					claims = append(claims, e.claim)
				}
				continue
			case err != nil || on:
				continue
			}
			wg.Go(func() {
				if err := l.applier().Undo(grace, e.claim); err != nil {
					l.Log.Error("what an unanswered call did cannot be taken back", "address", e.addr, "error", err)
				}
			})
		}
		if len(claims) == 0 {
			continue
		}
		w := worker{Agent: &l.Agent, ec2: l.ec2, permanent: func() {}, eni: es[0].decision.ENI}
		wg.Go(func() {
			if left, err := w.settle(grace, grace, claims, func(error) apply.Class { return apply.Unanswered }); len(left) > 0 {
				l.Log.Error("addresses are left between two ENIs", "addresses", claimed(left), "error", err)
			}
		})
	}
	wg.Wait()
}

// assignment is an address of the pod's own on its ENI.
type assignment struct {
	addr netip.Addr
	eni  string
	link int // the interface's index
}

// ours gives what may be released as far as the loop knows: what came with the pod, was assigned by this agent, and is not being worked on.
func (l *loop) ours() []assignment {
	if !l.Settings.Release || l.ec2 == nil {
		return nil
	}
	var ours []assignment
	for _, e := range l.addresses {
		if e.pod && e.assigned && e.state == report.StateAssigned && !e.busy && l.lanes[e.decision.ENI.ID] == nil && e.here() {
			ours = append(ours, assignment{e.addr, e.decision.ENI.ID, e.addition.Link})
		}
	}
	return ours
}

// release gives back what is still on its interface and no socket can use. One attempt; in doubt an address stays.
func (l *loop) release(ours []assignment) {
	if len(ours) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(l.life, releaseTime)
	defer cancel()
	if l.Quiet != nil {
		l.Quiet()
	}
	snapshot, err := l.Follow.Snapshot(ctx)
	if err != nil {
		l.Log.Warn("nothing is released: the pod's addresses cannot be read", "error", err)
		return
	}
	var addrs []netip.Addr
	for _, a := range ours {
		addrs = append(addrs, a.addr)
	}
	used, err := l.Follow.InUse(ctx, addrs)
	if err != nil {
		l.Log.Warn("nothing is released: it cannot be told which addresses are in use", "error", err)
		return
	}
	byENI := map[string][]netip.Addr{}
	for _, a := range ours {
		if by, inUse := used[a.addr]; inUse {
			l.Log.Info("address stays on its ENI: it is in use, so this is not the pod's end", "address", a.addr, "by", by)
		} else if a.on(snapshot) {
			byENI[a.eni] = append(byENI[a.eni], a.addr)
		}
	}
	var wg sync.WaitGroup
	for eni, addrs := range byENI {
		slices.SortFunc(addrs, netip.Addr.Compare)
		wg.Go(func() {
			left, err := l.applier().Unassign(ctx, eni, addrs)
			if err != nil {
				l.Log.Warn("addresses stay on their ENI: they could not be released", "eni", eni, "addresses", left, "error", err)
			}
			if len(left) < len(addrs) {
				l.Log.Info("addresses released", "eni", eni, "addresses", slices.DeleteFunc(addrs, func(a netip.Addr) bool { return slices.Contains(left, a) }))
			}
		})
	}
	wg.Wait()
}

// on tells whether the address is still on its interface.
func (a assignment) on(s plan.Snapshot) bool {
	return slices.ContainsFunc(s.Addresses, func(x plan.Address) bool { return x.Addr == a.addr && x.Link.Index == a.link })
}
