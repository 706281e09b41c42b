package observe

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"multus-ip-manager.io/agent/plan"
)

const (
	// quietWindow is how long after the first event a look waits for more of the same kind: programs that move addresses change
	// several in a row.
	quietWindow = 2 * time.Millisecond
	// busyWindow is that while events pour in, so that looking takes a small part of the time.
	busyWindow = 5 * time.Millisecond
	// busyGap is how soon after a look the next event must come to count as pouring in.
	busyGap = 10 * time.Millisecond
	// firstPause and lastPause bound the pauses between failures in a row. The first failure is followed by another try at once.
	firstPause = 10 * time.Millisecond
	lastPause  = time.Second
	// steady is how long a subscription must have lasted for its end not to count as one more failure in a row.
	steady = time.Second
)

// The reasons for which a watch starts anew.
const (
	// ReasonOverflow: events came faster than they were read, and the kernel dropped some.
	ReasonOverflow = "overflow"
	// ReasonError: the subscription broke, or could not be made, or the namespace could not be listed.
	ReasonError = "error"
)

// Watch follows the network namespace until ctx ends, and then gives nil; it never gives up before. It subscribes first and looks
// second, so that no change is missed, delivers what it sees and then a new snapshot after each change. Events that come together
// share one look, made about 2 ms after the first of them (5 ms while they pour in). When events were lost, it tells resync why
// ([ReasonOverflow], [ReasonError]), subscribes anew and delivers a fresh snapshot in any case; failures in a row are told once.
//
// Snapshots tell an address that was removed and added again within a tick of the kernel's stamp by [plan.Address.Epoch], if that was
// heard. Both functions are called from the calling goroutine and must not block; a delivered snapshot must not be changed.
func (n Namespace) Watch(ctx context.Context, deliver func(plan.Snapshot), resync func(reason string, err error)) error {
	w := &watch{open: subscribe, look: n.Snapshot, deliver: deliver, resync: resync}
	w.run(ctx)
	return nil
}

// watch is one run of [Namespace.Watch]. Sockets are opened and the namespace is looked at in the goroutine that runs it: network
// namespaces belong to threads.
type watch struct {
	open    func() (events, error)
	look    func(context.Context) (plan.Snapshot, error)
	deliver func(plan.Snapshot)
	resync  func(reason string, err error)

	ear ear
	// due: the next look is delivered even if nothing changed. It is the first one, or follows a loss.
	due      bool
	last     plan.Snapshot // delivered
	lastLook time.Time
}

// run subscribes again and again, until ctx ends.
func (w *watch) run(ctx context.Context) {
	w.ear.woken = make(chan struct{}, 1)
	var pause pauses
	told := false
	for ctx.Err() == nil {
		source, err := w.open()
		if err != nil {
			if !told {
				w.resync(ReasonError, err)
			}
			told = true
		} else {
			told = false
			opened := time.Now()
			err = w.follow(ctx, source)
			if ctx.Err() != nil {
				return
			}
			w.resync(reason(err), err)
			if time.Since(opened) >= steady {
				pause = pauses{}
			}
		}
		if !pause.wait(ctx) {
			return
		}
	}
}

// follow looks at once and after each change, until the subscription or ctx ends. The error says why the subscription did.
func (w *watch) follow(ctx context.Context, source events) error {
	w.ear.take() // what was heard before is in the look that follows
	sub := w.ear.listenTo(source)
	defer sub.close()
	w.due = true
	heard := time.Time{}
	for {
		if !w.show(ctx, heard) {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-sub.ended:
			return sub.err
		case <-w.ear.woken:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-sub.ended:
			return sub.err
		case <-time.After(w.window(w.ear.heard())):
		}
		heard = w.ear.take()
	}
}

// window is how long to wait for more events after one that was heard.
func (w *watch) window(heard time.Time) time.Duration {
	until := heard.Add(quietWindow)
	if heard.Sub(w.lastLook) < busyGap {
		until = heard.Add(busyWindow)
	}
	return time.Until(until)
}

// show looks until it succeeds, and delivers what is new. It is false when ctx ended before.
func (w *watch) show(ctx context.Context, heard time.Time) bool {
	var pause pauses
	for {
		started := time.Now()
		s, err := w.look(ctx)
		if err == nil {
			w.lastLook = time.Now()
			w.ear.mark(s.Addresses, started)
			w.judge(s, heard)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if pause.failures == 0 {
			w.resync(ReasonError, err)
		}
		w.due, heard = true, time.Time{}
		if !pause.wait(ctx) {
			return false
		}
	}
}

// judge delivers a snapshot that differs from the one before, or is due.
func (w *watch) judge(s plan.Snapshot, heard time.Time) {
	if !w.due && slices.Equal(s.Links, w.last.Links) && slices.Equal(s.Addresses, w.last.Addresses) {
		return
	}
	w.due = false
	s.Heard = heard
	w.last = s
	w.deliver(s)
}

// reason names why a subscription ended.
func reason(err error) string {
	if errors.Is(err, unix.ENOBUFS) {
		return ReasonOverflow
	}
	return ReasonError
}

// pauses grow with each failure in a row.
type pauses struct {
	failures int
	next     time.Duration
}

// wait pauses after a failure: not at all after the first one, then twice as long each time. It is false when ctx ended.
func (p *pauses) wait(ctx context.Context) bool {
	p.failures++
	if p.failures == 1 {
		return ctx.Err() == nil
	}
	p.next = min(max(firstPause, 2*p.next), lastPause)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(p.next):
		return true
	}
}
