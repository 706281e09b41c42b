package keepalived

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"multus-ip-manager.io/test/ns"
)

func TestMain(m *testing.M) { ns.Main(m) }

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// pair is two namespaces on one wire.
func pair(t *testing.T) (a, b *ns.Namespace) {
	t.Helper()
	var err error
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	a, err = ns.New("a")
	must(err)
	t.Cleanup(func() { _ = a.Close() })
	b, err = ns.New("b")
	must(err)
	t.Cleanup(func() { _ = b.Close() })
	must(ns.Veth(a, "net1", b, "net1", ns.VethOpts{}))
	must(a.AddAddr("net1", prefix("10.0.0.1/24")))
	must(b.AddAddr("net1", prefix("10.0.0.2/24")))
	must(a.AddAddr("net1", prefix("fd00::1/64"), ns.NoDAD))
	must(b.AddAddr("net1", prefix("fd00::2/64"), ns.NoDAD))
	return a, b
}

func instances(self, other int, priority int) []Instance {
	v4 := []netip.Addr{addr("10.0.0.1"), addr("10.0.0.2")}
	v6 := []netip.Addr{addr("fd00::1"), addr("fd00::2")}
	return []Instance{
		{Name: "four", ID: 51, Interface: "net1", Priority: priority, NoPreempt: true, Source: v4[self], Peers: []netip.Addr{v4[other]}, Addresses: []netip.Prefix{prefix("10.0.0.99/32")}},
		{Name: "six", ID: 52, Interface: "net1", Priority: priority, NoPreempt: true, Source: v6[self], Peers: []netip.Addr{v6[other]}, Addresses: []netip.Prefix{prefix("fd00::99/128")}},
	}
}

func start(t *testing.T, n *ns.Namespace, list []Instance) *Process {
	t.Helper()
	if _, err := Find(); err != nil {
		t.Skipf("%v", err)
	}
	p, err := Start(t.Context(), n, list...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Stop()
		if t.Failed() {
			t.Logf("keepalived in %s:\n%s", n.Name(), p.Output())
		}
	})
	return p
}

// has waits until the namespace has both virtual addresses, or neither.
func has(t *testing.T, n *ns.Namespace, want bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	updates, done := make(chan netlink.AddrUpdate, 64), make(chan struct{})
	defer close(done)
	if err := netlink.AddrSubscribeAt(netns.NsHandle(n.Fd()), updates, done); err != nil {
		t.Fatal(err)
	}
	for {
		list, err := n.Addrs("net1")
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(list, prefix("10.0.0.99/32")) == want && slices.Contains(list, prefix("fd00::99/128")) == want {
			return
		}
		select {
		case <-updates:
		case <-ctx.Done():
			t.Fatalf("%s: virtual addresses %v: want %v; it has %v", n.Name(), !want, want, list)
		}
	}
}

func TestTakeover(t *testing.T) {
	for name, crash := range map[string]bool{"kill -9": true, "in good order": false} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			one := start(t, a, instances(0, 1, 150))
			has(t, a, true)
			start(t, b, instances(1, 0, 100))
			if crash {
				if err := one.Kill(); err != nil {
					t.Fatal(err)
				}
			} else if err := one.Stop(); err != nil {
				t.Fatal(err)
			}
			has(t, b, true)
			has(t, a, crash)
			// The one that comes back does not preempt, and takes a dead one's addresses from its interface.
			start(t, a, instances(0, 1, 150))
			has(t, a, false)
			has(t, b, true)
		})
	}
}

func TestConfigurationErrorsEndIt(t *testing.T) {
	a, _ := pair(t)
	list := instances(0, 1, 100)
	list[0].Interface = "net7"
	p := start(t, a, list)
	<-p.Done()
}
