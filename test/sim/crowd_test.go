package sim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/locate"
	"multus-ip-manager.io/agent/observe"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/agent/run"
	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/aws"
)

// crowdPods is how many pods start at once in TestCrowdedStart.
var crowdPods = flag.Int("pods", 1000, "pods that start at once on a hundred nodes")

const (
	crowdNodes = 100
	// crowdLatency is how long EC2 takes for an answer.
	crowdLatency = 100 * time.Millisecond
)

// throttledEC2 is EC2 for a whole account: the published token bucket of the call that assigns, and who has assigned what. Only what
// agents call at a start without faults is there.
type throttledEC2 struct {
	apply.EC2

	mu      sync.Mutex
	level   *aws.Level
	asked   int
	holders map[netip.Addr]string
	last    time.Time
	all     chan struct{} // closed when every pod's address is assigned
}

// AssignIPv4 implements [apply.EC2].
func (e *throttledEC2) AssignIPv4(ctx context.Context, eni string, addrs []netip.Addr, _ bool) ([]netip.Addr, error) {
	sleep(ctx, crowdLatency)
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	e.asked++
	if !e.level.Take(now) {
		return nil, &apply.OpError{Op: assign4, ENI: eni, Addrs: addrs, Class: apply.Throttled, Err: errors.New("RequestLimitExceeded")}
	}
	for _, a := range addrs {
		e.holders[a] = eni
	}
	if e.last = now; len(e.holders) == *crowdPods {
		close(e.all)
	}
	return addrs, nil
}

// Holders implements [apply.EC2].
func (e *throttledEC2) Holders(_ context.Context, _ string, addrs []netip.Addr) (map[netip.Addr]apply.Holder, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	held := map[netip.Addr]apply.Holder{}
	for _, a := range addrs {
		if eni := e.holders[a]; eni != "" {
			held[a] = apply.Holder{ENI: eni, Unmanaged: true, DeviceIndex: 1}
		}
	}
	return held, nil
}

// crowded is one pod of many: what its agent sees of its interface and of its node. Nothing of it changes.
type crowded struct {
	addr netip.Addr
	eni  string
}

func (c crowded) link() plan.Link {
	return plan.Link{Index: net1, Name: "net1", MAC: macOf(c.eni), Kind: "ipvlan"}
}

// Snapshot implements [run.Observer].
func (c crowded) Snapshot(context.Context) (plan.Snapshot, error) {
	return plan.Snapshot{
		Links: []plan.Link{c.link()}, Addresses: []plan.Address{{Addr: c.addr, Bits: 16, Link: c.link(), CStamp: bootStamp}},
		Stamp: bootStamp, Taken: time.Now(),
	}, nil
}

// Watch implements [run.Follower].
func (c crowded) Watch(ctx context.Context, deliver func(plan.Snapshot), _ func(string, error)) error {
	s, err := c.Snapshot(ctx)
	deliver(s)
	<-ctx.Done()
	return err
}

// InUse implements [run.Follower].
func (crowded) InUse(context.Context, []netip.Addr) (map[netip.Addr]string, error) {
	return map[netip.Addr]string{}, nil
}

// ENIs implements [run.Locator].
func (c crowded) ENIs(ctx context.Context, _ []string) ([]plan.ENI, error) { return c.All(ctx) }

// All implements [run.Locator].
func (c crowded) All(context.Context) ([]plan.ENI, error) {
	return []plan.ENI{
		{ID: "eni-0", MAC: "02:ff:00:00:00:00", SubnetID: "subnet-a", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}},
		{ID: c.eni, MAC: macOf(c.eni), DeviceIndex: 1, SubnetID: subnet, Subnets: []netip.Prefix{netip.MustParsePrefix("10.16.0.0/16")}},
	}, nil
}

// Listed implements [run.Lister].
func (c crowded) Listed(context.Context, []string) (map[string]locate.Listing, error) {
	return map[string]locate.Listing{macOf(c.eni): {ENI: c.eni, Addrs: []netip.Addr{c.addr}}}, nil
}

// Manage implements [run.RouteWatch].
func (crowded) Manage(map[int]string) {}

// Blocked implements [run.RouteWatch].
func (crowded) Blocked() *observe.RouteError { return nil }

// When many more pods start at once than EC2 lets through, they use what it lets through, and none of it is left unused: the last
// address is assigned within 1.2 times the time that the token bucket needs by itself. Time is virtual, the agents are real. The
// figure for a large cluster takes -pods 5000.
func TestCrowdedStart(t *testing.T) {
	for mode, start := range map[settings.Mode]func(ctx context.Context, a run.Agent, c crowded) error{
		settings.Init: func(ctx context.Context, a run.Agent, _ crowded) error { return a.Init(ctx) },
		settings.Sidecar: func(ctx context.Context, a run.Agent, c crowded) error {
			s := &run.Sidecar{Agent: a, Follow: c, List: c, Meter: &Handle{}, Publish: func(func(context.Context) (report.Status, error)) {}}
			return s.Run(ctx)
		},
	} {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { crowdedStart(t, mode, start) })
		})
	}
}

func crowdedStart(t *testing.T, mode settings.Mode, start func(context.Context, run.Agent, crowded) error) {
	bucket := aws.PublishedBuckets()["AssignPrivateIpAddresses"]
	began := time.Now()
	ec2 := &throttledEC2{level: bucket.Full(began), holders: map[netip.Addr]string{}, all: make(chan struct{})}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var agents sync.WaitGroup
	for i := range *crowdPods {
		c := crowded{addr: netip.AddrFrom4([4]byte{10, 16, byte(i/250 + 1), byte(i%250 + 1)}), eni: fmt.Sprintf("eni-%d", i%crowdNodes)}
		a := run.Agent{
			Settings: settings.Agent{Mode: mode, Deadline: settings.DefaultInitDeadline, Pod: settings.Pod{Namespace: "sim", Name: fmt.Sprint(i), IPs: []netip.Addr{podIP}}},
			Observe:  c, Locate: c, Routes: c, Log: slog.New(slog.DiscardHandler),
			Connect: func(context.Context) (apply.EC2, error) { return ec2, nil },
		}
		agents.Go(func() {
			if err := start(ctx, a, c); err != nil {
				t.Errorf("%s: %v", c.addr, err)
			}
		})
	}
	select {
	case <-ec2.all:
	case <-time.After(2 * settings.DefaultInitDeadline):
		t.Fatalf("only %d addresses are assigned", len(ec2.holders))
	}
	took := ec2.last.Sub(began)
	if mode == settings.Sidecar { // which does not end by itself
		stop()
	}
	agents.Wait()
	bound := time.Duration((float64(*crowdPods) - bucket.Size) / bucket.Refill * float64(time.Second))
	t.Logf("%d pods on %d nodes: %s, %.3f times the bucket's own %s, %d calls", *crowdPods, crowdNodes, took.Round(time.Second), took.Seconds()/bound.Seconds(), bound, ec2.asked)
	if took > bound*12/10 {
		t.Errorf("%s, want at most 1.2 times %s", took, bound)
	}
}
