package aws

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"multus-ip-manager.io/test/pipes"
)

// rig is a cloud behind a real HTTP server and client on pipes.
type rig struct {
	t      *testing.T
	cloud  *Cloud
	client *http.Client
}

// inBubble runs a test in virtual time with a rig.
func inBubble(t *testing.T, run func(*testing.T, rig), opts ...Option) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newFixture(t, opts...), pipes.New()
		srv := &http.Server{Handler: c.EC2()}
		var wg sync.WaitGroup
		wg.Go(func() { _ = srv.Serve(l) })
		transport := &http.Transport{DialContext: l.DialContext}
		run(t, rig{t, c, &http.Client{Transport: transport}})
		c.Faults().Clear()
		transport.CloseIdleConnections()
		_ = srv.Close()
		wg.Wait()
	})
}

// do sends a request as root and gives up after a time; no answer is status 0.
func (r rig) do(timeout time.Duration, pairs ...string) (status int, took time.Duration) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return r.send(signed(r.t, root(), form(pairs...).Encode()).WithContext(ctx))
}

// send does not fail the test, so that goroutines can use it.
func (r rig) send(req *http.Request) (status int, took time.Duration) {
	// httptest makes a server's request; a client's has no RequestURI.
	req.RequestURI = ""
	start := time.Now()
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, time.Since(start)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if cerr := resp.Body.Close(); err != nil || cerr != nil {
		r.t.Error(errors.Join(err, cerr))
	}
	return resp.StatusCode, time.Since(start)
}

func TestFaults(t *testing.T) {
	const patience = 3 * time.Second
	cases := map[string]struct {
		fault   Fault
		status  int
		code    string // in the journal
		took    time.Duration
		applied bool
		second  int // status of the same call again; 0 is no answer
	}{
		"error":          {Fault{Kind: FaultError, Code: "InternalError", Times: 1}, 500, "InternalError", 0, false, 200},
		"other error":    {Fault{Kind: FaultError, Code: "Unavailable", Status: 503, Times: 1}, 503, "Unavailable", 0, false, 200},
		"throttle":       {Fault{Kind: FaultThrottle, Times: 1}, 503, "RequestLimitExceeded", 0, false, 200},
		"hang":           {Fault{Kind: FaultHang, Times: 1}, 0, "", patience, false, 200},
		"drop":           {Fault{Kind: FaultDrop, Times: 1}, 0, "", 0, false, 200},
		"delay":          {Fault{Kind: FaultDelay, Delay: 2 * time.Second, Times: 1}, 200, "", 2 * time.Second, true, 200},
		"answer lost":    {Fault{Kind: FaultDrop, AfterApply: true, Times: 1}, 0, "", 0, true, 200},
		"answer hangs":   {Fault{Kind: FaultHang, AfterApply: true, Times: 1}, 0, "", patience, true, 200},
		"answer is late": {Fault{Kind: FaultDelay, AfterApply: true, Delay: time.Second, Times: 1}, 200, "", time.Second, true, 200},
		"answer wrong":   {Fault{Kind: FaultError, AfterApply: true, Times: 1}, 500, "InternalError", 0, true, 200},
		"until removed":  {Fault{Kind: FaultThrottle}, 503, "RequestLimitExceeded", 0, false, 503},
		"skip":           {Fault{Kind: FaultThrottle, Skip: 1}, 200, "", 0, true, 503},
		"other action":   {Fault{Kind: FaultThrottle, Action: "Unassign*"}, 200, "", 0, true, 200},
		"this action":    {Fault{Kind: FaultThrottle, Action: "Assign*Ip*", Times: 1}, 503, "RequestLimitExceeded", 0, false, 200},
		"this interface": {Fault{Kind: FaultThrottle, ENI: a1, Times: 1}, 503, "RequestLimitExceeded", 0, false, 200},
		"other":          {Fault{Kind: FaultThrottle, ENI: b1}, 200, "", 0, true, 200},
		"this principal": {Fault{Kind: FaultThrottle, Principal: "*:user/AKIAROOT", Times: 1}, 503, "RequestLimitExceeded", 0, false, 200},
		"another":        {Fault{Kind: FaultThrottle, Principal: "*assumed-role*"}, 200, "", 0, true, 200},
		"this address":   {Fault{Kind: FaultThrottle, Address: "10.0.16.50"}, 503, "RequestLimitExceeded", 0, false, 503},
		"no address":     {Fault{Kind: FaultThrottle, Address: "10.0.16.51"}, 200, "", 0, true, 200},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r rig) {
				r.cloud.Faults().Add(tc.fault)
				params := []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50"}
				status, took := r.do(patience, params...)
				synctest.Wait()
				got := r.cloud.Journal()[0]
				_, applied := r.cloud.Holder(ip("10.0.16.50"))
				if status != tc.status || took != tc.took || applied != tc.applied {
					t.Errorf("status %d after %s, applied %t; want %d, %s, %t", status, took, applied, tc.status, tc.took, tc.applied)
				}
				if !got.Done() || got.Status != tc.status || got.Code != tc.code || got.Applied != tc.applied || got.End.Sub(got.Start) != tc.took {
					t.Errorf("journal: %+v", got)
				}
				if status, _ = r.do(patience, params...); status != tc.second {
					t.Errorf("the second call: %d, want %d", status, tc.second)
				}
			})
		})
	}
}

// TestLateRequest: a client that gives up on a slow request has not taken it back.
func TestLateRequest(t *testing.T) {
	inBubble(t, func(t *testing.T, r rig) {
		r.cloud.Faults().Add(Fault{Kind: FaultDelay, Delay: 10 * time.Second, Times: 1})
		if status, took := r.do(3*time.Second, assign4, on+a1, "PrivateIpAddress.1=10.0.16.50"); status != 0 || took != 3*time.Second {
			t.Errorf("%d after %s", status, took)
		}
		if _, applied := r.cloud.Holder(ip("10.0.16.50")); applied {
			t.Error("applied at once")
		}
		advance(7 * time.Second)
		synctest.Wait()
		if _, applied := r.cloud.Holder(ip("10.0.16.50")); !applied {
			t.Error("never applied")
		}
	})
}

// TestRemovedFaultEndsHang: whoever hangs on a fault is let go when it is removed.
func TestRemovedFaultEndsHang(t *testing.T) {
	inBubble(t, func(t *testing.T, r rig) {
		fault := r.cloud.Faults().Add(Fault{Kind: FaultHang})
		time.AfterFunc(time.Second, fault.Remove)
		if status, took := r.do(time.Minute, "Action=DescribeSubnets"); status != 0 || took != time.Second || fault.Hits() != 1 {
			t.Errorf("%d after %s, %d hits", status, took, fault.Hits())
		}
	})
}

func TestPercentIsSeeded(t *testing.T) {
	run := func(seed uint64) string {
		c := newFixture(t, WithSeed(seed))
		c.Faults().Add(Fault{Kind: FaultThrottle, Percent: 30})
		var out strings.Builder
		for range 200 {
			out.WriteString(strconv.Itoa(call(t, c, "Action=DescribeSubnets").Status / 100))
		}
		return out.String()
	}
	first := run(5)
	if n := strings.Count(first, "5"); n < 40 || n > 80 {
		t.Errorf("%d of 200 calls were hit, want about 60", n)
	}
	if first != run(5) {
		t.Error("the same seed gives another run")
	}
	if first == run(6) {
		t.Error("another seed gives the same run")
	}
}

// TestBuckets: 100 calls at once, then 5 a second, by virtual time; each action has its own bucket.
func TestBuckets(t *testing.T) {
	inBubble(t, func(t *testing.T, r rig) {
		burst := func(pairs ...string) (n int) {
			for {
				switch status, _ := r.do(time.Second, pairs...); status {
				case 200:
					n++
				case 503:
					return n
				default:
					t.Fatalf("status %d", status)
				}
			}
		}
		again := []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.11"}
		got := []int{burst(again...)}
		advance(time.Second)
		got = append(got, burst(again...))
		advance(time.Minute)
		got = append(got, burst(again...), burst("Action=DescribeNetworkInterfaces"), burst("Action=DescribeNetworkInterfaces", "MaxResults=5"))
		advance(time.Second)
		got = append(got, burst("Action=DescribeNetworkInterfaces"), burst("Action=DescribeNetworkInterfaces", "MaxResults=5"))
		if diff := cmp.Diff([]int{100, 5, 100, 50, 100, 10, 20}, got); diff != "" {
			t.Error(diff)
		}
		r.cloud.Tune(func(s *Settings) { s.Buckets = map[string]Bucket{"DescribeSubnets": {Size: 3, Refill: 1}} })
		if n := burst("Action=DescribeSubnets"); n != 3 {
			t.Errorf("a bucket of 3 let %d through", n)
		}
		r.cloud.Tune(func(s *Settings) { s.Throttle = false })
		if status, _ := r.do(time.Second, "Action=DescribeSubnets"); status != 200 {
			t.Errorf("unthrottled: %d", status)
		}
	}, WithThrottling())
}

// TestThrottledAnswer is the wording that SDKs look for.
func TestThrottledAnswer(t *testing.T) {
	c := newFixture(t, WithThrottling(), WithSettings(func(s *Settings) {
		s.Buckets = map[string]Bucket{"DescribeSubnets": {}}
	}))
	if got := call(t, c, "Action=DescribeSubnets"); got.Status != 503 || got.Code != "RequestLimitExceeded" || got.Message != "Request limit exceeded." {
		t.Errorf("%+v", got)
	}
}

func TestLatency(t *testing.T) {
	inBubble(t, func(t *testing.T, r rig) {
		if status, took := r.do(time.Second, "Action=DescribeSubnets"); status != 200 || took != 100*time.Millisecond {
			t.Errorf("%d after %s", status, took)
		}
	}, WithSettings(func(s *Settings) { s.Latency = 100 * time.Millisecond }))
}

// TestJournal: order, times and parameters, also of calls that are under way.
func TestJournal(t *testing.T) {
	inBubble(t, func(t *testing.T, r rig) {
		r.cloud.Faults().Add(Fault{Kind: FaultDelay, Delay: time.Second, ENI: a1})
		slow := signed(t, root(), form(assign4, on+a1, "PrivateIpAddress.1=10.0.16.50", "PrivateIpAddress.2=10.0.16.51").Encode())
		go r.send(slow)
		if err := r.cloud.WaitJournal(t.Context(), func(calls []Call) bool { return len(calls) == 1 }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.do(time.Minute, unassign6, on+b1, "Ipv6Addresses.1=fd00:0:0:1::21")
		calls := r.cloud.Journal()
		if calls[0].Done() || !calls[1].Done() || calls[0].Seq != 1 || calls[1].Seq != 2 {
			t.Errorf("%v", calls)
		}
		err := r.cloud.WaitJournal(t.Context(), func(calls []Call) bool { return calls[0].Done() })
		if err != nil {
			t.Fatal(err)
		}
		got := r.cloud.Journal()[0]
		if diff := cmp.Diff([]string{"10.0.16.50", "10.0.16.51"}, got.Addresses); diff != "" || got.ENI != a1 ||
			got.End.Sub(got.Start) != time.Second || got.Params.Get("PrivateIpAddress.2") != "10.0.16.51" || got.Fault != "delay" ||
			got.Principal != "arn:aws:iam::123456789012:user/AKIAROOT" {
			t.Errorf("%+v", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.cloud.WaitJournal(ctx, func([]Call) bool { return false }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting in vain: %v", err)
		}
	})
}

// TestWatchState replays what is in force, then follows, without a gap and without what is still on its way.
func TestWatchState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFixture(t)
		c.Tune(func(s *Settings) { s.Delays.DataPlane = time.Second })
		ok(t, c, assign4, on+a1, "PrivateIpAddress.1=10.0.16.21", "AllowReassignment=true")
		ok(t, c, assign4, on+a1, "PrivateIpAddress.1=10.0.16.50")
		var log changeLog
		stop := c.WatchState(log.add)
		owner := log.owners()
		if owner["10.0.16.21/32"] != b1 || owner["10.0.16.50/32"] != "" || owner["10.0.17.0/28"] != b1 || owner["10.0.16.10/32"] != a1 {
			t.Errorf("at first: %v", owner)
		}
		advance(2 * time.Second)
		synctest.Wait()
		owner = log.owners()
		if owner["10.0.16.21/32"] != a1 || owner["10.0.16.50/32"] != a1 {
			t.Errorf("then: %v", owner)
		}
		stop()
		c.Tune(func(s *Settings) { s.Delays.DataPlane = 0 })
		ok(t, c, unassign4, on+a1, "PrivateIpAddress.1=10.0.16.21")
		if log.owners()["10.0.16.21/32"] != a1 {
			t.Error("called after stop")
		}
	})
}

// TestLoweredDelayKeepsOrder: a later change never overtakes an earlier one.
func TestLoweredDelayKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFixture(t, WithSettings(func(s *Settings) { s.Delays.DataPlane = time.Second }))
		advance(time.Minute)
		var log changeLog
		defer c.Watch(log.add)()
		ok(t, c, assign4, on+a1, "PrivateIpAddress.1=10.0.16.50")
		c.Tune(func(s *Settings) { s.Delays.DataPlane = 0 })
		ok(t, c, unassign4, on+a1, "PrivateIpAddress.1=10.0.16.50")
		advance(2 * time.Second)
		synctest.Wait()
		if got := log.all(); len(got) != 2 || got[0].Seq >= got[1].Seq {
			t.Errorf("%v", got)
		}
	})
}

// TestIMDSFaults: the metadata service has faults, too, and works on a pipe.
func TestIMDSFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newFixture(t), pipes.New()
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- c.ServeIMDS(ctx, l, nodeA) }()
		transport := &http.Transport{DialContext: l.DialContext}
		get := func() int {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://imds/latest/meta-data/mac", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := transport.RoundTrip(r)
			if err != nil {
				return 0
			}
			_ = resp.Body.Close()
			return resp.StatusCode
		}
		c.Faults().Add(Fault{Kind: FaultError, Status: 503, Action: "IMDS:GET", Path: "*/mac", Instance: nodeA, Times: 1})
		c.Faults().Add(Fault{Kind: FaultDrop, Action: "IMDS:*", Skip: 0, Times: 1})
		c.Faults().Add(Fault{Kind: FaultDrop, Action: "IMDS:*", Instance: nodeB})
		if diff := cmp.Diff([]int{503, 0, 200}, []int{get(), get(), get()}); diff != "" {
			t.Error(diff)
		}
		transport.CloseIdleConnections()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		_ = l.Close()
	})
}

// TestConcurrency: many clients at once; the race detector and the invariants judge.
func TestConcurrency(t *testing.T) {
	c := newFixture(t)
	stop := c.Watch(func(Change) {})
	defer stop()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 50 {
				id := []string{a1, b1, b2}[(i+n)%3]
				call(t, c, assign4, on+id, "PrivateIpAddress.1=10.0.16.60", "AllowReassignment=true")
				call(t, c, "Action=DescribeNetworkInterfaces")
				ask(c.IMDS(nodeA), http.MethodGet, "/latest/meta-data/mac")
				c.ENIs()
				c.Journal()
			}
		})
	}
	wg.Wait()
	checkInvariants(t, c)
	moves := 0
	for _, j := range c.Journal() {
		moves += j.Changes
	}
	if moves < 2 {
		t.Errorf("only %d moves: the test proves nothing", moves)
	}
}
