// Package agent tests the agent as pods run it: the shipped binary, in the very container the webhook injects, unprivileged, in a
// network namespace that looks like a pod's, against the emulated VPC.
package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/binaries"
	"multus-ip-manager.io/test/kubelet"
	"multus-ip-manager.io/test/ns"
	"multus-ip-manager.io/test/world"
	"multus-ip-manager.io/webhook/inject"
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
	return s.m.Run()
}

func TestMain(m *testing.M) { ns.Main(suite{m}) }

// lab is a world with one pod to try.
type lab struct {
	*testing.T
	world *world.World
	cloud *aws.Cloud
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
	return &lab{T: t, world: w, cloud: w.Cloud()}
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
	annotations map[string]string
	agent       map[string]string // settings of the installation, by flag
	env         []string
	podIPs      []netip.Addr // nil: the pod's own
}

// container is the container that the webhook injects into the pod.
func (l *lab) container(p *world.Pod, h how) kubelet.Container {
	l.Helper()
	config := inject.DefaultConfig()
	config.Agent = map[string]string{"deadline": "20s", "log-level": "debug", "log-format": "text"}
	for k, v := range h.agent {
		config.Agent[k] = v
	}
	raw, err := config.Container(settings.Init, inject.Burstable)
	if err != nil {
		l.Fatal(err)
	}
	var c corev1.Container
	if err := json.Unmarshal(raw, &c); err != nil {
		l.Fatal(err)
	}
	ips := h.podIPs
	if ips == nil {
		ips = p.IPs()
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.Name(), Namespace: p.Namespace(), UID: "5e1f", Annotations: map[string]string{}},
		Spec:       corev1.PodSpec{InitContainers: []corev1.Container{c}},
	}
	for _, ip := range ips {
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	var networks []string
	for range p.Networks() {
		networks = append(networks, "net")
	}
	pod.Annotations[settings.Networks] = strings.Join(networks, ",")
	for k, v := range h.annotations {
		pod.Annotations[k] = v
	}
	return kubelet.Container{
		Pod: pod, Name: c.Name, NS: p.NS(),
		Images: map[string]string{c.Image: filepath.Join(bin, "agent")},
		Env:    append(p.AgentEnv(), h.env...),
	}
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
