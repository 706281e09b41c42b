package agent

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/kubelet"
	"multus-ip-manager.io/test/world"
)

// dual is the network most of these tests use.
func dual() world.Network { return network(1, "10.0.4.80/22", "fd50:0:0:4::80/64") }

// What passes is waited out, and ends in success.
func TestFaultsThatPass(t *testing.T) {
	for name, faults := range map[string][]aws.Fault{
		"throttling":                        {{Kind: aws.FaultThrottle, Action: "Assign*", Times: 4}},
		"throttled credentials and answers": {{Kind: aws.FaultError, Action: "IMDS:GET", Path: "*security-credentials*", Status: 500, Times: 2}, {Kind: aws.FaultThrottle, Action: "Assign*", Times: 2}},
		"internal errors":                   {{Kind: aws.FaultError, Action: "Assign*", Times: 3}},
		"unavailable":                       {{Kind: aws.FaultError, Action: "Assign*", Status: 503, Code: "Unavailable", Times: 3}},
		"dropped answers":                   {{Kind: aws.FaultDrop, Action: "Assign*", Times: 3}},
		"applied, but the answer is lost":   {{Kind: aws.FaultDrop, AfterApply: true, Action: "Assign*", Times: 2}},
		"applied, but answered with an error": {{Kind: aws.FaultError, AfterApply: true, Action: "Assign*",
			Status: 500, Code: "InternalError", Times: 2}},
		"a hanging call":              {{Kind: aws.FaultHang, Action: "Assign*", Times: 1}},
		"expired credentials":         {{Kind: aws.FaultError, Action: "Assign*", Status: 400, Code: "RequestExpired", Times: 2}},
		"an ENI that is not there":    {{Kind: aws.FaultError, Action: "Assign*", Status: 400, Code: "InvalidNetworkInterfaceID.NotFound", Times: 2}},
		"an ENI between two states":   {{Kind: aws.FaultError, Action: "Assign*", Status: 400, Code: "IncorrectState", Times: 2}},
		"metadata away":               {{Kind: aws.FaultDrop, Action: "IMDS:*", Times: 6}},
		"metadata answers with 503":   {{Kind: aws.FaultError, Action: "IMDS:*", Status: 503, Times: 6}},
		"one lost token answer":       {{Kind: aws.FaultHang, Action: "IMDS:PUT", Times: 1}},
		"an unknown code with 5xx":    {{Kind: aws.FaultError, Action: "Assign*", Status: 502, Code: "Surprise", Times: 2}},
		"half of all calls throttled": {{Kind: aws.FaultThrottle, Action: "*Address*", Percent: 50}},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, nil)
			for _, f := range faults {
				l.cloud.Faults().Add(f)
			}
			l.done(l.run(l.pod(dual()), how{}))
			l.on("one", 1, "10.0.4.80", "fd50:0:0:4::80")
		})
	}
}

// The exit code at the deadline is the last fault's.
func TestDeadline(t *testing.T) {
	for name, test := range map[string]struct {
		fault aws.Fault
		code  report.Code
		words []string
	}{
		"throttled":             {aws.Fault{Kind: aws.FaultThrottle, Action: "Assign*"}, report.GaveUp, []string{"RequestLimitExceeded", "eni-", "10.0.4.80", "gave up after"}},
		"never an answer":       {aws.Fault{Kind: aws.FaultHang, Action: "Assign*"}, report.GaveUp, []string{"10.0.4.80", "gave up after"}},
		"no metadata":           {aws.Fault{Kind: aws.FaultDrop, Action: "IMDS:*"}, report.NoMetadata, []string{"metadata"}},
		"metadata switched off": {aws.Fault{Kind: aws.FaultError, Action: "IMDS:*", Status: 403}, report.NoMetadata, []string{"metadata"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, nil)
			l.cloud.Faults().Add(test.fault)
			r := l.run(l.pod(dual()), how{annotations: map[string]string{"multus-ip-manager.io/deadline": "4s"}})
			l.fails(r, test.code, test.words...)
			if r.Duration < 3900*time.Millisecond || r.Duration > 10*time.Second {
				t.Errorf("ended after %s, want the deadline of 4 s", r.Duration)
			}
		})
	}
}

// fill takes all free IPv4 slots of an ENI but some.
func (l *lab) fill(eni string, but int) []string {
	l.Helper()
	var filled []string
	for addr := netip.MustParseAddr("10.0.6.1"); ; addr = addr.Next() {
		if err := l.cloud.Assign(eni, addr); err != nil {
			break
		}
		filled = append(filled, addr.String())
	}
	for _, a := range filled[:but] {
		if err := l.cloud.Unassign(eni, netip.MustParseAddr(a)); err != nil {
			l.Fatal(err)
		}
	}
	return filled[but:]
}

func TestFullENI(t *testing.T) {
	l := start(t, nil)
	l.fill(l.world.Node("one").ENI(1), 1)
	r := l.run(l.pod(network(1, "10.0.4.80/22", "10.0.4.81/22"), network(2, "10.0.8.80/24")),
		how{annotations: map[string]string{"multus-ip-manager.io/deadline": "3s"}})
	l.fails(r, report.ENIFull, "PrivateIpAddressLimitExceeded", "eni-")
	l.on("one", 1, "10.0.4.80") // the one slot is used
	l.on("one", 2, "10.0.8.80") // and the other ENI does not wait
}

func TestFullENIWithASlotFreedLater(t *testing.T) {
	l := start(t, nil)
	eni := l.world.Node("one").ENI(1)
	filled := l.fill(eni, 0)
	p := l.pod(network(1, "10.0.4.80/22"))
	go func() {
		// After the second refusal somebody lets one go.
		refused := func(cs []aws.Call) (n int) {
			for _, c := range cs {
				if c.Code == "PrivateIpAddressLimitExceeded" {
					n++
				}
			}
			return n
		}
		if err := l.cloud.WaitJournal(t.Context(), func(cs []aws.Call) bool { return refused(cs) >= 2 }); err != nil {
			return
		}
		_ = l.cloud.Unassign(eni, netip.MustParseAddr(filled[0]))
	}()
	l.done(l.run(p, how{agent: map[string]string{"deadline": "90s"}}))
	l.on("one", 1, "10.0.4.80")
}

// What cannot pass ends the agent at once.
func TestPermission(t *testing.T) {
	for name, test := range map[string]struct {
		policy aws.Policy
		role   string
		words  []string
	}{
		"the action is missing": {policy: aws.Policy{Allow: []aws.Statement{{Actions: []string{"Describe*"}}}},
			words: []string{"UnauthorizedOperation", "AssignPrivateIpAddresses", "eni-", "10.0.4.80", "allow ec2:AssignPrivateIpAddresses"}},
		"only IPv6 is missing": {policy: aws.Policy{Allow: []aws.Statement{{Actions: []string{"AssignPrivateIpAddresses"}}}},
			words: []string{"UnauthorizedOperation", "AssignIpv6Addresses", "fd50:0:0:4::80"}},
		"the node has no role": {role: "-", words: []string{"credentials"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, func(s *world.Spec) { s.Nodes[0].Role = test.role })
			if err := l.cloud.ChangeInstance(l.world.Node("one").Instance(), func(i *aws.Instance) {
				if test.role == "" {
					i.Policy = &test.policy
				}
			}); err != nil {
				t.Fatal(err)
			}
			r := l.run(l.pod(dual()), how{})
			l.fails(r, report.Permission, test.words...)
			if r.Duration > 5*time.Second {
				t.Errorf("took %s to say so", r.Duration)
			}
		})
	}
}

// Metadata that speaks only one of its two versions.
func TestMetadataVersions(t *testing.T) {
	for name, change := range map[string]func(*world.NodeSpec){
		"v2 only":                       func(n *world.NodeSpec) { n.IMDS = world.IMDSRequired },
		"v1, because of the hop limit":  func(n *world.NodeSpec) { n.HopLimit = 1 },
		"a hop limit for more networks": func(n *world.NodeSpec) { n.HopLimit = 3 },
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, func(s *world.Spec) { change(&s.Nodes[0]) })
			r := l.run(l.pod(dual()), how{})
			l.done(r)
			if r.Duration > 5*time.Second {
				t.Errorf("took %s, want one second for the token that never comes", r.Duration)
			}
			l.on("one", 1, "10.0.4.80")
		})
	}
	t.Run("v1 only", func(t *testing.T) {
		l := start(t, nil)
		l.cloud.Faults().Add(aws.Fault{Kind: aws.FaultError, Action: "IMDS:PUT", Status: 404})
		l.done(l.run(l.pod(dual()), how{}))
	})
	t.Run("v2 only with a hop limit of 1", func(t *testing.T) {
		l := start(t, func(s *world.Spec) { s.Nodes[0].IMDS, s.Nodes[0].HopLimit = world.IMDSRequired, 1 })
		l.fails(l.run(l.pod(dual()), how{agent: map[string]string{"deadline": "60s"}}), report.NoMetadata, "hop limit", "2")
		l.called()
	})
	t.Run("disabled", func(t *testing.T) {
		l := start(t, func(s *world.Spec) { s.Nodes[0].IMDS = world.IMDSDisabled })
		l.fails(l.run(l.pod(dual()), how{agent: map[string]string{"deadline": "3s"}}), report.NoMetadata, "metadata")
	})
}

// An interface that Multus should have made and did not.
func TestMissingInterface(t *testing.T) {
	for name, test := range map[string]struct {
		networks    []world.Network
		annotations map[string]string
		code        report.Code
		words       []string
	}{
		"none at all": {annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": "n3"},
			code: report.InterfaceMissing, words: []string{"delete the pod", "multus-ip-manager.io/interfaces"}},
		"one of two": {networks: []world.Network{dual()}, annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": "n3, n6"},
			code: report.InterfaceMissing, words: []string{"1 unnamed"}},
		"one by name": {networks: []world.Network{dual()}, annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": `[{"name":"n3","interface":"n6"}]`},
			code: report.InterfaceMissing, words: []string{"(n6)"}},
		"one that the interfaces annotation names": {networks: []world.Network{dual()}, annotations: map[string]string{"multus-ip-manager.io/interfaces": "net1,net7"},
			code: report.InterfaceMissing, words: []string{"(net7)"}},
		"one that the interfaces annotation leaves out": {networks: []world.Network{dual()},
			annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": "n3,vfio", "multus-ip-manager.io/interfaces": "net1"}},
		"an annotation that cannot be read": {networks: []world.Network{dual()}, annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": "[null]"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, nil)
			r := l.run(l.pod(test.networks...), how{annotations: test.annotations})
			if test.code == report.Done {
				l.done(r)
				return
			}
			l.fails(r, test.code, test.words...)
			l.called()
		})
	}
}

// A Multus default-route leads the agent's own traffic out by an interface that cannot work yet.
func TestDefaultRouteByManagedInterface(t *testing.T) {
	l := start(t, nil)
	n := dual()
	n.DefaultRoute = true
	p := l.pod(n)
	l.fails(l.run(p, how{}), report.NoRoute, "net1", "default-route", "169.254.169.254")
	l.called()
	// After a restart the address may be assigned; then the same route works.
	l.assign(l.world.Node("one").ENI(1), "10.0.4.80")
	l.done(l.run(p, how{}))
}

// EC2 alone is out of reach: metadata has its own route.
func TestRouteToEC2ByManagedInterface(t *testing.T) {
	l := start(t, nil)
	n := network(1, "10.0.4.80/22")
	n.Routes = []netip.Prefix{netip.MustParsePrefix("10.255.255.0/24")}
	l.fails(l.run(l.pod(n), how{}), report.NoRoute, "net1", "10.255.255.1")
}

func TestBadSettings(t *testing.T) {
	l := start(t, nil)
	p := l.pod(dual())
	r := l.run(p, how{annotations: map[string]string{"multus-ip-manager.io/deadline": "soon"}})
	l.fails(r, report.Usage, "multus-ip-manager.io/deadline", "soon", "1s to 24h")
	l.called()
}

// The agent is told to stop while it waits: it ends at once, with what it waited for.
func TestStop(t *testing.T) {
	l := start(t, nil)
	l.cloud.Faults().Add(aws.Fault{Kind: aws.FaultThrottle, Action: "Assign*"})
	p := l.pod(dual())
	c := l.container(p, how{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.Stop = ctx.Done()
	go func() {
		defer cancel()
		_ = l.cloud.WaitJournal(t.Context(), func(cs []aws.Call) bool { return len(cs) >= 3 })
	}()
	r, err := c.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.fails(r, report.GaveUp, "told to stop", "RequestLimitExceeded")
}

// Two pods that start at the same moment on two nodes, claiming the same address: one of them has it in the end.
func TestTwoClaimants(t *testing.T) {
	l := start(t, nil)
	a, b := l.podOn("one", "a", dual()), l.podOn("two", "b", dual())
	results := make(chan kubelet.Result, 2)
	for _, p := range []*world.Pod{a, b} {
		c := l.container(p, how{})
		go func() {
			r, err := c.Run(t.Context())
			if err != nil {
				t.Error(err)
			}
			results <- r
		}()
	}
	for range 2 {
		if r := <-results; r.ExitCode != 0 && r.ExitCode != int(report.GaveUp) {
			t.Errorf("exit code %d: %s\n%s", r.ExitCode, r.Message, r.Output)
		}
	}
	for _, addr := range []string{"10.0.4.80", "fd50:0:0:4::80"} {
		if _, held := l.cloud.Holder(netip.MustParseAddr(addr)); !held {
			t.Errorf("nobody has %s", addr)
		}
	}
}
