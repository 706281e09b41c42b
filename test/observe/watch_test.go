package observe

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/test/ns"
)

func TestAddressesComeAndGo(t *testing.T) {
	p, _ := pod(t)
	must(t, p.AddAddr("net1", prefix("10.0.4.10/24")))
	f := follow(t, p)
	if s := f.last(); !has("net1", "10.0.4.10")(s) || !s.Heard.IsZero() {
		t.Errorf("the first snapshot lacks what was there, or was heard (%v):\n%s", s.Heard, describe(s))
	}
	for _, vip := range []string{"10.0.4.80/32", "10.0.4.81/24", "2001:db8::80/128", "2001:db8::81/64"} {
		t.Run(vip, func(t *testing.T) {
			address := prefix(vip).Addr().String()
			before := time.Now()
			must(t, p.AddAddr("net1", prefix(vip)))
			s := f.wait("the address", has("net1", address))
			if s.Heard.Before(before) || s.Heard.After(time.Now()) {
				t.Errorf("heard at %v, added after %v", s.Heard, before)
			}
			first, _ := find(s, "net1", address)
			if int32(s.Stamp-first.CStamp) < -3 || s.Age(first) > 2*time.Second { //nolint:gosec // wraps as the kernel's does
				t.Errorf("the snapshot's stamp is %d, that of an address added just before %d", s.Stamp, first.CStamp)
			}
			must(t, p.DelAddr("net1", prefix(vip)))
			f.wait("no address", not(has("net1", address)))
			must(t, p.AddAddr("net1", prefix(vip)))
			back, _ := find(f.wait("the address again", has("net1", address)), "net1", address)
			if back.Addition() == first.Addition() {
				t.Errorf("the second addition looks like the first: %+v", back.Addition())
			}
		})
	}
	if l := f.lossesTold(); len(l) > 0 {
		t.Errorf("losses: %v", l)
	}
}

// The stamp of the clock is that of the kernel, so that the age of an address can be told.
func TestStampIsTheKernels(t *testing.T) {
	p, _ := pod(t)
	f := follow(t, p)
	for i := range 20 {
		address := fmt.Sprintf("10.0.4.%d", i+1)
		started := time.Now()
		must(t, p.AddAddr("net1", prefix(address+"/32")))
		s := f.wait("the address", has("net1", address))
		took := int32(time.Since(started) / (10 * time.Millisecond)) //nolint:gosec // short
		a, _ := find(s, "net1", address)
		if off := int32(s.Stamp - a.CStamp); off < -3 || off > took+3 { //nolint:gosec // wraps as the kernel's does
			t.Errorf("address stamped %d, looked at %d, within %d hundredths of a second", a.CStamp, s.Stamp, took)
		}
	}
}

// Remove and add between two looks: the address is there before and after, only stamp or epoch tell.
func TestAdditionWithinATick(t *testing.T) {
	p, _ := pod(t)
	f := follow(t, p)
	for _, vip := range []string{"10.0.4.80/32", "2001:db8::80/128"} {
		t.Run(vip, func(t *testing.T) {
			address := prefix(vip).Addr().String()
			must(t, p.AddAddr("net1", prefix(vip), ns.NoDAD))
			last, _ := find(f.wait("the address", has("net1", address)), "net1", address)
			sameStamp := 0
			for range 50 {
				must(t, p.DelAddr("net1", prefix(vip)))
				must(t, p.AddAddr("net1", prefix(vip), ns.NoDAD))
				s := f.wait("another addition", func(s plan.Snapshot) bool {
					a, ok := find(s, "net1", address)
					return ok && a.Addition() != last.Addition()
				})
				a, _ := find(s, "net1", address)
				if a.CStamp == last.CStamp {
					sameStamp++
				}
				last = a
				// A second one at once, which mostly falls into the tick of the first.
				must(t, p.DelAddr("net1", prefix(vip)))
				must(t, p.AddAddr("net1", prefix(vip), ns.NoDAD))
				s = f.wait("a third addition", func(s plan.Snapshot) bool {
					a, ok := find(s, "net1", address)
					return ok && a.Addition() != last.Addition()
				})
				a, _ = find(s, "net1", address)
				if a.CStamp == last.CStamp {
					sameStamp++
				}
				last = a
			}
			if sameStamp == 0 {
				t.Error("no two of 100 additions had the same stamp: nothing was tested")
			}
			t.Logf("%d of 100 additions had the stamp of the one before", sameStamp)
		})
	}
}

func TestLinksComeAndGo(t *testing.T) {
	p, fabric := pod(t)
	f := follow(t, p)

	// Plugged while the pod runs.
	must(t, ns.Veth(p, "net2", fabric, "eni2", ns.VethOpts{}))
	must(t, p.AddAddr("net2", prefix("10.0.5.80/24")))
	s := f.wait("net2 with its address", has("net2", "10.0.5.80"))
	mac, err := p.MAC("net2")
	must(t, err)
	a, _ := find(s, "net2", "10.0.5.80")
	if a.Link.MAC != mac.String() {
		t.Errorf("net2 has MAC %q, want %q", a.Link.MAC, mac)
	}

	// Its MAC and its name may change; the index stays.
	mac[5]++
	must(t, p.SetMAC("net2", mac))
	f.wait("net2's other MAC", func(s plan.Snapshot) bool {
		a, _ := find(s, "net2", "10.0.5.80")
		return a.Link.MAC == mac.String()
	})
	must(t, p.Down("net2"))
	must(t, p.Rename("net2", "sip0"))
	renamed, _ := find(f.wait("the other name", has("sip0", "10.0.5.80")), "sip0", "10.0.5.80")
	if renamed.Addition() != a.Addition() {
		t.Errorf("renamed, the address counts as added anew: %+v, before %+v", renamed.Addition(), a.Addition())
	}
	must(t, p.Up("sip0"))

	// Moved to another namespace the link takes its addresses away; back, it has none.
	other := newNS(t, "other")
	move(t, p, "sip0", other)
	f.wait("no sip0", not(hasLink("sip0")))
	if has("sip0", "10.0.5.80")(f.last()) {
		t.Error("the address stayed")
	}
	move(t, other, "sip0", p)
	f.wait("sip0 again", hasLink("sip0"))
	must(t, p.Up("sip0"))
	must(t, p.AddAddr("sip0", prefix("10.0.5.80/24")))
	again, _ := find(f.wait("the address again", has("sip0", "10.0.5.80")), "sip0", "10.0.5.80")
	if again.Addition() == a.Addition() {
		t.Errorf("after its return the address counts as the one that left: %+v", again.Addition())
	}

	must(t, p.DelLink("sip0"))
	f.wait("no sip0", not(hasLink("sip0")))
}

func move(t *testing.T, from *ns.Namespace, link string, to *ns.Namespace) {
	t.Helper()
	l, err := from.Netlink().LinkByName(link)
	must(t, err)
	must(t, from.Netlink().LinkSetNsFd(l, to.Fd()))
}

func TestAddressOnTwoInterfaces(t *testing.T) {
	p, fabric := pod(t)
	must(t, ns.Veth(p, "net2", fabric, "eni2", ns.VethOpts{}))
	f := follow(t, p)
	must(t, p.AddAddr("net1", prefix("10.0.4.80/32")))
	must(t, p.AddAddr("net2", prefix("10.0.4.80/32")))
	both := func(s plan.Snapshot) bool { return has("net1", "10.0.4.80")(s) && has("net2", "10.0.4.80")(s) }
	s := f.wait("the address on both", both)
	one, _ := find(s, "net1", "10.0.4.80")
	must(t, p.DelAddr("net2", prefix("10.0.4.80/32")))
	must(t, p.AddAddr("net2", prefix("10.0.4.80/32")))
	two, _ := find(s, "net2", "10.0.4.80")
	s = f.wait("another addition on net2", func(s plan.Snapshot) bool {
		a, _ := find(s, "net2", "10.0.4.80")
		return both(s) && a.Addition() != two.Addition()
	})
	if a, _ := find(s, "net1", "10.0.4.80"); a.Addition() != one.Addition() {
		t.Errorf("the addition on net1 changed with the one on net2: %+v, before %+v", a.Addition(), one.Addition())
	}
	must(t, p.DelAddr("net1", prefix("10.0.4.80/32")))
	f.wait("the address on net2 only", func(s plan.Snapshot) bool { return !has("net1", "10.0.4.80")(s) && has("net2", "10.0.4.80")(s) })
}

// A link that goes down loses its IPv6 addresses and keeps its IPv4 ones; where promotion is off, the first address of a subnet takes
// the others with it.
func TestLinkFlapAndPromotion(t *testing.T) {
	p, _ := pod(t)
	must(t, p.Set(ns.Sysctl{Key: "net/ipv4/conf/net1/promote_secondaries", Value: "0"}))
	f := follow(t, p)
	must(t, p.AddAddr("net1", prefix("10.0.4.10/24")))
	must(t, p.AddAddr("net1", prefix("2001:db8::80/64"), ns.NoDAD))
	all := func(s plan.Snapshot) bool { return has("net1", "10.0.4.10")(s) && has("net1", "2001:db8::80")(s) }
	s := f.wait("both addresses", all)
	four, _ := find(s, "net1", "10.0.4.10")
	six, _ := find(s, "net1", "2001:db8::80")
	must(t, p.Down("net1"))
	f.wait("IPv4 only", func(s plan.Snapshot) bool { return has("net1", "10.0.4.10")(s) && !has("net1", "2001:db8::80")(s) })
	must(t, p.Up("net1"))
	must(t, p.AddAddr("net1", prefix("2001:db8::80/64"), ns.NoDAD))
	s = f.wait("both addresses again", all)
	if a, _ := find(s, "net1", "10.0.4.10"); a.Addition() != four.Addition() {
		t.Error("the IPv4 address stayed, and counts as added anew")
	}
	if a, _ := find(s, "net1", "2001:db8::80"); a.Addition() == six.Addition() {
		t.Error("the IPv6 address was added anew, and counts as the one before")
	}

	must(t, p.AddAddr("net1", prefix("10.0.4.11/24")))
	f.wait("the second address", has("net1", "10.0.4.11"))
	must(t, p.DelAddr("net1", prefix("10.0.4.10/24")))
	f.wait("neither", func(s plan.Snapshot) bool { return !has("net1", "10.0.4.10")(s) && !has("net1", "10.0.4.11")(s) })

	must(t, p.Set(ns.Sysctl{Key: "net/ipv4/conf/net1/promote_secondaries", Value: "1"}))
	must(t, p.AddAddr("net1", prefix("10.0.4.10/24")))
	must(t, p.AddAddr("net1", prefix("10.0.4.11/24")))
	second, _ := find(f.wait("the second address", has("net1", "10.0.4.11")), "net1", "10.0.4.11")
	must(t, p.DelAddr("net1", prefix("10.0.4.10/24")))
	s = f.wait("no first address", not(has("net1", "10.0.4.10")))
	if a, ok := find(s, "net1", "10.0.4.11"); !ok || a.Addition() != second.Addition() {
		t.Errorf("the second address was promoted, and counts as gone or added anew: %+v, before %+v", a, second)
	}
}

// What changes nothing that matters is not delivered: duplicate address detection's end, lifetimes, the far end going down and up.
func TestNothingNew(t *testing.T) {
	p, fabric := pod(t)
	f := follow(t, p)
	must(t, p.AddAddr("net1", prefix("10.0.4.80/24")))
	must(t, p.AddAddr("net1", prefix("2001:db8::80/64"))) // tentative at first
	f.wait("all addresses", func(s plan.Snapshot) bool {
		linkLocal := slices.ContainsFunc(s.Addresses, func(a plan.Address) bool { return a.Addr.IsLinkLocalUnicast() })
		return linkLocal && has("net1", "10.0.4.80")(s) && has("net1", "2001:db8::80")(s)
	})
	settled := f.count()
	link, err := p.Netlink().LinkByName("net1")
	must(t, err)
	waitFor(t, "the end of duplicate address detection", func() bool {
		list, err := p.Netlink().AddrList(link, netlink.FAMILY_V6)
		return err == nil && !slices.ContainsFunc(list, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 })
	})
	tick := time.NewTicker(20 * time.Millisecond) // so that each event has a look of its own
	defer tick.Stop()
	for range 10 {
		must(t, p.Netlink().AddrReplace(link, &netlink.Addr{IPNet: ipNet("10.0.4.80/24"), ValidLft: 10000, PreferedLft: 5000}))
		<-tick.C
		must(t, fabric.Down("eni1"))
		must(t, fabric.Up("eni1"))
		<-tick.C
	}
	must(t, p.AddAddr("net1", prefix("10.0.4.81/24")))
	f.wait("the mark", has("net1", "10.0.4.81"))
	if extra := f.count() - settled; extra != 1 {
		t.Errorf("%d snapshots, want the last one only; it is\n%s", extra, describe(f.last()))
	}
}

// A link that is down, and that has no address, shows all the same.
func TestLinksWithoutAddresses(t *testing.T) {
	p, fabric := pod(t)
	f := follow(t, p)
	must(t, ns.Veth(p, "net2", fabric, "eni2", ns.VethOpts{Down: true}))
	f.wait("net2", hasLink("net2"))
	must(t, p.Rename("net2", "net3"))
	f.wait("the other name", func(s plan.Snapshot) bool { return hasLink("net3")(s) && !hasLink("net2")(s) })
	must(t, p.DelLink("net3"))
	f.wait("no link", not(hasLink("net3")))
}

// waitFor polls for what no event tells.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A thousand events a second end with what is there, without a loss.
func TestManyEvents(t *testing.T) {
	p, _ := pod(t)
	f := follow(t, p)
	const seconds = 3
	busy := cpu(t)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	started := time.Now()
	for i := range seconds * 1000 {
		vip := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 7, byte(i / 2 % 50)}), 32) //nolint:gosec // less than 50
		if i%2 == 0 {
			must(t, p.AddAddr("net1", vip))
		} else {
			must(t, p.DelAddr("net1", vip))
		}
		<-tick.C
	}
	took := time.Since(started)
	for i := range 10 {
		must(t, p.AddAddr("net1", prefix(fmt.Sprintf("10.0.8.%d/32", i))))
	}
	want, err := p.Addrs("net1")
	must(t, err)
	f.wait("what is there", func(s plan.Snapshot) bool {
		n := 0
		for _, w := range want {
			if _, ok := find(s, "net1", w.Addr().String()); ok {
				n++
			}
		}
		on := 0
		for _, a := range s.Addresses {
			if a.Link.Name == "net1" {
				on++
			}
		}
		return n == len(want) && on == n
	})
	t.Logf("%d events in %v: %d snapshots, %v of CPU (making the events included), losses %v", seconds*1000, took, f.count(), cpu(t)-busy, f.lossesTold())
}

func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	must(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A process that is not scheduled for a while loses events. It is told, and sees what is there.
func TestOverflow(t *testing.T) {
	p, _ := pod(t)
	f, c := followAsProcess(t, p)
	must(t, p.AddAddr("net1", prefix("10.0.4.80/32")))
	before, _ := find(f.wait("the address", has("net1", "10.0.4.80")), "net1", "10.0.4.80")
	must(t, c.Signal(syscall.SIGSTOP))
	t.Cleanup(func() { _ = c.Signal(syscall.SIGCONT) }) // a process that is stopped does not end
	dropped := stopped(t, p, c.Pid())
	for vip := netip.MustParseAddr("10.1.0.0"); !dropped(); {
		for range 100 {
			vip = vip.Next()
			must(t, p.AddAddr("net1", ns.Single(vip)))
		}
	}
	must(t, p.AddAddr("net1", prefix("10.0.4.81/32")))
	must(t, c.Signal(syscall.SIGCONT))
	s := f.wait("what came while events were lost", has("net1", "10.0.4.81"))
	if losses := f.lossesTold(); len(losses) == 0 || losses[0] != "overflow" {
		t.Errorf("losses told: %v, want an overflow", losses)
	}
	if !s.Heard.IsZero() {
		t.Error("events were lost, and the snapshot claims that one led to it")
	}
	if a, _ := find(s, "net1", "10.0.4.80"); a.Addition() != before.Addition() {
		t.Errorf("the address that stayed counts as added anew: %+v, before %+v", a.Addition(), before.Addition())
	}
	must(t, p.DelAddr("net1", prefix("10.0.4.81/32")))
	s = f.wait("events again", not(has("net1", "10.0.4.81")))
	if s.Heard.IsZero() {
		t.Error("the snapshot after an event does not tell when it was heard")
	}
}

// An agent in a pod has no capability at all, and needs none.
func TestUnprivileged(t *testing.T) {
	p, fabric := pod(t)
	f, _ := followAsProcess(t, p)
	must(t, p.AddAddr("net1", prefix("10.0.4.80/32")))
	f.wait("the address", has("net1", "10.0.4.80"))
	must(t, ns.Veth(p, "net2", fabric, "eni2", ns.VethOpts{}))
	f.wait("net2", hasLink("net2"))
	f.end()
	if l := f.lossesTold(); len(l) > 0 {
		t.Errorf("losses: %v", l)
	}
}

func TestNothingIsLeft(t *testing.T) {
	p, _ := pod(t)
	run := func() {
		f := follow(t, p)
		must(t, p.AddAddr("net1", prefix("10.0.4.80/32")))
		f.wait("the address", has("net1", "10.0.4.80"))
		must(t, p.DelAddr("net1", prefix("10.0.4.80/32")))
		f.end()
	}
	run() // what is opened once and kept
	files := openFiles(t)
	for range 20 {
		run()
	}
	if now := openFiles(t); now != files {
		t.Errorf("%d descriptors open, %d before", now, files)
	}
	for _, g := range goroutines() {
		t.Errorf("left:\n%s", g)
	}
}

// Printed only: how long after the request for an address the snapshot with it is delivered.
func TestLatency(t *testing.T) {
	p, _ := pod(t)
	f := follow(t, p)
	var all []time.Duration
	for i := range 100 {
		address := fmt.Sprintf("10.0.4.%d", i+1)
		started := time.Now()
		must(t, p.AddAddr("net1", prefix(address+"/32")))
		f.wait("the address", has("net1", address))
		all = append(all, time.Since(started))
		waitFor(t, "a quiet while", func() bool { return time.Since(f.last().Heard) > 20*time.Millisecond })
	}
	slices.Sort(all)
	t.Logf("address added to snapshot delivered: median %v, p90 %v, p99 %v", all[50], all[90], all[99])
}
