package run

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/report"
)

func many(n int) []string {
	addrs := make([]string, n)
	for i := range addrs {
		addrs[i] = fmt.Sprintf("10.0.1.%d", 10+i)
	}
	return addrs
}

func fault(op, eni string, addrs []netip.Addr, class apply.Class) error {
	return &apply.OpError{Op: op, ENI: eni, Addrs: addrs, Class: class, Err: errors.New(class.String())}
}

// Rule 9: what waiting does not mend costs few calls, however many addresses have it: the account's calls are everybody's.
func TestLastingFaultsCostFewCalls(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newScene(t, pod(map[plan.Link][]string{net1: many(100)}), nil)
		r.table.on = func(_ context.Context, op, eni string, addrs []netip.Addr) error {
			return fault(op, eni, addrs, apply.Denied)
		}
		r.begin()
		r.settle(time.Hour)
		if n := r.count(); n > 30 {
			t.Errorf("%d calls in an hour", n)
		}
		if size := r.log.size(); size > 100_000 {
			t.Errorf("%d bytes of log in an hour", size)
		}
		r.end()
	})
}

// A takeover waits two seconds at most, also in the company of claims that wait longer.
func TestTakeoverPaceInCompany(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newScene(t, pod(map[plan.Link][]string{net1: many(20)}), nil)
		var tries []time.Time
		r.table.on = func(_ context.Context, op, eni string, addrs []netip.Addr) error {
			if op == "holders" && slices.Contains(addrs, netip.MustParseAddr(vip)) {
				tries = append(tries, time.Now())
			}
			if op == "holders" {
				return nil
			}
			return fault(op, eni, addrs, apply.Throttled)
		}
		r.begin()
		r.settle(time.Minute)
		r.kernel.add(net1, vip)
		r.settle(5 * time.Minute)
		r.stop()
		<-r.result
		for i := 1; i < len(tries); i++ {
			if gap := tries[i].Sub(tries[i-1]); gap > 2100*time.Millisecond {
				t.Fatalf("%s between two tries", gap)
			}
		}
		if len(tries) < 100 {
			t.Errorf("%d tries", len(tries))
		}
	})
}

// Rules 4 and 6: a claim that could not be tried for long is no event any more.
func TestLateFirstAttempt(t *testing.T) {
	in(t, func(t *testing.T) {
		var connected atomic.Bool
		r := newScene(t, pod(map[plan.Link][]string{net1: {}}), nil)
		r.sidecar.Connect = func(context.Context) (apply.EC2, error) {
			if !connected.Load() {
				return nil, errors.New("not yet")
			}
			return r.table, nil
		}
		r.begin()
		r.kernel.add(net1, vip)
		r.settle(4 * time.Minute)
		r.readyIs(false, vip, "not yet")
		r.table.move(vip, "eni-9")
		connected.Store(true)
		r.settle(time.Minute)
		r.on(vip, "eni-9")
		r.state(vip, report.StateElsewhere)
		r.end()
	})
}

// An address that another ENI holds is looked at again some day: what nobody holds is taken up, and what came back is seen.
func TestLostIsNotForEver(t *testing.T) {
	for _, to := range []string{"", eni1.ID} {
		t.Run("to "+to, func(t *testing.T) {
			in(t, func(t *testing.T) {
				r := following(t, nil)
				r.table.move("10.0.1.80", "eni-9")
				r.settle(10 * time.Minute)
				r.state("10.0.1.80", report.StateLost)
				r.readyIs(false, "10.0.1.80", "eni-9 claimed")
				r.table.move("10.0.1.80", to)
				r.settle(2 * time.Hour)
				r.on("10.0.1.80", eni1.ID)
				r.readyIs(true)
				r.end()
				r.on("10.0.1.80", "")
			})
		})
	}
}

// Rule 6: a claim that had to wait for a call under way is not newer than one that was made meanwhile.
func TestWaitingClaimTakesNothingNewer(t *testing.T) {
	for _, addr := range []string{vip, vip6} {
		for _, from := range []string{"", "eni-8"} {
			for _, newer := range []bool{true, false} {
				t.Run(fmt.Sprint(addr, from, newer), func(t *testing.T) {
					in(t, func(t *testing.T) {
						r := following(t, nil)
						r.table.move(addr, from)
						r.table.on = func(_ context.Context, op, eni string, addrs []netip.Addr) error {
							if slices.Contains(addrs, netip.MustParseAddr("10.0.1.201")) {
								pass(3 * time.Second)
								return fault(op, eni, addrs, apply.Unanswered)
							}
							return nil
						}
						r.kernel.add(net1, "10.0.1.201")
						r.settle(300 * time.Millisecond)
						r.kernel.add(net1, addr)
						r.settle(time.Second)
						want := eni1.ID
						if newer && (from != "" || addr == vip) {
							want = "eni-9"
							r.table.move(addr, "eni-9")
						}
						r.settle(10 * time.Second)
						r.on(addr, want)
						r.stop()
						<-r.result
					})
				})
			}
		}
	}
}

// The newer of two copies of an address is removed: that is no addition, and takes nothing.
func TestRemovalOfACopyIsNoClaim(t *testing.T) {
	for _, other := range []plan.Link{net1, net2} {
		t.Run(other.Name, func(t *testing.T) {
			in(t, func(t *testing.T) {
				wide := []plan.ENI{eni0, eni1, eni2}
				wide[2].SubnetID, wide[2].Subnets = eni1.SubnetID, eni1.Subnets
				r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80"}, net2: {}}), func(s *Sidecar) {
					s.Locate = &fakeLocator{enis: func(int) ([]plan.ENI, error) { return wide, nil }, all: func(int) ([]plan.ENI, error) { return wide, nil }}
				})
				r.begin()
				r.kernel.add(net1, vip)
				r.settle(time.Second)
				r.kernel.add(other, vip)
				r.settle(time.Second)
				r.table.move(vip, "eni-9")
				r.settle(time.Second)
				r.kernel.change(func(s *plan.Snapshot) {
					last := slices.IndexFunc(s.Addresses, func(a plan.Address) bool { return a.Addr == netip.MustParseAddr(vip) })
					for i, a := range s.Addresses {
						if a.Addr == netip.MustParseAddr(vip) && plan.Newer(a, s.Addresses[last]) {
							last = i
						}
					}
					s.Addresses = slices.Delete(s.Addresses, last, last+1)
				})
				r.settle(2 * time.Minute)
				r.on(vip, "eni-9")
				r.end()
			})
		})
	}
}

// Rule 6: an address that another ENI claimed stays there, and the calls stop.
func TestSplitBrain(t *testing.T) {
	for _, addr := range []string{vip, vip6} {
		t.Run(addr, func(t *testing.T) {
			in(t, func(t *testing.T) {
				r := following(t, nil)
				r.kernel.add(net1, addr)
				r.settle(2 * time.Second)
				r.table.move(addr, "eni-9")
				r.settle(2 * time.Minute)
				r.on(addr, "eni-9")
				r.state(addr, report.StateLost)
				r.forget()
				r.settle(10 * time.Minute)
				r.called()
				r.on(addr, "eni-9")
				r.end()
			})
		})
	}
}

// One look that shows an address on no ENI proves nothing: an IPv6 address is on none in the midst of a move.
func TestOneLookProvesNothing(t *testing.T) {
	in(t, func(t *testing.T) {
		r := following(t, nil)
		r.kernel.add(net1, vip6)
		r.settle(900 * time.Millisecond)
		r.table.move(vip6, "")
		r.settle(time.Second)
		r.on(vip6, "")
		r.table.move(vip6, "eni-9")
		r.settle(5 * time.Minute)
		r.on(vip6, "eni-9")
		r.end()
	})
}

// Rule 2: the release of one ENI's addresses does not wait for calls that hang for another ENI, and all ends in time.
func TestReleaseDoesNotWait(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80"}, net2: {"10.0.2.80"}}), nil)
		r.begin()
		r.table.on = func(ctx context.Context, op, eni string, addrs []netip.Addr) error {
			if eni != eni1.ID {
				return nil
			}
			select {
			case <-time.After(3 * time.Second):
			case <-ctx.Done():
			}
			return fault(op, eni, addrs, apply.Unanswered)
		}
		r.kernel.add(net1, vip)
		r.settle(100 * time.Millisecond)
		started := time.Now()
		r.stop()
		r.settle(time.Millisecond)
		r.on("10.0.2.80", "")
		<-r.result
		if d := time.Since(started); d > 20*time.Second {
			t.Errorf("ended after %s", d)
		}
	})
}

// A refused batch is not taken apart while a newer claim waits.
func TestNewClaimDoesNotWaitForABisection(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newScene(t, pod(map[plan.Link][]string{net1: many(150)}), nil)
		r.table.on = func(_ context.Context, op, eni string, addrs []netip.Addr) error {
			pass(200 * time.Millisecond)
			for _, a := range addrs {
				if op == "assign4" && a.As4()[3]%10 == 0 && a != netip.MustParseAddr(vip) {
					return fault(op, eni, addrs, apply.Refused)
				}
			}
			return nil
		}
		r.begin()
		r.settle(time.Second)
		r.kernel.add(net1, vip)
		r.settle(time.Second)
		r.on(vip, eni1.ID)
		r.settle(2 * time.Minute)
		r.on("10.0.1.11", eni1.ID)
		r.stop()
		<-r.result
	})
}

// An interface whose MAC metadata learns late is found, whatever its kind, and one on a foreign network costs little.
func TestForeignMACs(t *testing.T) {
	in(t, func(t *testing.T) {
		passthru := net2
		passthru.Kind = "macvlan"
		var looks atomic.Int32
		var listed atomic.Bool
		r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80"}, passthru: {"10.0.2.80"}}), func(s *Sidecar) {
			enis := func(int) ([]plan.ENI, error) {
				if looks.Add(1); listed.Load() {
					return []plan.ENI{eni0, eni1, eni2}, nil
				}
				return []plan.ENI{eni0, eni1}, nil
			}
			s.Locate = &fakeLocator{enis: enis, all: enis}
		})
		r.begin()
		r.settle(time.Hour)
		if n := looks.Load(); n > 60 {
			t.Errorf("%d looks in an hour", n)
		}
		listed.Store(true)
		r.settle(2 * time.Hour)
		r.on("10.0.2.80", eni2.ID)
		r.end()
	})
}

// An address that left one of its two interfaces while a call was under way goes on where it stays.
func TestTwoInterfacesInFlight(t *testing.T) {
	in(t, func(t *testing.T) {
		wide := []plan.ENI{eni0, eni1, eni2}
		wide[2].SubnetID, wide[2].Subnets = eni1.SubnetID, eni1.Subnets
		r := newScene(t, pod(map[plan.Link][]string{net1: {"10.0.1.80"}, net2: {}}), func(s *Sidecar) {
			s.Locate = &fakeLocator{enis: func(int) ([]plan.ENI, error) { return wide, nil }, all: func(int) ([]plan.ENI, error) { return wide, nil }}
		})
		r.begin()
		r.kernel.add(net1, vip)
		r.settle(time.Minute)
		r.table.on = func(context.Context, string, string, []netip.Addr) error { pass(time.Second); return nil }
		r.kernel.add(net2, vip)
		r.settle(500 * time.Millisecond)
		r.kernel.remove(net2, vip)
		r.settle(2 * time.Minute)
		r.on(vip, eni1.ID)
		r.state(vip, report.StateAssigned)
		r.end()
	})
}

// A neighbour on the same ENI has the address: what is taken back would be taken from it.
func TestDuplicateIsNotTakenBack(t *testing.T) {
	in(t, func(t *testing.T) {
		r := following(t, nil)
		r.table.on = func(_ context.Context, op, _ string, _ []netip.Addr) error {
			if strings.HasPrefix(op, "assign") {
				pass(2 * time.Second)
			}
			return nil
		}
		r.kernel.add(net1, vip6)
		r.settle(time.Second)
		r.kernel.change(func(s *plan.Snapshot) {
			for i := range s.Addresses {
				s.Addresses[i].DADFailed = s.Addresses[i].Addr == netip.MustParseAddr(vip6)
			}
		})
		r.settle(time.Minute)
		r.on(vip6, eni1.ID)
		r.end()
	})
}

// A process that was stopped for a while is not stuck.
func TestWatchdogCountsSteps(t *testing.T) {
	in(t, func(t *testing.T) {
		w := newWatchdog(time.Minute)
		end := w.begin("work")
		pass(59 * time.Second)
		end()
		pass(time.Hour)
		defer w.begin("other work")()
		pass(59 * time.Second)
		select {
		case what := <-w.stuck:
			t.Errorf("%s is called stuck", what)
		default:
		}
		pass(2 * time.Second)
		if what := <-w.stuck; what != "other work" {
			t.Errorf("%s is called stuck, want the other work", what)
		}
	})
}
