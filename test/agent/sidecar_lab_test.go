package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/kubelet"
	"multus-ip-manager.io/test/world"
)

const (
	unassign4 = "UnassignPrivateIpAddresses"
	// patience is how long an event may take that must happen. It is far longer than any agent takes on an idle machine, and longer than
	// the last of the looks that follow a takeover: on a slow machine the one after 5 s comes before what it is to see.
	patience = 75 * time.Second
	// calm is how long nothing may happen where nothing must happen: longer than the looks that follow a takeover after 1 and 5 s.
	calm = 6500 * time.Millisecond
)

// The floating addresses of these tests.
const (
	vip4 = "10.0.4.99"
	vip6 = "fd50:0:0:4::99"
)

// vips are the floating addresses as keepalived adds them.
func vips() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix(vip4 + "/32"), netip.MustParsePrefix(vip6 + "/128")}
}

// sidecar is a running agent.
type sidecar struct {
	*kubelet.Running
	l   *lab
	pod *world.Pod
}

// sidecar starts the agent beside the pod's application.
func (l *lab) sidecar(p *world.Pod, h how) *sidecar {
	l.Helper()
	h.mode = settings.Sidecar
	r, err := l.container(p, h).Start(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		end, err := r.Wait() // the test's context has ended, which kills it
		if l.Failed() {
			l.Logf("sidecar of %s: exit %d, %v, message %q, output:\n%s", p.Name(), end.ExitCode, err, end.Message, end.Output)
		}
	})
	return &sidecar{Running: r, l: l, pod: p}
}

// sidecars starts pods with sidecars on nodes one and two, each with an IPv4 and an IPv6 address of its own, and waits until they are
// ready.
func (l *lab) sidecars(h how) (a, b *sidecar) {
	l.Helper()
	a = l.sidecar(l.podOn("one", "a", network(1, "10.0.4.80/22", "fd50:0:0:4::80/64")), h)
	b = l.sidecar(l.podOn("two", "b", network(1, "10.0.4.81/22", "fd50:0:0:4::81/64")), h)
	a.ready()
	b.ready()
	return a, b
}

// until asks again and again until there is no error left, or patience ends.
func (l *lab) until(what string, ask func(context.Context) error) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), patience)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			l.journal()
			l.Fatalf("%s: %v", what, err)
		}
	}
}

// journal shows the end of the EC2 calls.
func (l *lab) journal() {
	l.Helper()
	calls := l.cloud.Journal()
	for _, c := range calls[max(0, len(calls)-60):] {
		l.Log(c.Start.Format("05.000"), c)
	}
}

// ready waits until the startup probe succeeds.
func (s *sidecar) ready() {
	s.l.Helper()
	s.l.until("the sidecar of "+s.pod.Name()+" is not ready", func(ctx context.Context) error {
		select {
		case <-s.Done():
			s.l.Fatalf("the sidecar of %s has ended:\n%s", s.pod.Name(), s.Output())
		default:
		}
		r, err := s.Exec(ctx, "ready")
		if err == nil && r.ExitCode != 0 {
			err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Output)
		}
		return err
	})
}

// status is what `agent status -o json` tells.
func (s *sidecar) status(ctx context.Context) (report.Status, error) {
	r, err := s.Exec(ctx, "status", "-o", "json")
	if err != nil {
		return report.Status{}, err
	}
	var st report.Status
	if err := json.Unmarshal([]byte(r.Output), &st); err != nil {
		return st, fmt.Errorf("exit code %d, %q: %w", r.ExitCode, r.Output, err)
	}
	return st, nil
}

// shows waits until the status has the address in a state, and returns its line.
func (s *sidecar) shows(address, state string) report.AddressStatus {
	s.l.Helper()
	var line report.AddressStatus
	s.l.until("the status of "+s.pod.Name()+" does not show "+address+" "+state, func(ctx context.Context) error {
		st, err := s.status(ctx)
		if err != nil {
			return err
		}
		for _, a := range st.Addresses {
			if a.Address == address {
				if line = a; a.State == state {
					return nil
				}
				return fmt.Errorf("it shows %+v", a)
			}
		}
		return fmt.Errorf("it shows %+v", st)
	})
	return line
}

// waits waits until the status shows the address in state waiting, for a reason that has the words.
func (s *sidecar) waits(address, words string) {
	s.l.Helper()
	s.l.until("the status of "+s.pod.Name()+" does not say why "+address+" waits", func(context.Context) error {
		if line := s.shows(address, report.StateWaiting); !strings.Contains(line.Reason, words) {
			return fmt.Errorf("its reason %q does not say %q", line.Reason, words)
		}
		return nil
	})
}

// stop ends the sidecar as the kubelet does at the pod's end.
func (s *sidecar) stop() kubelet.Result {
	s.l.Helper()
	r, err := s.Stop(30 * time.Second)
	if err != nil {
		s.l.Fatal(err)
	}
	if r.ExitCode != 0 || r.Message != "" {
		s.l.Errorf("the sidecar of %s ended with %d, message %q; want success", s.pod.Name(), r.ExitCode, r.Message)
	}
	return r
}

// crash ends the sidecar without any notice.
func (s *sidecar) crash() {
	s.l.Helper()
	if _, err := s.Kill(); err != nil {
		s.l.Fatal(err)
	}
}

// has puts floating addresses on the pod's interface: they are added there, whatever was there before.
func (s *sidecar) adds(addresses ...netip.Prefix) {
	s.l.Helper()
	for _, a := range addresses {
		had, err := s.pod.NS().Addrs("net1")
		if err != nil {
			s.l.Fatal(err)
		}
		add := func() error { return s.pod.AddAddrs("net1", a) }
		for _, h := range had {
			if h == a {
				add = func() error { return s.pod.Flap("net1", a, 1) }
			}
		}
		if err := add(); err != nil {
			s.l.Fatal(err)
		}
	}
}

func (s *sidecar) removes(addresses ...netip.Prefix) {
	s.l.Helper()
	if err := s.pod.DelAddrs("net1", addresses...); err != nil {
		s.l.Fatal(err)
	}
}

// eni is the id of the ENI that an interface of the pod hangs on.
func (s *sidecar) eni(link string) string { return s.pod.ENI(link) }

// holds waits until EC2 has the addresses on the ENI; "" means on none.
func (l *lab) holds(eni string, addresses ...string) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), patience)
	defer cancel()
	for _, a := range addresses {
		if err := l.record.WaitHolder(ctx, netip.MustParseAddr(a), eni); err != nil {
			l.journal()
			l.Fatalf("%s is not on %q: %v", a, eni, err)
		}
	}
}

// rest asserts that for a while no address changes hands.
func (l *lab) rest(d time.Duration, addresses ...string) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), d)
	defer cancel()
	before := l.moves(addresses)
	err := l.record.Wait(ctx, netip.MustParseAddr(addresses[0]), func([]aws.Change) bool { return l.moves(addresses) != before })
	if err == nil || !errors.Is(err, context.DeadlineExceeded) {
		l.journal()
		l.Error("an address moved, though nobody did anything")
		for _, a := range addresses {
			l.Logf("%s: %v", a, l.record.Of(netip.MustParseAddr(a)))
		}
	}
}

// settles waits until no address has changed hands for a while.
func (l *lab) settles(addresses ...string) {
	l.Helper()
	began := time.Now()
	for {
		ctx, cancel := context.WithTimeout(l.Context(), calm)
		before := l.moves(addresses)
		err := l.record.Wait(ctx, netip.MustParseAddr(addresses[0]), func([]aws.Change) bool { return l.moves(addresses) != before })
		cancel()
		if err != nil {
			return
		}
		if time.Since(began) > patience {
			l.journal()
			l.Fatalf("%v keep moving", addresses)
		}
	}
}

// moves is how often addresses have changed hands.
func (l *lab) moves(addresses []string) int {
	n := 0
	for _, a := range addresses {
		n += len(l.record.Of(netip.MustParseAddr(a)))
	}
	return n
}

// quiet asserts that for a while no call is made to EC2, other than those that only look.
func (l *lab) quiet(d time.Duration) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), d)
	defer cancel()
	before := len(l.changing())
	if err := l.cloud.WaitJournal(ctx, func(cs []aws.Call) bool { return len(changing(cs)) != before }); err == nil {
		l.journal()
		l.Error("calls to EC2, though nobody did anything")
	}
}

// changing are the calls that change something.
func (l *lab) changing() []aws.Call { return changing(l.cloud.Journal()) }

func changing(cs []aws.Call) []aws.Call {
	var out []aws.Call
	for _, c := range cs {
		if !strings.HasPrefix(c.Action, "Describe") {
			out = append(out, c)
		}
	}
	return out
}

// count is how many of the calls have the action.
func count(cs []aws.Call, action string) int {
	n := 0
	for _, c := range cs {
		if c.Action == action {
			n++
		}
	}
	return n
}
