package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/world"
)

// A sidecar starts like init: one call per ENI and family, no describe; then it is ready, stays, and rests.
func TestSidecarStartsLikeInit(t *testing.T) {
	l := start(t, nil)
	s := l.sidecar(l.pod(
		network(1, "10.0.4.80/22", "10.0.4.90/32", "fd50:0:0:4::80/64"),
		network(2, "10.0.8.80/24", "fd50:0:0:8::80/64", "fd50:0:0:9::80/128"),
	), how{})
	s.ready()
	l.called(assign4, assign4, assign6, assign6)
	l.on("one", 1, "10.0.4.80", "10.0.4.90", "fd50:0:0:4::80")
	l.on("one", 2, "10.0.8.80", "fd50:0:0:8::80", "fd50:0:0:9::80")
	l.rest(2*time.Second, "10.0.4.80")
	l.called(assign4, assign4, assign6, assign6)
	for _, addr := range []string{"10.0.4.80", "fd50:0:0:9::80"} {
		if line := s.shows(addr, report.StateAssigned); line.Origin != report.OriginPod || !strings.HasPrefix(line.ENI, "eni-") {
			t.Errorf("%+v", line)
		}
	}
	select {
	case <-s.Done():
		t.Error("it ended")
	default:
	}
}

// The probe says in one sentence what is waited for.
func TestSidecarIsNotReadyBefore(t *testing.T) {
	l := start(t, nil)
	fault := l.cloud.Faults().Add(aws.Fault{Kind: aws.FaultThrottle, Action: "Assign*"})
	s := l.sidecar(l.pod(dual()), how{})
	s.waits("10.0.4.80", "RequestLimitExceeded")
	r, err := s.Exec(t.Context(), "ready")
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.TrimSpace(r.Output); r.ExitCode == 0 || strings.Contains(text, "\n") || !strings.Contains(text, "10.0.4.80") && !strings.Contains(text, "fd50:0:0:4::80") {
		t.Errorf("ready says %q, exit code %d; want one sentence with an address", text, r.ExitCode)
	}
	table, err := s.Exec(t.Context(), "status")
	if err != nil || table.ExitCode != 0 || !strings.Contains(table.Output, "10.0.4.80") || !strings.Contains(table.Output, "waiting") {
		t.Errorf("status: %+v, %v", table, err)
	}
	fault.Remove()
	s.ready()
	l.on("one", 1, "10.0.4.80", "fd50:0:0:4::80")
}

// Nothing answers where no agent runs.
func TestStatusWithoutAnAgent(t *testing.T) {
	l := start(t, nil)
	p := l.pod(dual())
	s := l.sidecar(p, how{})
	s.ready()
	other := l.sidecar(l.podOn("two", "b"), how{annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": ""}})
	other.ready()
	s.crash()
	again := l.sidecar(p, how{restarted: true}) // the name of the socket is free again
	again.ready()
}

func TestSidecarFollowsAddresses(t *testing.T) {
	for name, test := range map[string]struct {
		add  []string
		want []string
	}{
		"host masks":          {[]string{"10.0.4.99/32", "fd50:0:0:4::99/128"}, []string{"10.0.4.99", "fd50:0:0:4::99"}},
		"the subnet's masks":  {[]string{"10.0.4.99/22", "fd50:0:0:4::99/64"}, []string{"10.0.4.99", "fd50:0:0:4::99"}},
		"other masks":         {[]string{"10.0.5.99/28", "fd50:0:0:4::99/120"}, []string{"10.0.5.99", "fd50:0:0:4::99"}},
		"many at once":        {[]string{"10.0.4.91/32", "10.0.4.92/32", "10.0.4.93/32", "10.0.4.94/32"}, []string{"10.0.4.91", "10.0.4.92", "10.0.4.93", "10.0.4.94"}},
		"beside a foreign IP": {[]string{"172.31.7.7/24", "10.0.4.99/32"}, []string{"10.0.4.99"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, nil)
			p := l.pod(dual())
			s := l.sidecar(p, how{})
			s.ready()
			before := len(l.calls())
			var add []netip.Prefix
			for _, a := range test.add {
				add = append(add, netip.MustParsePrefix(a))
			}
			s.adds(add...)
			l.holds(s.eni("net1"), test.want...)
			if n := len(l.calls()) - before; n > len(test.want) {
				t.Errorf("%d calls for %d addresses", n, len(test.want))
			}
			for _, a := range test.want {
				if line := s.shows(a, report.StateAssigned); line.Origin != report.OriginFloating || line.Interface != "net1" {
					t.Errorf("%+v", line)
				}
			}
			s.ready() // what cannot be assigned later keeps nobody from being ready
		})
	}
}

// A bad address does not keep the good ones, and is named.
func TestSidecarRefusesLater(t *testing.T) {
	l := start(t, nil)
	s := l.sidecar(l.pod(dual()), how{})
	s.ready()
	s.adds(netip.MustParsePrefix("10.0.4.98/32"), netip.MustParsePrefix("10.0.4.11/32"), netip.MustParsePrefix("10.0.9.5/32"), netip.MustParsePrefix("10.0.4.99/32"))
	l.holds(s.eni("net1"), "10.0.4.98", "10.0.4.99")
	if line := s.shows("10.0.4.11", report.StateRefused); !strings.Contains(line.Reason, "primary") {
		t.Errorf("%+v", line)
	}
	l.on("two", 1, "10.0.4.11")
	l.nowhere("10.0.9.5")
}

func TestSidecarFollowsLinks(t *testing.T) {
	net2 := world.Network{Interface: "net2", ENI: 2, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.8.80/24"), netip.MustParsePrefix("fd50:0:0:8::80/64")}}
	t.Run("plugged later", func(t *testing.T) {
		l := start(t, nil)
		p := l.pod(dual())
		s := l.sidecar(p, how{})
		s.ready()
		if err := p.Plug(net2); err != nil {
			t.Fatal(err)
		}
		l.holds(l.world.Node("one").ENI(2), "10.0.8.80", "fd50:0:0:8::80")
	})
	t.Run("plugged with an ENI that was attached later", func(t *testing.T) {
		l := start(t, nil)
		p := l.pod(dual())
		s := l.sidecar(p, how{})
		s.ready()
		node := l.world.Node("one")
		if err := node.AddENI(world.ENISpec{Index: 3, Subnet: "subnet-c", Primary: netip.MustParseAddr("10.0.8.13")}); err != nil {
			t.Fatal(err)
		}
		late := net2
		late.ENI = 3
		if err := p.Plug(late); err != nil {
			t.Fatal(err)
		}
		l.holds(node.ENI(3), "10.0.8.80", "fd50:0:0:8::80")
	})
	t.Run("renamed", func(t *testing.T) {
		l := start(t, nil)
		p := l.pod(dual())
		s := l.sidecar(p, how{})
		s.ready()
		if err := p.Rename("net1", "sig0"); err != nil {
			t.Fatal(err)
		}
		if err := p.AddAddrs("sig0", vips()...); err != nil {
			t.Fatal(err)
		}
		l.holds(s.eni("sig0"), vip4, vip6)
		if line := s.shows(vip4, report.StateAssigned); line.Interface != "sig0" {
			t.Errorf("%+v", line)
		}
	})
	t.Run("moved to another pod", func(t *testing.T) {
		l := start(t, nil)
		a, b := l.pod(dual()), l.podOn("one", "b")
		sa, sb := l.sidecar(a, how{}), l.sidecar(b, how{annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": ""}})
		sa.ready()
		sb.ready()
		if err := a.Move("net1", b); err != nil {
			t.Fatal(err)
		}
		sb.adds(vips()...)
		l.holds(l.world.Node("one").ENI(1), vip4, vip6)
		sa.stop() // and releases nothing that it has no more
		l.on("one", 1, "10.0.4.80", "fd50:0:0:4::80", vip4, vip6)
	})
	t.Run("unplugged, and back", func(t *testing.T) {
		l := start(t, nil)
		p := l.pod(dual())
		s := l.sidecar(p, how{})
		s.ready()
		if err := p.Unplug("net1"); err != nil {
			t.Fatal(err)
		}
		l.assign(l.world.Node("two").ENI(1), "10.0.4.80", "fd50:0:0:4::80")
		back := dual()
		back.Interface = "net1"
		if err := p.Plug(back); err != nil {
			t.Fatal(err)
		}
		l.holds(l.world.Node("one").ENI(1), "10.0.4.80", "fd50:0:0:4::80")
	})
}

// The ENI is detached from the node and attached anew, or another one comes in its place.
func TestSidecarSurvivesTheReplacementOfItsENI(t *testing.T) {
	for name, attach := range map[string]func(*world.Node, string) error{
		"the same ENI": func(n *world.Node, id string) error { return n.AttachENI(id, 1) },
		"another ENI": func(n *world.Node, _ string) error {
			return n.AddENI(world.ENISpec{Index: 1, ID: "eni-0anew", MAC: "06:ee:00:aa:aa:01", Subnet: "subnet-b", Primary: netip.MustParseAddr("10.0.4.14")})
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, nil)
			p := l.pod(dual())
			s := l.sidecar(p, how{})
			s.ready()
			node := l.world.Node("one")
			old := node.ENI(1)
			if err := node.DetachENI(1); err != nil {
				t.Fatal(err)
			}
			if err := attach(node, old); err != nil {
				t.Fatal(err)
			}
			back := dual()
			back.Interface = "net1"
			if err := p.Plug(back); err != nil {
				t.Fatal(err)
			}
			s.adds(vips()...)
			l.holds(node.ENI(1), "10.0.4.80", "fd50:0:0:4::80", vip4, vip6)
		})
	}
}

// A pod that lost an address and gets it back assigns it again, also when nobody could see it go.
func TestSidecarRemoveAndReturn(t *testing.T) {
	for name, again := range map[string]func(*lab, *sidecar){
		"slowly": func(l *lab, s *sidecar) {
			s.removes(vips()...)
			l.until("the addresses are still there", func(ctx context.Context) error {
				st, err := s.status(ctx)
				for _, a := range st.Addresses {
					if a.Address == vip4 || a.Address == vip6 {
						err = fmt.Errorf("%+v", a)
					}
				}
				return err
			})
			s.adds(vips()...)
		},
		"within a millisecond": func(_ *lab, s *sidecar) { s.adds(vips()...) }, // it is there: removed and added
		"many times":           func(_ *lab, s *sidecar) { s.flaps(50) },
		"with the link": func(l *lab, s *sidecar) {
			// Setting a link down takes all IPv6 addresses; what brings it up puts them back.
			if err := s.pod.NS().Down("net1"); err != nil {
				l.Fatal(err)
			}
			if err := s.pod.NS().Up("net1"); err != nil {
				l.Fatal(err)
			}
			if err := s.pod.AddAddrs("net1", netip.MustParsePrefix("fd50:0:0:4::80/64"), vips()[1]); err != nil {
				l.Fatal(err)
			}
			s.flaps(1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, nil)
			s := l.sidecar(l.pod(dual()), how{})
			s.ready()
			s.adds(vips()...)
			l.holds(s.eni("net1"), vip4, vip6)
			l.assign(l.world.Node("two").ENI(1), vip4, vip6)
			again(l, s)
			l.holds(s.eni("net1"), vip4, vip6)
			l.rest(calm, vip4, vip6)
		})
	}
}

// flaps takes the floating addresses from the interface and puts them back, as fast as the kernel allows.
func (s *sidecar) flaps(times int) {
	s.l.Helper()
	for _, v := range vips() {
		if err := s.pod.Flap("net1", v, times); err != nil {
			s.l.Fatal(err)
		}
	}
}

// Nothing is released because of a removal, and a link that flaps costs no calls that release.
func TestSidecarRemovalReleasesNothing(t *testing.T) {
	l := start(t, nil)
	s := l.sidecar(l.pod(dual()), how{})
	s.ready()
	s.adds(vips()...)
	// What leaves while its call is unanswered is another matter: that call is undone.
	s.shows(vip4, report.StateAssigned)
	s.shows(vip6, report.StateAssigned)
	s.removes(vips()...)
	s.removes(netip.MustParsePrefix("10.0.4.80/22"))
	l.quiet(calm) // longer than the time after which a removal is believed
	l.on("one", 1, vip4, vip6, "10.0.4.80")
}

// An address on two interfaces counts where it was added last, and where it stays.
func TestSidecarAddressOnTwoInterfaces(t *testing.T) {
	l := start(t, func(s *world.Spec) {
		s.Nodes[0].ENIs = append(s.Nodes[0].ENIs, world.ENISpec{Index: 3, Subnet: "subnet-b", Primary: netip.MustParseAddr("10.0.4.13")})
	})
	p := l.pod(dual(), network(3, "10.0.4.83/22"))
	s := l.sidecar(p, how{})
	s.ready()
	s.adds(vips()...)
	l.holds(s.eni("net1"), vip4, vip6)
	if err := p.AddAddrs("net2", vips()...); err != nil {
		t.Fatal(err)
	}
	l.holds(s.eni("net2"), vip4, vip6)
	if err := p.DelAddrs("net2", vips()...); err != nil {
		t.Fatal(err)
	}
	l.holds(s.eni("net1"), vip4, vip6)
	l.rest(calm, vip4, vip6)
}

// A thousand events a second do not stop the agent from keeping up, nor make it spend calls without end.
func TestSidecarEventStorm(t *testing.T) {
	l := start(t, nil)
	s := l.sidecar(l.pod(dual()), how{agent: map[string]string{"log-level": "info"}})
	s.ready()
	s.adds(vips()...)
	l.holds(s.eni("net1"), vip4, vip6)
	before := len(l.calls())
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 300 { // three seconds of ten events each
		<-tick.C
		for _, v := range vips() {
			if err := s.pod.Flap("net1", v, 2); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.pod.Flap("net1", netip.MustParsePrefix("10.0.4.80/22"), 1); err != nil {
			t.Fatal(err)
		}
	}
	s.adds(netip.MustParsePrefix("10.0.4.77/32"))
	l.holds(s.eni("net1"), "10.0.4.77", vip4, vip6, "10.0.4.80")
	s.shows(vip4, report.StateAssigned)
	if n := len(l.calls()) - before; n > 600 {
		t.Errorf("%d calls to EC2 for 3,000 events of three addresses", n)
	}
	s.ready()
}
