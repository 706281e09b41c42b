package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/report"
)

// twoNodes is a run of two pods on two nodes, without faults.
func twoNodes(script ...Step) Config {
	return Config{
		Pods:        []PodConfig{{Name: "a", ENI: "eni-a"}, {Name: "b", ENI: "eni-b"}},
		Script:      script,
		KernelDelay: 2 * time.Millisecond,
		Calm:        30 * time.Second, End: 30*time.Second + 6*time.Minute + rest,
	}
}

// judged plays a run and fails if anything is wrong with it.
func judged(t *testing.T, c Config) *Record {
	t.Helper()
	r := play(t, c)
	if wrong, _ := r.Check(); len(wrong) > 0 {
		t.Fatalf("%s\n%s", strings.Join(wrong, "\n"), r.Trace())
	}
	return r
}

func (r *Record) mutating() (cs []*Call) {
	for _, c := range r.calls {
		if c.mutates() {
			cs = append(cs, c)
		}
	}
	return cs
}

// state is what the pod's agent says of an address at the end.
func (r *Record) state(pod int, addr netip.Addr) string {
	for _, a := range r.Status[pod].Addresses {
		if a.Address == addr.String() {
			return a.State
		}
	}
	return ""
}

func wantHolder(t *testing.T, r *Record, addr netip.Addr, want string) {
	t.Helper()
	if got := r.holder(addr, r.End); got != want {
		t.Errorf("%s is on %q, want %q\n%s", addr, got, want, r.Trace())
	}
}

var families = map[string]netip.Addr{"IPv4": vip4, "IPv6": vip6}

// A hundred hops, by removing first and by adding first: the last to add it has it, and without faults an IPv4 hop costs one changing call.
func TestRule6HundredHops(t *testing.T) {
	for name, addr := range families {
		for _, order := range []time.Duration{-200 * time.Millisecond, 200 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s/%v", name, order), func(t *testing.T) {
				var script []Step
				for hop := range 100 {
					at := time.Duration(hop+1) * 3 * time.Second
					script = append(script, Step{at, hop % 2, Add, addr})
					if hop > 0 {
						script = append(script, Step{at + order, (hop + 1) % 2, Del, addr})
					}
				}
				slices.SortStableFunc(script, func(a, b Step) int { return int(a.At - b.At) })
				c := twoNodes(script...)
				c.Calm = 305 * time.Second
				c.End = c.Calm + 6*time.Minute + rest
				r := judged(t, c)
				wantHolder(t, r, addr, "eni-b")
				if n := len(r.mutating()); addr.Is4() && n != 100 || n > 298 {
					t.Errorf("%d changing calls for 100 hops", n)
				}
			})
		}
	}
}

// Both add it and keep it: one has it, the other says so, and nobody calls EC2 any more.
func TestRule6SplitBrain(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			r := judged(t, twoNodes(Step{time.Second, 0, Add, addr}, Step{3 * time.Second, 1, Add, addr}))
			wantHolder(t, r, addr, "eni-b")
			if a, b := r.state(0, addr), r.state(1, addr); a != report.StateLost || b != report.StateAssigned {
				t.Errorf("the agents say %q and %q", a, b)
			}
			if last := r.calls[len(r.calls)-1]; last.Sent > 90*time.Second {
				t.Errorf("a call at %v: %s", last.Sent, last)
			}
		})
	}
}

// An attempt that settled nothing is not repeated over a claim that came since.
func TestRule6RetryYields(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			c := twoNodes(Step{time.Second, 0, Add, addr}, Step{2500 * time.Millisecond, 1, Add, addr})
			c.Initial = map[netip.Addr]string{addr: "eni-z"} // in IPv6 that nobody held it is no word: so it is in the midst of a move
			c.Fate = func(a Ask) Fate {
				switch {
				case a.Pod == 0 && (a.Op == assign4 || a.Op == assign6) && a.N == 0:
					return Fate{Effect: -1, Answer: 20 * time.Millisecond, Fault: apply.Throttled, Faulty: true}
				case a.Pod == 0 && (a.Op == assign4 || a.Op == assign6) && a.N == 1:
					return Fate{Effect: -1, Answer: -1}
				}
				return smallFates[0].fate
			}
			r := judged(t, c)
			wantHolder(t, r, addr, "eni-b")
			if a := r.state(0, addr); a != report.StateLost {
				t.Errorf("the first agent says %q", a)
			}
		})
	}
}

// So it is when what was read first is that the agent's own ENI held it: that is the holder from before, too.
func TestRule6RetryYieldsAfterOwn(t *testing.T) {
	c := twoNodes(Step{10 * time.Second, 0, Readd, vip4}, Step{11500 * time.Millisecond, 1, Add, vip4})
	c.Pods[0].Floating, c.Pods[0].Restarted = []netip.Addr{vip4}, true
	c.Fate = func(a Ask) Fate {
		switch {
		case a.Pod == 0 && a.Op == assign4 && a.N == 1:
			return Fate{Effect: -1, Answer: 20 * time.Millisecond, Fault: apply.Unavailable, Faulty: true}
		case a.Pod == 0 && a.Op == assign4 && a.N > 1 && a.N < 4:
			return Fate{Effect: -1, Answer: -1}
		}
		return smallFates[0].fate
	}
	wantHolder(t, judged(t, c), vip4, "eni-b")
}

// The address leaves while the call for it is unanswered: what the call did is undone, so that the pod that still has it has it again.
func TestRule6UndoneWhenItLeaves(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			c := twoNodes(Step{time.Second, 1, Add, addr}, Step{4 * time.Second, 0, Add, addr}, Step{4500 * time.Millisecond, 0, Del, addr})
			c.Fate = func(a Ask) Fate {
				if a.Pod == 0 && (a.Op == assign4 || a.Op == assign6) {
					return Fate{Effect: 20 * time.Millisecond, Answer: -1}
				}
				return smallFates[0].fate
			}
			wantHolder(t, judged(t, c), addr, "eni-b")
		})
	}
}

// So it is when it leaves in a pause between two attempts.
func TestRule6UndoneWhenItLeavesInAPause(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			c := twoNodes(Step{time.Second, 1, Add, addr}, Step{4 * time.Second, 0, Add, addr}, Step{12 * time.Second, 0, Del, addr})
			c.Fate = func(a Ask) Fate {
				switch {
				case a.Pod == 0 && (a.Op == assign4 || a.Op == assign6):
					return Fate{Effect: 20 * time.Millisecond, Answer: -1}
				case a.Pod == 0 && a.Op == holders && addr.Is4():
					return Fate{Effect: -1, Answer: 10 * time.Millisecond, Fault: apply.Throttled, Faulty: true}
				case a.Pod == 0 && a.Op == holders && a.N > 0:
					return Fate{Effect: -1, Answer: 10 * time.Millisecond, Fault: apply.Throttled, Faulty: true}
				}
				return smallFates[0].fate
			}
			wantHolder(t, judged(t, c), addr, "eni-b")
		})
	}
}

// An agent that has lost an address in the middle of an IPv6 move has nothing left to do for it when it is told to stop.
func TestRule6YieldedOwesNothing(t *testing.T) {
	c := twoNodes(Step{time.Second, 0, Add, vip6}, Step{1120 * time.Millisecond, 1, Add, vip6}, Step{At: 20 * time.Second, Do: Stop})
	c.Initial = map[netip.Addr]string{vip6: "eni-z"}
	c.Fate = func(a Ask) Fate {
		if a.Pod == 0 && a.Op == assign6 && a.N == 1 {
			return Fate{Effect: -1, Answer: 100 * time.Millisecond, Fault: apply.Throttled, Faulty: true}
		}
		return smallFates[0].fate
	}
	r := judged(t, c)
	wantHolder(t, r, vip6, "eni-b")
	if cs := r.callsOf(0, 0, vip6, 20*time.Second, far); len(cs) > 0 {
		t.Errorf("%d calls after the stop, the first is %s\n%s", len(cs), cs[0], r.Trace())
	}
}

// An address that comes back while the agent stops is not taken for gone.
func TestRule2StopLooksAgain(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			c := twoNodes(Step{time.Second, 0, Add, addr}, Step{1500 * time.Millisecond, 0, Del, addr}, Step{At: 2 * time.Second, Do: Stop}, Step{2500 * time.Millisecond, 0, Add, addr})
			c.Fate = func(a Ask) Fate {
				if a.N == 0 {
					return Fate{Effect: 20 * time.Millisecond, Answer: -1}
				}
				return smallFates[0].fate
			}
			wantHolder(t, judged(t, c), addr, "eni-a")
		})
	}
}

// What earlier calls went without an answer does not count any more once EC2 has said that the address is there: its removal releases nothing.
func TestRule2SettledIsSettled(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			c := twoNodes(Step{time.Second, 0, Add, addr}, Step{20 * time.Second, 0, Del, addr})
			c.Initial = map[netip.Addr]string{addr: "eni-z"}
			c.Fate = func(a Ask) Fate {
				if a.Op != holders && a.N == 0 {
					return Fate{Effect: -1, Answer: -1}
				}
				return smallFates[0].fate
			}
			wantHolder(t, judged(t, c), addr, "eni-a")
		})
	}
}

// Removal from the interface releases nothing, nor do a crash and a stop release what floats.
func TestRule2FloatingStays(t *testing.T) {
	for name, addr := range families {
		for end, step := range map[string]Step{"removed": {Do: Del, Addr: addr}, "stopped": {Do: Stop}, "crashed": {Do: Crash}} {
			t.Run(name+"/"+end, func(t *testing.T) {
				step.At = 10 * time.Second
				r := judged(t, twoNodes(Step{time.Second, 0, Add, addr}, step))
				wantHolder(t, r, addr, "eni-a")
			})
		}
	}
}

// What came with the pod is released when the agent is told to stop, unless something speaks against it.
func TestRule2Release(t *testing.T) {
	for name, addr := range families {
		for _, tt := range []struct {
			what     string
			script   []Step
			pod      PodConfig
			released bool
		}{
			{"released", nil, PodConfig{Came: []netip.Addr{addr}}, true},
			{"switched off", nil, PodConfig{Came: []netip.Addr{addr}, Keep: true}, false},
			{"in use", []Step{{5 * time.Second, 0, Use, addr}}, PodConfig{Came: []netip.Addr{addr}}, false},
			{"in use no more", []Step{{5 * time.Second, 0, Use, addr}, {6 * time.Second, 0, Unuse, addr}}, PodConfig{Came: []netip.Addr{addr}}, true},
			{"has left", []Step{{5 * time.Second, 0, Del, addr}}, PodConfig{Came: []netip.Addr{addr}}, false},
			{"restarted, came", nil, PodConfig{Came: []netip.Addr{addr}, Restarted: true}, true},
			{"restarted, floats", nil, PodConfig{Floating: []netip.Addr{addr}, Restarted: true}, false},
			{"lost", []Step{{5 * time.Second, 1, Add, addr}}, PodConfig{Came: []netip.Addr{addr}}, false},
		} {
			t.Run(name+"/"+tt.what, func(t *testing.T) {
				c := twoNodes(append(tt.script, Step{At: 10 * time.Second, Do: Stop})...)
				tt.pod.Name, tt.pod.ENI = "a", "eni-a"
				c.Pods[0] = tt.pod
				r := judged(t, c)
				want := "eni-a"
				switch {
				case tt.released:
					want = ""
				case tt.what == "lost":
					want = "eni-b"
				}
				wantHolder(t, r, addr, want)
			})
		}
	}
}

// A restarted agent takes nothing that floats from another ENI, whether it had lost it or never had it, and takes up what nobody holds.
func TestRule4RestartTakesNothing(t *testing.T) {
	for name, addr := range families {
		t.Run(name+"/split brain", func(t *testing.T) {
			r := judged(t, twoNodes(Step{time.Second, 0, Add, addr}, Step{3 * time.Second, 1, Add, addr},
				Step{At: 10 * time.Second, Do: Crash}, Step{At: 11 * time.Second, Do: Start}))
			wantHolder(t, r, addr, "eni-b")
			if a := r.state(0, addr); a != report.StateElsewhere {
				t.Errorf("the restarted agent says %q", a)
			}
		})
		t.Run(name+"/added while no agent looked", func(t *testing.T) {
			r := judged(t, twoNodes(Step{time.Second, 1, Add, addr}, Step{At: 2 * time.Second, Do: Crash}, Step{3 * time.Second, 0, Add, addr},
				Step{At: 4 * time.Second, Do: Start}))
			wantHolder(t, r, addr, "eni-b")
		})
		t.Run(name+"/held by nobody", func(t *testing.T) {
			c := twoNodes()
			c.Pods[0].Floating, c.Pods[0].Restarted = []netip.Addr{addr}, true
			wantHolder(t, judged(t, c), addr, "eni-a")
		})
		t.Run(name+"/came with the pod", func(t *testing.T) {
			c := twoNodes()
			c.Pods[0].Came, c.Pods[0].Restarted = []netip.Addr{addr}, true
			c.Initial = map[netip.Addr]string{addr: "eni-z"}
			wantHolder(t, judged(t, c), addr, "eni-a")
		})
	}
}

// An address found on another ENI at a restart is taken up once that one has given it back.
func TestRule4TakenUpLater(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			c := twoNodes(Step{At: 3 * time.Second, Pod: 1, Do: Stop})
			c.Pods[0].Floating, c.Pods[0].Restarted = []netip.Addr{addr}, true
			c.Pods[1].Came = []netip.Addr{addr}
			c.Initial = map[netip.Addr]string{addr: "eni-b"}
			wantHolder(t, judged(t, c), addr, "eni-a")
		})
	}
}

// An address that was lost and comes back is claimed anew, also when removal and return fall into one hundredth of a second.
func TestRule6WonBack(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			r := judged(t, twoNodes(Step{time.Second, 0, Add, addr}, Step{3 * time.Second, 1, Add, addr}, Step{20 * time.Second, 0, Readd, addr}))
			wantHolder(t, r, addr, "eni-a")
		})
	}
}

// At rest nothing is asked of EC2, whatever metadata lists: one call for each address, and one look of the winner that asks EC2.
func TestRule7Rest(t *testing.T) {
	c := twoNodes(Step{time.Second, 0, Add, vip4}, Step{time.Second, 1, Add, vip6})
	c.End = time.Hour
	r := judged(t, c)
	if n := len(r.calls); n != 4 {
		t.Errorf("%d calls, want 4\n%s", n, r.Trace())
	}
	for _, call := range r.calls {
		if call.Sent > 10*time.Second {
			t.Errorf("a call at %s", call.Sent)
		}
	}
}

// A call that takes effect after its client gave up may undo a newer claim: no agent can know of it. Everything else holds all the same.
func TestLateEffects(t *testing.T) {
	kinds := map[string]int{}
	const n = 1000
	for i := range n {
		r := play(t, Random(uint64(i)+1, Faults{Rate: 1, Late: true}))
		wrong, _ := r.Check()
		for _, w := range wrong {
			kind, _, _ := strings.Cut(w, ":")
			kinds[kind]++
			if kind != "rule 6" && kind != "status" {
				t.Errorf("%s\nreplay: go test ./test/sim -run 'TestRandom$' -late -seed %d", w, i+1)
			}
		}
	}
	t.Logf("in %d runs: %v", n, kinds)
	if kinds["rule 6"] > n/50 {
		t.Errorf("%d of %d runs ended on the wrong ENI", kinds["rule 6"], n)
	}
}
