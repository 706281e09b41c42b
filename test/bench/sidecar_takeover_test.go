package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/ns"
)

const (
	// hops4 and hops6 are how often the agents' addresses move in a round.
	hops4, hops6 = 4, 2
	// samplePairs is how many pairs of pods with the sample there are for each family. They hop beside the agents, each pair with an
	// address of its own, because each hop takes so long.
	samplePairs = 3
	// sampleTurns is how many addresses of such a pair take turns: one that went away and came back between two of its lists would be
	// lost on the sample.
	sampleTurns = 4
)

// pair is two pods on two nodes, and addresses that move from one to the other, each in its turn.
type pair struct {
	sides  [2]*follower
	family int
	vips   []vip
	next   int // of vips
}

type vip struct {
	netip.Prefix
	at int // the side that has it
}

// BenchmarkSidecarTakeover is the time from an address's addition on another node's pod until it is on that node's ENI.
func BenchmarkSidecarTakeover(b *testing.B) {
	for _, latency := range []time.Duration{0, 100 * time.Millisecond} {
		b.Run(fmt.Sprintf("EC2 latency %d ms", latency.Milliseconds()), func(b *testing.B) {
			f := newField(b, latency)
			agents := f.couple(agentSidecar(), 80, 1)
			ours := []*pair{f.pair(agents, 0, 1, 200, 1), f.pair(agents, 1, 1, 200, 1)}
			var theirs []*pair
			for i := range 2 * samplePairs {
				theirs = append(theirs, f.pair(f.couple(sampleInGo(), 90+2*i, 2), i%2, 2, 200+sampleTurns*i, sampleTurns))
			}
			times, above := &series{program: agentSidecar()}, &series{program: agentSidecar()}
			compared := &series{program: sampleInGo()}
			var calls [2][]int
			for b.Loop() {
				done := make(chan error, 1)
				go func() { done <- f.hopTogether(theirs, compared) }()
				for i := range hops4 + hops6 {
					p := ours[0]
					if i >= hops4 {
						p = ours[1]
					}
					h, err := p.hop()
					if err != nil {
						b.Fatal(err)
					}
					times.took[p.family], above.took[p.family] = append(times.took[p.family], h.took), append(above.took[p.family], h.took-h.ec2)
					calls[p.family] = append(calls[p.family], h.calls)
					f.pause(between(apart, 2*apart))
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
			f.tellTakeover(latency, []*series{times, compared}, above, calls)
		})
	}
}

// couple starts a program in a pod of each node.
func (f *field) couple(p program, number, eni int) [2]*follower {
	f.Helper()
	return [2]*follower{f.follow(p, "one", number, eni), f.follow(p, "two", number+1, eni)}
}

// pair gives the first of two programs addresses that may move, the first of which has the number.
func (f *field) pair(c [2]*follower, family, eni, number, count int) *pair {
	f.Helper()
	p := &pair{sides: c, family: family}
	ctx, cancel := context.WithTimeout(f.Context(), enough)
	defer cancel()
	for i := range count {
		p.vips = append(p.vips, vip{Prefix: address(family, eni, number+i)})
		if err := c[0].pod.NS().AddAddrTo(c[0].link, p.vips[i].Prefix, ns.NoDAD); err != nil {
			f.Fatal(err)
		}
	}
	for _, v := range p.vips {
		if err := f.record.WaitHolder(ctx, v.Addr(), c[0].eni); err != nil {
			f.Fatal(err)
		}
	}
	f.pause(apart)
	return p
}

// hopped is how a hop went: how long it took, EC2's own time in it, and its calls.
type hopped struct {
	took, ec2 time.Duration
	calls     int
}

// hop moves the next address to the other pod, as two keepalived do, and waits until it is on the ENI there.
func (p *pair) hop() (hopped, error) {
	v := &p.vips[p.next]
	p.next = (p.next + 1) % len(p.vips)
	from, to := p.sides[v.at], p.sides[1-v.at]
	if err := from.pod.NS().DelAddrFrom(from.link, v.Prefix); err != nil {
		return hopped{}, err
	}
	at := time.Now()
	if err := to.pod.NS().AddAddrTo(to.link, v.Prefix, ns.NoDAD); err != nil {
		return hopped{}, err
	}
	v.at = 1 - v.at
	ctx, cancel := context.WithTimeout(to.Context(), enough)
	defer cancel()
	var last aws.Change
	if err := to.record.Wait(ctx, v.Addr(), func(changes []aws.Change) bool {
		last = changes[len(changes)-1]
		return last.To == to.eni && last.At.After(at)
	}); err != nil {
		return hopped{}, fmt.Errorf("%s: %w; its output:\n%s", to.program.name, err, tail(to.Output()))
	}
	var calls []aws.Call
	for _, c := range to.cloud.Journal() {
		if !c.Start.Before(at) && c.Start.Before(last.At) && concerns(c, v.Addr()) {
			calls = append(calls, c)
		}
	}
	return hopped{took: last.At.Sub(at), ec2: ownTime(calls, last.At), calls: len(calls)}, nil
}

// hopTogether makes a hop of each pair, each at a time of its own.
func (f *field) hopTogether(ps []*pair, s *series) error {
	var wg sync.WaitGroup
	took, errs := make([]hopped, len(ps)), make([]error, len(ps))
	for i, p := range ps {
		wg.Go(func() {
			select {
			case <-time.After(between(0, samplePause)):
				took[i], errs[i] = p.hop()
			case <-f.Context().Done():
			}
		})
	}
	wg.Wait()
	for i, p := range ps {
		s.took[p.family] = append(s.took[p.family], took[i].took)
	}
	return errors.Join(errs...)
}

// tellTakeover writes the table.
func (f *field) tellTakeover(latency time.Duration, all []*series, above *series, calls [2][]int) {
	f.Helper()
	t := section{title: fmt.Sprintf("A takeover: an address appears on another node's pod, until EC2 has it on the ENI there (EC2 latency %d ms)", latency.Milliseconds()),
		rows: [][]string{heads(all)}}
	t.rows = append(t.rows, timings("", all)...)
	for family, name := range families {
		for _, q := range []struct {
			name string
			q    float64
		}{{"p50", median}, {"p99", p99}} {
			value := millis(Quantile(above.took[family], q.q))
			t.rows = append(t.rows, []string{name + ", above EC2's own time, " + q.name, "", fmt.Sprintf("%.1f ms", value)})
		}
		budget := [2]string{"1", ""}[family]
		t.rows = append(t.rows, []string{name + ", EC2 calls, median and most", budget,
			fmt.Sprintf("%d, %d", Quantile(calls[family], median), Quantile(calls[family], largest))})
	}
	shared.summary.add(t)
	shared.summary.note("Takeovers: the address is removed in one pod and added in the other at once, to and fro; the latency passes before a call takes " +
		"effect. EC2 refuses an IPv6 address that another ENI holds, so it costs more than one call. The samples' addresses rest between their hops: one that " +
		"comes back before the next list is lost on them.")
	f.ReportMetric(0, "ns/op")
	f.ReportMetric(millis(Quantile(all[0].took[0], median)), "ms-p50-IPv4")
	f.ReportMetric(millis(Quantile(all[0].took[0], p99)), "ms-p99-IPv4")
	f.ReportMetric(millis(Quantile(all[0].took[1], median)), "ms-p50-IPv6")
	if most := slices.Max(calls[0]); most > 1 {
		f.Errorf("a takeover of an IPv4 address cost %d calls, want 1", most)
	}
}

// concerns tells whether a call names the address, be it in a search.
func concerns(c aws.Call, a netip.Addr) bool {
	for _, values := range c.Params {
		if slices.Contains(values, a.String()) {
			return true
		}
	}
	return false
}
