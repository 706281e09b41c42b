package bench

import (
	"fmt"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/world"
)

const (
	// many is how many addresses of each family the pod has, on manyENIs ENIs; an ENI of this size takes 49 beside its primary one.
	many, manyENIs = 250, 6
	// free is how many addresses of each family may still come on the first ENI, and manyRounds how often they do.
	free, manyRounds = 7, 4
)

// BenchmarkSidecarMany is a pod with 500 addresses.
func BenchmarkSidecarMany(b *testing.B) {
	c := newCrowd(b)
	agents, samples := &series{program: agentSidecar()}, &series{program: sampleInGo()}
	var ours, theirs []start
	c.begin(agents.program) // from the disk into memory
	for b.Loop() {
		s := c.begin(agents.program)
		c.budget(s)
		ours, theirs = append(ours, s), append(theirs, c.begin(samples.program))
	}
	t := section{
		title: fmt.Sprintf("A pod with %d addresses on %d ENIs (EC2 latency 0 ms)", 2*many, manyENIs),
		rows: [][]string{{"", "budget", fmt.Sprintf("%s (%d starts)", agents.program.name, len(ours)),
			fmt.Sprintf("%s (%d starts)", samples.program.name, len(theirs)), "ratio"}},
	}
	row := func(name, budget, unit string, ours, theirs float64) {
		t.rows = append(t.rows, []string{name, written(budget, unit), written(digits(ours), unit), written(digits(theirs), unit), ratio(ours, theirs)})
	}
	for _, r := range []struct {
		name, budget, unit string
		value              func(start) float64
	}{
		{"start to EC2's last answer, median", "", "ms", func(s start) float64 { return millis(s.Wall) }},
		{"  above EC2's own time, median", "", "ms", func(s start) float64 { return millis(s.above()) }},
		{"  CPU, median", "", "ms", func(s start) float64 { return millis(s.CPU) }},
		{"  EC2 calls", strconv.Itoa(2 * manyENIs), "", func(s start) float64 { return float64(len(s.calls)) }},
		{"  IMDS requests", "", "", func(s start) float64 { return float64(s.imds) }},
	} {
		row(r.name, r.budget, r.unit, over(median, r.value)(ours), over(median, r.value)(theirs))
	}
	after := [2]vitals{}
	for i, s := range []*series{agents, samples} {
		c.begin(s.program)
		for range manyRounds {
			c.additions([]*follower{c.running}, []*series{s}, free)
		}
		after[i] = c.running.examine()
	}
	row("resident set then", "", "MiB", after[0].rss, after[1].rss)
	row("  its own (anonymous)", "", "MiB", after[0].anon, after[1].anon)
	t.rows = append(t.rows, []string{fmt.Sprintf("an address more, %d + %d times:", len(agents.took[0]), len(agents.took[1]))})
	for _, r := range timings("10", []*series{agents, samples}) {
		r[0] = "  " + r[0]
		t.rows = append(t.rows, r)
	}
	shared.summary.add(t)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(over(median, func(s start) float64 { return millis(s.Wall) })(ours), "ms-start")
	b.ReportMetric(after[0].rss, "MiB-RSS")
	b.ReportMetric(millis(Quantile(agents.took[0], p99)), "ms-p99-IPv4")
}

// crowd is a pod with very many addresses, in which one program after the other is started.
type crowd struct {
	*field
	pod     *world.Pod
	running *follower // nil: none
}

func newCrowd(b *testing.B) *crowd {
	b.Helper()
	c := &crowd{field: newField(b, 0)}
	spec := world.PodSpec{Name: "crowd", Namespace: "telco", Node: "one"}
	for eni := range manyENIs {
		spec.Networks = append(spec.Networks, world.Network{ENI: eni + 1})
	}
	for i := range many {
		eni, number := i%manyENIs, 20+i/manyENIs
		spec.Networks[eni].Addresses = append(spec.Networks[eni].Addresses, address(0, eni+1, number), address(1, eni+1, number))
	}
	var err error
	if c.pod, err = c.world.AddPod(spec); err != nil {
		b.Fatal(err)
	}
	// From here on the emulator's data plane stands still: for so many addresses it would take more time than those who are measured.
	// Nobody sends a packet to them.
	c.cloud.Tune(func(s *aws.Settings) { s.Delays.DataPlane = 24 * time.Hour })
	return c
}

// begin ends the program that runs, takes all addresses off the ENIs, starts a program, and waits until they are there again.
func (c *crowd) begin(p program) start {
	c.Helper()
	if c.running != nil {
		if _, err := c.running.Kill(); err != nil {
			c.Fatal(err)
		}
		for _, n := range c.pod.Networks() {
			var addrs []netip.Addr
			for _, a := range n.Addresses {
				addrs = append(addrs, a.Addr())
			}
			if err := c.cloud.Unassign(c.pod.ENI(n.Interface), addrs...); err != nil {
				c.Fatal(err)
			}
		}
	}
	calls, lookups := len(c.cloud.Journal()), len(c.cloud.IMDSJournal())
	c.running = c.start(p, c.pod)
	c.running.index = 1
	c.running.assigned()
	c.pause(apart) // for the answers
	s := start{calls: c.cloud.Journal()[calls:], imds: len(c.cloud.IMDSJournal()) - lookups}
	for _, call := range s.calls {
		s.Wall = max(s.Wall, call.End.Sub(c.running.started))
	}
	var err error
	if s.CPU, err = processCPU(c.running.Pid()); err != nil {
		c.Fatal(err)
	}
	return s
}

// budget fails the benchmark when a start made more EC2 calls than it may.
func (c *crowd) budget(s start) {
	c.Helper()
	if over := OverBudget(s.calls); len(over) > 0 {
		c.Errorf("%d calls beyond one per ENI and address family: %v", len(over), over)
	}
}
