package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/locate"
	"multus-ip-manager.io/agent/observe"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/agent/run"
	"multus-ip-manager.io/agent/settings"
)

// bootStamp is the kernel's stamp at the start of a run: an hour after boot.
const bootStamp = 360_000

// net1 is the index of the one managed interface.
const net1 = 3

// Change is one change of a pod's interface.
type Change struct {
	At   time.Duration
	Addr netip.Addr
	On   bool
}

// Pod is a pod: its kernel, and the agents that run in it one after the other.
type Pod struct {
	PodConfig
	w     *World
	index int

	// All below is guarded by the world's lock.
	on      map[netip.Addr]plan.Address
	last    map[netip.Addr]plan.Address // taken off
	epochs  uint64
	changes []Change
	heard   time.Time
	deaf    bool
	used    map[netip.Addr]bool
	uses    []Change
	agents  []*Handle
	pending bool // a start waits for the end of the agent before
}

func newPod(w *World, index int, c PodConfig) *Pod {
	p := &Pod{PodConfig: c, w: w, index: index, on: map[netip.Addr]plan.Address{}, last: map[netip.Addr]plan.Address{}, used: map[netip.Addr]bool{}}
	for _, a := range slices.Concat(c.Came, c.Floating) {
		p.on[a] = plan.Address{Addr: a, Bits: a.BitLen(), Link: p.link(), CStamp: bootStamp - 3000}
		p.changes = append(p.changes, Change{At: -time.Hour, Addr: a, On: true})
	}
	return p
}

func macOf(eni string) string {
	return fmt.Sprintf("02:00:00:00:%02x:%02x", mix(0, eni)&0xff, mix(1, eni)&0xff)
}

func (p *Pod) link() plan.Link {
	return plan.Link{Index: net1, Name: "net1", MAC: macOf(p.ENI), Kind: "ipvlan"}
}

func (p *Pod) stamp() uint32 { return bootStamp + uint32(p.w.now()/(10*time.Millisecond)) } //nolint:gosec // an hour at most

// has tells whether the address was on the interface at a time; the run is over.
func (p *Pod) has(addr netip.Addr, at time.Duration) bool {
	on := false
	for _, c := range p.changes {
		if c.Addr == addr && c.At <= at {
			on = c.On
		}
	}
	return on
}

// had tells whether the address was on the interface at any moment of a span of time; the run is over.
func (p *Pod) had(addr netip.Addr, from, to time.Duration) bool {
	return p.has(addr, from) || slices.ContainsFunc(p.changes, func(c Change) bool { return c.Addr == addr && c.On && c.At > from && c.At <= to })
}

// change adds or removes an address, as the kernel does.
func (p *Pod) change(addr netip.Addr, on bool) {
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, is := p.on[addr]; is == on {
		return
	}
	p.changes = append(p.changes, Change{At: w.now(), Addr: addr, On: on})
	if on {
		a := plan.Address{Addr: addr, Bits: addr.BitLen(), Link: p.link(), CStamp: p.stamp()}
		if was, ok := p.last[addr]; ok && was.CStamp == a.CStamp {
			p.epochs++
			a.Epoch = p.epochs
		}
		p.on[addr] = a
	} else {
		p.last[addr] = p.on[addr]
		delete(p.on, addr)
	}
	if p.heard.IsZero() {
		p.heard = time.Now()
	}
	for _, h := range p.agents {
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
}

// snapshot is a look at the kernel; the caller has the lock.
func (p *Pod) snapshot() plan.Snapshot {
	own := plan.Link{Index: 2, Name: "eth0", MAC: "ee:00:00:00:00:01", Kind: "veth"}
	s := plan.Snapshot{Links: []plan.Link{{Index: 1, Name: "lo", Loopback: true}, own, p.link()}, Stamp: p.stamp(), Taken: time.Now()}
	s.Addresses = append(s.Addresses, plan.Address{Addr: podIP, Bits: 32, Link: own})
	for _, a := range p.on {
		s.Addresses = append(s.Addresses, a)
	}
	slices.SortFunc(s.Addresses, func(a, b plan.Address) int { return a.Addr.Compare(b.Addr) })
	return s
}

var podIP = netip.MustParseAddr("10.0.0.77")

// Handle is what one agent has of the world. It implements all that [run.Sidecar] needs.
type Handle struct {
	pod  *Pod
	run  int
	wake chan struct{}
	dead atomic.Bool
	// drawn counts the random numbers that the agent was given.
	drawn atomic.Int64
	// The agent's life: from start, told to stop at, and dead at, which are negative as long as they did not happen.
	started, stopped, died time.Duration
	cancel                 context.CancelFunc
	ended                  chan struct{}
	err                    error
	puts                   []Change // what it put back of its own motion
	status                 func(context.Context) (report.Status, error)
}

func (h *Handle) isDead() bool { return h.dead.Load() }

// live tells whether the agent was at work at a time; the run is over.
func (h *Handle) live(at time.Duration) bool {
	return h.started <= at && (h.stopped < 0 || at < h.stopped) && (h.died < 0 || at < h.died)
}

var errDead = errors.New("the agent is dead")

// Snapshot implements [run.Observer].
func (h *Handle) Snapshot(context.Context) (plan.Snapshot, error) {
	if h.isDead() {
		return plan.Snapshot{}, errDead
	}
	h.pod.w.mu.Lock()
	defer h.pod.w.mu.Unlock()
	return h.pod.snapshot(), nil
}

// Watch implements [run.Follower].
func (h *Handle) Watch(ctx context.Context, deliver func(plan.Snapshot), resync func(string, error)) error {
	p := h.pod
	show := func(heard time.Time) {
		p.w.mu.Lock()
		s := p.snapshot()
		p.w.mu.Unlock()
		s.Heard = heard
		deliver(s)
	}
	show(time.Time{})
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.wake:
		}
		if h.isDead() {
			return nil
		}
		sleep(ctx, p.w.KernelDelay)
		p.w.mu.Lock()
		heard, deaf := p.heard, p.deaf
		p.heard, p.deaf = time.Time{}, false
		p.w.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		default:
		}
		if h.isDead() {
			return nil
		}
		if deaf {
			resync(observe.ReasonOverflow, errors.New("no buffer space available"))
			heard = time.Time{}
		}
		show(heard)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// InUse implements [run.Follower].
func (h *Handle) InUse(_ context.Context, addrs []netip.Addr) (map[netip.Addr]string, error) {
	if h.isDead() {
		return nil, errDead
	}
	h.pod.w.mu.Lock()
	defer h.pod.w.mu.Unlock()
	used := map[netip.Addr]string{}
	for _, a := range addrs {
		if h.pod.used[a] {
			used[a] = "udp " + a.String()
		}
	}
	return used, nil
}

var subnetCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.17.0/24"), netip.MustParsePrefix("2001:db8:0:17::/64")}

// ENIs implements [run.Locator].
func (h *Handle) ENIs(ctx context.Context, _ []string) ([]plan.ENI, error) { return h.All(ctx) }

// All implements [run.Locator].
func (h *Handle) All(ctx context.Context) ([]plan.ENI, error) {
	sleep(ctx, 3*time.Millisecond)
	if h.isDead() {
		return nil, errDead
	}
	return []plan.ENI{
		{ID: "eni-0-" + h.pod.ENI, MAC: "02:ff:00:00:00:00", SubnetID: "subnet-a", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}},
		{ID: h.pod.ENI, MAC: macOf(h.pod.ENI), DeviceIndex: 1, SubnetID: subnet, Subnets: subnetCIDRs},
	}, nil
}

// Listed implements [run.Lister].
func (h *Handle) Listed(ctx context.Context, macs []string) (map[string]locate.Listing, error) {
	sleep(ctx, 3*time.Millisecond)
	if h.isDead() {
		return nil, errDead
	}
	w := h.pod.w
	w.mu.Lock()
	defer w.mu.Unlock()
	at := w.now()
	if at < w.Calm {
		at -= w.MetadataLag
	}
	l := locate.Listing{ENI: h.pod.ENI}
	for a := range w.holds {
		if w.holder(a, at) == h.pod.ENI {
			l.Addrs = append(l.Addrs, a)
		}
	}
	listed := map[string]locate.Listing{}
	for _, m := range macs {
		if m == macOf(h.pod.ENI) {
			listed[m] = l
		}
	}
	return listed, nil
}

// Manage implements [run.RouteWatch]: no route leads astray here.
func (h *Handle) Manage(map[int]string) {}

// Blocked implements [run.RouteWatch].
func (h *Handle) Blocked() *observe.RouteError { return nil }

// Takeover implements [run.Meter].
func (h *Handle) Takeover(string, time.Duration) {}

// Lost implements [run.Meter].
func (h *Handle) Lost() {}

// Resync implements [run.Meter].
func (h *Handle) Resync(string) {}

// ThrottleWait implements [run.Meter].
func (h *Handle) ThrottleWait(string, time.Duration) {}

// MetadataError implements [run.Meter].
func (h *Handle) MetadataError() {}

// start runs a new agent in the pod.
func (p *Pod) start() {
	w := p.w
	ctx, cancel := context.WithCancel(context.Background())
	w.mu.Lock()
	h := &Handle{pod: p, run: len(p.agents), wake: make(chan struct{}, 1), cancel: cancel, started: w.now(), stopped: -1, died: -1, ended: make(chan struct{})}
	first := len(p.agents) == 0 && !p.Restarted
	p.agents = append(p.agents, h)
	w.mu.Unlock()
	networkStatus := ""
	if !first {
		networkStatus = networkStatusOf(p.Came)
	}
	s := &run.Sidecar{
		Agent: run.Agent{
			Settings: settings.Agent{
				Mode: settings.Sidecar, Pod: settings.Pod{Namespace: "sim", Name: p.Name, IPs: []netip.Addr{podIP}},
				NetworkStatus: networkStatus, Release: !p.Keep,
			},
			Observe: h, Locate: h, Routes: h,
			Connect: func(context.Context) (apply.EC2, error) { return h, nil },
			Log:     slog.New(&traceHandler{h: h}),
			Jitter:  h.jitter,
		},
		Follow: h, List: h, Meter: h,
		Publish: func(f func(context.Context) (report.Status, error)) { h.status = f },
	}
	go func() {
		defer close(h.ended)
		h.err = s.Run(ctx)
	}()
}

// jitter implements [run.Jitter]: random, and the same each time the run is played.
func (h *Handle) jitter(below time.Duration) time.Duration {
	n := int(h.drawn.Add(1))
	return time.Duration(mix(h.pod.w.Seed, "jitter", h.pod.index, h.run, n) % uint64(below)) //nolint:gosec // positive
}

func networkStatusOf(came []netip.Addr) string {
	texts := make([]string, len(came))
	for i, a := range came {
		texts[i] = `"` + a.String() + `"`
	}
	return fmt.Sprintf(`[{"name":"aws-cni","interface":"eth0","ips":[%q],"default":true},{"name":"sim/net","interface":"net1","ips":[%s]}]`, podIP, strings.Join(texts, ","))
}

// agent is the one that runs now, nil when none does.
func (p *Pod) agent() *Handle {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if len(p.agents) == 0 {
		return nil
	}
	if h := p.agents[len(p.agents)-1]; h.stopped < 0 && h.died < 0 {
		return h
	}
	return nil
}

// crash ends an agent without a farewell: nothing it does from now on reaches anybody. It is then told to stop, so that it ends.
func (h *Handle) crash() {
	h.pod.w.mu.Lock()
	h.died = h.pod.w.now()
	h.dead.Store(true)
	h.pod.w.mu.Unlock()
	h.cancel()
}

func (h *Handle) stop() {
	h.pod.w.mu.Lock()
	h.stopped = h.pod.w.now()
	h.pod.w.mu.Unlock()
	h.cancel()
}

// traceHandler writes the agent's log into the trace.
type traceHandler struct {
	h     *Handle
	attrs []slog.Attr
}

// Enabled implements [slog.Handler].
func (t *traceHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

// Handle implements [slog.Handler].
func (t *traceHandler) Handle(_ context.Context, r slog.Record) error {
	if t.h.isDead() {
		return nil
	}
	attrs := slices.Clone(t.attrs)
	r.Attrs(func(a slog.Attr) bool { attrs = append(attrs, a); return true })
	if r.Message == putBackMessage {
		t.h.putBack(attrs)
	}
	t.h.pod.w.note(t.h.pod.Name, func() string {
		var b strings.Builder
		fmt.Fprintf(&b, "  %s %s", r.Level, r.Message)
		for _, a := range attrs {
			fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		}
		return b.String()
	})
	return nil
}

// putBackMessage is how an agent says that it puts back, of its own motion, what nobody holds.
const putBackMessage = "no ENI holds the address any more, it is put back"

func (h *Handle) putBack(attrs []slog.Attr) {
	w := h.pod.w
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range attrs {
		if addr, ok := a.Value.Any().(netip.Addr); ok {
			h.puts = append(h.puts, Change{At: w.now(), Addr: addr, On: true})
		}
	}
}

// WithAttrs implements [slog.Handler].
func (t *traceHandler) WithAttrs(as []slog.Attr) slog.Handler {
	return &traceHandler{h: t.h, attrs: slices.Concat(t.attrs, as)}
}

// WithGroup implements [slog.Handler].
func (t *traceHandler) WithGroup(string) slog.Handler { return t }
