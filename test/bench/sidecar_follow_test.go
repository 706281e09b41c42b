package bench

import (
	"fmt"
	"testing"
	"time"

	"multus-ip-manager.io/test/aws"
)

const (
	// additionsPerTurn is how many addresses of each family the agent is given in a turn; the samples, which are slow and only the
	// yardstick, get fewer.
	additionsPerTurn = 14
	additionsSample  = 6
	// burst is how many addresses come at once, and quick in what time they must have come for that to be true: less than the 2 ms for
	// which the agent waits for more. The kernel takes half of that, so there are tries.
	burst = 10
	quick = 1800 * time.Microsecond
	tries = 5
)

// BenchmarkSidecarEvent is the time from an address's addition to the request at EC2, and what ten additions at once cost.
func BenchmarkSidecarEvent(b *testing.B) {
	f := newField(b, 0)
	all, programs := f.programs()
	var calls [2][]int
	var bursts [2][]time.Duration
	voided := 0
	for b.Loop() {
		f.additions(programs[:1], all[:1], additionsPerTurn)
		for family := range families {
			for range tries {
				n, took, ok := programs[0].burst(family)
				if ok {
					calls[family], bursts[family] = append(calls[family], n), append(bursts[family], took)
					break
				}
				voided++
			}
		}
		f.additions(programs[1:], all[1:], additionsSample)
	}
	t := section{title: "A sidecar sees an address added: until EC2 has received the request (EC2 latency 0 ms)", rows: [][]string{heads(all)}}
	t.rows = append(t.rows, timings("10", all)...)
	for family, name := range families {
		most := Quantile(calls[family], largest)
		t.rows = append(t.rows, []string{fmt.Sprintf("%d %s addresses at once, EC2 calls", burst, name), "1", fmt.Sprint(most)},
			[]string{"  first addition to request, p99", "", fmt.Sprintf("%.1f ms", millis(Quantile(bursts[family], p99)))})
		if most > 1 {
			b.Errorf("%d %s addresses added within %v cost %d calls, want 1", burst, name, quick, most)
		}
		if most == 0 {
			shared.summary.note(fmt.Sprintf("No burst of %s addresses was quick enough to count.", name))
		}
	}
	if voided > 0 {
		shared.summary.note(fmt.Sprintf("%d of the bursts took the benchmark itself longer than %v and were not counted.", voided, quick))
	}
	shared.summary.add(t)
	shared.summary.note("Sidecars: counted from just before the kernel is asked to add the address to the arrival of the request that assigns it, by " +
		"one clock; in brackets how many IPv4 and IPv6 additions. The agent and the samples take turns; meanwhile the others are stopped. The " +
		"samples list the addresses every half second.")
	b.ReportMetric(0, "ns/op") // a round of several programs, which says nothing
	for family, name := range families {
		b.ReportMetric(millis(Quantile(all[0].took[family], median)), "ms-p50-"+name)
		b.ReportMetric(millis(Quantile(all[0].took[family], p99)), "ms-p99-"+name)
	}
}

// programs starts what is compared, each in a pod of its own on an ENI of its own, all but asleep.
func (f *field) programs() ([]*series, []*follower) {
	f.Helper()
	compared := []program{agentSidecar(), sampleInGo()}
	if python, err := sampleInPython(f.Context()); err != nil {
		shared.summary.note("No sample in Python: " + err.Error())
	} else {
		compared = append(compared, python)
	}
	var all []*series
	var programs []*follower
	for i, p := range compared {
		all = append(all, &series{program: p})
		programs = append(programs, f.follow(p, "one", 80, i+1))
		sleep(programs[i:])
	}
	return all, programs
}

// additions adds addresses of both families in pods side by side, one at a time in each, and takes in how long each needed.
func (f *field) additions(programs []*follower, all []*series, perFamily int) {
	f.Helper()
	wake(programs)
	defer sleep(programs)
	events := make([][]event, len(programs))
	for i := range 2 * perFamily {
		for p, l := range programs {
			events[p] = append(events[p], l.add(i%2, spares))
		}
		f.pause(between(apart, 2*apart))
	}
	for p, l := range programs {
		for i, c := range l.requests(events[p]) {
			e := events[p][i]
			all[p].took[e.family] = append(all[p].took[e.family], c.Start.Sub(e.at))
		}
	}
	for p, l := range programs {
		l.clear(events[p])
	}
}

// burst adds addresses at once, and gives the number of calls and the time until the first. It is not ok when this process was too slow.
func (l *follower) burst(family int) (calls int, took time.Duration, ok bool) {
	l.Helper()
	wake([]*follower{l})
	defer sleep([]*follower{l})
	var events []event
	for range burst {
		events = append(events, l.add(family, spares))
	}
	ok = time.Since(events[0].at) < quick
	first := time.Time{}
	seen := map[int]bool{}
	for _, c := range l.requests(events) {
		if seen[c.Seq] = true; first.IsZero() || c.Start.Before(first) {
			first = c.Start
		}
	}
	l.clear(events)
	return len(seen), first.Sub(events[0].at), ok
}

// ownTime is EC2's own time in calls for one address, up to a moment.
func ownTime(calls []aws.Call, until time.Time) time.Duration {
	var sum time.Duration
	for _, c := range calls {
		end := c.End
		if end.IsZero() || end.After(until) {
			end = until
		}
		sum += end.Sub(c.Start)
	}
	return sum
}
