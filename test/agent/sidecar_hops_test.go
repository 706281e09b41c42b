package agent

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/test/aws"
)

// hops is how often an address goes to and fro.
const hops = 100

// A floating address that is handed over a hundred times always ends on the ENI of the pod that added it last, and stays there.
func TestHundredHops(t *testing.T) {
	ways := []string{"removed, then added", "added without being removed"}
	faults := map[string]struct {
		faults []aws.Fault
		tune   func(*aws.Settings)
	}{
		"no fault": {},
		"delays": {tune: func(s *aws.Settings) {
			s.Latency = 20 * time.Millisecond
			s.Delays = aws.Delays{Describe: 300 * time.Millisecond, IMDS: 3 * time.Second}
		}},
		"throttling":   {faults: []aws.Fault{{Kind: aws.FaultThrottle, Action: "*ssign*", Percent: 20}}},
		"lost answers": {faults: []aws.Fault{{Kind: aws.FaultDrop, Action: "*ssign*", AfterApply: true, Percent: 15}}},
		"everything": {faults: []aws.Fault{
			{Kind: aws.FaultThrottle, Action: "*s", Percent: 10}, {Kind: aws.FaultDrop, Action: "*s", Percent: 5},
			{Kind: aws.FaultDrop, Action: "*ssign*", AfterApply: true, Percent: 10},
			{Kind: aws.FaultError, Action: "*s", Percent: 5}, {Kind: aws.FaultDelay, Action: "*s", Delay: 50 * time.Millisecond, Percent: 20},
		}, tune: otherwise},
	}
	seed := uint64(0)
	for _, way := range ways {
		for _, name := range slices.Sorted(maps.Keys(faults)) {
			f, removes := faults[name], way == ways[0]
			seed++
			t.Run(way+", "+name, func(t *testing.T) {
				l := start(t, nil, aws.WithSeed(seed))
				a, b := l.sidecars(how{})
				if f.tune != nil {
					l.cloud.Tune(f.tune)
				}
				for _, fault := range f.faults {
					l.cloud.Faults().Add(fault)
				}
				n := hops
				if name == "everything" {
					n = 30 // most of which is waiting
				}
				l.hop(a, b, n, removes, name == "no fault")
				l.rest(calm, vip4, vip6)
				l.cloud.Faults().Clear()
				l.rest(time.Second, vip4, vip6)
			})
		}
	}
}

// hop hands the floating addresses to and fro. Without faults a hop costs IPv4 one call.
func (l *lab) hop(a, b *sidecar, hops int, removes, counted bool) {
	l.Helper()
	from, to := b, a
	before := l.changing()
	for i := range hops {
		if removes && i > 0 {
			from.removes(vips()...)
		}
		to.adds(vips()...)
		l.holds(to.eni("net1"), vip4, vip6)
		if counted || !removes {
			// The agent has EC2's answer, too. An address that leaves before it came costs another call; and while a claim is not
			// answered, no retry of it can tell whether the one who held the address before has claimed it anew.
			to.shows(vip4, report.StateAssigned)
			to.shows(vip6, report.StateAssigned)
		}
		from, to = to, from
	}
	calls := l.changing()[len(before):]
	if n := count(calls, assign4); counted && n != hops {
		l.Errorf("%d calls to %s for %d hops, want one each", n, assign4, hops)
	}
	if n := count(calls, unassign4); counted && n != 0 {
		l.Errorf("%d calls to %s, want none", n, unassign4)
	}
	for _, vip := range []string{vip4, vip6} {
		from.shows(vip, report.StateAssigned)
	}
}

// Hand-overs that follow each other faster than EC2 answers settle on one of the two, and stay.
func TestHopsFasterThanEC2(t *testing.T) {
	for way, removes := range map[string]bool{"removed, then added": true, "added without being removed": false} {
		for name, fault := range map[string]aws.Fault{
			"slow":         {Kind: aws.FaultDelay, Action: "*s", Delay: 100 * time.Millisecond},
			"lost answers": {Kind: aws.FaultDrop, Action: "*ssign*", AfterApply: true, Percent: 30},
		} {
			t.Run(way+", "+name, func(t *testing.T) {
				l := start(t, nil, aws.WithSeed(11))
				a, b := l.sidecars(how{})
				active := l.cloud.Faults().Add(fault)
				from, to := b, a
				tick := time.NewTicker(30 * time.Millisecond)
				defer tick.Stop()
				for i := range 60 {
					<-tick.C
					if removes && i > 0 {
						from.removes(vips()...)
					}
					to.adds(vips()...)
					from, to = to, from
				}
				active.Remove()
				l.settles(vip4, vip6)
				for _, vip := range []string{vip4, vip6} {
					if removes {
						// It is on the interface of one alone, and that one's agent sees to it.
						l.holds(from.eni("net1"), vip)
						from.shows(vip, report.StateAssigned)
						continue
					}
					won, lost := l.split(vip, a, b)
					l.holds(won.eni("net1"), vip)
					if line := lost.shows(vip, report.StateLost); line.Holder != won.eni("net1") {
						t.Errorf("%+v", line)
					}
				}
				l.rest(calm, vip4, vip6)
			})
		}
	}
}

// Two pods of one node share an ENI: what one hands to the other is there already, and nothing may take it away.
func TestHopsOnOneENI(t *testing.T) {
	l := start(t, nil)
	a := l.sidecar(l.podOn("one", "a", network(1, "10.0.4.80/22", "fd50:0:0:4::80/64")), how{})
	b := l.sidecar(l.podOn("one", "b", network(1, "10.0.4.81/22", "fd50:0:0:4::81/64")), how{})
	a.ready()
	b.ready()
	eni := a.eni("net1")
	from, to := b, a
	for i := range 20 {
		// Real ipvlan refuses an address that another pod of the ENI has, so there both cannot have it for a while.
		both := i%2 == 1 && !l.world.IPVlan()
		if i > 0 && !both {
			from.removes(vips()...)
		}
		to.adds(vips()...)
		l.holds(eni, vip4, vip6)
		to.shows(vip6, report.StateAssigned)
		if both {
			from.removes(vips()...)
		}
		from, to = to, from
	}
	from.shows(vip4, report.StateAssigned)
	moves := len(l.record.Of(netip.MustParseAddr(vip4)))
	if moves != 1 {
		t.Errorf("%v: want one assignment", l.record.Of(netip.MustParseAddr(vip4)))
	}
	// The end of one pod takes nothing from the other: neither what they share nor what floats.
	to.stop()
	l.rest(2*time.Second, vip4, vip6)
	l.on("one", 1, vip4, vip6, from.pod.Networks()[0].Addresses[0].Addr().String())
	l.nowhere(to.pod.Networks()[0].Addresses[0].Addr().String())
}

// A pod hands an address to another one of its node while EC2 has not answered yet. What the first one's call did is undone for the sake
// of other ENIs; the second one, which has the address on the same ENI, must have it in the end.
func TestHandOverOnOneENIWhileACallIsUnanswered(t *testing.T) {
	l := start(t, nil)
	a := l.sidecar(l.podOn("one", "a", network(1, "10.0.4.80/22", "fd50:0:0:4::80/64")), how{})
	b := l.sidecar(l.podOn("one", "b", network(1, "10.0.4.81/22", "fd50:0:0:4::81/64")), how{})
	a.ready()
	b.ready()
	l.cloud.Faults().Add(aws.Fault{Kind: aws.FaultDelay, Action: "Assign*", AfterApply: true, Delay: time.Second, Times: 2})
	a.adds(vips()...)
	l.holds(a.eni("net1"), vip4)
	a.removes(vips()...)
	b.adds(vips()...)
	b.shows(vip4, report.StateAssigned)
	b.shows(vip6, report.StateAssigned)
	// Whatever is undone is undone within this time, and put back by the second one's look after 5 s.
	<-time.After(calm)
	l.holds(b.eni("net1"), vip4, vip6)
	l.rest(calm, vip4, vip6)
}

// Both pods keep the address: exactly one ENI holds it, the calls stop, and the one that lost says so.
func TestSplitBrainSettles(t *testing.T) {
	for name, tune := range map[string]func(*aws.Settings){
		"quick EC2": func(*aws.Settings) {},
		"slow EC2":  func(s *aws.Settings) { s.Latency = 300 * time.Millisecond },
		"late news": func(s *aws.Settings) { s.Delays = aws.Delays{Describe: 500 * time.Millisecond, IMDS: 20 * time.Second} },
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, nil)
			a, b := l.sidecars(how{})
			l.cloud.Tune(tune)
			done := make(chan struct{})
			go func() {
				defer close(done)
				a.adds(vips()...)
			}()
			b.adds(vips()...)
			<-done
			winners := map[string]int{}
			for _, vip := range []string{vip4, vip6} {
				won, lost := l.split(vip, a, b)
				winners[won.pod.Name()]++
				l.holds(won.eni("net1"), vip)
				if line := lost.shows(vip, report.StateLost); line.Holder != won.eni("net1") || line.Reason == "" {
					t.Errorf("%+v, want the holder %s and a reason", line, won.eni("net1"))
				}
				if line := won.shows(vip, report.StateAssigned); line.Holder != "" {
					t.Errorf("%+v", line)
				}
			}
			t.Logf("won by %v", winners)
			l.rest(calm, vip4, vip6)
			l.quiet(2 * time.Second)
		})
	}
}

// split waits until one of the two tells that it lost the address, and says which is which.
func (l *lab) split(vip string, a, b *sidecar) (won, lost *sidecar) {
	l.Helper()
	var found *sidecar
	l.until("nobody tells that it lost "+vip, func(ctx context.Context) error {
		for _, s := range []*sidecar{a, b} {
			st, err := s.status(ctx)
			if err != nil {
				return err
			}
			for _, line := range st.Addresses {
				if line.Address == vip && line.State == report.StateLost {
					found = s
					return nil
				}
			}
		}
		return errors.New("neither of the two does")
	})
	if found == a {
		return b, a
	}
	return a, b
}

// A restarted agent takes no floating address from another ENI, and does not release it later either.
func TestRestartedSidecarStealsNothing(t *testing.T) {
	l := start(t, nil)
	a, b := l.sidecars(how{})
	a.adds(vips()...)
	l.holds(a.eni("net1"), vip4, vip6)
	a.crash()
	l.quiet(500 * time.Millisecond)
	b.adds(vips()...)
	l.holds(b.eni("net1"), vip4, vip6)
	again := l.sidecar(a.pod, how{restarted: true})
	for _, vip := range []string{vip4, vip6} {
		if line := again.shows(vip, report.StateElsewhere); line.Holder != b.eni("net1") || line.Origin != report.OriginFloating {
			t.Errorf("%+v", line)
		}
	}
	again.ready() // the address is somebody else's business
	l.rest(calm, vip4, vip6)
	again.stop()
	l.rest(time.Second, vip4, vip6)
	l.on("two", 1, vip4, vip6)
	l.nowhere("10.0.4.80", "fd50:0:0:4::80")
	// A new event is a new claim.
	last := l.sidecar(a.pod, how{restarted: true})
	last.ready()
	last.adds(vips()...)
	l.holds(last.eni("net1"), vip4, vip6)
}

// What no ENI holds a restarted agent takes up, and what it held itself it keeps.
func TestRestartedSidecarTakesUpWhatNobodyHolds(t *testing.T) {
	l := start(t, nil)
	s := l.sidecar(l.pod(dual()), how{})
	s.ready()
	s.adds(vips()...)
	l.holds(s.eni("net1"), vip4, vip6)
	s.crash()
	if err := l.cloud.Unassign(s.eni("net1"), netip.MustParseAddr(vip4), netip.MustParseAddr(vip6)); err != nil {
		t.Fatal(err)
	}
	again := l.sidecar(s.pod, how{restarted: true})
	l.holds(s.eni("net1"), vip4, vip6)
	again.shows(vip4, report.StateAssigned)
	again.shows(vip6, report.StateAssigned)
	again.stop()
	l.on("one", 1, vip4, vip6) // it floats still
	l.nowhere("10.0.4.80", "fd50:0:0:4::80")
}

// What came with the pod is the pod's after a restart, too: its IPAM vouches for it.
func TestRestartedSidecarClaimsWhatCameWithThePod(t *testing.T) {
	l := start(t, nil)
	s := l.sidecar(l.pod(dual()), how{})
	s.ready()
	s.crash()
	l.assign(l.world.Node("two").ENI(1), "10.0.4.80", "fd50:0:0:4::80")
	again := l.sidecar(s.pod, how{restarted: true})
	again.ready()
	l.on("one", 1, "10.0.4.80", "fd50:0:0:4::80")
}

// A restart costs at most one call per ENI and family for what came with the pod, and no describe.
func TestRestartedSidecarIsCheap(t *testing.T) {
	l := start(t, nil)
	s := l.sidecar(l.pod(dual()), how{})
	s.ready()
	s.crash()
	before := len(l.calls())
	again := l.sidecar(s.pod, how{restarted: true})
	again.ready()
	for _, c := range l.cloud.Journal()[before:] {
		if strings.HasPrefix(c.Action, "Describe") {
			t.Error(c)
		}
	}
	if n := len(l.calls()) - before; n > 2 {
		t.Errorf("%d calls", n)
	}
}
