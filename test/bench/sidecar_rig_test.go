package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/kubelet"
	"multus-ip-manager.io/test/ns"
	"multus-ip-manager.io/test/podlab"
	"multus-ip-manager.io/test/world"
)

const (
	// enough bounds every wait for something that must happen.
	enough = 30 * time.Second
	// samplePause is the samples' own pause between two lists: what happens to them is spread over it.
	samplePause = 500 * time.Millisecond
	// apart is the least time between two events: longer than anything the agent does after one.
	apart = 20 * time.Millisecond
)

// families are the two address families, as [field.address] and the tables count them.
var families = [2]string{"IPv4", "IPv6"}

// field is a world with pods in which programs follow what happens to the addresses.
type field struct {
	*testing.B
	world   *world.World
	cloud   *aws.Cloud
	record  *aws.Record
	answers *answers
}

// newField starts a world without pods.
func newField(b *testing.B, latency time.Duration) *field {
	b.Helper()
	w := startWorld(b, "testdata/sidecar.yaml", latency)
	f := &field{B: b, world: w, cloud: w.Cloud(), record: w.Cloud().Record(), answers: newAnswers()}
	var following sync.WaitGroup
	following.Go(func() { f.cloud.Follow(b.Context(), f.answers.take) })
	b.Cleanup(func() { f.record.Stop(); following.Wait() })
	return f
}

// address is one of the addresses in the subnet of the ENI with that device index, with the subnet's mask: the samples know an ENI by it.
func address(family, eni, number int) netip.Prefix {
	if family == 1 {
		return netip.MustParsePrefix(fmt.Sprintf("fd50:0:0:%x::%x/64", eni, number))
	}
	return netip.MustParsePrefix(fmt.Sprintf("10.0.%d.%d/22", 4*eni, number))
}

// pause lets time pass in which the programs do what they do. It is no wait for anything.
func (f *field) pause(d time.Duration) {
	f.Helper()
	select {
	case <-time.After(d):
	case <-f.Context().Done():
		f.Fatal(context.Cause(f.Context()))
	}
}

// between gives a random time.
func between(least, most time.Duration) time.Duration {
	return least + rand.N(most-least+1) //nolint:gosec // no cryptography
}

// follower is a program that runs in a pod as its sidecar.
type follower struct {
	*kubelet.Running
	*field
	program program
	pod     *world.Pod
	link    netlink.Link // net1
	eni     string       // net1's
	index   int          // the device index of that ENI
	started time.Time
	used    [2]int // how many of the spare addresses were taken
}

// follow starts a program in a new pod with an IPv4 and an IPv6 address on each of the ENIs, the number of which is their last part, and
// waits until EC2 has them there.
func (f *field) follow(p program, node string, number int, enis ...int) *follower {
	f.Helper()
	spec := world.PodSpec{Name: fmt.Sprintf("%s-%d-%d", node, enis[0], number), Namespace: "telco", Node: node}
	for _, eni := range enis {
		spec.Networks = append(spec.Networks, world.Network{ENI: eni, Addresses: []netip.Prefix{address(0, eni, number), address(1, eni, number)}})
	}
	pod, err := f.world.AddPod(spec)
	if err != nil {
		f.Fatal(err)
	}
	l := f.start(p, pod)
	l.index = enis[0]
	l.assigned()
	return l
}

// start starts a program in a pod.
func (f *field) start(p program, pod *world.Pod) *follower {
	f.Helper()
	c, err := podlab.Container(pod, podlab.Start{Mode: settings.Sidecar, Program: p.command[0]})
	if err != nil {
		f.Fatal(err)
	}
	link, err := pod.NS().Netlink().LinkByName("net1")
	if err != nil {
		f.Fatal(err)
	}
	l := &follower{field: f, program: p, pod: pod, link: link, eni: pod.ENI("net1"), started: time.Now()}
	if l.Running, err = c.Start(f.Context()); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		_ = l.Signal(syscall.SIGCONT) // the benchmark's context has ended, which kills it
		end, err := l.Wait()
		if f.Failed() {
			f.Logf("%s in %s: exit code %d, %v, end of its output:\n%s", p.name, pod.Name(), end.ExitCode, err, tail(end.Output))
		}
	})
	return l
}

func tail(s string) string { return s[max(0, len(s)-1500):] }

// assigned waits until EC2 has put the pod's own addresses on their ENIs.
func (l *follower) assigned() {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), enough)
	defer cancel()
	for _, n := range l.pod.Networks() {
		for _, a := range n.Addresses {
			if _, err := l.answers.await(ctx, l.pod.ENI(n.Interface), a.Addr(), l.started); err != nil {
				l.Fatalf("%s: %v; its output:\n%s", l.program.name, err, tail(l.Output()))
			}
		}
	}
}

// sleep stops programs, so that they take nothing from one that is measured.
func sleep(programs []*follower) {
	for _, l := range programs {
		l.signal(syscall.SIGSTOP)
	}
}

// wake lets them go on, at any phase of their pauses.
func wake(programs []*follower) {
	polls := false
	for _, l := range programs {
		l.signal(syscall.SIGCONT)
		polls = polls || l.program.polls
	}
	if len(programs) > 0 {
		programs[0].pause(50 * time.Millisecond)
		if polls {
			programs[0].pause(between(0, samplePause))
		}
	}
}

func (l *follower) signal(s syscall.Signal) {
	l.Helper()
	if err := l.Signal(s); err != nil {
		l.Fatalf("%s: %v", l.program.name, err)
	}
}

// event is an address that was added.
type event struct {
	family int
	prefix netip.Prefix
	at     time.Time // just before the kernel was asked to
}

// spares is how many addresses of each family take turns.
const spares = 40

// add adds a spare address by netlink, as keepalived does.
func (l *follower) add(family, of int) event {
	l.Helper()
	e := event{family: family, prefix: address(family, l.index, 150+l.used[family]%of)}
	l.used[family]++
	e.at = time.Now()
	if err := l.pod.NS().AddAddrTo(l.link, e.prefix, ns.NoDAD); err != nil {
		l.Fatal(err)
	}
	return e
}

// requests waits for the requests that assigned what was added.
func (l *follower) requests(events []event) []aws.Call {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), enough)
	defer cancel()
	calls := make([]aws.Call, len(events))
	for i, e := range events {
		var err error
		if calls[i], err = l.answers.await(ctx, l.eni, e.prefix.Addr(), e.at); err != nil {
			l.Fatalf("%s: %v; its output:\n%s", l.program.name, err, tail(l.Output()))
		}
	}
	return calls
}

// clear removes what was added, from the interface and from the ENI.
func (l *follower) clear(events []event) {
	l.Helper()
	l.pause(apart)
	for _, e := range events {
		if err := l.pod.NS().DelAddrFrom(l.link, e.prefix); err != nil {
			l.Fatal(err)
		}
		if err := l.cloud.Unassign(l.eni, e.prefix.Addr()); err != nil {
			l.Fatal(err)
		}
	}
	l.pause(apart)
}

// place is an address on an ENI.
type place struct {
	eni  string
	addr netip.Addr
}

// answers are the assignments that EC2 has made, the newest of each place.
type answers struct {
	mu      sync.Mutex
	newest  map[place]aws.Call
	changed chan struct{} // closed and replaced with each call
}

func newAnswers() *answers {
	return &answers{newest: map[place]aws.Call{}, changed: make(chan struct{})}
}

func (s *answers) take(c aws.Call) {
	if !c.Applied || c.Action != "AssignPrivateIpAddresses" && c.Action != "AssignIpv6Addresses" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range c.Addresses {
		if a, err := netip.ParseAddr(text); err == nil {
			s.newest[place{c.ENI, a}] = c
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits for an assignment that came after a moment.
func (s *answers) await(ctx context.Context, eni string, a netip.Addr, after time.Time) (aws.Call, error) {
	for {
		s.mu.Lock()
		c, changed := s.newest[place{eni, a}], s.changed
		s.mu.Unlock()
		if c.Start.After(after) {
			return c, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return c, fmt.Errorf("%s is not assigned to %s: %w", a, eni, context.Cause(ctx))
		}
	}
}

// series are the times that a program took, by family.
type series struct {
	program program
	took    [2][]time.Duration
}

// timings are the rows of a table that compares the times of the first program with those of the others. The budget is for p99.
func timings(budget string, all []*series) [][]string {
	var rows [][]string
	for f, family := range families {
		for _, q := range []struct {
			name   string
			q      float64
			budget string
		}{{"p50", median, ""}, {"p90", p90, ""}, {"p99", p99, budget}} {
			row := []string{family + ", " + q.name, written(q.budget, "ms")}
			ours := millis(Quantile(all[0].took[f], q.q))
			for i, s := range all {
				value := millis(Quantile(s.took[f], q.q))
				row = append(row, fmt.Sprintf("%.1f ms", value))
				if i > 0 {
					row = append(row, ratio(ours, value))
				}
			}
			rows = append(rows, row)
		}
	}
	return rows
}

const p99 = 0.99

// ratio is what a table shows; there is none to nothing.
func ratio(ours, theirs float64) string {
	if theirs == 0 {
		return ""
	}
	return fmt.Sprintf("%.3f", ours/theirs)
}

// heads are the names of such a table's columns.
func heads(all []*series) []string {
	head := []string{"", "budget"}
	for i, s := range all {
		head = append(head, fmt.Sprintf("%s (%d + %d)", s.program.name, len(s.took[0]), len(s.took[1])))
		if i > 0 {
			head = append(head, "ratio")
		}
	}
	return head
}
