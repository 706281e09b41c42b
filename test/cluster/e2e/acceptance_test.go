package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"multus-ip-manager.io/test/cluster"
)

// The users' own acceptance test: pods on two nodes ping each other's secondary addresses, IPv4 and IPv6. Without opt-in that is lost, and
// with it answered. All of it happens in namespaces that enforce the restricted Pod Security Standard.
func TestPingAcrossNodes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		labels map[string]string
		want   bool
	}{
		{"without opt-in", nil, false},
		{"init", map[string]string{enabled: "enabled", mode: "init"}, true},
		{"sidecar", map[string]string{enabled: "enabled", mode: "sidecar"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := need(t)
			namespace := s.namespace(t, test.labels)
			s.deploy(t, namespace, 2, s.template("app", map[string]string{networks: s.makeNetwork(t, namespace)}))
			pods := s.pods(t, namespace, "app", 2)
			if pods[0].Spec.NodeName == pods[1].Spec.NodeName {
				t.Fatalf("both pods are on %s", pods[0].Spec.NodeName)
			}
			s.wantPings(t, pods, test.want)
			if test.want {
				s.wantRoutableFirst(t, pods)
			}
		})
	}
}

// The same with addresses from whereabouts, as the samples have it: it hands out each address once in the cluster, and takes it back.
func TestWhereabouts(t *testing.T) {
	t.Parallel()
	s := needVPC(t)
	namespace := s.namespace(t, initMode)
	b := s.block(t)
	s.makeNAD(t, namespace, "n3", fmt.Sprintf(`"ipam": {"type": "whereabouts", "configuration_path": %q, "ipRanges": [{"range": %q}, {"range": %q}]}`,
		cluster.Whereabouts, wide("10.0.16.0/20", b.v4), wide("2001:db8:0:4::/64", b.v6)))
	d := s.deploy(t, namespace, 4, s.template("app", map[string]string{networks: "n3"}))
	s.wantPings(t, s.pods(t, namespace, "app", 4), true)
	s.patch(t, d, `{"spec":{"replicas":0}}`)
	s.pods(t, namespace, "app", 0)
	s.patch(t, d, `{"spec":{"replicas":2}}`)
	// The lowest addresses are free again, and whatever node had them, they lead to these pods now.
	pods := s.pods(t, namespace, "app", 2)
	s.wantPings(t, pods, true)
	for _, p := range pods {
		if a := extra(t, &p)[0]; a.Compare(nth(b.v4, 4)) >= 0 {
			t.Errorf("%s has %s: the addresses of the pods before are not free", p.Name, a)
		}
	}
}

// wide is a range as whereabouts writes it: the block in the subnet.
func wide(subnet string, block netip.Prefix) string {
	_, bits, _ := strings.Cut(subnet, "/")
	return fmt.Sprintf("%s-%s/%s", nth(block, 0), nth(block, 31), bits)
}

// wantRoutableFirst asserts that the application started when EC2 had answered for each address.
func (s *suite) wantRoutableFirst(t *testing.T, pods []corev1.Pod) {
	t.Helper()
	for _, p := range pods {
		var started time.Time
		if err := s.ask(t.Context(), &p, "/started", nil, &started); err != nil {
			t.Fatal(err)
		}
		if s.vpc == nil {
			s.wantGateFirst(t, &p)
			continue
		}
		calls, err := s.vpc.Calls(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range extra(t, &p) {
			var routable time.Time
			for _, c := range calls {
				for _, named := range c.Addresses {
					if named == a.String() && c.Applied {
						routable = c.End
					}
				}
			}
			if routable.IsZero() || !started.After(routable) {
				t.Errorf("%s started at %s, and %s was assigned at %s", p.Name, started, a, routable)
			}
			t.Logf("%s was assigned %s before %s started", a, started.Sub(routable).Round(time.Millisecond), p.Name)
		}
	}
}

// wantGateFirst is the same by the kubelet's clock, in whole seconds.
func (s *suite) wantGateFirst(t *testing.T, p *corev1.Pod) {
	t.Helper()
	for _, c := range p.Status.InitContainerStatuses {
		if c.Name != ours {
			continue
		}
		app := p.Status.ContainerStatuses[0].State.Running
		switch {
		case app == nil:
			t.Errorf("%s: the application does not run", p.Name)
		case c.State.Terminated != nil && app.StartedAt.Before(&c.State.Terminated.FinishedAt),
			c.State.Running != nil && app.StartedAt.Before(&c.State.Running.StartedAt):
			t.Errorf("%s: the application started before %s let it", p.Name, ours)
		}
	}
}
