package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/wait"

	"multus-ip-manager.io/test/cluster"
)

const (
	networks      = "k8s.v1.cni.cncf.io/networks"
	networkStatus = "k8s.v1.cni.cncf.io/network-status"
	ours          = "ip-manager"
	hostname      = "kubernetes.io/hostname"
	// soon is enough for a pod to start on a machine that does something else besides.
	soon = 90 * time.Second
	// lost is how long an answer is waited for that must not come, answered one that must.
	lost, answered = 1500 * time.Millisecond, 10 * time.Second
)

// plug is the CNI plugin of the extra interfaces: real ipvlan where the kernel has it.
func (s *suite) plug(ctx context.Context, t *testing.T) string {
	t.Helper()
	ipvlan, err := s.vpc.IPVlan(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if ipvlan {
		return `"type": "ipvlan", "mode": "l2"`
	}
	return `"type": "eni"`
}

// makeNetwork makes a NetworkAttachmentDefinition of dual stack with a range of its own, held for all nodes, and returns the value of the
// networks annotation. In a user's cluster it is the user's own.
func (s *suite) makeNetwork(t *testing.T, namespace string) string {
	t.Helper()
	if s.vpc == nil {
		return s.network
	}
	b := s.block(t)
	s.makeNAD(t, namespace, "n3", fmt.Sprintf(`"ipam": {"type": "host-local", "dataDir": %q, "ranges": [[%s], [%s]]}`, cluster.SharedIPAM,
		ipRange("10.0.16.0/20", b.v4), ipRange("2001:db8:0:4::/64", b.v6)))
	return "n3"
}

func ipRange(subnet string, block netip.Prefix) string {
	first := block.Addr()
	end := first.AsSlice()
	end[len(end)-1] += 31
	last, _ := netip.AddrFromSlice(end)
	return fmt.Sprintf(`{"subnet": %q, "rangeStart": %q, "rangeEnd": %q}`, subnet, first, last)
}

// makeNAD makes a NetworkAttachmentDefinition on the ENI with device index 1; rest is the rest of its configuration.
func (s *suite) makeNAD(t *testing.T, namespace, name, rest string) {
	t.Helper()
	text := fmt.Sprintf(`
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: %s, namespace: %s}
spec:
  config: '{"cniVersion": "1.0.0", "name": "%s-%s", %s, "master": "eth1", %s}'
`, name, namespace, namespace, name, s.plug(t.Context(), t), rest)
	if _, err := s.Apply(t.Context(), []byte(text), namespace); err != nil {
		t.Fatal(err)
	}
}

// template is a pod of the application with these annotations, as the restricted standard demands it.
func (s *suite) template(name string, annotations map[string]string) corev1.PodTemplateSpec {
	no, yes, grace := false, true, int64(3)
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}, Annotations: annotations},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot:   &yes,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				Sysctls:        []corev1.Sysctl{{Name: "net.ipv4.ping_group_range", Value: "0 65535"}},
			},
			Containers: []corev1.Container{{
				Name: "app", Image: s.app, Args: []string{"serve"},
				Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
				SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no,
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
			}},
			// One on each node before two on any.
			TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: hostname,
				WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}}},
		},
	}
}

// deploy makes a Deployment of the template.
func (s *suite) deploy(t *testing.T, namespace string, replicas int32, template corev1.PodTemplateSpec) *appsv1.Deployment {
	t.Helper()
	selector := &metav1.LabelSelector{MatchLabels: template.Labels}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: template.Labels["app"], Namespace: namespace},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas, Selector: selector, Template: template},
	}
	if err := s.Client.Create(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	return d
}

// create creates one pod of the template on a node.
func (s *suite) create(t *testing.T, namespace, name, node string, template corev1.PodTemplateSpec) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: *template.ObjectMeta.DeepCopy(), Spec: *template.Spec.DeepCopy()}
	p.Namespace, p.Name = namespace, name
	if node != "" {
		p.Spec.NodeSelector = map[string]string{hostname: node}
	}
	// The service account of a new namespace may take a moment.
	s.until(t.Context(), t, soon, "create pod "+name, func(ctx context.Context) error { return s.Client.Create(ctx, p) })
	return p
}

// pods waits until an application has this many pods, all ready and none on its way out, and returns them by node and name.
func (s *suite) pods(t *testing.T, namespace, app string, n int) []corev1.Pod {
	t.Helper()
	var out []corev1.Pod
	s.until(t.Context(), t, soon, fmt.Sprintf("%d pods of %s are ready", n, app), func(ctx context.Context) error {
		list, err := s.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: labels.Set{"app": app}.String()})
		if err != nil {
			return err
		}
		if len(list.Items) != n {
			return fmt.Errorf("there are %d", len(list.Items))
		}
		for _, p := range list.Items {
			if !ready(&p) {
				return fmt.Errorf("%s is not: %s", p.Name, s.describe(ctx, &p))
			}
		}
		out = list.Items
		return nil
	})
	slices.SortFunc(out, func(a, b corev1.Pod) int {
		return strings.Compare(a.Spec.NodeName+"/"+a.Name, b.Spec.NodeName+"/"+b.Name)
	})
	return out
}

func ready(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// pod waits until a pod is as demanded.
func (s *suite) pod(t *testing.T, p *corev1.Pod, limit time.Duration, what string, is func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	var out *corev1.Pod
	s.until(t.Context(), t, limit, "pod "+p.Name+" "+what, func(ctx context.Context) error {
		var err error
		if out, err = s.kube.CoreV1().Pods(p.Namespace).Get(ctx, p.Name, metav1.GetOptions{}); err != nil {
			return err
		}
		if !is(out) {
			return errors.New(s.describe(ctx, out))
		}
		return nil
	})
	return out
}

// extra are the addresses that came with the pod's extra interfaces, IPv4 first, as Multus reports them.
func extra(t *testing.T, p *corev1.Pod) []netip.Addr {
	t.Helper()
	var status []struct {
		Interface string       `json:"interface"`
		IPs       []netip.Addr `json:"ips"`
		Default   bool         `json:"default"`
	}
	if err := json.Unmarshal([]byte(p.Annotations[networkStatus]), &status); err != nil {
		t.Fatalf("network-status of %s: %v: %q", p.Name, err, p.Annotations[networkStatus])
	}
	var out []netip.Addr
	for _, i := range status {
		if !i.Default {
			out = append(out, i.IPs...)
		}
	}
	if len(out) == 0 {
		t.Fatalf("%s has no addresses on extra interfaces: %s", p.Name, p.Annotations[networkStatus])
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// errLost means that the pod's application has asked and got no answer.
var errLost = errors.New("no answer")

// ask calls the application of a pod by way of the API server. A container that runs may not listen yet.
func (s *suite) ask(ctx context.Context, p *corev1.Pod, path string, params map[string]string, out any) error {
	var text []byte
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 10*time.Second, true, func(ctx context.Context) (bool, error) {
		var err error
		text, err = s.kube.CoreV1().Pods(p.Namespace).ProxyGet("http", p.Name, "8080", path, params).DoRaw(ctx)
		return err == nil, unless(apierrors.IsServiceUnavailable(err), err)
	})
	switch {
	case apierrors.IsTimeout(err), apierrors.ReasonForError(err) == metav1.StatusReasonTimeout, strings.Contains(string(text), errLost.Error()):
		return errLost
	case err != nil:
		return fmt.Errorf("ask %s for %s: %w: %s", p.Name, path, err, text)
	}
	return json.Unmarshal(text, out)
}

func unless(passing bool, err error) error {
	if passing {
		return nil
	}
	return err
}

// ping sends echo requests from a pod until one is answered; errLost if none is.
func (s *suite) ping(ctx context.Context, from *corev1.Pod, to netip.Addr, during time.Duration) error {
	var said string
	return s.ask(ctx, from, "/ping", map[string]string{"to": to.String(), "for": during.String()}, &said)
}

// wantPings asserts that each pod's addresses answer every other pod, or that none does.
func (s *suite) wantPings(t *testing.T, pods []corev1.Pod, want bool) {
	t.Helper()
	for i := range pods {
		for j := range pods {
			if i == j {
				continue
			}
			for _, a := range extra(t, &pods[j]) {
				wait := answered
				if !want {
					wait = lost
				}
				err := s.ping(t.Context(), &pods[i], a, wait)
				if want && err != nil {
					t.Errorf("%s on %s does not answer %s on %s: %v", a, pods[j].Spec.NodeName, pods[i].Name, pods[i].Spec.NodeName, err)
				}
				if !want && !errors.Is(err, errLost) {
					t.Errorf("%s on %s answers %s on %s, though nobody assigned it, or there was another error: %v", a, pods[j].Spec.NodeName, pods[i].Name, pods[i].Spec.NodeName, err)
				}
			}
		}
	}
}

// holder is the ENI that has the address; "" for none.
func (s *suite) holder(t *testing.T, a netip.Addr) string {
	t.Helper()
	eni, err := s.vpc.Holder(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return eni
}

// nodes are the names of the workers.
func (s *suite) nodes(t *testing.T) []string {
	t.Helper()
	list, err := s.kube.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range list.Items {
		out = append(out, n.Name)
	}
	slices.Sort(out)
	if len(out) < 2 {
		t.Fatalf("the cluster has the nodes %q, and this needs two", out)
	}
	return out
}
