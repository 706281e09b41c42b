package run

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/locate"
	"multus-ip-manager.io/agent/observe"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/agent/settings"
)

// outcome is how an agent ended.
type outcome struct {
	code report.Code
	took time.Duration
	err  error
}

func (r *rig) init(ctx context.Context) outcome {
	started := time.Now()
	err := r.Init(ctx)
	return outcome{report.CodeOf(err), time.Since(started), err}
}

func (o outcome) check(t *testing.T, code report.Code, words ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code %d (%v), want %d", o.code, o.err, code)
	}
	for _, w := range words {
		if !strings.Contains(fmt.Sprint(o.err), w) {
			t.Errorf("%q does not say %q", o.err, w)
		}
	}
	var f *report.Failure
	if o.err != nil && (!errors.As(o.err, &f) || strings.Contains(o.err.Error(), "\n")) {
		t.Errorf("%q is no one-line failure", o.err)
	}
}

var onePod = map[plan.Link][]string{net1: {"10.0.1.5"}}

func TestInitAssigns(t *testing.T) {
	tests := map[string]struct {
		addrs map[plan.Link][]string
		want  []string
	}{
		"one address":     {onePod, []string{"assign4 eni-1 10.0.1.5"}},
		"several":         {map[plan.Link][]string{net1: {"10.0.1.5", "10.0.1.6"}}, []string{"assign4 eni-1 10.0.1.5,10.0.1.6"}},
		"both families":   {map[plan.Link][]string{net1: {"10.0.1.5", "2001:db8:0:1::5"}}, []string{"assign4 eni-1 10.0.1.5", "assign6 eni-1 2001:db8:0:1::5"}},
		"two ENIs":        {map[plan.Link][]string{net1: {"10.0.1.5"}, net2: {"10.0.2.5"}}, []string{"assign4 eni-1 10.0.1.5", "assign4 eni-2 10.0.2.5"}},
		"nothing foreign": {map[plan.Link][]string{net1: {"10.0.1.5"}, {Index: 9, Name: "docker0", MAC: "02:42:00:00:00:01"}: {"172.17.0.1"}}, []string{"assign4 eni-1 10.0.1.5"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pod(tt.addrs))
				r.init(t.Context()).check(t, report.Done)
				if diff := cmp.Diff(tt.want, r.ec2.whats()); diff != "" {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// The wanted interfaces, and no others, are watched for swallowing the agent's own connections.
func TestInitNamesManagedInterfaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(map[plan.Link][]string{net1: {"10.0.1.5", "10.0.1.6"}, net2: {"fe80::1"}}))
		r.init(t.Context()).check(t, report.Done)
		if diff := cmp.Diff(map[int]string{3: "net1"}, r.routes.managed); diff != "" {
			t.Errorf("managed (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([][]string{{net1.MAC, eth0.MAC}}, r.loc.asked); diff != "" {
			t.Errorf("MACs asked for (-want +got):\n%s", diff)
		}
	})
}

func TestInitNothingWanted(t *testing.T) {
	tests := map[string]struct {
		addrs    map[plan.Link][]string
		settings func(*settings.Agent)
		located  int
	}{
		"no interface but the pod's own": {located: 1},
		"a link without a global address": {addrs: map[plan.Link][]string{net1: {"fe80::1"}}, located: 1,
			settings: func(s *settings.Agent) { s.Networks = []settings.Network{{Name: "n3", Interface: "net1"}} }},
		"everything ignored": {addrs: onePod,
			settings: func(s *settings.Agent) { s.Ignore = prefixes("10.0.0.0/8") }},
		"the only managed interface is bare": {addrs: map[plan.Link][]string{net1: {"10.0.1.5"}, net2: {}},
			settings: func(s *settings.Agent) { s.Interfaces = []string{"net2"} }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pod(tt.addrs))
				if tt.settings != nil {
					tt.settings(&r.Settings)
				}
				o := r.init(t.Context())
				o.check(t, report.Done)
				if r.loc.n != tt.located || r.loc.an != 0 || r.connected.Load() != 0 || len(r.ec2.calls) != 0 || o.took != 0 {
					t.Errorf("metadata read %d+%d times, %d connections, calls %v, took %s", r.loc.n, r.loc.an, r.connected.Load(), r.ec2.calls, o.took)
				}
				if !strings.Contains(r.log.String(), "no address to assign") {
					t.Errorf("success without a log line:\n%s", r.log)
				}
			})
		})
	}
}

// A pod that has only its own interface does not wait for metadata that is away.
func TestInitOwnInterfaceWithoutMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(nil))
		r.loc.enis = func(int) ([]plan.ENI, error) { return nil, fmt.Errorf("%w: %w", locate.ErrNoMetadata, errAway) }
		o := r.init(t.Context())
		o.check(t, report.Done)
		if r.loc.n != 1 || o.took != 0 || r.connected.Load() != 0 {
			t.Errorf("%d reads in %s, %d connections", r.loc.n, o.took, r.connected.Load())
		}
	})
}

// An address inside a delegated prefix is routed already.
func TestInitRouted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		e := eni1
		e.Prefixes = prefixes("10.0.1.0/28")
		r.loc.enis = func(int) ([]plan.ENI, error) { return []plan.ENI{eni0, e}, nil }
		r.init(t.Context()).check(t, report.Done)
		if len(r.ec2.calls) != 0 {
			t.Errorf("calls %v", r.ec2.calls)
		}
	})
}

func TestInitExpectsInterfaces(t *testing.T) {
	tests := map[string]struct {
		settings func(*settings.Agent)
		code     report.Code
		say      []string
	}{
		"named, there":     {func(s *settings.Agent) { s.Networks = []settings.Network{{Interface: "net1"}} }, report.Done, nil},
		"unnamed, there":   {func(s *settings.Agent) { s.Networks = []settings.Network{{Name: "n3"}} }, report.Done, nil},
		"named, missing":   {func(s *settings.Agent) { s.Networks = []settings.Network{{Interface: "net1"}, {Interface: "n6"}} }, report.InterfaceMissing, []string{"(n6)", "delete the pod", "VFIO", settings.KeyInterfaces}},
		"unnamed, missing": {func(s *settings.Agent) { s.Networks = []settings.Network{{Name: "n3"}, {Name: "n6"}} }, report.InterfaceMissing, []string{"(1 unnamed)"}},
		"both missing": {func(s *settings.Agent) {
			s.Networks = []settings.Network{{Interface: "n3"}, {Name: "n4"}, {Name: "n6"}}
		}, report.InterfaceMissing, []string{"(n3, 1 unnamed)"}},
		"a name like the words": {func(s *settings.Agent) {
			s.Networks = []settings.Network{{Interface: "nad"}, {Name: "n4"}, {Name: "n6"}}
		}, report.InterfaceMissing, []string{"(nad, 1 unnamed)"}},
		"interfaces setting, the annotation's others do not matter": {func(s *settings.Agent) {
			s.Networks = []settings.Network{{Interface: "net1"}, {Interface: "vfio0"}}
			s.Interfaces = []string{"net1"}
		}, report.Done, nil},
		"interfaces setting, missing": {func(s *settings.Agent) { s.Interfaces = []string{"net1", "net9"} }, report.InterfaceMissing, []string{"(net9)"}},
		"annotation unreadable":       {func(s *settings.Agent) { s.NetworksErr = errors.New("element 1 is null") }, report.Done, nil},
		"annotation unreadable, interfaces setting": {func(s *settings.Agent) {
			s.NetworksErr = errors.New("element 1 is null")
			s.Interfaces = []string{"net9"}
		}, report.InterfaceMissing, []string{"(net9)"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pod(onePod))
				tt.settings(&r.Settings)
				o := r.init(t.Context())
				o.check(t, tt.code, tt.say...)
				if o.took != 0 {
					t.Errorf("took %s: nothing was to be waited for", o.took)
				}
				if tt.code == report.Done && len(r.ec2.calls) != 1 || tt.code != report.Done && r.loc.n+len(r.ec2.calls) != 0 {
					t.Errorf("metadata read %d times, calls %v", r.loc.n, r.ec2.calls)
				}
				if r.Settings.NetworksErr != nil && tt.code == report.Done && !strings.Contains(r.log.String(), "element 1 is null") {
					t.Errorf("nothing is said about the annotation:\n%s", r.log)
				}
			})
		})
	}
}

func TestInitCannotObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, plan.Snapshot{})
		r.Observe = fakeObserver{err: errors.New("netlink is shut")}
		r.init(t.Context()).check(t, report.GaveUp, "netlink is shut")
	})
}

// Faults that pass are waited out; at the deadline the exit code is the last fault's.
func TestInitDeadline(t *testing.T) {
	const deadline = 5 * time.Minute
	tests := map[string]struct {
		class apply.Class
		code  report.Code
		most  int // calls within the deadline
	}{
		"throttled":      {apply.Throttled, report.GaveUp, 80},
		"unavailable":    {apply.Unavailable, report.GaveUp, 1200},
		"unanswered":     {apply.Unanswered, report.GaveUp, 1200},
		"expired":        {apply.Expired, report.GaveUp, 600},
		"no credentials": {apply.NoCredentials, report.GaveUp, 600},
		"full":           {apply.Full, report.ENIFull, 60},
		"gone":           {apply.Gone, report.GaveUp, 600},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pod(onePod))
				r.Settings.Deadline = deadline
				r.ec2.assign = func(_ context.Context, eni string, as []netip.Addr) error { return answer(tt.class, eni, as) }
				o := r.init(t.Context())
				o.check(t, tt.code, "gave up after 5m0s", "10.0.1.5", "eni-1", "EC2 says "+tt.class.String())
				if o.took != deadline {
					t.Errorf("took %s, want the deadline, %s", o.took, deadline)
				}
				if n := len(r.ec2.calls); n < 5 || n > tt.most {
					t.Errorf("%d calls, want 5 to %d", n, tt.most)
				}
			})
		})
	}
}

// Without a deadline the agent waits as long as it takes.
func TestInitWithoutDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.Settings.Deadline = 0
		r.ec2.assign = func(_ context.Context, eni string, as []netip.Addr) error {
			if time.Since(r.ec2.start) < 48*time.Hour {
				return answer(apply.Full, eni, as)
			}
			return nil
		}
		r.init(t.Context()).check(t, report.Done)
	})
}

func TestInitOutlivesFaults(t *testing.T) {
	tests := map[string]struct {
		class apply.Class
		slack time.Duration // how much later than the fault's end the agent may be done
		most  int
	}{
		"throttling for a minute":        {apply.Throttled, 20 * time.Second, 40},
		"EC2 away for a minute":          {apply.Unavailable, 2 * time.Second, 250},
		"an ENI full, then a slot freed": {apply.Full, 30 * time.Second, 40},
		"credentials late":               {apply.NoCredentials, 2 * time.Second, 250},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pod(onePod))
				r.ec2.assign = func(_ context.Context, eni string, as []netip.Addr) error {
					if time.Since(r.ec2.start) < time.Minute {
						return answer(tt.class, eni, as)
					}
					return nil
				}
				o := r.init(t.Context())
				o.check(t, report.Done)
				if o.took < time.Minute || o.took > time.Minute+tt.slack {
					t.Errorf("done after %s, want within %s of the fault's end", o.took, tt.slack)
				}
				if n := len(r.ec2.calls); n > tt.most {
					t.Errorf("%d calls, want at most %d", n, tt.most)
				}
			})
		})
	}
}

// A call that hangs into the deadline says nothing; the fault before it does.
func TestInitHangKeepsTheEarlierFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.Settings.Deadline = 10 * time.Second
		r.ec2.assign = func(ctx context.Context, eni string, as []netip.Addr) error {
			if time.Since(r.ec2.start) < 8*time.Second {
				return answer(apply.Full, eni, as)
			}
			<-ctx.Done()
			return &apply.OpError{Op: "Assign", ENI: eni, Addrs: as, Class: apply.Unanswered, Err: ctx.Err()}
		}
		o := r.init(t.Context())
		o.check(t, report.ENIFull, "EC2 says full")
		if o.took != 10*time.Second {
			t.Errorf("took %s", o.took)
		}
	})
}

// An answer that never comes is not waited for beyond the attempt's own bound.
func TestInitHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.Settings.Deadline = time.Minute
		r.ec2.assign = hang
		o := r.init(t.Context())
		o.check(t, report.GaveUp, "10.0.1.5")
		if o.took != time.Minute {
			t.Errorf("took %s", o.took)
		}
	})
}

func TestInitToldToStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.ec2.assign = func(_ context.Context, eni string, as []netip.Addr) error { return answer(apply.Full, eni, as) }
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(90*time.Second, cancel)
		o := r.init(ctx)
		o.check(t, report.GaveUp, "told to stop", "EC2 says full")
		if o.took != 90*time.Second {
			t.Errorf("took %s, want 90 s", o.took)
		}
	})
}

// What cannot pass ends the agent at once, also the waiting of other ENIs; but each good address has had its attempt.
func TestInitPermanentFailures(t *testing.T) {
	two := map[plan.Link][]string{net1: {"10.0.1.5", "10.0.1.6"}, net2: {"10.0.2.5"}}
	denied := func(eni string, as []netip.Addr) error { return answer(apply.Denied, eni, as) }
	tests := map[string]struct {
		addrs  map[plan.Link][]string
		assign func(ctx context.Context, eni string, as []netip.Addr) error
		code   report.Code
		say    []string
		calls  []string
	}{
		"no permission": {
			addrs:  onePod,
			assign: func(_ context.Context, eni string, as []netip.Addr) error { return denied(eni, as) },
			code:   report.Permission, say: []string{"10.0.1.5", "eni-1", "EC2 says denied"}, calls: []string{"assign4 eni-1 10.0.1.5"},
		},
		"refused by EC2, the others are assigned": {
			addrs: two,
			assign: func(_ context.Context, eni string, as []netip.Addr) error {
				for _, a := range as {
					if a.String() == "10.0.1.6" {
						return answer(apply.Refused, eni, as)
					}
				}
				return nil
			},
			code: report.AddressRefused, say: []string{"10.0.1.6", "EC2 says refused"},
			calls: []string{"assign4 eni-1 10.0.1.5", "assign4 eni-1 10.0.1.5,10.0.1.6", "assign4 eni-1 10.0.1.6", "assign4 eni-2 10.0.2.5", "holders subnet-b 10.0.1.6"},
		},
		"no permission while another ENI is full": {
			addrs: two,
			assign: func(_ context.Context, eni string, as []netip.Addr) error {
				if eni == "eni-2" {
					return answer(apply.Full, eni, as)
				}
				return denied(eni, as)
			},
			code: report.Permission, say: []string{"EC2 says denied"},
			calls: []string{"assign4 eni-1 10.0.1.5,10.0.1.6", "assign4 eni-2 10.0.2.5"},
		},
		"outside the subnet by the plan: the others are assigned": {
			addrs: map[plan.Link][]string{net1: {"10.0.1.5", "192.168.0.9"}, net2: {"10.0.2.5"}},
			code:  report.AddressRefused, say: []string{"192.168.0.9", "subnet-b"},
			calls: []string{"assign4 eni-1 10.0.1.5", "assign4 eni-2 10.0.2.5"},
		},
		"outside the subnet by the plan: nobody waits": {
			addrs:  map[plan.Link][]string{net1: {"10.0.1.5", "192.168.0.9"}},
			assign: func(_ context.Context, eni string, as []netip.Addr) error { return answer(apply.Throttled, eni, as) },
			code:   report.AddressRefused, say: []string{"192.168.0.9"},
			calls: []string{"assign4 eni-1 10.0.1.5"},
		},
		"two bad addresses are both named": {
			addrs: map[plan.Link][]string{net1: {"192.168.0.8", "192.168.0.9"}},
			code:  report.AddressRefused, say: []string{"192.168.0.8", "192.168.0.9"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pod(tt.addrs))
				r.ec2.assign = tt.assign
				o := r.init(t.Context())
				o.check(t, tt.code, tt.say...)
				if o.took != 0 {
					t.Errorf("took %s, want no wait", o.took)
				}
				if diff := cmp.Diff(tt.calls, r.ec2.whats()); diff != "" {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// A permanent failure that comes late ends waiting elsewhere within the call under way.
func TestInitLatePermanentFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(map[plan.Link][]string{net1: {"10.0.1.5"}, net2: {"10.0.2.5"}}))
		r.ec2.assign = func(_ context.Context, eni string, as []netip.Addr) error {
			if eni == "eni-2" && time.Since(r.ec2.start) > 45*time.Second {
				return answer(apply.Denied, eni, as)
			}
			if eni == "eni-2" {
				return answer(apply.Unavailable, eni, as)
			}
			return answer(apply.Full, eni, as)
		}
		o := r.init(t.Context())
		o.check(t, report.Permission, "10.0.2.5")
		if o.took > 48*time.Second {
			t.Errorf("took %s", o.took)
		}
	})
}

// An address that can never be assigned needs no EC2 client, which may be waited for.
func TestInitRefusalNeedsNoClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(map[plan.Link][]string{net1: {"192.168.0.9"}}))
		r.Connect = func(context.Context) (apply.EC2, error) { return nil, errAway }
		o := r.init(t.Context())
		o.check(t, report.AddressRefused, "192.168.0.9")
		if o.took != 0 {
			t.Errorf("took %s", o.took)
		}
	})
}

func TestInitMetadataComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.loc.enis = func(int) ([]plan.ENI, error) {
			if time.Since(r.ec2.start) < 3*time.Minute {
				return nil, fmt.Errorf("metadata mac: %w: %w", locate.ErrNoMetadata, errAway)
			}
			return []plan.ENI{eni0, eni1}, nil
		}
		o := r.init(t.Context())
		o.check(t, report.Done)
		if o.took > 3*time.Minute+2*time.Second || len(r.ec2.calls) != 1 {
			t.Errorf("took %s, calls %v", o.took, r.ec2.calls)
		}
		if n := strings.Count(r.log.String(), "waiting for instance metadata"); n < 2 || n > 8 {
			t.Errorf("%d log lines for an outage of three minutes", n)
		}
	})
}

func TestInitNoMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.Settings.Deadline = time.Minute
		r.loc.enis = func(int) ([]plan.ENI, error) {
			return nil, fmt.Errorf("metadata mac: %w: %w", locate.ErrNoMetadata, errAway)
		}
		o := r.init(t.Context())
		o.check(t, report.NoMetadata, "gave up after 1m0s", "connection refused")
		if o.took != time.Minute {
			t.Errorf("took %s", o.took)
		}
	})
}

// A read that is cut off by the deadline says less than the one before it.
func TestInitNoMetadataHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.Settings.Deadline = time.Minute
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errDeadline)
		defer cancel()
		r.loc.enis = func(int) ([]plan.ENI, error) {
			if time.Since(r.ec2.start) < 55*time.Second {
				return nil, fmt.Errorf("metadata mac: %w: %w", locate.ErrNoMetadata, errAway)
			}
			<-ctx.Done()
			return nil, context.DeadlineExceeded
		}
		r.init(ctx).check(t, report.NoMetadata, "connection refused")
	})
}

// A hop limit that is too small is believed after three looks in a row, long before the deadline.
func TestInitHopLimit(t *testing.T) {
	hop := fmt.Errorf("metadata mac: %w", locate.ErrHopLimit)
	away := fmt.Errorf("metadata mac: %w: %w", locate.ErrNoMetadata, errAway)
	tests := map[string]struct {
		answers []error
		code    report.Code
		reads   int
	}{
		"three in a row":                   {[]error{hop, hop, hop}, report.NoMetadata, 3},
		"two, then an answer":              {[]error{hop, hop, nil}, report.Done, 3},
		"another fault starts a new count": {[]error{hop, hop, away, hop, hop, nil}, report.Done, 6},
		"in a row later":                   {[]error{away, hop, away, hop, hop, hop}, report.NoMetadata, 6},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pod(onePod))
				r.loc.enis = func(n int) ([]plan.ENI, error) {
					if err := tt.answers[n-1]; err != nil {
						return nil, err
					}
					return []plan.ENI{eni0, eni1}, nil
				}
				o := r.init(t.Context())
				o.check(t, tt.code)
				if r.loc.n != tt.reads || o.took > 10*time.Second {
					t.Errorf("%d reads in %s, want %d", r.loc.n, o.took, tt.reads)
				}
				if tt.code != report.Done {
					o.check(t, tt.code, "hop limit", "HttpPutResponseHopLimit")
				}
			})
		})
	}
}

// Metadata that the environment forbids does not come back.
func TestInitMetadataDisabled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(map[plan.Link][]string{net1: {"10.0.1.5"}}))
		r.loc.enis = func(int) ([]plan.ENI, error) { return nil, fmt.Errorf("metadata mac: %w", locate.ErrDisabled) }
		o := r.init(t.Context())
		o.check(t, report.NoMetadata, "AWS_EC2_METADATA_DISABLED")
		if o.took != 0 {
			t.Errorf("took %s to say so", o.took)
		}
	})
}

// Metadata lags behind an ENI that was just attached, so an unknown MAC is read again, with a bound.
func TestInitUnknownMAC(t *testing.T) {
	tests := map[string]struct {
		kind  string
		addr  string
		from  int // the read of all ENIs (from 1) that knows the MAC; 0 = none
		reads int
		took  time.Duration
		code  report.Code
		calls int
	}{
		"known at once among all":                {"ipvlan", "10.0.1.5", 1, 1, 0, report.Done, 1},
		"known at the third look":                {"macvlan", "10.0.1.5", 3, 3, time.Second, report.Done, 1},
		"never, in an attached subnet":           {"macvlan", "10.0.2.9", 0, 11, 5 * time.Second, report.AddressRefused, 0},
		"never, outside":                         {"macvlan", "172.16.0.1", 0, 11, 5 * time.Second, report.Done, 0},
		"ipvlan has its master's MAC: late":      {"ipvlan", "10.0.1.5", 15, 15, 7 * time.Second, report.Done, 1},
		"ipvlan on what is no ENI":               {"ipvlan", "172.16.0.1", 0, 21, 10 * time.Second, report.Done, 0},
		"a device that was moved in, never seen": {"device", "10.0.2.9", 0, 21, 10 * time.Second, report.AddressRefused, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				link := net1
				link.Kind = tt.kind
				r := newRig(t, pod(map[plan.Link][]string{link: {tt.addr}}))
				r.loc.enis = func(int) ([]plan.ENI, error) { return []plan.ENI{eni0}, nil }
				r.loc.all = func(n int) ([]plan.ENI, error) {
					if tt.from > 0 && n >= tt.from {
						return []plan.ENI{eni0, eni1, eni2}, nil
					}
					return []plan.ENI{eni0, eni2}, nil
				}
				o := r.init(t.Context())
				o.check(t, tt.code)
				if r.loc.an != tt.reads || len(r.ec2.calls) != tt.calls || o.took != tt.took {
					t.Errorf("%d reads of all ENIs in %s, want %d in %s; calls %v", r.loc.an, o.took, tt.reads, tt.took, r.ec2.calls)
				}
			})
		})
	}
}

func TestPatience(t *testing.T) {
	of := func(kinds ...string) []plan.Address {
		var as []plan.Address
		for _, k := range kinds {
			as = append(as, plan.Address{Link: plan.Link{Kind: k, MAC: "02:00:00:00:00:99"}})
		}
		return as
	}
	tests := map[string]struct {
		foreign []plan.Address
		want    int
	}{
		"none":                   {nil, 0},
		"a network of its own":   {of("macvlan", "veth", ""), 10},
		"ipvlan":                 {of("ipvlan"), 20},
		"a device":               {of("device"), 20},
		"the most patient rules": {of("macvlan", "ipvlan"), 20},
	}
	if got := patience([]plan.Address{{Link: plan.Link{Kind: "ipip"}}}); got != 0 {
		t.Errorf("a tunnel, which has no MAC: %d looks, want none", got)
	}
	for name, tt := range tests {
		if got := patience(tt.foreign); got != tt.want {
			t.Errorf("%s: %d looks, want %d", name, got, tt.want)
		}
	}
}

// An ENI that metadata knows half of is being attached: waited for, as long as it takes.
func TestInitIncompleteMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.loc.enis = func(int) ([]plan.ENI, error) {
			if time.Since(r.ec2.start) < time.Minute {
				return nil, fmt.Errorf("%w: %s", locate.ErrIncomplete, net1.MAC)
			}
			return []plan.ENI{eni0, eni1}, nil
		}
		o := r.init(t.Context())
		o.check(t, report.Done)
		if o.took < time.Minute || o.took > 62*time.Second || len(r.ec2.calls) != 1 {
			t.Errorf("took %s, calls %v", o.took, r.ec2.calls)
		}
	})
}

// A pod whose own interface is no veth may be on an ENI (Multus can replace the cluster network), so metadata is waited for.
func TestInitOwnInterfaceOfAnENIWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		own := plan.Link{Index: 2, Name: "eth0", MAC: eni1.MAC, Kind: "ipvlan"}
		s := plan.Snapshot{Links: []plan.Link{lo, own}, Addresses: []plan.Address{{Addr: netip.MustParseAddr("10.0.1.5"), Bits: 24, Link: own}}}
		r := newRig(t, s)
		r.Settings.Pod.IPs = []netip.Addr{netip.MustParseAddr("10.0.1.5")}
		r.loc.enis = func(int) ([]plan.ENI, error) {
			if time.Since(r.ec2.start) < time.Minute {
				return nil, fmt.Errorf("%w: %w", locate.ErrNoMetadata, errAway)
			}
			return []plan.ENI{eni0, eni1}, nil
		}
		r.init(t.Context()).check(t, report.Done)
		if diff := cmp.Diff([]string{"assign4 eni-1 10.0.1.5"}, r.ec2.whats()); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
	})
}

// An ENI that was replaced comes back under another id with the same MAC.
func TestInitENIReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.loc.enis = func(int) ([]plan.ENI, error) {
			e := eni1
			if time.Since(r.ec2.start) > 20*time.Second {
				e.ID, e.SubnetID = "eni-new", "subnet-new"
			} else if time.Since(r.ec2.start) > 10*time.Second {
				return nil, errAway
			}
			return []plan.ENI{eni0, e}, nil
		}
		r.ec2.assign = func(_ context.Context, eni string, as []netip.Addr) error {
			if eni != "eni-new" {
				return answer(apply.Gone, eni, as)
			}
			return nil
		}
		o := r.init(t.Context())
		o.check(t, report.Done)
		if o.took > 25*time.Second || r.ec2.calls[len(r.ec2.calls)-1].what != "assign4 eni-new 10.0.1.5" {
			t.Errorf("took %s, last call %v", o.took, r.ec2.calls[len(r.ec2.calls)-1])
		}
	})
}

// A route that swallows the agent's own connections has its own exit code, wherever it is noticed.
func TestInitNoRoute(t *testing.T) {
	blocked := func() *observe.RouteError {
		return &observe.RouteError{Endpoint: "169.254.169.254:80", Interface: "net1", Err: errors.New("i/o timeout")}
	}
	tests := map[string]func(r *rig){
		"to metadata": func(r *rig) {
			r.loc.enis = func(int) ([]plan.ENI, error) { return nil, errAway }
			r.routes.blocked = blocked
		},
		"while the client is made": func(r *rig) {
			r.Connect = func(context.Context) (apply.EC2, error) { return nil, errAway }
			r.routes.blocked = blocked
		},
		"to EC2": func(r *rig) {
			r.ec2.assign = func(_ context.Context, eni string, as []netip.Addr) error {
				r.routes.blocked = blocked
				return answer(apply.Unanswered, eni, as)
			}
		},
	}
	for name, arrange := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pod(onePod))
				arrange(r)
				o := r.init(t.Context())
				o.check(t, report.NoRoute, "169.254.169.254:80", "net1", "default-route")
				if o.took != 0 {
					t.Errorf("took %s", o.took)
				}
			})
		})
	}
}

// A route that is noticed but does not keep the agent from succeeding is no failure.
func TestInitRouteThatWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.routes.blocked = func() *observe.RouteError { return &observe.RouteError{Err: errAway} }
		r.init(t.Context()).check(t, report.Done)
	})
}

func TestInitConnectWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.Connect = func(context.Context) (apply.EC2, error) {
			if time.Since(r.ec2.start) < time.Minute {
				return nil, errors.New("read the Region: nothing answers")
			}
			return r.ec2, nil
		}
		o := r.init(t.Context())
		o.check(t, report.Done)
		if o.took > 62*time.Second {
			t.Errorf("took %s", o.took)
		}
	})
}

// What is wrong with the environment's AWS configuration does not pass.
func TestInitConfigurationIsUsage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.Connect = func(context.Context) (apply.EC2, error) {
			return nil, fmt.Errorf("%w: no profile telco", apply.ErrConfiguration)
		}
		o := r.init(t.Context())
		o.check(t, report.Usage, "profile telco")
		if o.took != 0 {
			t.Errorf("took %s", o.took)
		}
	})
}

func TestInitConnectDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.Settings.Deadline = time.Minute
		r.Connect = func(context.Context) (apply.EC2, error) { return nil, errors.New("read the Region: nothing answers") }
		r.init(t.Context()).check(t, report.NoMetadata, "Region", "1m0s")
	})
}

// An address that came with the pod is the pod's: a newer claim is waited out and then pressed.
func TestInitWaitsOutANewerClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := netip.MustParseAddr("2001:db8:0:1::5")
		r := newRig(t, pod(map[plan.Link][]string{net1: {v.String()}}))
		taken := func() bool { return time.Since(r.ec2.start) < 2*time.Minute }
		refusals := 0
		r.ec2.assign = func(_ context.Context, eni string, as []netip.Addr) error {
			if taken() {
				refusals++
				return answer(apply.Refused, eni, as)
			}
			return nil
		}
		r.ec2.holders = func([]netip.Addr) map[netip.Addr]apply.Holder {
			h := apply.Holder{ENI: "eni-other", DeviceIndex: 1}
			if refusals > 1 {
				h.ENI = "eni-newer"
			}
			return map[netip.Addr]apply.Holder{v: h}
		}
		o := r.init(t.Context())
		o.check(t, report.Done)
		if o.took < 2*time.Minute || o.took > 2*time.Minute+21*time.Second {
			t.Errorf("took %s", o.took)
		}
		for _, c := range r.ec2.calls {
			if c.what == "unassign6 eni-newer "+v.String() {
				t.Error("the newer claim lost its address")
			}
		}
	})
}

// An agent that is told to stop does not leave an IPv6 address between two ENIs: it goes on for what it took off another one, for a
// while that the kubelet grants.
func TestInitEndsAMoveItBegan(t *testing.T) {
	v := netip.MustParseAddr("2001:db8:0:1::5")
	const stop = 3 * time.Second
	tests := map[string]struct {
		heals time.Duration // when EC2 takes the address
		code  report.Code
		least time.Duration
		most  time.Duration
	}{
		"EC2 is back in time": {8 * time.Second, report.Done, 8 * time.Second, 11 * time.Second},
		"it is not":           {time.Hour, report.GaveUp, stop + 15*time.Second, stop + 18*time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pod(map[plan.Link][]string{net1: {v.String()}, net2: {"10.0.2.5"}}))
				taken := false
				r.ec2.assign = func(_ context.Context, eni string, as []netip.Addr) error {
					switch {
					case as[0] != v:
						return nil
					case !taken:
						taken = true // the call after this one's refusal takes it off
						return answer(apply.Refused, eni, as)
					case time.Since(r.ec2.start) < tt.heals:
						return answer(apply.Throttled, eni, as)
					}
					return nil
				}
				r.ec2.holders = func([]netip.Addr) map[netip.Addr]apply.Holder {
					return map[netip.Addr]apply.Holder{v: {ENI: "eni-other", DeviceIndex: 1}}
				}
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(stop, cancel)
				o := r.init(ctx)
				o.check(t, tt.code)
				if o.took < tt.least || o.took > tt.most {
					t.Errorf("took %s, want %s to %s", o.took, tt.least, tt.most)
				}
			})
		})
	}
}

// A long outage is told when it begins and every half minute, though each answer has another request id.
func TestInitTellsALongFaultNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.Settings.Deadline = 10 * time.Minute
		r.ec2.assign = func(_ context.Context, eni string, as []netip.Addr) error { return answer(apply.Unavailable, eni, as) }
		r.init(t.Context()).check(t, report.GaveUp)
		if n := strings.Count(r.log.String(), "waiting to try again"); n < 10 || n > 22 {
			t.Errorf("%d log lines in ten minutes, want about 20", n)
		}
	})
}

// The VPC CNI's subnets are checked by whoever holds the address.
func TestInitChecksHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(onePod))
		r.Settings.VPCCNISubnets = []string{"subnet-b"}
		r.init(t.Context()).check(t, report.Done)
		if diff := cmp.Diff([]string{"assign4 eni-1 10.0.1.5", "holders subnet-b 10.0.1.5", "unmanaged eni-1"}, r.ec2.whats()); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
	})
}

// Where a primary ENI is allowed, its addresses' holders are checked, but not the tag it never has.
func TestInitPrimaryENI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		onPrimary := plan.Link{Index: 5, Name: "net5", MAC: eni0.MAC, Kind: "ipvlan"}
		r := newRig(t, pod(map[plan.Link][]string{onPrimary: {"10.0.0.5"}}))
		r.Settings.AllowPrimaryENI = true
		r.init(t.Context()).check(t, report.Done)
		if diff := cmp.Diff([]string{"assign4 eni-0 10.0.0.5", "holders subnet-a 10.0.0.5"}, r.ec2.whats()); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
	})
}

// Of two faults in one attempt, the one that is slower to pass is told and sets the pace: an ENI that is full for one address is
// not asked every two seconds because another one's fault is quick.
func TestInitWaitsForTheSlowerFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(map[plan.Link][]string{net1: {"10.0.1.5", "2001:db8:0:1::5"}}))
		r.Settings.Deadline = 5 * time.Minute
		r.ec2.assign = func(_ context.Context, eni string, as []netip.Addr) error {
			if as[0].Is6() {
				return answer(apply.Full, eni, as)
			}
			return answer(apply.Expired, eni, as)
		}
		r.init(t.Context()).check(t, report.ENIFull, "2001:db8:0:1::5")
		if n := len(r.ec2.calls); n > 120 {
			t.Errorf("%d calls in five minutes", n)
		}
	})
}

// Several faults at the end: the gravest gives the code.
func TestInitWorstFaultWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pod(map[plan.Link][]string{net1: {"10.0.1.5"}, net2: {"10.0.2.5"}}))
		r.Settings.Deadline = time.Minute
		r.ec2.assign = func(_ context.Context, eni string, as []netip.Addr) error {
			if eni == "eni-1" {
				return answer(apply.Unavailable, eni, as)
			}
			return answer(apply.Full, eni, as)
		}
		o := r.init(t.Context())
		o.check(t, report.ENIFull, "10.0.2.5")
		if strings.Contains(o.err.Error(), "10.0.1.5") {
			t.Errorf("%q names an address that is not full", o.err)
		}
	})
}
