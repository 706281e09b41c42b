package run

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/locate"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/agent/settings"
)

// table is an EC2 with state: which ENI holds which address. Its calls take no time unless on says otherwise.
type table struct {
	mu      sync.Mutex
	held    map[netip.Addr]string
	primary map[netip.Addr]bool
	calls   []call
	start   time.Time
	// on, when not nil, is asked before each call takes effect: it may wait, and may give an error in place of the effect.
	on func(ctx context.Context, op, eni string, addrs []netip.Addr) error
	// after is asked once the call has taken effect.
	after func(ctx context.Context, op, eni string, addrs []netip.Addr) error
}

func newTable() *table {
	return &table{held: map[netip.Addr]string{}, primary: map[netip.Addr]bool{}, start: time.Now()}
}

func (t *table) do(ctx context.Context, op, eni string, addrs []netip.Addr, effect func() error) error {
	t.mu.Lock()
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	t.calls = append(t.calls, call{time.Since(t.start), strings.TrimSpace(op + " " + eni + " " + strings.Join(texts, ","))})
	on, after := t.on, t.after
	t.mu.Unlock()
	if on != nil {
		if err := on(ctx, op, eni, addrs); err != nil {
			return err
		}
	}
	t.mu.Lock()
	err := effect()
	t.mu.Unlock()
	if err == nil && after != nil {
		err = after(ctx, op, eni, addrs)
	}
	return err
}

func refusal(op, eni string, addrs []netip.Addr) error {
	return &apply.OpError{Op: op, ENI: eni, Addrs: addrs, Code: "InvalidParameterValue", Class: apply.Refused, Err: fmt.Errorf("refused")}
}

func (t *table) AssignIPv4(ctx context.Context, eni string, addrs []netip.Addr, reassign bool) ([]netip.Addr, error) {
	op := "assign4"
	if !reassign {
		op = "keep4"
	}
	return addrs, t.do(ctx, op, eni, addrs, func() error {
		for _, a := range addrs {
			if h := t.held[a]; h != "" && h != eni && (!reassign || t.primary[a]) {
				return refusal(op, eni, addrs)
			}
		}
		for _, a := range addrs {
			t.held[a] = eni
		}
		return nil
	})
}

func (t *table) AssignIPv6(ctx context.Context, eni string, addrs []netip.Addr) error {
	return t.do(ctx, "assign6", eni, addrs, func() error {
		for _, a := range addrs {
			if h := t.held[a]; h != "" && h != eni {
				return refusal("assign6", eni, addrs)
			}
		}
		for _, a := range addrs {
			t.held[a] = eni
		}
		return nil
	})
}

func (t *table) UnassignIPv4(ctx context.Context, eni string, addrs []netip.Addr) error {
	return t.unassign(ctx, "unassign4", eni, addrs)
}

func (t *table) UnassignIPv6(ctx context.Context, eni string, addrs []netip.Addr) error {
	return t.unassign(ctx, "unassign6", eni, addrs)
}

func (t *table) unassign(ctx context.Context, op, eni string, addrs []netip.Addr) error {
	return t.do(ctx, op, eni, addrs, func() error {
		for _, a := range addrs {
			if t.held[a] != eni {
				return refusal(op, eni, addrs)
			}
		}
		for _, a := range addrs {
			delete(t.held, a)
		}
		return nil
	})
}

func (t *table) Holders(ctx context.Context, _ string, addrs []netip.Addr) (map[netip.Addr]apply.Holder, error) {
	held := map[netip.Addr]apply.Holder{}
	return held, t.do(ctx, "holders", "", addrs, func() error {
		for _, a := range addrs {
			if h, ok := t.held[a]; ok {
				held[a] = apply.Holder{ENI: h, Primary: t.primary[a], DeviceIndex: 1}
			}
		}
		return nil
	})
}

func (t *table) Unmanaged(context.Context, string) (bool, error) { return true, nil }
func (t *table) IPv6Slots(context.Context, string) (int, error)  { return 0, nil }

// move is what somebody else does.
func (t *table) move(addr, eni string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if eni == "" {
		delete(t.held, netip.MustParseAddr(addr))
		return
	}
	t.held[netip.MustParseAddr(addr)] = eni
}

// Listed makes the table the node's metadata, too: always up to date.
func (t *table) Listed(_ context.Context, macs []string) (map[string]locate.Listing, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	lists := map[string]locate.Listing{}
	for _, e := range []plan.ENI{eni0, eni1, eni2} {
		if !slices.Contains(macs, e.MAC) {
			continue
		}
		l := locate.Listing{ENI: e.ID}
		for a, h := range t.held {
			if h == e.ID {
				l.Addrs = append(l.Addrs, a)
			}
		}
		lists[e.MAC] = l
	}
	return lists, nil
}

// kernel is a pod's network namespace that tests change.
type kernel struct {
	mu       sync.Mutex
	snapshot plan.Snapshot
	deliver  func(plan.Snapshot)
	resync   func(string, error)
	inUse    map[netip.Addr]string
	inUseErr error
	stamp    uint32
	// late is how long the news of a change takes.
	late time.Duration
	// blind makes looks show no addresses, which the watch does not do.
	blind bool
}

func newKernel(s plan.Snapshot) *kernel {
	k := &kernel{snapshot: s, stamp: 100_000}
	for i := range k.snapshot.Addresses {
		k.snapshot.Addresses[i].CStamp = 1000
	}
	return k
}

func (k *kernel) now() uint32 { return k.stamp + uint32(time.Now().UnixMilli()/10) } //nolint:gosec // wraps, as the kernel's

func (k *kernel) Snapshot(context.Context) (plan.Snapshot, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.copy()
	if k.blind {
		s.Addresses = nil
	}
	return s, nil
}

func (k *kernel) copy() plan.Snapshot {
	s := k.snapshot
	s.Links, s.Addresses = slices.Clone(s.Links), slices.Clone(s.Addresses)
	s.Stamp, s.Taken = k.now(), time.Now()
	return s
}

func (k *kernel) Watch(ctx context.Context, deliver func(plan.Snapshot), resync func(string, error)) error {
	k.mu.Lock()
	k.deliver, k.resync = deliver, resync
	deliver(k.copy())
	k.mu.Unlock()
	<-ctx.Done()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.deliver = nil
	return nil
}

func (k *kernel) InUse(_ context.Context, addrs []netip.Addr) (map[netip.Addr]string, error) {
	used := map[netip.Addr]string{}
	for _, a := range addrs {
		if by, ok := k.inUse[a]; ok {
			used[a] = by
		}
	}
	return used, k.inUseErr
}

// change changes the namespace, as one event.
func (k *kernel) change(how func(*plan.Snapshot)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	how(&k.snapshot)
	if k.deliver == nil {
		return
	}
	s := k.copy()
	s.Heard = time.Now().Add(k.late)
	if k.late == 0 {
		k.deliver(s)
		return
	}
	deliver := k.deliver
	time.AfterFunc(k.late, func() { deliver(s) })
}

func (k *kernel) add(l plan.Link, addrs ...string) {
	stamp := k.now()
	k.change(func(s *plan.Snapshot) {
		if !slices.Contains(s.Links, l) {
			s.Links = append(s.Links, l)
		}
		for _, a := range addrs {
			s.Addresses = append(s.Addresses, plan.Address{Addr: netip.MustParseAddr(a), Bits: 32, Link: l, CStamp: stamp})
		}
	})
}

func (k *kernel) remove(l plan.Link, addrs ...string) {
	k.change(func(s *plan.Snapshot) {
		s.Addresses = slices.DeleteFunc(s.Addresses, func(a plan.Address) bool {
			return a.Link == l && slices.Contains(addrs, a.Addr.String())
		})
	})
}

// count is a Meter.
type count struct {
	mu        sync.Mutex
	takeovers []time.Duration
	lost      int
	resyncs   []string
	throttled []string
}

func (c *count) Takeover(_ string, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takeovers = append(c.takeovers, d)
}

func (c *count) Lost() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost++
}
func (c *count) Resync(reason string) { c.resyncs = append(c.resyncs, reason) }
func (c *count) MetadataError()       {}

func (c *count) ThrottleWait(action string, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.throttled = append(c.throttled, fmt.Sprintf("%s %t", action, d > 0))
}

// scene is a sidecar with its surroundings.
type scene struct {
	*testing.T
	kernel  *kernel
	table   *table
	meter   *count
	log     *lockedBuffer
	sidecar *Sidecar
	status  func(context.Context) (report.Status, error)
	stop    context.CancelFunc
	result  chan error
}

// newScene makes a sidecar in a pod with these addresses; set changes its settings.
func newScene(t *testing.T, s plan.Snapshot, set func(*Sidecar)) *scene {
	t.Helper()
	r := &scene{T: t, kernel: newKernel(s), table: newTable(), meter: &count{}, log: &lockedBuffer{}, result: make(chan error, 1)}
	r.make(set)
	return r
}

func (r *scene) make(set func(*Sidecar)) {
	r.sidecar = &Sidecar{
		Agent: Agent{
			Settings: settings.Agent{Mode: settings.Sidecar, Release: true, Pod: settings.Pod{IPs: []netip.Addr{podIP}}},
			Observe:  r.kernel,
			Locate: &fakeLocator{
				enis: func(int) ([]plan.ENI, error) { return []plan.ENI{eni0, eni1, eni2}, nil },
				all:  func(int) ([]plan.ENI, error) { return []plan.ENI{eni0, eni1, eni2}, nil },
			},
			Connect: func(context.Context) (apply.EC2, error) { return r.table, nil },
			Routes:  &fakeRoutes{},
			Log:     slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		},
		Follow: r.kernel, List: r.table, Meter: r.meter,
		Publish: func(f func(context.Context) (report.Status, error)) { r.status = f },
	}
	if set != nil {
		set(r.sidecar)
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) size() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Len()
}

// String gives what was written.
func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// begin starts the sidecar and lets it do what it can.
func (r *scene) begin() {
	r.Helper()
	ctx, cancel := context.WithCancel(r.Context())
	r.stop = cancel
	go func() { r.result <- r.sidecar.Run(ctx) }()
	r.settle(0)
}

// settle lets time pass until nothing happens at its end.
func (r *scene) settle(d time.Duration) {
	if d > 0 {
		pass(d)
	}
	synctest.Wait()
}

// end stops the sidecar as SIGTERM does.
func (r *scene) end() {
	r.Helper()
	r.stop()
	if err := <-r.result; err != nil {
		r.Errorf("Run: %v", err)
	}
}

// forget forgets the calls so far.
func (r *scene) forget() {
	r.table.mu.Lock()
	defer r.table.mu.Unlock()
	r.table.calls = nil
}

// count gives the number of EC2 calls since the last forget.
func (r *scene) count() int {
	r.table.mu.Lock()
	defer r.table.mu.Unlock()
	return len(r.table.calls)
}

// called asserts the EC2 calls since the last forget.
func (r *scene) called(want ...string) {
	r.Helper()
	r.table.mu.Lock()
	defer r.table.mu.Unlock()
	var got []string
	for _, c := range r.table.calls {
		got = append(got, c.what)
	}
	if !slices.Equal(got, want) {
		r.Errorf("EC2 calls %q, want %q", got, want)
	}
}

// on asserts who holds an address.
func (r *scene) on(addr, eni string) {
	r.Helper()
	r.table.mu.Lock()
	defer r.table.mu.Unlock()
	if got := r.table.held[netip.MustParseAddr(addr)]; got != eni {
		r.Errorf("%s is on %q, want %q", addr, got, eni)
	}
}

// state asserts the state of an address in the status.
func (r *scene) state(addr, want string) report.AddressStatus {
	r.Helper()
	s := r.now()
	for _, a := range s.Addresses {
		if a.Address == addr {
			if a.State != want {
				r.Errorf("%s is %s (%s), want %s", addr, a.State, a.Reason, want)
			}
			return a
		}
	}
	if want != "" {
		r.Errorf("%s is not in the status, want it %s", addr, want)
	}
	return report.AddressStatus{}
}

func (r *scene) now() report.Status {
	r.Helper()
	s, err := r.status(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	return s
}

func (r *scene) readyIs(want bool, words ...string) {
	r.Helper()
	s := r.now()
	if s.Ready != want {
		r.Errorf("ready is %v (%s), want %v", s.Ready, s.Reason, want)
	}
	for _, w := range words {
		if !strings.Contains(s.Reason, w) {
			r.Errorf("the reason %q does not say %q", s.Reason, w)
		}
	}
}

// in runs a test in virtual time, and shows the log when it fails.
func in(t *testing.T, test func(*testing.T)) {
	t.Helper()
	synctest.Test(t, test)
}

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }
