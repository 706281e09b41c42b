package agent

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/test/keepalived"
)

// keepalived runs beside the application in a pod: two virtual routers, one of each family.
func (l *lab) keepalived(self, peer *sidecar, priority int) *keepalived.Process {
	l.Helper()
	own := func(s *sidecar, family int) netip.Addr { return s.pod.Networks()[0].Addresses[family].Addr() }
	var list []keepalived.Instance
	for family, name := range []string{"four", "six"} {
		list = append(list, keepalived.Instance{
			Name: name, ID: 51 + family, Interface: "net1", Priority: priority, NoPreempt: true,
			Source: own(self, family), Peers: []netip.Addr{own(peer, family)}, Addresses: vips()[family : family+1],
		})
	}
	k, err := keepalived.Start(l.Context(), self.pod.NS(), list...)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		<-k.Done()
		if l.Failed() {
			l.Logf("keepalived of %s:\n%s", self.pod.Name(), k.Output())
		}
	})
	return k
}

// arrivals tells when the kernel adds addresses in the pod.
func (l *lab) arrivals(s *sidecar) <-chan arrival {
	l.Helper()
	updates, done := make(chan netlink.AddrUpdate, 256), make(chan struct{})
	l.Cleanup(func() { close(done) })
	if err := netlink.AddrSubscribeAt(netns.NsHandle(s.pod.NS().Fd()), updates, done); err != nil {
		l.Fatal(err)
	}
	out := make(chan arrival, 256)
	go func() {
		defer close(out)
		for u := range updates {
			now := time.Now()
			if a, ok := netip.AddrFromSlice(u.LinkAddress.IP); ok && u.NewAddr {
				select {
				case out <- arrival{a.Unmap().String(), now}:
				default: // nobody waits any more
				}
			}
		}
	}()
	return out
}

type arrival struct {
	address string
	at      time.Time
}

// The real keepalived: the active one dies, and its addresses move. The dead one keeps them on its interface, or is gone as a whole.
func TestKeepalived(t *testing.T) {
	if _, err := keepalived.Find(); err != nil {
		t.Skipf("%v", err)
	}
	for name, die := range map[string]func(*lab, *sidecar, *keepalived.Process){
		"kill -9 of the active one": func(l *lab, _ *sidecar, k *keepalived.Process) {
			if err := k.Kill(); err != nil {
				l.Fatal(err)
			}
		},
		"the active one's namespace is gone": func(l *lab, s *sidecar, k *keepalived.Process) {
			if err := k.Kill(); err != nil {
				l.Fatal(err)
			}
			s.crash()
			if err := s.pod.Remove(); err != nil {
				l.Fatal(err)
			}
		},
		"it is stopped in good order": func(l *lab, _ *sidecar, k *keepalived.Process) {
			if err := k.Stop(); err != nil {
				l.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, nil)
			a, b := l.sidecars(how{})
			active := l.keepalived(a, b, 150)
			l.holds(a.eni("net1"), vip4, vip6)
			l.keepalived(b, a, 100)
			a.shows(vip6, report.StateAssigned)
			l.rest(time.Second, vip4, vip6) // the standby hears the active one
			before := l.changing()
			toB := b.eni("net1")
			events := l.arrivals(b)
			killed := time.Now()
			die(l, a, active)
			added := l.arrived(events, vip4, vip6)
			l.holds(toB, vip4, vip6)
			l.until("EC2 has not answered", func(context.Context) error { return l.answered(b, vip4, vip6) })
			for _, vip := range []string{vip4, vip6} {
				end := l.answerAt(toB, vip, len(before))
				t.Logf("%s, %s: keepalived %s from the end of the active one to the address on the standby, then %s to EC2's answer",
					name, vip, added[vip].Sub(killed).Round(time.Millisecond), end.Sub(added[vip]).Round(10*time.Microsecond))
			}
			if n := count(l.changing()[len(before):], assign4); n != 1 {
				t.Errorf("%d calls to %s, want one", n, assign4)
			}
			l.rest(calm, vip4, vip6)
			if name != "kill -9 of the active one" {
				return
			}
			// The dead one's address stays on its interface. Its agent takes nothing back, also not after a restart.
			a.shows(vip4, report.StateLost)
			a.shows(vip6, report.StateLost)
			a.crash()
			again := l.sidecar(a.pod, how{restarted: true})
			for _, vip := range []string{vip4, vip6} {
				if line := again.shows(vip, report.StateElsewhere); line.Holder != toB {
					t.Errorf("%+v", line)
				}
			}
			l.rest(calm, vip4, vip6)
		})
	}
}

// arrived waits until the addresses were added, and tells when.
func (l *lab) arrived(events <-chan arrival, addresses ...string) map[string]time.Time {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), patience)
	defer cancel()
	at := map[string]time.Time{}
	for missing := len(addresses); missing > 0; {
		select {
		case e := <-events:
			for _, a := range addresses {
				if e.address == a && at[a].IsZero() {
					at[a] = e.at
					missing--
				}
			}
		case <-ctx.Done():
			l.Fatalf("the standby has not taken the addresses: %v", at)
		}
	}
	return at
}

// answered tells whether the agent knows that it holds the addresses.
func (l *lab) answered(s *sidecar, addresses ...string) error {
	for _, a := range addresses {
		if line := s.shows(a, report.StateAssigned); line.ENI != s.eni("net1") {
			return fmt.Errorf("%+v", line)
		}
	}
	return nil
}

// answerAt is when EC2 answered the call that put the address on the ENI, of the calls that change something the first ones left out.
func (l *lab) answerAt(eni, address string, skip int) time.Time {
	l.Helper()
	for _, c := range l.changing()[skip:] {
		for _, a := range c.Addresses {
			if a == address && c.ENI == eni && c.Applied && c.Code == "" && (c.Action == assign4 || c.Action == assign6) {
				return c.End
			}
		}
	}
	l.journal()
	l.Fatalf("no call put %s on %s", address, eni)
	return time.Time{}
}
