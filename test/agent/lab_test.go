// Package agent tests the agent as pods run it: the shipped binary, in the very container the webhook injects, unprivileged, in a
// network namespace that looks like a pod's, against the emulated VPC.
package agent

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/binaries"
	"multus-ip-manager.io/test/kubelet"
	"multus-ip-manager.io/test/ns"
	"multus-ip-manager.io/test/podlab"
	"multus-ip-manager.io/test/world"
)

// bin is where the built agent is; it is set once, before any test.
var bin string

// suite builds the agent before the tests run.
type suite struct{ m *testing.M }

func (s suite) Run() int {
	dir, err := binaries.Build(context.Background(), "agent")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	// These tests mostly wait, for answers that come late and for things that must not happen.
	if err := flag.Set("test.parallel", "10"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	flag.Parse() // what was asked for on the command line wins
	return s.m.Run()
}

func TestMain(m *testing.M) { ns.Main(suite{m}) }

// lab is a world with pods to try.
type lab struct {
	*testing.T
	world *world.World
	cloud *aws.Cloud
	// record is who has had which address.
	record *aws.Record
}

// start builds a world of two nodes: device 0 in subnet-a, 1 in subnet-b, 2 in subnet-c, 3 in subnet-b again.
func start(t *testing.T, change func(*world.Spec), opts ...aws.Option) *lab {
	t.Helper()
	t.Parallel()
	spec, err := world.Load("testdata/world.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(spec)
	}
	w, err := world.Start(t.Context(), spec, world.Options{Cloud: opts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return &lab{T: t, world: w, cloud: w.Cloud(), record: w.Cloud().Record()}
}

// pod starts a pod on node one with these networks.
func (l *lab) pod(networks ...world.Network) *world.Pod {
	l.Helper()
	return l.podOn("one", "app", networks...)
}

func (l *lab) podOn(node, name string, networks ...world.Network) *world.Pod {
	l.Helper()
	p, err := l.world.AddPod(world.PodSpec{Name: name, Namespace: "telco", Node: node, Networks: networks})
	if err != nil {
		l.Fatal(err)
	}
	return p
}

// net is an ipvlan interface on an ENI of the pod's node.
func network(eni int, addresses ...string) world.Network {
	n := world.Network{ENI: eni}
	for _, a := range addresses {
		n.Addresses = append(n.Addresses, netip.MustParsePrefix(a))
	}
	return n
}

// how says what the pod carries and how long to wait.
type how struct {
	mode        settings.Mode // default init
	restarted   bool          // not the pod's first start: Multus's network-status is known
	annotations map[string]string
	agent       map[string]string // settings of the installation, by flag
	env         []string
	podIPs      []netip.Addr // nil: the pod's own
}

// container is the container that the webhook injects into the pod.
func (l *lab) container(p *world.Pod, h how) kubelet.Container {
	l.Helper()
	set := map[string]string{"deadline": "20s", "log-level": "debug", "log-format": "text"}
	maps.Copy(set, h.agent)
	c, err := podlab.Container(p, podlab.Start{
		Mode: h.mode, Restarted: h.restarted,
		Program: filepath.Join(bin, "agent"), Annotations: h.annotations, Agent: set, Env: h.env, PodIPs: h.podIPs,
	})
	if err != nil {
		l.Fatal(err)
	}
	return c
}

// run runs the agent to its end.
func (l *lab) run(p *world.Pod, h how) kubelet.Result {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), 2*time.Minute)
	defer cancel()
	r, err := l.container(p, h).Run(ctx)
	if err != nil {
		l.Fatalf("%v\n%s", err, r.Output)
	}
	l.Cleanup(func() {
		if l.Failed() {
			l.Logf("exit %d, message %q, output:\n%s", r.ExitCode, r.Message, r.Output)
			for _, c := range l.cloud.Journal() {
				l.Log(c)
			}
		}
	})
	return r
}

// done asserts success.
func (l *lab) done(r kubelet.Result) {
	l.Helper()
	if r.ExitCode != int(report.Done) || r.Message != "" {
		l.Errorf("exit code %d, message %q; want success without a message", r.ExitCode, r.Message)
	}
}

// fails asserts an exit code, and a termination message of one line that holds all the words.
func (l *lab) fails(r kubelet.Result, code report.Code, words ...string) {
	l.Helper()
	if r.ExitCode != int(code) {
		l.Errorf("exit code %d, want %d (%s)", r.ExitCode, code, code)
	}
	if r.Message == "" || strings.Contains(r.Message, "\n") {
		l.Errorf("termination message %q, want one line", r.Message)
	}
	for _, w := range words {
		if !strings.Contains(r.Message, w) {
			l.Errorf("termination message %q does not say %q", r.Message, w)
		}
	}
}

// on asserts that EC2 has the addresses on the ENI of that device index of the node.
func (l *lab) on(node string, eni int, addresses ...string) {
	l.Helper()
	want := l.world.Node(node).ENI(eni)
	for _, a := range addresses {
		if h, _ := l.cloud.Holder(netip.MustParseAddr(a)); h.ENI != want {
			l.Errorf("%s is on %q, want %s", a, h.ENI, want)
		}
	}
}

// nowhere asserts that no ENI has the addresses.
func (l *lab) nowhere(addresses ...string) {
	l.Helper()
	for _, a := range addresses {
		if h, ok := l.cloud.Holder(netip.MustParseAddr(a)); ok {
			l.Errorf("%s is on %s, want it nowhere", a, h.ENI)
		}
	}
}

// calls gives the EC2 actions so far.
func (l *lab) calls() []string {
	var actions []string
	for _, c := range l.cloud.Journal() {
		actions = append(actions, c.Action)
	}
	return actions
}

// called asserts exactly these EC2 actions, in any order.
func (l *lab) called(want ...string) {
	l.Helper()
	got := slices.Sorted(slices.Values(l.calls()))
	slices.Sort(want)
	if !slices.Equal(got, want) {
		l.Errorf("EC2 calls %v, want %v", got, want)
	}
}

// assign is what an operator does by hand.
func (l *lab) assign(eni string, addresses ...string) {
	l.Helper()
	for _, a := range addresses {
		if err := l.cloud.Assign(eni, netip.MustParseAddr(a)); err != nil {
			l.Fatal(err)
		}
	}
}
