package sim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"multus-ip-manager.io/agent/apply"
)

// Ops of calls.
const (
	assign4   = "assign4"
	assign6   = "assign6"
	unassign4 = "unassign4"
	unassign6 = "unassign6"
	holders   = "holders"
)

// attemptTimeout is the bound of one call, as the real client has it.
const attemptTimeout = 3 * time.Second

// subnet is the one subnet of the model.
const subnet = "subnet-b"

// Ask names a call: the N-th of its kind (from 0) of a pod.
type Ask struct {
	Pod int
	Op  string
	N   int
}

// Fate is what becomes of a call. Times count from its start.
type Fate struct {
	// Effect is when it takes effect; negative: never. It may lie beyond the three seconds for which the client waits.
	Effect time.Duration
	// Answer is when an answer comes, and never before the effect; negative: never.
	Answer time.Duration
	// Fault, when Faulty, is the class of the failure that is answered whatever the effect was.
	Fault  apply.Class
	Faulty bool
}

// good is a call without faults.
func good(effect, answer time.Duration) Fate { return Fate{Effect: effect, Answer: answer} }

// Call is the record of one call.
type Call struct {
	Ask
	// Run is the serial number of the pod's agent.
	Run      int
	ENI      string
	Addrs    []netip.Addr
	Reassign bool
	Fate     Fate
	Sent     time.Duration
	// Effected is when the call reached EC2's table, whatever that said; negative: not (yet).
	Effected time.Duration
	// Err is what the table said.
	Err error
	// Moved tells, by address, which ENI held it before, for an assignment that took effect.
	Before map[netip.Addr]string
	// Answered is when the client had its answer, or gave up; Got is what it was.
	Answered time.Duration
	Got      error
	// View is the time as of which a search was answered, Held what it showed.
	View time.Duration
	Held map[netip.Addr]string
}

func (c *Call) mutates() bool { return c.Op != holders && c.Op != "unmanaged" && c.Op != "slots" }

// landed tells whether the call changed, or confirmed, the table.
func (c *Call) landed() bool { return c.Effected >= 0 && c.Err == nil }

func (c *Call) String() string {
	texts := make([]string, len(c.Addrs))
	for i, a := range c.Addrs {
		texts[i] = a.String()
	}
	s := fmt.Sprintf("%s #%d %s %s", c.Op, c.N, c.ENI, strings.Join(texts, ","))
	if c.Reassign {
		s += " reassign"
	}
	return s
}

// begin records a call. It is nil for an agent that is dead: nothing of it reaches EC2 any more.
func (h *Handle) begin(op, eni string, addrs []netip.Addr, reassign bool) *Call {
	w := h.pod.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if h.isDead() {
		return nil
	}
	key := Ask{Pod: h.pod.index, Op: op}
	c := &Call{Ask: key, Run: h.run, ENI: eni, Addrs: slices.Clone(addrs), Reassign: reassign, Sent: w.now(), Effected: -1, Answered: -1}
	c.N = w.asked[key]
	w.asked[key]++
	c.Fate = good(20*time.Millisecond, 30*time.Millisecond)
	if w.Fate != nil && c.Sent < w.Calm {
		c.Fate = w.Fate(c.Ask)
	}
	// Nothing falls on the same instant as anything else, so that the order of events is the same in every run.
	if jitter := time.Duration(mix(w.Seed, "call", c.Pod, c.Op, c.N) % 900_000); c.Fate.Effect >= 0 { //nolint:gosec // small
		c.Fate.Effect += jitter
		if c.Fate.Answer >= 0 {
			c.Fate.Answer += jitter
		}
	}
	w.calls = append(w.calls, c)
	w.notes = append(w.notes, note{c.Sent, h.pod.Name, func() string { return "→ " + c.String() }})
	return c
}

// do carries out one call: effect and answer have their times, and the client waits for three seconds.
func (h *Handle) do(ctx context.Context, op, eni string, addrs []netip.Addr, reassign bool, act func(*Call) error) error {
	c := h.begin(op, eni, addrs, reassign)
	if c == nil {
		return &apply.OpError{Op: op, ENI: eni, Addrs: addrs, Class: apply.Unanswered, Err: errors.New("the agent is dead")}
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	w := h.pod.w
	if c.Fate.Effect >= 0 {
		time.AfterFunc(c.Fate.Effect, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			c.Effected = w.now()
			c.Err = act(c)
			w.notes = append(w.notes, note{c.Effected, "ec2", func() string { return fmt.Sprintf("%s: %s %s", h.pod.Name, c, c.outcome(c.Err)) }})
		})
	}
	answer := make(<-chan time.Time)
	if c.Fate.Answer >= 0 {
		t := time.NewTimer(c.Fate.Answer)
		defer t.Stop()
		answer = t.C
	}
	var err error
	select {
	case <-answer:
		w.mu.Lock()
		err = c.Err
		w.mu.Unlock()
		if c.Fate.Faulty {
			err = fault(c, c.Fate.Fault, "injected")
		}
	case <-ctx.Done():
		err = fault(c, apply.Unanswered, ctx.Err().Error())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c.Answered, c.Got = w.now(), err
	w.notes = append(w.notes, note{c.Answered, h.pod.Name, func() string { return fmt.Sprintf("← %s %s", c, c.outcome(err)) }})
	return err
}

func (c *Call) outcome(err error) string {
	switch {
	case err != nil:
		return apply.ClassOf(err).String() + ": " + err.Error()
	case c.Op == holders:
		return fmt.Sprintf("sees %v as of %.3f", c.Held, c.View.Seconds())
	case len(c.Before) > 0:
		return fmt.Sprintf("done, before: %v", c.Before)
	}
	return "done"
}

func fault(c *Call, class apply.Class, text string) error {
	return &apply.OpError{Op: c.Op, ENI: c.ENI, Addrs: c.Addrs, Class: class, Err: errors.New(text)}
}

// AssignIPv4 implements [apply.EC2].
func (h *Handle) AssignIPv4(ctx context.Context, eni string, addrs []netip.Addr, reassign bool) ([]netip.Addr, error) {
	w := h.pod.w
	if err := h.do(ctx, assign4, eni, addrs, reassign, func(c *Call) error { return w.assign(c, reassign) }); err != nil {
		return nil, err
	}
	if w.Mute {
		return nil, nil
	}
	return slices.Clone(addrs), nil
}

// AssignIPv6 implements [apply.EC2].
func (h *Handle) AssignIPv6(ctx context.Context, eni string, addrs []netip.Addr) error {
	return h.do(ctx, assign6, eni, addrs, false, func(c *Call) error { return h.pod.w.assign(c, false) })
}

// assign is EC2's table: all of a call or nothing.
func (w *World) assign(c *Call, reassign bool) error {
	now := w.now()
	before := map[netip.Addr]string{}
	for _, a := range c.Addrs {
		switch at := w.holder(a, now); {
		case at == c.ENI && w.AgainRefused && !reassign:
			return fault(c, apply.Refused, "already assigned here")
		case at == c.ENI:
			before[a] = at
		case at != "" && !reassign:
			return fault(c, apply.Refused, "assigned, but move is not allowed")
		case now < w.FullUntil[c.ENI]:
			return fault(c, apply.Full, "limit exceeded")
		default:
			before[a] = at
		}
	}
	c.Before = before
	for _, a := range c.Addrs {
		w.hold(a, c.ENI)
	}
	return nil
}

// UnassignIPv4 implements [apply.EC2].
func (h *Handle) UnassignIPv4(ctx context.Context, eni string, addrs []netip.Addr) error {
	return h.do(ctx, unassign4, eni, addrs, false, h.pod.w.unassign)
}

// UnassignIPv6 implements [apply.EC2].
func (h *Handle) UnassignIPv6(ctx context.Context, eni string, addrs []netip.Addr) error {
	return h.do(ctx, unassign6, eni, addrs, false, h.pod.w.unassign)
}

func (w *World) unassign(c *Call) error {
	for _, a := range c.Addrs {
		if w.holder(a, w.now()) != c.ENI {
			return fault(c, apply.Refused, "not assigned to the interface")
		}
	}
	for _, a := range c.Addrs {
		w.hold(a, "")
	}
	return nil
}

// Holders implements [apply.EC2]. What it shows may be old.
func (h *Handle) Holders(ctx context.Context, _ string, addrs []netip.Addr) (map[netip.Addr]apply.Holder, error) {
	w := h.pod.w
	held := map[netip.Addr]apply.Holder{}
	err := h.do(ctx, holders, "", addrs, false, func(c *Call) error {
		c.View, c.Held = w.now(), map[netip.Addr]string{}
		if w.HoldersLag > 0 && c.View < w.Calm {
			c.View -= time.Duration(mix(w.Seed, "lag", c.Pod, c.N) % uint64(w.HoldersLag)) //nolint:gosec // positive
		}
		for _, a := range addrs {
			if eni := w.holder(a, c.View); eni != "" {
				c.Held[a] = eni
				held[a] = apply.Holder{ENI: eni, Unmanaged: true, DeviceIndex: 1}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return held, nil
}

// Unmanaged implements [apply.EC2].
func (h *Handle) Unmanaged(ctx context.Context, eni string) (bool, error) {
	return true, h.do(ctx, "unmanaged", eni, nil, false, func(*Call) error { return nil })
}

// IPv6Slots implements [apply.EC2]: 3 for others, and what the run's addresses take.
func (h *Handle) IPv6Slots(ctx context.Context, eni string) (int, error) {
	n := 3
	w := h.pod.w
	err := h.do(ctx, "slots", eni, nil, false, func(*Call) error {
		if w.now() < w.FullUntil[eni] {
			n += 10
		}
		for a := range w.holds {
			if a.Is6() && w.holder(a, w.now()) == eni {
				n++
			}
		}
		return nil
	})
	return n, err
}
