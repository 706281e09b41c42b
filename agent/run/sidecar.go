package run

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"multus-ip-manager.io/agent/locate"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/report"
)

// Follower is what a sidecar needs of the pod's network namespace. [observe.Namespace] is the real one.
type Follower interface {
	Observer
	// Watch delivers a snapshot at once and another one after every change, until ctx ends. It tells resync why events were lost.
	Watch(ctx context.Context, deliver func(plan.Snapshot), resync func(reason string, err error)) error
	// InUse tells which of the addresses a socket of the namespace can use, and what it is.
	InUse(ctx context.Context, addrs []netip.Addr) (map[netip.Addr]string, error)
}

// Lister tells what metadata lists as the addresses of ENIs, by MAC; nil when there is no metadata and need not be. The lists are stale
// both ways. [*locate.Finder] is the real one.
type Lister interface {
	Listed(ctx context.Context, macs []string) (map[string]locate.Listing, error)
}

// Meter counts what happens. [*report.Metrics] is the real one.
type Meter interface {
	// Takeover is told how long an address took from the kernel's event to EC2's answer; the family is "ipv4" or "ipv6".
	Takeover(family string, d time.Duration)
	// Lost is told of each address that another ENI claimed.
	Lost()
	// Resync is told why the kernel's events had to be subscribed to anew.
	Resync(reason string)
	// ThrottleWait is told how long the agent will wait because EC2 throttled a request, with the request's action.
	ThrottleWait(action string, d time.Duration)
	// MetadataError is told of each failure to read metadata.
	MetadataError()
}

// Warmer is an EC2 client that can be kept ready for a call at any time. [*apply.Client] is one.
type Warmer interface {
	Warm(ctx context.Context)
}

// Sidecar is an agent that stays: it assigns what the pod has, follows what changes, and gives back at the end what is the pod's alone.
type Sidecar struct {
	Agent
	Follow Follower
	List   Lister
	Meter  Meter
	// Publish, when not nil, is given the function that tells the present status until Run ends.
	Publish func(func(context.Context) (report.Status, error))
	// Quiet, when not nil, closes the agent's own sockets before the pod's are looked at for the release.
	Quiet func()
	// Tidy, when not nil, is called within a minute or so after work, to give back the memory that it took.
	Tidy func()
}

// Run works until ctx ends, and then releases what it may. The error is a [*report.Failure]; a stop as told is none.
func (s *Sidecar) Run(ctx context.Context) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx)) // calls under way outlive the signal
	l := newLoop(life, s)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Follow.Watch(life, l.mail.put, l.resync); err != nil && life.Err() == nil {
			l.post(func() { l.fatal = report.Fail(report.GaveUp, "follow the pod's interfaces: %w", err) })
		}
	})
	wg.Go(l.reachEC2)
	if s.Publish != nil {
		s.Publish(l.ask)
	}
	result := make(chan error, 1)
	wg.Go(func() { result <- l.run(ctx) })
	select {
	case err := <-result:
		end()
		wg.Wait()
		l.calls.Wait()
		return err
	case what := <-l.dog.stuck:
		// What is stuck cannot be waited for. The process ends, and the kubelet starts it anew.
		end()
		return report.Fail(report.GaveUp, "watchdog: %s has been stuck for %s; ending, to be started anew", what, stuckAfter)
	}
}

// mailbox keeps the latest snapshot for the loop.
type mailbox struct {
	mu     sync.Mutex
	latest plan.Snapshot
	has    chan struct{}
}

func newMailbox() *mailbox { return &mailbox{has: make(chan struct{}, 1)} }

// put never blocks. A snapshot that was not taken yet is replaced, but when its event was heard is kept.
func (m *mailbox) put(s plan.Snapshot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case m.has <- struct{}{}:
	default:
		if !m.latest.Heard.IsZero() {
			s.Heard = m.latest.Heard
		}
	}
	m.latest = s
}

func (m *mailbox) take() plan.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.latest
}

// watchdog notices work that does not end.
type watchdog struct {
	limit time.Duration
	stuck chan string
}

func newWatchdog(limit time.Duration) *watchdog {
	return &watchdog{limit: limit, stuck: make(chan string, 1)}
}

// begin watches one piece of work until the function it gives is called. It costs nothing while there is no work.
func (w *watchdog) begin(what string) (end func()) { return w.beginFor(what, w.limit) }

func (w *watchdog) beginFor(what string, limit time.Duration) (end func()) {
	// Time is counted in steps, so that a process that was stopped for a while, or a machine, is not taken for one that is stuck.
	const steps = 12
	var mu sync.Mutex
	passed, over := 0, false
	var t *time.Timer
	step := func() {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return
		}
		if passed++; passed < steps {
			t.Reset(limit / steps)
			return
		}
		select {
		case w.stuck <- what:
		default:
		}
	}
	mu.Lock()
	defer mu.Unlock()
	t = time.AfterFunc(limit/steps, step)
	return func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
		t.Stop()
	}
}
