package run

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/observe"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/report"
)

const vip, vip6 = "10.0.1.200", "2001:db8:0:1::200"

// listing is a network-status annotation that lists these addresses: the pod's first start is over.
func listing(addrs ...string) string {
	return `[{"name":"telco/net1","interface":"net1","ips":["` + strings.Join(addrs, `","`) + `"]}]`
}

// following starts a sidecar whose pod came with 10.0.1.80 on net1.
func following(t *testing.T, set func(*Sidecar)) *scene {
	t.Helper()
	r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80"}}), set)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	r.begin()
	r.on("10.0.1.80", eni1.ID)
	r.forget()
	return r
}

func TestSidecarStart(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80", "10.0.1.81", "2001:db8:0:1::80"}, net2: {"10.0.2.80"}}), nil)
		r.begin()
		r.readyIs(true)
		slices.SortFunc(r.table.calls, func(a, b call) int { return strings.Compare(a.what, b.what) })
		r.called("assign4 eni-1 10.0.1.80,10.0.1.81", "assign4 eni-2 10.0.2.80", "assign6 eni-1 2001:db8:0:1::80")
		r.forget()
		r.settle(10 * time.Minute)
		r.called() // rule 7
		r.end()
	})
}

func TestSidecarFollows(t *testing.T) {
	in(t, func(t *testing.T) {
		r := following(t, nil)
		r.kernel.add(net1, vip)
		r.settle(0)
		r.called("assign4 eni-1 " + vip)
		r.state(vip, report.StateAssigned)
		if len(r.meter.takeovers) != 1 {
			t.Errorf("takeovers %v, want one", r.meter.takeovers)
		}
		r.forget()

		// A removal alone releases nothing.
		r.kernel.remove(net1, vip)
		r.settle(5 * time.Minute)
		r.on(vip, eni1.ID)
		r.state(vip, "")

		// Its return is a claim.
		r.table.move(vip, "eni-9")
		r.kernel.add(net1, vip)
		r.settle(0)
		r.called("assign4 eni-1 " + vip)
		r.on(vip, eni1.ID)

		// So is a return that fell between two looks.
		r.forget()
		r.table.move(vip, "eni-9")
		r.settle(time.Second / 2)
		r.kernel.change(func(s *plan.Snapshot) {
			for i := range s.Addresses {
				if s.Addresses[i].Addr.String() == vip {
					s.Addresses[i].CStamp = r.kernel.now()
				}
			}
		})
		r.settle(0)
		r.on(vip, eni1.ID)
		r.called("assign4 eni-1 " + vip)

		// A hot-plugged interface.
		r.kernel.add(net2, "10.0.2.80")
		r.settle(0)
		r.on("10.0.2.80", eni2.ID)
		r.end()
		r.on(vip, eni1.ID) // a floating address is never released
	})
}

// Rule 4: an address that is found at a restart takes nothing from another ENI, and what no ENI holds is taken up.
func TestRestartTakesNothing(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80", vip, vip6, "10.0.1.201"}}), func(s *Sidecar) {
			s.Settings.NetworkStatus = listing("10.0.1.80")
		})
		r.table.move(vip, "eni-9")
		r.table.move(vip6, "eni-9")
		r.begin()
		r.settle(10 * time.Minute)
		r.on("10.0.1.80", eni1.ID)
		r.on("10.0.1.201", eni1.ID)
		r.on(vip, "eni-9")
		r.on(vip6, "eni-9")
		r.readyIs(true)
		if a := r.state(vip, report.StateElsewhere); a.Holder != "eni-9" || a.Origin != report.OriginFloating {
			t.Errorf("status %+v", a)
		}
		r.end()
		r.on(vip, "eni-9")
		r.on("10.0.1.201", eni1.ID)
		r.on("10.0.1.80", "") // it came with the pod
	})
}

// Rule 8: one call for each ENI and family.
func TestRestartCosts(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80", vip, vip6}}), func(s *Sidecar) {
			s.Settings.NetworkStatus = listing("10.0.1.80")
		})
		for _, a := range []string{"10.0.1.80", vip, vip6} {
			r.table.move(a, eni1.ID)
		}
		r.begin()
		r.called("keep4 eni-1 10.0.1.80,"+vip, "assign6 eni-1 "+vip6)
		r.end()
	})
}

// Rule 2: what is released, and what is not.
func TestRelease(t *testing.T) {
	tests := map[string]struct {
		set     func(*scene)
		unset   bool // release: false
		change  func(*scene)
		release bool
	}{
		"an unused address of the pod": {release: true},
		"release is off":               {unset: true},
		"a socket uses it":             {set: func(r *scene) { r.kernel.inUse = map[netip.Addr]string{netip.MustParseAddr("10.0.1.80"): "tcp"} }},
		"sockets cannot be read":       {set: func(r *scene) { r.kernel.inUseErr = errors.New("no") }},
		"it has left the interface":    {change: func(r *scene) { r.kernel.remove(net1, "10.0.1.80") }},
		"it left and came back":        {release: true, change: func(r *scene) { r.kernel.remove(net1, "10.0.1.80"); r.settle(0); r.kernel.add(net1, "10.0.1.80") }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T) {
				r := following(t, func(s *Sidecar) { s.Settings.Release = !tt.unset })
				if tt.set != nil {
					tt.set(r)
				}
				r.kernel.add(net1, vip)
				r.settle(time.Second)
				if tt.change != nil {
					tt.change(r)
					r.settle(0)
				}
				r.end()
				r.on(vip, eni1.ID)
				if want := map[bool]string{true: "", false: eni1.ID}[tt.release]; true {
					r.on("10.0.1.80", want)
				}
			})
		})
	}
}

// Rule 6: an unanswered call for an address that has left is undone, on our own ENI only.
func TestUndo(t *testing.T) {
	for _, addr := range []string{vip, vip6} {
		t.Run(addr, func(t *testing.T) {
			in(t, func(t *testing.T) {
				r := following(t, nil)
				r.table.after = func(_ context.Context, op, eni string, addrs []netip.Addr) error {
					if op == "unassign4" || op == "unassign6" || op == "holders" {
						return nil
					}
					pass(2 * time.Second)
					return &apply.OpError{Op: op, ENI: eni, Addrs: addrs, Class: apply.Unanswered, Err: errors.New("no answer")}
				}
				r.kernel.add(net1, addr)
				r.settle(time.Second)
				r.kernel.remove(net1, addr)
				r.settle(time.Minute)
				r.on(addr, "")
				r.end()
			})
		})
	}
}

// Rule 6 also holds when the news of the removal comes after the answer to the call that was under way; and rule 2, when the address leaves
// after it.
func TestUndoWhenTheNewsIsLate(t *testing.T) {
	for name, c := range map[string]struct {
		left time.Duration
		on   string
	}{
		"left before the answer": {left: 995 * time.Millisecond},
		"left after the answer":  {left: 1005 * time.Millisecond, on: eni1.ID},
	} {
		for _, addr := range []string{vip, vip6} {
			t.Run(name+" "+addr, func(t *testing.T) {
				in(t, func(t *testing.T) {
					r := following(t, nil)
					r.kernel.late = 20 * time.Millisecond
					r.table.after = func(_ context.Context, op, _ string, _ []netip.Addr) error {
						if strings.HasPrefix(op, "assign") {
							pass(980 * time.Millisecond)
						}
						return nil
					}
					r.kernel.add(net1, addr)
					r.settle(c.left)
					r.kernel.remove(net1, addr)
					r.settle(time.Minute)
					r.on(addr, c.on)
					r.end()
				})
			})
		}
	}
}

// Rule 2: an address that a look after the answer did not show, and that turns out to be there, is not taken back when it leaves later.
func TestMissedIsOver(t *testing.T) {
	in(t, func(t *testing.T) {
		r := following(t, nil)
		r.kernel.blind = true
		r.kernel.add(net1, vip)
		r.settle(time.Second)
		r.kernel.blind = false
		r.kernel.add(net1, "10.0.1.201") // news that shows both
		r.settle(10 * time.Second)
		r.on(vip, eni1.ID)
		r.kernel.remove(net1, vip)
		r.settle(time.Minute)
		r.on(vip, eni1.ID)
		r.end()
	})
}

// Rule 6: what left before the answer is undone also when the agent is told to stop before the news comes.
func TestUndoOfWhatLeftUnheard(t *testing.T) {
	in(t, func(t *testing.T) {
		r := following(t, nil)
		r.kernel.late = 20 * time.Millisecond
		r.table.after = func(_ context.Context, op, _ string, _ []netip.Addr) error {
			if strings.HasPrefix(op, "assign") {
				pass(980 * time.Millisecond)
			}
			return nil
		}
		r.kernel.add(net1, vip)
		r.settle(995 * time.Millisecond)
		r.kernel.remove(net1, vip)
		r.settle(10 * time.Millisecond)
		r.end()
		r.on(vip, "")
	})
}

// The same address on another pod's ENI is not touched by the undoing.
func TestUndoTakesNothing(t *testing.T) {
	in(t, func(t *testing.T) {
		r := following(t, nil)
		r.table.after = func(context.Context, string, string, []netip.Addr) error { pass(2 * time.Second); return nil }
		r.kernel.add(net1, vip)
		r.settle(time.Second)
		r.kernel.remove(net1, vip)
		r.table.move(vip, "eni-9")
		r.settle(time.Minute)
		r.on(vip, "eni-9")
		r.end()
	})
}

// Rule 6: after a takeover the winner looks again; what nobody holds is put back, what another has taken stays there.
func TestWinnerLooksAgain(t *testing.T) {
	for _, addr := range []string{vip, vip6} {
		for _, after := range []time.Duration{500 * time.Millisecond, 3 * time.Second, 30 * time.Second, 10 * time.Minute} {
			t.Run(addr+" after "+after.String(), func(t *testing.T) {
				in(t, func(t *testing.T) {
					r := following(t, nil)
					r.kernel.add(net1, addr)
					r.settle(after)
					r.table.move(addr, "")
					if after < 5*time.Second {
						r.settle(15 * time.Second)
						r.on(addr, eni1.ID)
					}
					r.settle(3 * time.Minute)
					r.on(addr, eni1.ID)
					r.state(addr, report.StateAssigned)

					r.table.move(addr, "eni-9")
					r.settle(4 * time.Minute)
					r.on(addr, "eni-9")
					if a := r.state(addr, report.StateLost); a.Holder != "eni-9" {
						t.Errorf("holder %q", a.Holder)
					}
					if r.meter.lost != 1 {
						t.Errorf("%d addresses lost, want 1", r.meter.lost)
					}
					r.forget()
					r.settle(10 * time.Minute)
					r.called()
					r.end()
				})
			})
		}
	}
}

// What work took is given back once, after it.
func TestTidyAfterWork(t *testing.T) {
	in(t, func(t *testing.T) {
		tidied := 0
		r := following(t, func(s *Sidecar) { s.Tidy = func() { tidied++ } })
		for i, want := range []int{1, 1, 2, 2} {
			if i == 2 {
				r.kernel.add(net1, vip)
			}
			r.settle(2 * tickEvery)
			if tidied != want {
				t.Errorf("after %s tidied %d times, want %d", time.Duration(i+1)*2*tickEvery, tidied, want)
			}
		}
		r.end()
	})
}

// Rule 6: a retry reads the holder first, and yields to a newer claim.
func TestRetryYields(t *testing.T) {
	in(t, func(t *testing.T) {
		r := following(t, nil)
		r.table.move(vip, "eni-8")
		var calm atomic.Bool
		r.table.on = func(_ context.Context, op, eni string, addrs []netip.Addr) error {
			if !calm.Load() && op == "assign4" {
				return &apply.OpError{Op: op, ENI: eni, Addrs: addrs, Class: apply.Throttled, Err: errors.New("slow down")}
			}
			return nil
		}
		r.kernel.add(net1, vip)
		r.settle(10 * time.Second)
		if a := r.state(vip, report.StateWaiting); a.Fault != "throttled" {
			t.Errorf("the status says the fault is %q, want throttled", a.Fault)
		}
		r.readyIs(false, vip, "slow down")
		if n := len(r.meter.throttled); n < 4 || r.meter.throttled[n-1] != "assign4 true" {
			t.Errorf("waits for EC2's throttling: %v, want one for each attempt", r.meter.throttled)
		}
		r.table.move(vip, "eni-9")
		calm.Store(true)
		r.settle(5 * time.Minute)
		r.on(vip, "eni-9")
		r.state(vip, report.StateLost)
		r.end()
	})
}

// Rule 9: what waiting does not mend is told, the sidecar stays up and tries slowly.
func TestSidecarStaysUp(t *testing.T) {
	in(t, func(t *testing.T) {
		var allowed atomic.Bool
		r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80"}}), nil)
		r.table.on = func(_ context.Context, op, eni string, addrs []netip.Addr) error {
			if !allowed.Load() {
				return &apply.OpError{Op: op, ENI: eni, Addrs: addrs, Code: "UnauthorizedOperation", Class: apply.Denied, Err: errors.New("not authorized")}
			}
			return nil
		}
		r.begin()
		r.settle(10 * time.Minute)
		r.readyIs(false, "10.0.1.80 on net1", "not authorized")
		if n := r.count(); n < 7 || n > 14 {
			t.Errorf("%d calls in ten minutes", n)
		}
		allowed.Store(true)
		r.settle(7 * time.Minute)
		r.readyIs(true)
		r.end()
	})
}

func TestSidecarWaitsForInterfaces(t *testing.T) {
	in(t, func(t *testing.T) {
		r := following(t, func(s *Sidecar) { s.Settings.Interfaces = []string{"net1", "net2"} })
		r.readyIs(false, "net2")
		r.kernel.add(net2, "10.0.2.80")
		r.settle(0)
		r.readyIs(true)
		r.on("10.0.2.80", eni2.ID)
		r.end()
	})
}

func TestSidecarMetadataAway(t *testing.T) {
	in(t, func(t *testing.T) {
		var back atomic.Bool
		r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80"}}), func(s *Sidecar) {
			s.Locate = &fakeLocator{enis: func(int) ([]plan.ENI, error) {
				if !back.Load() {
					return nil, errors.New("metadata is away")
				}
				return []plan.ENI{eni0, eni1}, nil
			}, all: func(int) ([]plan.ENI, error) { return []plan.ENI{eni0, eni1}, nil }}
		})
		r.begin()
		r.settle(5 * time.Minute)
		r.readyIs(false, "10.0.1.80 on net1", "metadata is away")
		back.Store(true)
		r.settle(5 * time.Second)
		r.readyIs(true)
		r.on("10.0.1.80", eni1.ID)
		r.end()
	})
}

func TestSidecarNoRoute(t *testing.T) {
	in(t, func(t *testing.T) {
		var blocked atomic.Pointer[observe.RouteError]
		r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80"}}), func(s *Sidecar) {
			s.Routes = &fakeRoutes{blocked: blocked.Load}
			s.Locate = &fakeLocator{enis: func(int) ([]plan.ENI, error) {
				if blocked.Load() != nil {
					return nil, errors.New("timeout")
				}
				return []plan.ENI{eni0, eni1}, nil
			}}
		})
		blocked.Store(&observe.RouteError{Endpoint: "169.254.169.254:80", Interface: "net1", Err: errors.New("timeout")})
		r.begin()
		r.settle(2 * time.Minute)
		r.readyIs(false, "default-route")
		blocked.Store(nil)
		r.settle(5 * time.Second)
		r.readyIs(true)
		r.end()
	})
}

// Events that come together share a call; one ENI has one call under way, and the newest claim goes first.
func TestOneCallAtATime(t *testing.T) {
	in(t, func(t *testing.T) {
		r := following(t, nil)
		under := 0
		r.table.on = func(context.Context, string, string, []netip.Addr) error {
			if under++; under > 1 {
				t.Error("two calls are under way for one ENI")
			}
			pass(100 * time.Millisecond)
			under--
			return nil
		}
		r.kernel.add(net1, vip)
		r.settle(time.Millisecond)
		r.kernel.add(net1, "10.0.1.201")
		r.kernel.add(net1, "10.0.1.202")
		r.settle(time.Second / 2)
		r.called("assign4 eni-1 "+vip, "assign4 eni-1 10.0.1.201,10.0.1.202")
		r.end()
	})
}

// A new claim does not wait for the pause of an older one.
func TestNewestFirst(t *testing.T) {
	in(t, func(t *testing.T) {
		r := following(t, nil)
		r.table.on = func(_ context.Context, op, eni string, addrs []netip.Addr) error {
			if slices.Contains(addrs, netip.MustParseAddr("10.0.1.201")) {
				return &apply.OpError{Op: op, ENI: eni, Addrs: addrs, Class: apply.Full, Err: errors.New("full")}
			}
			return nil
		}
		r.kernel.add(net1, "10.0.1.201")
		r.settle(2 * time.Minute)
		if a := r.state("10.0.1.201", report.StateWaiting); a.Fault != report.FaultFull {
			t.Errorf("the status says the fault is %q, want %q", a.Fault, report.FaultFull)
		}
		r.kernel.add(net1, vip)
		r.settle(0)
		r.on(vip, eni1.ID)
		r.end()
	})
}

// An address that is seen late is no claim: somebody may have claimed it since.
func TestLateAddition(t *testing.T) {
	in(t, func(t *testing.T) {
		r := following(t, nil)
		r.table.move(vip, "eni-9")
		stamp := r.kernel.now()
		r.settle(11 * time.Second)
		r.kernel.change(func(s *plan.Snapshot) {
			s.Addresses = append(s.Addresses, plan.Address{Addr: netip.MustParseAddr(vip), Bits: 32, Link: net1, CStamp: stamp})
		})
		r.settle(time.Minute)
		r.on(vip, "eni-9")
		r.state(vip, report.StateElsewhere)
		r.end()
	})
}

// An address on two interfaces counts where it was added last, and goes on where it stays.
func TestTwoInterfaces(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80"}, net2: {}}), func(s *Sidecar) {
			wide := []plan.ENI{eni0, eni1, eni2}
			wide[2].SubnetID, wide[2].Subnets = eni1.SubnetID, eni1.Subnets
			s.Locate = &fakeLocator{enis: func(int) ([]plan.ENI, error) { return wide, nil }, all: func(int) ([]plan.ENI, error) { return wide, nil }}
		})
		r.begin()
		r.kernel.add(net1, vip)
		r.settle(time.Minute)
		r.kernel.add(net2, vip)
		r.settle(time.Minute)
		r.on(vip, eni2.ID)
		r.kernel.remove(net2, vip)
		r.settle(time.Minute)
		r.on(vip, eni1.ID)
		r.end()
	})
}

// An address that comes and goes without end does not use up the account's calls, and is where it belongs when it rests.
func TestFlappingAddress(t *testing.T) {
	in(t, func(t *testing.T) {
		r := following(t, nil)
		for range 6000 {
			r.kernel.add(net1, vip)
			r.settle(5 * time.Millisecond)
			r.kernel.remove(net1, vip)
			r.settle(5 * time.Millisecond)
		}
		if n := r.count(); n > 300 {
			t.Errorf("%d calls in a minute", n)
		}
		r.table.move(vip, "eni-9")
		r.kernel.add(net1, vip)
		r.settle(10 * time.Second)
		r.on(vip, eni1.ID)
		r.end()
	})
}

func TestWatchdog(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80"}}), nil)
		release := make(chan struct{})
		r.table.on = func(context.Context, string, string, []netip.Addr) error { <-release; return nil }
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		started := time.Now()
		err := r.sidecar.Run(ctx)
		close(release)
		var f *report.Failure
		if !errors.As(err, &f) || !strings.Contains(err.Error(), "watchdog") || !strings.Contains(err.Error(), "eni-1") {
			t.Errorf("Run: %v, want the watchdog's word", err)
		}
		if d := time.Since(started); d > 2*time.Minute {
			t.Errorf("noticed after %s", d)
		}
	})
}

func TestSidecarDeadline(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80"}}), func(s *Sidecar) { s.Settings.Deadline = time.Minute })
		r.table.on = func(_ context.Context, op, eni string, addrs []netip.Addr) error {
			return &apply.OpError{Op: op, ENI: eni, Addrs: addrs, Class: apply.Full, Err: errors.New("full")}
		}
		err := r.sidecar.Run(t.Context())
		if report.CodeOf(err) != report.ENIFull {
			t.Errorf("Run: %v, want ENI full", err)
		}
	})
	in(t, func(t *testing.T) {
		r := following(t, func(s *Sidecar) { s.Settings.Deadline = time.Minute })
		r.settle(time.Hour)
		r.readyIs(true)
		r.end()
	})
}
