package observe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"multus-ip-manager.io/agent/plan"
)

// bench is a namespace of the test's own making: what it announces and what it shows.
type bench struct {
	t         *testing.T
	watch     *watch
	sources   []*fakeEvents
	openErr   error
	lookErr   error
	opened    []time.Time // tries
	looked    []time.Time // tries
	delivered []plan.Snapshot
	resyncs   []string
	links     []plan.Link
	addrs     []plan.Address
	onLook    func()
	// turns orders what the test and the watch do, for the race detector: both count at the beginning of what they do.
	turns atomic.Int64
}

// fakeEvents is a subscription that the test speaks through.
type fakeEvents struct {
	said   chan []syscall.NetlinkMessage
	broken chan error
	closed chan struct{}
}

func (f *fakeEvents) receive() ([]syscall.NetlinkMessage, error) {
	select {
	case m := <-f.said:
		return m, nil
	case err := <-f.broken:
		return nil, err
	case <-f.closed:
		return nil, os.ErrClosed
	}
}

func (f *fakeEvents) close() { close(f.closed) }

func newBench(t *testing.T) *bench {
	b := &bench{t: t}
	b.watch = &watch{
		open: func() (events, error) {
			b.turns.Add(1)
			b.opened = append(b.opened, time.Now())
			if b.openErr != nil {
				return nil, b.openErr
			}
			f := &fakeEvents{said: make(chan []syscall.NetlinkMessage), broken: make(chan error), closed: make(chan struct{})}
			b.sources = append(b.sources, f)
			return f, nil
		},
		look: func(context.Context) (plan.Snapshot, error) {
			b.turns.Add(1)
			b.looked = append(b.looked, time.Now())
			if len(b.sources) == 0 {
				t.Error("looked before there was a subscription: what changes in between is missed")
			}
			if b.onLook != nil {
				b.onLook()
			}
			return plan.Snapshot{Links: slices.Clone(b.links), Addresses: slices.Clone(b.addrs), Stamp: uint32(len(b.looked))}, b.lookErr //nolint:gosec // few
		},
		deliver: func(s plan.Snapshot) { b.delivered = append(b.delivered, s) },
		resync:  func(reason string, err error) { b.resyncs = append(b.resyncs, fmt.Sprintf("%s: %v", reason, err)) },
	}
	return b
}

// run starts the watch and gives control when it has nothing more to do. It ends with the test's bubble.
func (b *bench) run() {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.watch.run(ctx)
	}()
	b.t.Cleanup(func() {
		cancel()
		<-done
		for i, s := range b.sources {
			select {
			case <-s.closed:
			default:
				b.t.Errorf("subscription %d is still open at the end", i+1)
			}
		}
	})
	synctest.Wait()
}

func (b *bench) source() *fakeEvents { return b.sources[len(b.sources)-1] }

// say announces something and lets time pass.
func (b *bench) say(after time.Duration, msgs ...syscall.NetlinkMessage) {
	b.turns.Add(1)
	b.source().said <- msgs
	b.pass(after)
}

func (b *bench) pass(d time.Duration) {
	b.turns.Add(1)
	<-time.After(d)
	synctest.Wait()
}

func (b *bench) wantDelivered(n int) {
	b.t.Helper()
	if len(b.delivered) != n {
		b.t.Fatalf("%d snapshots delivered, want %d: %v", len(b.delivered), n, b.delivered)
	}
}

func (b *bench) lastDelivered() plan.Snapshot { return b.delivered[len(b.delivered)-1] }

func event(kind uint16, index uint32, address string, stamp uint32) syscall.NetlinkMessage {
	addr := netip.MustParseAddr(address)
	family := byte(unix.AF_INET6)
	if addr.Is4() {
		family = unix.AF_INET
	}
	return syscall.NetlinkMessage{
		Header: syscall.NlMsghdr{Type: kind},
		Data:   message(family, 32, 0, 0, index, attr(unix.IFA_ADDRESS, ip(address)), attr(unix.IFA_CACHEINFO, u32(1, 1, stamp, stamp+9))),
	}
}

func vip(stamp uint32) plan.Address {
	return plan.Address{Addr: netip.MustParseAddr("10.0.4.80"), Bits: 32, Link: plan.Link{Index: 7, Name: "net1"}, CStamp: stamp}
}

// linkEvent is an announcement that says nothing about addresses.
var linkEvent = syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWLINK}}

func TestWatchLooksOnceForEventsThatComeTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.run()
		b.wantDelivered(1)
		if len(b.opened) != 1 || !b.lastDelivered().Heard.IsZero() {
			t.Errorf("opened %d times, first snapshot heard at %v", len(b.opened), b.lastDelivered().Heard)
		}

		b.pass(time.Minute)
		if len(b.looked) != 1 {
			t.Fatalf("%d looks in a minute without an event, want the first only", len(b.looked))
		}
		b.addrs = []plan.Address{vip(1)}
		first := time.Now()
		b.say(time.Millisecond, event(unix.RTM_NEWADDR, 7, "10.0.4.80", 1))
		b.say(0, event(unix.RTM_NEWADDR, 7, "10.0.4.81", 1), linkEvent)
		b.wantDelivered(1)
		b.pass(time.Second)
		b.wantDelivered(2)
		if len(b.looked) != 2 {
			t.Errorf("%d looks, want one for all three events", len(b.looked)-1)
		}
		s := b.lastDelivered()
		if late := b.looked[1].Sub(first); late > 3*time.Millisecond {
			t.Errorf("looked %v after the first event, want at most 3 ms", late)
		}
		if !s.Heard.Equal(first) || s.Stamp == 0 || !slices.Equal(s.Addresses, b.addrs) {
			t.Errorf("got %+v, want the address, heard at %v, with a stamp", s, first)
		}
		if len(b.resyncs) != 0 {
			t.Errorf("told %v", b.resyncs)
		}
	})
}

// What was announced between the subscription and the first look has its look, and nothing is delivered twice.
func TestWatchKeepsSilentWhenNothingChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.addrs, b.links = []plan.Address{vip(1)}, []plan.Link{{Index: 7, Name: "net1"}}
		b.run()
		b.say(time.Second, event(unix.RTM_NEWADDR, 7, "10.0.4.80", 1))
		b.say(time.Second, linkEvent)
		b.say(time.Second) // something that could not be understood
		if len(b.looked) != 4 {
			t.Errorf("%d looks, want 4", len(b.looked))
		}
		b.wantDelivered(1)
		changes := []func(){
			func() { b.links = []plan.Link{{Index: 7, Name: "renamed"}} },
			func() { b.links = nil },
			func() { b.addrs = []plan.Address{vip(2)} },
			func() { b.addrs = nil },
		}
		for i, change := range changes {
			change()
			b.say(time.Second, linkEvent)
			b.wantDelivered(i + 2)
		}
	})
}

// An event that comes while the namespace is looked at has a look of its own.
func TestWatchMissesNothingThatComesDuringALook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.run()
		b.onLook = func() {
			b.onLook = nil
			b.source().said <- []syscall.NetlinkMessage{linkEvent}
			synctest.Wait()
		}
		b.say(time.Second, linkEvent)
		if len(b.looked) != 3 {
			t.Errorf("%d looks, want one for each of the two events", len(b.looked)-1)
		}
	})
}

func TestWatchLooksSeldomWhileEventsPourIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.run()
		const seconds = 60
		for i := range seconds * 1000 {
			b.addrs = []plan.Address{vip(uint32(i))} //nolint:gosec // few
			b.say(time.Millisecond, event(unix.RTM_DELADDR, 7, "10.0.4.80", uint32(i)))
		}
		b.pass(time.Second)
		if n := len(b.looked); n > seconds*1000/5+10 || n < seconds*1000/7 {
			t.Errorf("%d looks in %d s with 1000 events a second, want one in 5 to 6 ms", n, seconds)
		}
		for i, s := range b.delivered[2:] {
			if late := b.looked[i+2].Sub(s.Heard); late > 6*time.Millisecond {
				t.Fatalf("looked %v after an event", late)
			}
		}
		if !slices.Equal(b.lastDelivered().Addresses, b.addrs) {
			t.Errorf("the last snapshot shows %v, want %v", b.lastDelivered().Addresses, b.addrs)
		}
		if n := len(b.watch.ear.past.heard); n > 3000 {
			t.Errorf("%d removals are remembered, want those of the last 2 s", n)
		}
	})
}

// A loss is told once with its reason, the namespace is subscribed to and looked at again at once, and delivered even if unchanged.
func TestWatchStartsAnewAfterALoss(t *testing.T) {
	tests := map[string]struct {
		err  error
		want string
	}{
		"overflow": {fmt.Errorf("receive: %w", unix.ENOBUFS), "overflow: receive: no buffer space available"},
		"closed":   {os.ErrClosed, "error: file already closed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.run()
				b.pass(time.Minute)
				b.source().said <- []syscall.NetlinkMessage{linkEvent} // its look is overtaken by the loss
				lost := time.Now()
				b.source().broken <- tt.err
				synctest.Wait()
				b.wantDelivered(2)
				if !b.looked[1].Equal(lost) || len(b.sources) != 2 {
					t.Errorf("looked %v after the loss by %d subscriptions, want at once by a second one", b.looked[1].Sub(lost), len(b.sources))
				}
				if !b.lastDelivered().Heard.IsZero() {
					t.Error("no event led to the look after a loss")
				}
				b.pass(time.Second)
				if !slices.Equal(b.resyncs, []string{tt.want}) {
					t.Errorf("told %q, want %q", b.resyncs, tt.want)
				}
				if len(b.looked) != 2 {
					t.Errorf("%d looks, want 2: what was heard before the loss is in the look after it", len(b.looked))
				}
				b.addrs = []plan.Address{vip(1)}
				b.say(time.Second, linkEvent)
				b.wantDelivered(3)
			})
		})
	}
}

// Whatever fails again and again is tried forever, with pauses up to a second, and a failure in a row is told once.
func TestWatchNeverGivesUp(t *testing.T) {
	failure := errors.New("out of descriptors")
	tests := map[string]struct {
		fail  func(b *bench, err error)
		tries func(b *bench) int
	}{
		"subscription": {func(b *bench, err error) { b.openErr = err }, func(b *bench) int { return len(b.opened) }},
		"look":         {func(b *bench, err error) { b.lookErr = err }, func(b *bench) int { return len(b.looked) }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				tt.fail(b, failure)
				b.run()
				if n := tt.tries(b); n != 2 {
					t.Errorf("%d tries at once, want 2", n)
				}
				b.pass(time.Hour)
				if n := tt.tries(b); n < 3600 || n > 3620 {
					t.Errorf("%d tries in an hour, want about one a second", n)
				}
				b.wantDelivered(0)
				tt.fail(b, nil)
				b.pass(time.Second)
				b.wantDelivered(1)
				if !slices.Equal(b.resyncs, []string{"error: " + failure.Error()}) {
					t.Errorf("told %q, want the failure once", b.resyncs)
				}
			})
		})
	}
}

// A subscription that breaks again and again does not become a busy loop, and one that lasted starts with a clean record.
func TestWatchPausesBetweenLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.run()
		for range 20 {
			n := len(b.sources)
			b.source().broken <- unix.ENOBUFS
			for len(b.sources) == n {
				b.pass(time.Millisecond)
			}
		}
		if gap := b.opened[20].Sub(b.opened[19]); gap < time.Second || gap > time.Second+10*time.Millisecond {
			t.Errorf("the 20th loss in a row is followed by a pause of %v, want 1 s", gap)
		}
		b.pass(2 * time.Second)
		lost := time.Now()
		b.source().broken <- unix.ENOBUFS
		synctest.Wait()
		if !b.opened[len(b.opened)-1].Equal(lost) {
			t.Error("after a subscription that lasted, the next one comes at once")
		}
		if len(b.resyncs) != 21 {
			t.Errorf("%d losses told, want 21", len(b.resyncs))
		}
	})
}

// A look that fails after an event was heard is repeated, although no other event comes.
func TestWatchRepeatsAFailedLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.run()
		b.lookErr = errors.New("interrupted")
		b.addrs = []plan.Address{vip(1)}
		b.say(100*time.Millisecond, linkEvent)
		b.lookErr = nil
		b.pass(time.Second)
		b.wantDelivered(2)
		if !slices.Equal(b.lastDelivered().Addresses, b.addrs) {
			t.Errorf("delivered %v", b.lastDelivered())
		}
	})
}

// Nothing is left when the watch ends, whatever it was doing.
func TestWatchEnds(t *testing.T) {
	tests := map[string]func(b *bench){
		"at rest":        func(*bench) {},
		"in a window":    func(b *bench) { b.source().said <- []syscall.NetlinkMessage{linkEvent} },
		"unable to open": func(b *bench) { b.openErr = unix.EMFILE; b.source().broken <- unix.ENOBUFS; b.pass(time.Minute) },
		"unable to look": func(b *bench) { b.lookErr = unix.EMFILE; b.say(time.Minute, linkEvent) },
		"after many losses": func(b *bench) {
			for range 3 {
				b.source().broken <- unix.ENOBUFS
				b.pass(50 * time.Millisecond)
			}
			b.source().broken <- unix.ENOBUFS // and pauses
		},
	}
	for name, arrange := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					b.watch.run(ctx)
				}()
				synctest.Wait()
				arrange(b)
				synctest.Wait()
				start := time.Now()
				n := len(b.delivered)
				cancel()
				<-done // a goroutine that stays fails the bubble
				if d := time.Since(start); d != 0 {
					t.Errorf("ended after %v", d)
				}
				if len(b.delivered) != n {
					t.Error("delivered something after its end")
				}
				select {
				case <-b.source().closed:
				default:
					t.Error("the subscription is still open")
				}
			})
		})
	}
}

// An address that goes and comes back within one tick of the kernel's stamp looks the same; only the events tell.
func TestWatchTellsAdditionsOfOneTickApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.addrs = []plan.Address{vip(4711)}
		b.run()
		gone, back := event(unix.RTM_DELADDR, 7, "10.0.4.80", 4711), event(unix.RTM_NEWADDR, 7, "10.0.4.80", 4711)
		epoch := func() uint64 { return b.lastDelivered().Addresses[0].Epoch }

		b.say(time.Second, gone, back)
		b.wantDelivered(2)
		first := epoch()
		if first == 0 {
			t.Fatal("the address was removed and added again, and no epoch tells")
		}
		b.say(time.Second, back) // its flags changed
		b.wantDelivered(2)
		b.source().broken <- unix.ENOBUFS
		b.pass(time.Hour)
		b.wantDelivered(3)
		b.say(time.Second, linkEvent)
		if epoch() != first {
			t.Errorf("epoch %d after a loss and an hour, want still %d", epoch(), first)
		}
		b.say(0, gone)
		b.say(time.Second, back)
		b.wantDelivered(4)
		if epoch() == first || epoch() == 0 {
			t.Errorf("epoch %d after another addition, want neither %d nor 0", epoch(), first)
		}
	})
}
