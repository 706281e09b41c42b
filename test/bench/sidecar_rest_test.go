package bench

import (
	"fmt"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"multus-ip-manager.io/test/aws"
)

const (
	// restPerRound is how long nothing happens in a round. Fifteen rounds, the Makefile's number, are a minute and as much more as the
	// agent's own minute may be longer: one of its ticks is in it.
	restPerRound = 66 * time.Second / 15
	// settle is how long after the start the rest begins.
	settle = 3 * time.Second
	// restRSS and restCPU are the budgets at rest, in MiB and percent of a core.
	restRSS, restCPU = 16, 0.1
	// listProcesses is how many processes the sample in Python starts for a list: a shell and the four programs of its pipe.
	listProcesses = 5
)

// resting is a program that is looked at while it has nothing to do.
type resting struct {
	*follower
	before, after vitals
	forks         float64
	calls, imds   int
}

// BenchmarkSidecarRest is what sidecars cost while nothing happens, all at the same time.
func BenchmarkSidecarRest(b *testing.B) {
	f := newField(b, 0)
	all := []*resting{{follower: f.follow(agentSidecar(), "one", 80, 1, 2)}, {follower: f.follow(sampleInGo(), "two", 81, 1, 2)}}
	if python, err := sampleInPython(b.Context()); err == nil {
		all = append(all, &resting{follower: f.follow(python, "two", 82, 3, 4)})
	}
	f.pause(settle)
	calls, lookups := len(f.cloud.Journal()), len(f.cloud.IMDSJournal())
	start := time.Now()
	for _, r := range all {
		r.before = r.examine()
	}
	for b.Loop() {
		f.pause(restPerRound)
	}
	for _, r := range all {
		r.after = r.examine()
	}
	rest := time.Since(start)
	made, looked := f.cloud.Journal()[calls:], f.cloud.IMDSJournal()[lookups:]
	for _, r := range all {
		r.calls, r.imds = r.of(made), r.of(looked)
		r.countForks()
	}
	f.judgeRest(all, rest)
}

// of counts the calls that came from the program's node.
func (r *resting) of(calls []aws.Call) int {
	n := 0
	for _, c := range calls {
		if c.Instance == r.pod.Node().Instance() {
			n++
		}
	}
	return n
}

// countForks finds out how many processes it has started. Nobody counts those of one process alone, so either it had no child at all,
// or it is the sample in Python, which counts its lists and is told to end for it.
func (r *resting) countForks() {
	r.Helper()
	if r.after.childless {
		return
	}
	life := time.Since(r.started)
	if err := r.Signal(syscall.SIGTERM); err != nil {
		r.Fatal(err)
	}
	end, err := r.Wait()
	if err != nil {
		r.Fatal(err)
	}
	told := regexp.MustCompile(`lists: (\d+)`).FindStringSubmatch(end.Output)
	if told == nil {
		r.Fatalf("%s had children, and nobody knows how many", r.program.name)
	}
	lists, err := strconv.Atoi(told[1])
	if err != nil {
		r.Fatal(err)
	}
	r.forks = float64(lists) * listProcesses / life.Seconds()
}

// judgeRest writes the table and holds the agent to its budgets.
func (f *field) judgeRest(all []*resting, rest time.Duration) {
	f.Helper()
	head := []string{"", "budget"}
	for i, r := range all {
		head = append(head, r.program.name)
		if i > 0 {
			head = append(head, "ratio")
		}
	}
	t := section{title: fmt.Sprintf("A sidecar at rest for %.0f s (two ENIs, dual-stack)", rest.Seconds()), rows: [][]string{head}}
	row := func(name, budget, unit string, of func(*resting) float64) {
		line := []string{name, written(budget, unit)}
		for i, r := range all {
			line = append(line, written(fmt.Sprintf("%.4g", of(r)), unit))
			if i > 0 {
				line = append(line, ratio(of(all[0]), of(r)))
			}
		}
		t.rows = append(t.rows, line)
	}
	share := func(r *resting) float64 {
		return 100 * (r.after.cpu - r.before.cpu + r.after.children - r.before.children).Seconds() / rest.Seconds()
	}
	row("resident set", strconv.Itoa(restRSS), "MiB", func(r *resting) float64 { return r.after.rss })
	row("  its own (anonymous)", "", "MiB", func(r *resting) float64 { return r.after.anon })
	row("  of files (the program), shared on a node", "", "MiB", func(r *resting) float64 { return r.after.file })
	row("proportional set", "", "MiB", func(r *resting) float64 { return r.after.pss })
	row("CPU, share of a core", fmt.Sprint(restCPU), "%", share)
	row("context switches a second", "", "", func(r *resting) float64 { return (r.after.switches - r.before.switches) / rest.Seconds() })
	row("threads", "", "", func(r *resting) float64 { return r.after.threads })
	row("processes started a second", "0", "", func(r *resting) float64 { return r.forks })
	row("EC2 calls", "0", "", func(r *resting) float64 { return float64(r.calls) })
	row("IMDS requests", "", "", func(r *resting) float64 { return float64(r.imds) })
	shared.summary.add(t)
	shared.summary.note("At rest: all programs at the same time. That a program has started no process is seen from its account of children, which is " +
		"empty; the sample in Python counts its own lists. The samples run on one node, and their calls and requests are counted together.")
	ours := all[0]
	f.ReportMetric(0, "ns/op")
	f.ReportMetric(ours.after.rss, "MiB-RSS")
	f.ReportMetric(share(ours), "%-of-a-core")
	f.ReportMetric(float64(ours.calls), "EC2-calls")
	if !ours.after.childless || ours.calls > 0 {
		f.Errorf("at rest the agent made %d EC2 calls, and it is %v that it started no process; want 0 and true", ours.calls, ours.after.childless)
	}
}
