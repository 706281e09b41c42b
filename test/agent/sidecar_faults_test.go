package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/world"
)

// trouble is something that passes. All of it is waited out; what counts is who has the addresses in the end.
type trouble struct {
	faults []aws.Fault
	// begin starts what is no fault of a single call.
	begin func(*lab)
	// end ends it once the agent has met it; without it the trouble ends by itself. met says when that is, by default after the
	// second failed call.
	met func(*lab) bool
	end func(*lab)
	// opts are of the cloud, from the start.
	opts []aws.Option
	// env is the container's.
	env func(*lab) []string
	// change is of the world.
	change func(*world.Spec)
	// startOnly is set for trouble that an agent that has started does not meet any more, laterOnly for what none meets at its start.
	startOnly, laterOnly bool
}

// eniOne is device 1 of node one, where the pod is.
func (l *lab) eniOne() string { return l.world.Node("one").ENI(1) }

// failed counts calls to EC2 that did not succeed.
func (l *lab) failed() int {
	n := 0
	for _, c := range l.cloud.Journal() {
		if c.Code != "" || c.Done() && c.Status == 0 {
			n++
		}
	}
	return n
}

// lookups counts failed requests to metadata.
func (l *lab) lookups() int {
	n := 0
	for _, c := range l.cloud.IMDSJournal() {
		if c.Fault != "" {
			n++
		}
	}
	return n
}

func cleared(l *lab) { l.cloud.Faults().Clear() }

// troubles are all that the agent must live with, by name.
func troubles() map[string]trouble {
	all, ec2 := "*ssign*", "*s" // requests to metadata are called IMDS:GET and IMDS:PUT
	oneOf := func(f aws.Fault) []aws.Fault { return []aws.Fault{f} }
	revoke := func(l *lab) { l.cloud.RotateCredentials(l.world.Node("one").Instance(), true) }
	return map[string]trouble{
		"throttled until told":           {faults: oneOf(aws.Fault{Kind: aws.FaultThrottle, Action: ec2}), met: func(l *lab) bool { return l.failed() >= 6 }, end: cleared},
		"a third of all calls throttled": {faults: oneOf(aws.Fault{Kind: aws.FaultThrottle, Action: ec2, Percent: 35})},
		"the buckets are empty": {begin: func(l *lab) {
			l.cloud.Tune(func(s *aws.Settings) {
				s.Throttle = true
				s.Buckets = map[string]aws.Bucket{}
				for name := range aws.PublishedBuckets() {
					s.Buckets[name] = aws.Bucket{Size: 1, Refill: 1}
				}
			})
		}},
		"500":                          {faults: oneOf(aws.Fault{Kind: aws.FaultError, Action: all, Times: 4})},
		"503":                          {faults: oneOf(aws.Fault{Kind: aws.FaultError, Action: all, Status: 503, Code: "Unavailable", Times: 4})},
		"a hanging call":               {faults: oneOf(aws.Fault{Kind: aws.FaultHang, Action: all, Times: 1})},
		"a hanging call, applied":      {faults: oneOf(aws.Fault{Kind: aws.FaultHang, Action: all, AfterApply: true, Times: 2})},
		"a late call":                  {faults: oneOf(aws.Fault{Kind: aws.FaultDelay, Action: all, Delay: 3500 * time.Millisecond, Times: 1})},
		"dropped answers":              {faults: oneOf(aws.Fault{Kind: aws.FaultDrop, Action: all, Times: 4})},
		"applied, the answer lost":     {faults: oneOf(aws.Fault{Kind: aws.FaultDrop, Action: all, AfterApply: true, Times: 3})},
		"applied, the answer an error": {faults: oneOf(aws.Fault{Kind: aws.FaultError, Action: all, AfterApply: true, Times: 3})},
		"applied, then throttled": {faults: []aws.Fault{
			{Kind: aws.FaultDrop, Action: "Assign*", AfterApply: true, Times: 2}, {Kind: aws.FaultThrottle, Action: ec2, Skip: 2, Times: 4}}},
		"credentials expired":              {begin: revoke, laterOnly: true},
		"credentials expired, other code":  {begin: revoke, laterOnly: true, opts: []aws.Option{aws.WithSettings(func(s *aws.Settings) { s.Quirks.ExpiredToken = true })}},
		"credentials expired, says a call": {faults: oneOf(aws.Fault{Kind: aws.FaultError, Action: all, Status: 400, Code: "RequestExpired", Times: 2})},
		"credentials that live seconds":    {opts: []aws.Option{aws.WithSettings(func(s *aws.Settings) { s.CredentialsTTL = 3 * time.Second })}},
		"metadata away": {faults: oneOf(aws.Fault{Kind: aws.FaultDrop, Action: "IMDS:*"}), startOnly: true,
			met: func(l *lab) bool { return l.lookups() >= 4 }, end: cleared},
		"metadata hangs": {faults: oneOf(aws.Fault{Kind: aws.FaultHang, Action: "IMDS:*"}), startOnly: true,
			met: func(l *lab) bool { return l.lookups() >= 3 }, end: cleared},
		"metadata away when credentials are due": {faults: oneOf(aws.Fault{Kind: aws.FaultDrop, Action: "IMDS:*"}), laterOnly: true, begin: revoke,
			met: func(l *lab) bool { return l.lookups() >= 2 }, end: cleared},
		"metadata away, not needed": {faults: oneOf(aws.Fault{Kind: aws.FaultDrop, Action: "IMDS:*"}), laterOnly: true},
		"metadata answers 500":      {faults: oneOf(aws.Fault{Kind: aws.FaultError, Action: "IMDS:*", Times: 6})},
		"a clock that is behind":    {begin: clock(10 * time.Minute), opts: strictClock()},
		"a clock that is ahead":     {begin: clock(-10 * time.Minute), opts: strictClock()},
		"metadata closed, credentials from elsewhere": {change: func(s *world.Spec) { s.Nodes[0].IMDS, s.Nodes[0].HopLimit = world.IMDSRequired, 1 },
			env: func(l *lab) []string {
				c := l.cloud.AddUser("AKIAPOD", "pod-secret")
				return []string{"AWS_ACCESS_KEY_ID=" + c.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + c.SecretAccessKey, "AWS_REGION=" + l.cloud.Region()}
			}},
		"the ENI is detached": {begin: func(l *lab) {
			if err := l.cloud.Detach(l.eniOne()); err != nil {
				l.Fatal(err)
			}
		}, met: func(l *lab) bool { return len(l.cloud.IMDSJournal()) >= 6 }, end: func(l *lab) {
			if err := l.cloud.Attach(l.eniOne(), l.world.Node("one").Instance(), 1); err != nil {
				l.Error(err)
			}
		}},
		"the ENI is being attached": {opts: []aws.Option{aws.WithSettings(func(s *aws.Settings) { s.Quirks.BusyAttachmentFails = true })},
			begin: attachment("attaching"), met: func(l *lab) bool { return l.failed() >= 2 || len(l.cloud.IMDSJournal()) >= 12 }, end: attachment("attached")},
		"the ENI is full": {begin: func(l *lab) { l.crowd(15) }, met: func(l *lab) bool { return l.failed() >= 2 }, end: func(l *lab) { l.thin(2) }},
		"searches and metadata lag": {opts: []aws.Option{aws.WithSettings(func(s *aws.Settings) {
			s.Delays = aws.Delays{Describe: 2 * time.Second, IMDS: 5 * time.Second}
		})}},
		"everything at once, otherwise": {opts: []aws.Option{aws.WithSettings(otherwise), aws.WithSeed(7)}, faults: []aws.Fault{
			{Kind: aws.FaultThrottle, Action: ec2, Percent: 20}, {Kind: aws.FaultDrop, Action: ec2, Percent: 10}, {Kind: aws.FaultError, Action: ec2, Percent: 10},
			{Kind: aws.FaultDrop, Action: all, AfterApply: true, Percent: 20}, {Kind: aws.FaultDelay, Action: ec2, Delay: 100 * time.Millisecond, Percent: 30}}},
	}
}

func strictClock() []aws.Option {
	return []aws.Option{aws.WithSettings(func(s *aws.Settings) { s.MaxClockSkew = 5 * time.Minute })}
}

func clock(ahead time.Duration) func(*lab) {
	return func(l *lab) { l.cloud.Tune(func(s *aws.Settings) { s.ClockOffset = ahead }) }
}

func attachment(status string) func(*lab) {
	return func(l *lab) {
		if err := l.cloud.ChangeENI(l.eniOne(), func(e *aws.ENI) { e.AttachStatus = status }); err != nil {
			l.Error(err)
		}
	}
}

// crowd fills an ENI's slots in both families.
func (l *lab) crowd(slots int) {
	l.Helper()
	e, _ := l.cloud.ENI(l.eniOne())
	for i := 1 + len(e.Secondary); i < slots; i++ {
		l.assign(e.ID, fmt.Sprintf("10.0.7.%d", i))
	}
	for i := len(e.IPv6); i < slots; i++ {
		l.assign(e.ID, fmt.Sprintf("fd50:0:0:4::7:%x", i))
	}
}

// thin frees slots again: the newest ones.
func (l *lab) thin(slots int) {
	l.Helper()
	e, _ := l.cloud.ENI(l.eniOne())
	n4, n6 := len(e.Secondary), len(e.IPv6)
	if err := l.cloud.Unassign(e.ID, append(slices.Clone(e.Secondary[n4-slots:]), e.IPv6[n6-slots:]...)...); err != nil {
		l.Error(err)
	}
}

// starts builds the trouble's world.
func (tr trouble) starts(t *testing.T) *lab {
	t.Helper()
	return start(t, tr.change, tr.opts...)
}

// begins makes the trouble begin, and end after the agent has met it.
func (tr trouble) begins(l *lab) {
	l.Helper()
	for _, f := range tr.faults {
		l.cloud.Faults().Add(f)
	}
	if tr.begin != nil {
		tr.begin(l)
	}
}

func (tr trouble) ends(l *lab) {
	l.Helper()
	if tr.end == nil {
		return
	}
	met := tr.met
	if met == nil {
		met = func(l *lab) bool { return l.failed() >= 2 }
	}
	l.until("the trouble was not met", func(context.Context) error {
		if !met(l) {
			return fmt.Errorf("%d failed calls, %d failed and %d requests to metadata", l.failed(), l.lookups(), len(l.cloud.IMDSJournal()))
		}
		return nil
	})
	tr.end(l)
}

func (tr trouble) how(l *lab) how {
	h := how{annotations: map[string]string{"multus-ip-manager.io/deadline": "60s"}}
	if tr.env != nil {
		h.env = tr.env(l)
	}
	return h
}

// What can pass is waited out: by init, by a sidecar that starts, and by one that runs when an address is added. Half of the addresses
// are on another ENI before, so that moves are tried as well as first assignments.
func TestTroubleMatrix(t *testing.T) {
	table := troubles()
	for _, name := range slices.Sorted(maps.Keys(table)) {
		tr := table[name]
		if !tr.laterOnly {
			t.Run("init, "+name, func(t *testing.T) {
				l := tr.starts(t)
				p := l.pod(dual())
				l.assign(l.world.Node("two").ENI(1), "10.0.4.80", "fd50:0:0:4::80")
				tr.begins(l)
				c := l.container(p, tr.how(l))
				r, err := c.Start(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				tr.ends(l)
				end, err := r.Wait()
				if err != nil || end.ExitCode != 0 {
					l.journal()
					t.Errorf("exit %d, %v, message %q\n%s", end.ExitCode, err, end.Message, end.Output)
				}
				l.on("one", 1, "10.0.4.80", "fd50:0:0:4::80")
			})
			t.Run("sidecar at its start, "+name, func(t *testing.T) {
				l := tr.starts(t)
				p := l.pod(dual())
				l.assign(l.world.Node("two").ENI(1), "10.0.4.80", "fd50:0:0:4::80")
				tr.begins(l)
				s := l.sidecar(p, tr.how(l))
				tr.ends(l)
				l.holds(s.eni("net1"), "10.0.4.80", "fd50:0:0:4::80")
				s.ready()
				l.on("one", 1, "10.0.4.80", "fd50:0:0:4::80")
			})
		}
		if tr.startOnly {
			continue
		}
		t.Run("sidecar later, "+name, func(t *testing.T) {
			l := tr.starts(t)
			s := l.sidecar(l.pod(dual()), tr.how(l))
			s.ready()
			l.assign(l.world.Node("two").ENI(1), vip4, vip6)
			tr.begins(l)
			s.adds(append(vips(), netip.MustParsePrefix("10.0.4.98/32"), netip.MustParsePrefix("fd50:0:0:4::98/128"))...)
			if name == "the ENI is detached" {
				// EC2 assigns to a detached ENI as well, so there is nothing to wait for.
				l.holds(s.eni("net1"), vip4, vip6)
				tr.end(l)
			} else {
				tr.ends(l)
			}
			l.holds(s.eni("net1"), vip4, vip6, "10.0.4.80", "fd50:0:0:4::80")
			if name != "the ENI is full" { // two slots were freed, and four are asked for
				l.holds(s.eni("net1"), "10.0.4.98", "fd50:0:0:4::98")
			}
			l.rest(1500*time.Millisecond, vip4, vip6)
			l.on("one", 1, vip4, vip6, "10.0.4.80", "fd50:0:0:4::80")
		})
	}
}

// What cannot pass by waiting alone: a sidecar stays up, is not ready, says why, and does not hammer EC2.
func TestSidecarStaysUpWhereInitGivesUp(t *testing.T) {
	for name, test := range map[string]struct {
		policy   *aws.Policy
		networks []world.Network
		state    string
		address  string
		words    string
		good     []string
	}{
		"no permission": {policy: &aws.Policy{Allow: []aws.Statement{{Actions: []string{"ec2:Describe*", "ec2:AssignIpv6Addresses"}}}},
			networks: []world.Network{dual()}, address: "10.0.4.80", words: "UnauthorizedOperation", good: []string{"fd50:0:0:4::80"}},
		"another ENI's primary address": {networks: []world.Network{network(1, "10.0.4.80/22", "10.0.4.11/22")}, state: report.StateRefused,
			address: "10.0.4.11", words: "primary", good: []string{"10.0.4.80"}},
		"outside the subnet": {networks: []world.Network{network(1, "10.0.4.80/22", "10.0.9.5/24")}, state: report.StateRefused,
			address: "10.0.9.5", words: "outside the subnet", good: []string{"10.0.4.80"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, nil)
			if err := l.cloud.ChangeInstance(l.world.Node("one").Instance(), func(i *aws.Instance) { i.Policy = test.policy }); err != nil {
				t.Fatal(err)
			}
			s := l.sidecar(l.pod(test.networks...), how{})
			l.holds(s.eni("net1"), test.good...)
			l.until("the status does not say why", func(ctx context.Context) error {
				st, err := s.status(ctx)
				for _, a := range st.Addresses {
					if a.Address == test.address && (test.state == "" || a.State == test.state) && contains(a.Reason, test.words) {
						return err
					}
				}
				return fmt.Errorf("%+v, %w", st, err)
			})
			r, err := s.Exec(t.Context(), "ready")
			if err != nil || r.ExitCode == 0 || !contains(r.Output, test.address) {
				t.Errorf("ready: %+v, %v", r, err)
			}
			before := len(l.calls())
			l.rest(3*time.Second, test.good...)
			if n := len(l.calls()) - before; n > 2 {
				t.Errorf("%d calls in three seconds", n)
			}
			select {
			case <-s.Done():
				t.Error("it ended")
			default:
			}
		})
	}
}

// Credentials of a node whose role is granted later are found.
func TestSidecarWaitsForARole(t *testing.T) {
	l := start(t, func(s *world.Spec) { s.Nodes[0].Role = "-" })
	s := l.sidecar(l.pod(dual()), how{})
	l.until("the status does not speak of credentials", func(ctx context.Context) error {
		st, err := s.status(ctx)
		if err == nil && !contains(fmt.Sprintf("%+v", st), "credentials") {
			err = fmt.Errorf("%+v", st)
		}
		return err
	})
	if r, err := s.Exec(t.Context(), "ready"); err != nil || r.ExitCode == 0 {
		t.Errorf("ready: %+v, %v", r, err)
	}
}

func contains(s, words string) bool { return strings.Contains(s, words) }
