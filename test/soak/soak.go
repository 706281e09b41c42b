package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/kubelet"
	"multus-ip-manager.io/test/podlab"
	"multus-ip-manager.io/test/world"
)

//go:embed world.yaml
var worldFile []byte

// options are what a run is told.
type options struct {
	For, Round time.Duration
	Seed       uint64
	Pods, VIPs int
	Agent      string
	Out        io.Writer
}

const (
	// pressed is how long after a failed call the claim that it was for may still be pressed: longer than any pause of a takeover.
	pressed = 5 * time.Second
	// settled is how long after a round EC2 may take to have every address where it belongs.
	settled = 45 * time.Second
	// calm is how long nothing may move at the end: longer than the looks that follow a takeover.
	calm = 7 * time.Second
	link = "net1"
)

// member is a pod with its sidecar.
type member struct {
	pod   *world.Pod
	agent *kubelet.Running
	own   []netip.Prefix
	// steady members' agents are never crashed, so that their growth can be seen over the whole run.
	steady  bool
	samples []usage
}

// vip is a floating address.
type vip struct {
	prefix netip.Prefix
	owner  *member // who added it last
	// unsure is set when it is not certain where the address must be. The owner's agent crashed since: it may never have claimed the
	// address, and must not claim it after its restart. Or another claim was not settled yet when the owner made its own: then EC2 must
	// settle on one of the two.
	unsure bool
	// doubted is when two claims were last so close.
	doubted time.Time
}

type run struct {
	options
	ctx     context.Context //nolint:containedctx // the run's life
	rand    *rand.Rand
	world   *world.World
	cloud   *aws.Cloud
	record  *aws.Record
	members []*member
	vips    []*vip
	moves   int
	crashes int
	faults  int
	sure    int // addresses that were where they had to be without being added once more
}

// soak runs to the end, or to the first thing that is wrong.
func soak(ctx context.Context, o options) error {
	spec, err := world.Parse(worldFile)
	if err != nil {
		return err
	}
	w, err := world.Start(ctx, spec, world.Options{Cloud: []aws.Option{aws.WithSeed(o.Seed), aws.WithJournalLimit(400)}})
	if err != nil {
		return err
	}
	agents, stop := context.WithCancel(ctx)
	r := &run{options: o, ctx: agents, world: w, cloud: w.Cloud(), record: w.Cloud().Record(),
		rand: rand.New(rand.NewPCG(o.Seed, 0x50a4))} //nolint:gosec // reproducible on purpose
	err = r.run()
	if err != nil {
		r.explain(err)
	}
	stop()
	for _, m := range r.members {
		if m.agent != nil {
			_, _ = m.agent.Wait()
		}
	}
	return errors.Join(err, w.Close())
}

func (r *run) run() error {
	r.say("seed %d, %s, %d pods, %d floating addresses", r.Seed, r.For, r.Pods, 2*r.VIPs)
	if err := r.begin(); err != nil {
		return err
	}
	end := time.Now().Add(r.For)
	for round := 1; round == 1 || time.Now().Before(end); round++ {
		before := r.cloud.Calls()
		if err := r.round(min(r.Round, max(time.Second, time.Until(end)))); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		took, err := r.settle()
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if err := r.sample(); err != nil {
			return err
		}
		r.say("round %d: %d moves, %d crashes, %d faults so far; %d EC2 calls; settled in %s; agents: %s", round, r.moves, r.crashes, r.faults,
			r.cloud.Calls()-before, took.Round(time.Millisecond), r.sizes())
	}
	if err := r.storm(r.For / 10); err != nil {
		return fmt.Errorf("storm: %w", err)
	}
	return r.finish()
}

func (r *run) say(format string, args ...any) {
	_, _ = fmt.Fprintf(r.Out, "%s "+format+"\n", append([]any{time.Now().Format("15:04:05")}, args...)...)
}

// begin starts the pods and their agents.
func (r *run) begin() error {
	for i := range r.Pods {
		own := []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.0.4.%d/22", 80+i)), netip.MustParsePrefix(fmt.Sprintf("fd50:0:0:4::%d/64", 80+i))}
		p, err := r.world.AddPod(world.PodSpec{Name: fmt.Sprintf("pod-%d", i), Namespace: "telco", Node: []string{"one", "two"}[i%2],
			Networks: []world.Network{{ENI: 1 + i/2%2, Addresses: own}}})
		if err != nil {
			return err
		}
		m := &member{pod: p, own: own, steady: i < 2}
		r.members = append(r.members, m)
		if err := r.startAgent(m, false); err != nil {
			return err
		}
	}
	for _, m := range r.members { // what an agent finds at its pod's first start came with the pod
		if err := r.ready(r.ctx, m); err != nil {
			return err
		}
	}
	for i := range r.VIPs {
		r.vips = append(r.vips, &vip{prefix: netip.MustParsePrefix(fmt.Sprintf("10.0.5.%d/32", 10+i))},
			&vip{prefix: netip.MustParsePrefix(fmt.Sprintf("fd50:0:0:4::5:%d/128", 10+i))})
	}
	for _, v := range r.vips {
		if err := r.add(v, r.anyone()); err != nil {
			return err
		}
	}
	_, err := r.settle()
	return err
}

func (r *run) startAgent(m *member, restarted bool) error {
	c, err := podlab.Container(m.pod, podlab.Start{Mode: settings.Sidecar, Program: r.Agent, Restarted: restarted,
		Agent: map[string]string{"log-level": "warn", "log-format": "text"}})
	if err != nil {
		return err
	}
	m.agent, err = c.Start(r.ctx)
	return err
}

func (r *run) anyone() *member { return r.members[r.rand.IntN(len(r.members))] }

// add puts an address on a pod's interface, anew if it is there. Real ipvlan refuses an address that another pod of the ENI has: there it
// is taken from that one first.
func (r *run) add(v *vip, m *member) error {
	for _, o := range r.members {
		if o != m && r.world.IPVlan() && o.pod.ENI(link) == m.pod.ENI(link) {
			if err := r.drop(v, o); err != nil {
				return err
			}
		}
	}
	had, err := m.pod.NS().Addrs(link)
	if err != nil {
		return err
	}
	r.claimed(v, m)
	r.moves++
	if slices.Contains(had, v.prefix) {
		return m.pod.Flap(link, v.prefix, 1)
	}
	return m.pod.AddAddrs(link, v.prefix)
}

// claimed notes a claim that is about to be made.
func (r *run) claimed(v *vip, m *member) {
	if v.owner != nil && !r.decided(v) {
		v.doubted = time.Now()
	}
	v.owner, v.unsure = m, time.Since(v.doubted) < pressed
}

// decided tells whether all claims of an address so far are settled: EC2 has it where it was claimed last, the agent there knows that, and
// no other one presses a claim still.
func (r *run) decided(v *vip) bool {
	addr, at := v.prefix.Addr(), v.owner.pod.ENI(link)
	if h, _ := r.cloud.Holder(addr); h.ENI != at {
		return false
	}
	last := map[string]bool{} // the ENIs whose last assignment was seen
	for _, c := range slices.Backward(r.cloud.Journal()) {
		if !slices.Contains(c.Addresses, addr.String()) {
			continue
		}
		if !c.Done() {
			return false
		}
		if last[c.ENI] || !strings.HasPrefix(c.Action, "Assign") {
			continue
		}
		last[c.ENI] = true
		if c.Status != http.StatusOK && (c.ENI == at || time.Since(c.End) < pressed) {
			return false
		}
	}
	return true
}

// drop takes an address from a pod's interface if it is there.
func (r *run) drop(v *vip, m *member) error {
	had, err := m.pod.NS().Addrs(link)
	if err != nil || !slices.Contains(had, v.prefix) {
		return err
	}
	return m.pod.DelAddrs(link, v.prefix)
}

// round lets things happen for some time.
func (r *run) round(d time.Duration) error {
	over := time.NewTimer(d)
	defer over.Stop()
	for {
		pause := time.NewTimer(time.Duration(r.rand.IntN(200)) * time.Millisecond)
		select {
		case <-over.C:
			pause.Stop()
			return nil
		case <-r.ctx.Done():
			pause.Stop()
			return context.Cause(r.ctx)
		case <-pause.C:
		}
		if err := r.something(); err != nil {
			return err
		}
		if err := r.alive(); err != nil {
			return err
		}
	}
}

// alive tells of an agent that ended by itself.
func (r *run) alive() error {
	for _, m := range r.members {
		select {
		case <-m.agent.Done():
			end, err := m.agent.Wait()
			return fmt.Errorf("the agent of %s ended by itself: exit code %d, message %q, %w", m.pod.Name(), end.ExitCode, end.Message, err)
		default:
		}
	}
	return nil
}

// something is one thing that happens.
func (r *run) something() error {
	v := r.vips[r.rand.IntN(len(r.vips))]
	to := r.anyone()
	switch n := r.rand.IntN(100); {
	case n < 40: // a hand-over in good order
		from := v.owner
		if err := r.drop(v, from); err != nil {
			return err
		}
		return r.add(v, to)
	case n < 55: // a crash of the active one: its address stays on the interface
		return r.add(v, to)
	case n < 65: // the address of a dead one is tidied up
		for _, m := range r.members {
			if m != v.owner {
				if err := r.drop(v, m); err != nil {
					return err
				}
			}
		}
		return nil
	case n < 70: // it flaps
		r.moves++
		had, err := v.owner.pod.NS().Addrs(link)
		if err != nil || !slices.Contains(had, v.prefix) {
			return err
		}
		return v.owner.pod.Flap(link, v.prefix, 1+r.rand.IntN(20))
	case n < 73: // the link goes down, which costs its IPv6 addresses, and comes back
		return r.bounce(to)
	case n < 76:
		return r.crash(to)
	case n < 80:
		r.cloud.RotateCredentials(to.pod.Node().Instance(), r.rand.IntN(2) == 0)
		return nil
	case n < 90:
		r.fault()
		return nil
	default:
		r.cloud.Faults().Clear()
		return nil
	}
}

// bounce takes a pod's link down and up, and puts back what the kernel forgot, as whoever configures the link does.
func (r *run) bounce(m *member) error {
	before, err := m.pod.NS().Addrs(link)
	if err != nil {
		return err
	}
	if err := errors.Join(m.pod.NS().Down(link), m.pod.NS().Up(link)); err != nil {
		return err
	}
	after, err := m.pod.NS().Addrs(link)
	if err != nil {
		return err
	}
	for _, p := range before {
		if slices.Contains(after, p) || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if err := m.pod.AddAddrs(link, p); err != nil {
			return err
		}
		// Whoever has an address added to its interface has claimed it.
		for _, v := range r.vips {
			if v.prefix == p {
				r.claimed(v, m)
			}
		}
	}
	return nil
}

// crash kills a pod's agent; the kubelet starts it again.
func (r *run) crash(m *member) error {
	if m.steady {
		return nil
	}
	r.crashes++
	if _, err := m.agent.Kill(); err != nil {
		return err
	}
	for _, v := range r.vips {
		v.unsure = v.unsure || v.owner == m
	}
	return r.startAgent(m, true)
}

// fault puts one fault of AWS into force.
func (r *run) fault() {
	r.faults++
	action := []string{"*", "Assign*", "*ssign*", "Describe*"}[r.rand.IntN(4)]
	percent := 5 + r.rand.IntN(40)
	f := aws.Fault{Action: action, Percent: percent}
	switch r.rand.IntN(8) {
	case 0, 1:
		f.Kind = aws.FaultThrottle
	case 2:
		f.Kind = aws.FaultError
	case 3:
		f.Kind = aws.FaultDrop
	case 4:
		f.Kind, f.Action, f.AfterApply = aws.FaultDrop, "*ssign*", true
	case 5:
		f.Kind, f.Times = aws.FaultHang, 1
	case 6:
		f.Kind, f.Delay = aws.FaultDelay, time.Duration(r.rand.IntN(1000))*time.Millisecond
	case 7:
		f.Kind, f.Action, f.Percent = aws.FaultDrop, "IMDS:*", 50
	}
	r.cloud.Faults().Add(f)
}

// settle ends the faults and waits until EC2 has each address where the interfaces have it.
func (r *run) settle() (time.Duration, error) {
	began := time.Now()
	r.cloud.Faults().Clear()
	ctx, cancel := context.WithTimeoutCause(r.ctx, settled, errors.New("EC2 does not have it there in time"))
	defer cancel()
	for _, v := range r.vips {
		for _, m := range r.members {
			if m != v.owner {
				if err := r.drop(v, m); err != nil {
					return 0, err
				}
			}
		}
		had, err := v.owner.pod.NS().Addrs(link)
		if err != nil {
			return 0, err
		}
		if v.unsure || !slices.Contains(had, v.prefix) {
			// Its owner's agent has to see it being added, which it may not have, and nobody else may press a claim.
			if err := r.ready(ctx, v.owner); err != nil {
				return 0, err
			}
			if err := r.add(v, v.owner); err != nil {
				return 0, err
			}
			continue
		}
		r.sure++
	}
	for a, m := range r.truth() {
		if err := r.record.WaitHolder(ctx, a, m.pod.ENI(link)); err != nil {
			return 0, fmt.Errorf("%s is on the interface of %s: %w", a, m.pod.Name(), err)
		}
	}
	for _, m := range r.members {
		if err := r.ready(ctx, m); err != nil {
			return 0, err
		}
	}
	return time.Since(began), r.alive()
}

// truth is which pod has which address on its interface.
func (r *run) truth() map[netip.Addr]*member {
	truth := map[netip.Addr]*member{}
	for _, m := range r.members {
		for _, p := range m.own {
			truth[p.Addr()] = m
		}
	}
	for _, v := range r.vips {
		truth[v.prefix.Addr()] = v.owner
	}
	return truth
}

// ready waits until the agent's probe succeeds.
func (r *run) ready(ctx context.Context, m *member) error {
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		end, err := m.agent.Exec(ctx, "ready")
		if err == nil && end.ExitCode == 0 {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("the agent of %s is not ready: %s%w", m.pod.Name(), end.Output, context.Cause(ctx))
		}
	}
}

// sample notes what the agents that were never crashed hold.
func (r *run) sample() error {
	for _, m := range r.members {
		if !m.steady {
			continue
		}
		u, err := usageOf(m.agent.Pid())
		if err != nil {
			return err
		}
		if u.goroutines, err = r.goroutines(m); err != nil {
			return err
		}
		m.samples = append(m.samples, u)
	}
	return nil
}

// goroutines asks an agent how many it has.
func (r *run) goroutines(m *member) (int, error) {
	end, err := m.agent.Exec(r.ctx, "status", "-o", "json")
	if err != nil {
		return 0, err
	}
	var status report.Status
	if err := json.Unmarshal([]byte(end.Output), &status); err != nil || status.Goroutines == 0 {
		return 0, fmt.Errorf("the agent of %s does not tell its goroutines: %q: %w", m.pod.Name(), end.Output, err)
	}
	return status.Goroutines, nil
}

func (r *run) sizes() string {
	var out []string
	for _, m := range r.members {
		if m.steady {
			u := m.samples[len(m.samples)-1]
			out = append(out, fmt.Sprintf("%d fds, %d threads, %d goroutines, %d KiB", u.fds, u.threads, u.goroutines, u.rss))
		}
	}
	return strings.Join(out, "; ")
}

// storm adds and removes one address a thousand times a second. The agent may not ask EC2 for each, and has it in the end.
func (r *run) storm(d time.Duration) error {
	m, address := r.members[0], netip.MustParsePrefix("10.0.5.200/32")
	if err := m.pod.AddAddrs(link, address); err != nil {
		return err
	}
	const every, flaps = 10 * time.Millisecond, 5 // two events each
	before, events, end := r.cloud.Calls(), 0, time.Now().Add(d)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for time.Now().Before(end) {
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		}
		if err := m.pod.Flap(link, address, flaps); err != nil {
			return err
		}
		events += 2 * flaps
	}
	ctx, cancel := context.WithTimeoutCause(r.ctx, settled, errors.New("EC2 does not have it there in time"))
	defer cancel()
	if err := r.record.WaitHolder(ctx, address.Addr(), m.pod.ENI(link)); err != nil {
		return err
	}
	if err := r.ready(ctx, m); err != nil {
		return err
	}
	calls := r.cloud.Calls() - before
	r.say("storm: %d events in %s, %d EC2 calls", events, d, calls)
	// A hundred claims of an address, then two a second, and what others ask meanwhile.
	if most := 150 + int(3*d.Seconds()); calls > most {
		return fmt.Errorf("%d EC2 calls for %d events, want at most %d", calls, events, most)
	}
	return r.alive()
}

// finish sees that nothing moves any more, that the agents have not grown, and that they end as they should.
func (r *run) finish() error {
	before := len(r.changes())
	ctx, cancel := context.WithTimeout(r.ctx, calm)
	defer cancel()
	if err := r.record.Wait(ctx, r.vips[0].prefix.Addr(), func([]aws.Change) bool { return len(r.changes()) != before }); err == nil {
		changes := r.changes()
		return fmt.Errorf("addresses move though nobody does anything: %v", changes[before:])
	}
	for _, m := range r.members {
		if what := grown(m.samples); len(what) > 0 {
			return fmt.Errorf("the agent of %s has grown: %s", m.pod.Name(), strings.Join(what, "; "))
		}
	}
	for _, m := range r.members {
		end, err := m.agent.Stop(30 * time.Second)
		if err != nil || end.ExitCode != 0 {
			return fmt.Errorf("the agent of %s ended with %d, message %q: %w", m.pod.Name(), end.ExitCode, end.Message, err)
		}
	}
	return r.released()
}

// released checks what the agents' ends leave: what floats stays, what came with the pods is given back.
func (r *run) released() error {
	for _, v := range r.vips {
		if h, _ := r.cloud.Holder(v.prefix.Addr()); h.ENI != v.owner.pod.ENI(link) {
			return fmt.Errorf("the agents have ended, and %s is on %q, want it left on %s", v.prefix.Addr(), h.ENI, v.owner.pod.ENI(link))
		}
	}
	for _, m := range r.members {
		for _, p := range m.own {
			if h, held := r.cloud.Holder(p.Addr()); held {
				return fmt.Errorf("the agent of %s has ended, and %s is still on %s", m.pod.Name(), p.Addr(), h.ENI)
			}
		}
	}
	r.say("done: %d moves, %d crashes, %d faults, %d EC2 calls; EC2 and the interfaces agree (%d times without adding an address once more), the agents have not grown",
		r.moves, r.crashes, r.faults, r.cloud.Calls(), r.sure)
	return nil
}

// changes is what happened to the floating addresses.
func (r *run) changes() []aws.Change {
	var out []aws.Change
	for _, v := range r.vips {
		out = append(out, r.record.Of(v.prefix.Addr())...)
	}
	slices.SortFunc(out, func(a, b aws.Change) int { return a.Seq - b.Seq })
	return out
}

// explain shows what there is to see of a failure.
func (r *run) explain(failure error) {
	r.say("FAILED (seed %d): %v", r.Seed, failure)
	for _, v := range r.vips {
		name := "nobody"
		if v.owner != nil {
			name = v.owner.pod.Name()
		}
		of := r.record.Of(v.prefix.Addr())
		r.say("%s: added last by %s, history %v", v.prefix, name, of[max(0, len(of)-8):])
	}
	calls := r.cloud.Journal()
	for _, c := range calls[max(0, len(calls)-80):] {
		r.say("%s %s", c.Start.Format("05.000"), c)
	}
	for _, m := range r.members {
		if m.agent == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), 5*time.Second)
		status, err := m.agent.Exec(ctx, "status")
		cancel()
		text := m.agent.Output()
		r.say("agent of %s on %s (%s): %v\n%s\n%s", m.pod.Name(), m.pod.Node().Name(), m.pod.ENI(link), err, status.Output, text[max(0, len(text)-4000):])
	}
}
