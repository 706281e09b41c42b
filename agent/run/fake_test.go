package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/observe"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/settings"
)

// The pod of most tests: eth0 of the VPC CNI, net1 on eni-1 and net2 on eni-2.
var (
	eni0  = plan.ENI{ID: "eni-0", MAC: "02:00:00:00:00:00", SubnetID: "subnet-a", Subnets: prefixes("10.0.0.0/24")}
	eni1  = plan.ENI{ID: "eni-1", MAC: "02:00:00:00:00:01", DeviceIndex: 1, SubnetID: "subnet-b", Subnets: prefixes("10.0.1.0/24", "2001:db8:0:1::/64")}
	eni2  = plan.ENI{ID: "eni-2", MAC: "02:00:00:00:00:02", DeviceIndex: 2, SubnetID: "subnet-c", Subnets: prefixes("10.0.2.0/24")}
	lo    = plan.Link{Index: 1, Name: "lo", Loopback: true}
	eth0  = plan.Link{Index: 2, Name: "eth0", MAC: "ee:00:00:00:00:01", Kind: "veth"}
	net1  = plan.Link{Index: 3, Name: "net1", MAC: eni1.MAC, Kind: "ipvlan"}
	net2  = plan.Link{Index: 4, Name: "net2", MAC: eni2.MAC, Kind: "ipvlan"}
	podIP = netip.MustParseAddr("10.0.0.77")
)

func prefixes(texts ...string) []netip.Prefix {
	ps := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		ps[i] = netip.MustParsePrefix(t)
	}
	return ps
}

// pod makes the snapshot of a pod whose interfaces hold these addresses, besides lo and eth0.
func pod(addrs map[plan.Link][]string) plan.Snapshot {
	s := plan.Snapshot{Links: []plan.Link{lo, eth0}, Addresses: []plan.Address{{Addr: podIP, Bits: 32, Link: eth0}}}
	for l, texts := range addrs {
		s.Links = append(s.Links, l)
		for _, t := range texts {
			s.Addresses = append(s.Addresses, plan.Address{Addr: netip.MustParseAddr(t), Bits: 24, Link: l})
		}
	}
	return s
}

type fakeObserver struct {
	snapshot plan.Snapshot
	err      error
}

func (f fakeObserver) Snapshot(context.Context) (plan.Snapshot, error) { return f.snapshot, f.err }

// fakeLocator answers its n-th call (from 1) from a function.
type fakeLocator struct {
	enis  func(n int) ([]plan.ENI, error)
	all   func(n int) ([]plan.ENI, error)
	mu    sync.Mutex
	n, an int
	asked [][]string
}

func (f *fakeLocator) ENIs(_ context.Context, macs []string) ([]plan.ENI, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	f.asked = append(f.asked, macs)
	return f.enis(f.n)
}

func (f *fakeLocator) All(context.Context) ([]plan.ENI, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.an++
	return f.all(f.an)
}

type fakeRoutes struct {
	managed map[int]string
	blocked func() *observe.RouteError
}

func (f *fakeRoutes) Manage(links map[int]string) { f.managed = links }

func (f *fakeRoutes) Blocked() *observe.RouteError {
	if f.blocked == nil {
		return nil
	}
	return f.blocked()
}

// call is one EC2 call and when it began, counted from the start of the test.
type call struct {
	at   time.Duration
	what string
}

// fakeEC2 answers assignments by a function; nil answers success.
type fakeEC2 struct {
	assign  func(ctx context.Context, eni string, addrs []netip.Addr) error
	holders func(addrs []netip.Addr) map[netip.Addr]apply.Holder
	mu      sync.Mutex
	start   time.Time
	calls   []call
}

func (f *fakeEC2) note(op, eni string, addrs []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	f.calls = append(f.calls, call{time.Since(f.start), strings.TrimSpace(op + " " + eni + " " + strings.Join(texts, ","))})
}

// whats lists the calls in the order of their text, because ENIs are worked on side by side.
func (f *fakeEC2) whats() []string {
	var w []string
	for _, c := range f.calls {
		w = append(w, c.what)
	}
	slices.Sort(w)
	return w
}

func (f *fakeEC2) do(ctx context.Context, op, eni string, addrs []netip.Addr) error {
	f.note(op, eni, addrs)
	if f.assign == nil {
		return nil
	}
	return f.assign(ctx, eni, addrs)
}

func (f *fakeEC2) AssignIPv4(ctx context.Context, eni string, addrs []netip.Addr, _ bool) ([]netip.Addr, error) {
	if err := f.do(ctx, "assign4", eni, addrs); err != nil {
		return nil, err
	}
	return addrs, nil
}

func (f *fakeEC2) AssignIPv6(ctx context.Context, eni string, addrs []netip.Addr) error {
	return f.do(ctx, "assign6", eni, addrs)
}

func (f *fakeEC2) UnassignIPv6(_ context.Context, eni string, addrs []netip.Addr) error {
	f.note("unassign6", eni, addrs)
	return nil
}

func (f *fakeEC2) UnassignIPv4(_ context.Context, eni string, addrs []netip.Addr) error {
	f.note("unassign4", eni, addrs)
	return nil
}

func (f *fakeEC2) Holders(_ context.Context, subnet string, addrs []netip.Addr) (map[netip.Addr]apply.Holder, error) {
	f.note("holders", subnet, addrs)
	if f.holders == nil {
		return nil, nil
	}
	return f.holders(addrs), nil
}

func (f *fakeEC2) Unmanaged(_ context.Context, eni string) (bool, error) {
	f.note("unmanaged", eni, nil)
	return true, nil
}

func (f *fakeEC2) IPv6Slots(_ context.Context, eni string) (int, error) {
	f.note("slots", eni, nil)
	return 0, nil
}

// answer makes EC2's refusal of a class.
func answer(class apply.Class, eni string, addrs []netip.Addr) error {
	return &apply.OpError{Op: "Assign", ENI: eni, Addrs: addrs, Code: "Code" + class.String(), RequestID: fmt.Sprint(time.Now().UnixNano()),
		Class: class, Err: fmt.Errorf("EC2 says %s", class)}
}

// hang is a call that is never answered: it ends as a real one does, when its own time or the caller's is up.
func hang(ctx context.Context, eni string, addrs []netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	<-ctx.Done()
	return &apply.OpError{Op: "Assign", ENI: eni, Addrs: addrs, Class: apply.Unanswered, Err: ctx.Err()}
}

// rig is an agent with fakes around it.
type rig struct {
	*Agent
	ec2    *fakeEC2
	loc    *fakeLocator
	routes *fakeRoutes
	log    *bytes.Buffer
	// connected counts the tries to make an EC2 client.
	connected atomic.Int32
}

// newRig makes the agent of a pod; call it inside the test's bubble.
func newRig(t *testing.T, s plan.Snapshot) *rig {
	t.Helper()
	r := &rig{ec2: &fakeEC2{start: time.Now()}, loc: &fakeLocator{}, routes: &fakeRoutes{}, log: &bytes.Buffer{}}
	r.loc.enis = func(int) ([]plan.ENI, error) { return []plan.ENI{eni0, eni1, eni2}, nil }
	r.loc.all = func(int) ([]plan.ENI, error) { return []plan.ENI{eni0, eni1, eni2}, nil }
	r.Agent = &Agent{
		Settings: settings.Agent{Pod: settings.Pod{Namespace: "telco", Name: "amf-0", IPs: []netip.Addr{podIP}}, Deadline: 30 * time.Minute},
		Observe:  fakeObserver{snapshot: s},
		Locate:   r.loc,
		Connect:  func(context.Context) (apply.EC2, error) { r.connected.Add(1); return r.ec2, nil },
		Routes:   r.routes,
		Log:      slog.New(slog.NewTextHandler(&syncWriter{w: r.log}, nil)),
	}
	return r
}

// syncWriter lets several goroutines log.
type syncWriter struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (s *syncWriter) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(b)
}

var errAway = errors.New("connection refused")
