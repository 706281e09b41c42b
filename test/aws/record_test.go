package aws

import (
	"context"
	"net/http"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestRecord(t *testing.T) {
	c := newFixture(t)
	r := c.Record()
	vip := ip("10.0.16.99")
	if got := r.Of(ip("10.0.16.11")); len(got) != 1 || got[0].To != a1 || got[0].Seq != 0 {
		t.Errorf("what was there before: %v", got)
	}
	if err := r.WaitHolder(t.Context(), vip, ""); err != nil {
		t.Error(err)
	}
	met := make(chan error, 1)
	go func() { met <- r.WaitHolder(t.Context(), vip, b1) }()
	for _, eni := range []string{a1, b1} {
		ok(t, c, "Action=AssignPrivateIpAddresses", "NetworkInterfaceId="+eni, "PrivateIpAddress.1="+vip.String(), "AllowReassignment=true")
	}
	if err := <-met; err != nil {
		t.Error(err)
	}
	got := r.Of(vip)
	if len(got) != 2 || got[0].To != a1 || got[1].From != a1 || got[1].To != b1 || got[1].At.Before(got[0].At) {
		t.Errorf("history %v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.WaitHolder(ctx, vip, a1); err == nil {
		t.Error("waited successfully for what is not")
	}
	r.Stop()
	if err := c.Assign(a1, vip); err != nil {
		t.Fatal(err)
	}
	if n := len(r.Of(vip)); n != 2 {
		t.Errorf("%d changes, after the end of the record", n)
	}
}

func TestJournalLimit(t *testing.T) {
	c := newFixture(t, WithJournalLimit(5))
	for range 42 {
		ok(t, c, "Action=DescribeSubnets")
	}
	calls := c.Journal()
	if len(calls) != 5 || calls[0].Seq != 38 || calls[4].Seq != 42 {
		t.Errorf("kept %v", calls)
	}
	if c.Calls() != 42 {
		t.Errorf("%d calls", c.Calls())
	}
	if n := len(c.journal.calls); n > 10 {
		t.Errorf("%d calls in memory", n)
	}
}

// What follows the journal is told each call once, those that began first and ended last too, and those of before.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFixture(t)
		ok(t, c, "Action=DescribeSubnets")
		hang := c.Faults().Add(Fault{Kind: FaultDelay, Delay: time.Second, Times: 1})
		slow := make(chan reply)
		go func() { slow <- call(t, c, "Action=DescribeInstances") }()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		var seen []int
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.Follow(ctx, func(call Call) { seen = append(seen, call.Seq) })
		}()
		synctest.Wait()
		ok(t, c, "Action=DescribeSubnets")
		<-slow
		synctest.Wait()
		cancel()
		<-done
		if len(seen) != 3 || seen[0] != 1 || seen[1] != 3 || seen[2] != 2 || hang.Hits() != 1 {
			t.Errorf("told %v", seen)
		}
		if len(c.journal.followers) != 0 {
			t.Error("the follower is still there")
		}
	})
}

// To a machine whose clock is wrong AWS's is ahead or behind.
func TestClockOffset(t *testing.T) {
	c := newFixture(t, WithSettings(func(s *Settings) { s.MaxClockSkew = 5 * time.Minute }))
	for offset, code := range map[time.Duration]string{0: "", 10 * time.Minute: "RequestExpired", -10 * time.Minute: "RequestExpired", time.Minute: ""} {
		c.Tune(func(s *Settings) { s.ClockOffset = offset })
		r := call(t, c, "Action=DescribeSubnets")
		if r.Code != code {
			t.Errorf("offset %s: code %q, want %q", offset, r.Code, code)
		}
		date, err := http.ParseTime(r.Header.Get("Date"))
		if off := time.Until(date) - offset; err != nil || off.Abs() > 5*time.Second {
			t.Errorf("offset %s: Date %q is off by %s, %v", offset, r.Header.Get("Date"), off, err)
		}
	}
	c.Tune(func(s *Settings) { s.ClockOffset = -time.Hour })
	if end := c.Credentials(nodeA).Expires; time.Until(end) > 5*time.Hour+time.Minute {
		t.Errorf("credentials expire at %s by a clock that is an hour behind", end)
	}
}

// Short-lived credentials are not collected for ever; those that ended lately are still known as expired.
func TestOldCredentialsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFixture(t, WithSettings(func(s *Settings) { s.CredentialsTTL = time.Minute }))
		first := c.Credentials(nodeA)
		for range 10 {
			advance(2 * time.Minute)
			c.Credentials(nodeA)
		}
		if r := send(c, signed(t, first, form("Action=DescribeSubnets").Encode())); r.Code != "RequestExpired" {
			t.Errorf("after 20 minutes: %s", r.Code)
		}
		before := len(c.iam.keys)
		for range 100 {
			advance(2 * time.Minute)
			c.Credentials(nodeA)
		}
		if n := len(c.iam.keys); n > before+30 {
			t.Errorf("%d keys after 220 minutes, %d after 20", n, before)
		}
		if r := send(c, signed(t, first, form("Action=DescribeSubnets").Encode())); r.Code != "AuthFailure" {
			t.Errorf("after 220 minutes: %s", r.Code)
		}
	})
}

// An interface that is detached and attached anew vanishes from metadata and comes back, with its addresses.
func TestDetachAndAttach(t *testing.T) {
	c := newFixture(t)
	path := "/latest/meta-data/network/interfaces/macs/02:00:00:00:0a:01/local-ipv4s"
	get := func() string {
		w := ask(c.IMDS(nodeA), http.MethodGet, path)
		if w.Code != http.StatusOK {
			return ""
		}
		return w.Body.String()
	}
	want := get()
	if want == "" {
		t.Fatal("no list")
	}
	if err := c.Detach(a1); err != nil {
		t.Fatal(err)
	}
	if got := get(); got != "" {
		t.Errorf("detached, but metadata lists %q", got)
	}
	if h, _ := c.Holder(netip.MustParseAddr("10.0.16.11")); h.ENI != a1 || h.Instance != "" {
		t.Errorf("holder %+v", h)
	}
	if err := c.Attach(a1, nodeA, 1); err != nil {
		t.Fatal(err)
	}
	if got := get(); got != want {
		t.Errorf("lists %q, want %q", got, want)
	}
}
