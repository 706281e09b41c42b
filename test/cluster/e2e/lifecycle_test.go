package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

var (
	initMode    = map[string]string{enabled: "enabled", mode: "init"}
	sidecarMode = map[string]string{enabled: "enabled", mode: "sidecar"}
)

// A Deployment grows, is updated, and shrinks: what runs is reachable, and what a sidecar held is free again afterwards.
func TestDeploymentGrowsUpdatesAndShrinks(t *testing.T) {
	t.Parallel()
	s := need(t)
	namespace := s.namespace(t, sidecarMode)
	d := s.deploy(t, namespace, 1, s.template("app", map[string]string{networks: s.makeNetwork(t, namespace)}))
	first := s.pods(t, namespace, "app", 1)
	s.patch(t, d, `{"spec":{"replicas":3}}`)
	s.wantPings(t, s.pods(t, namespace, "app", 3), true)
	s.patch(t, d, `{"spec":{"template":{"metadata":{"annotations":{"version":"2"}}}}}`)
	var second []corev1.Pod
	s.until(t.Context(), t, soon, "the update is through", func(context.Context) error {
		second = s.pods(t, namespace, "app", 3)
		if slices.ContainsFunc(second, func(p corev1.Pod) bool { return p.Annotations["version"] != "2" }) {
			return errors.New("there are old pods")
		}
		return nil
	})
	s.wantPings(t, second, true)
	s.patch(t, d, `{"spec":{"replicas":1}}`)
	left := s.pods(t, namespace, "app", 1)
	if s.vpc == nil {
		return
	}
	for _, p := range append(first, second...) {
		for _, a := range extra(t, &p) {
			if slices.ContainsFunc(left, func(l corev1.Pod) bool { return slices.Contains(extra(t, &l), a) }) {
				continue
			}
			if eni := s.holder(t, a); eni != "" {
				t.Errorf("%s of %s, which is gone, is still on %s", a, p.Name, eni)
			}
		}
	}
}

// patch applies a merge patch.
func (s *suite) patch(t *testing.T, o client.Object, text string) {
	t.Helper()
	if err := s.Client.Patch(t.Context(), o, client.RawPatch("application/merge-patch+json", []byte(text))); err != nil {
		t.Fatal(err)
	}
}

// staticNetwork makes a network whose pods name their address themselves.
func (s *suite) staticNetwork(t *testing.T, namespace string) {
	t.Helper()
	s.makeNAD(t, namespace, "static", `"capabilities": {"ips": true}, "ipam": {"type": "static"}`)
}

// fixed is the networks annotation for addresses of a block.
func fixed(b block, n int) string {
	return fmt.Sprintf(`[{"name": "static", "ips": ["%s/20", "%s/64"]}]`, nth(b.v4, n), nth(b.v6, n))
}

func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Addr().AsSlice()
	a[len(a)-1] += byte(n) //nolint:gosec // below 32
	out, _ := netip.AddrFromSlice(a)
	return out
}

// stateful makes a StatefulSet of one pod on a node, as the sample for static addresses does.
func (s *suite) stateful(t *testing.T, namespace, node string, template corev1.PodTemplateSpec) *appsv1.StatefulSet {
	t.Helper()
	template.Spec.NodeSelector = map[string]string{hostname: node}
	one := int32(1)
	set := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: template.Labels["app"], Namespace: namespace},
		Spec:       appsv1.StatefulSetSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: template.Labels}, Template: template},
	}
	if err := s.Client.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	return set
}

// A StatefulSet's pod comes back on the other node with the address it had; with a sidecar nobody has the address in between.
func TestStatefulPodMovesWithItsAddress(t *testing.T) {
	t.Parallel()
	for name, labels := range map[string]map[string]string{"init": initMode, "sidecar": sidecarMode} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := needVPC(t)
			nodes := s.nodes(t)
			namespace := s.namespace(t, labels)
			s.staticNetwork(t, namespace)
			b := s.block(t)
			var peers []corev1.Pod
			for i, node := range nodes {
				s.create(t, namespace, "peer-"+node, node, s.template("peer", map[string]string{networks: fixed(b, 10+i)}))
			}
			set := s.stateful(t, namespace, nodes[0], s.template("app", map[string]string{networks: fixed(b, 1)}))
			peers = s.pods(t, namespace, "peer", 2)
			s.wantPings(t, append(peers, s.pods(t, namespace, "app", 1)...), true)

			s.patch(t, set, `{"spec":{"replicas":0}}`)
			s.pods(t, namespace, "app", 0)
			for _, a := range []netip.Addr{nth(b.v4, 1), nth(b.v6, 1)} {
				if eni := s.holder(t, a); (eni == "") != (name == "sidecar") {
					t.Errorf("after the end of the pod %s is on %q", a, eni)
				}
			}
			s.patch(t, set, fmt.Sprintf(`{"spec":{"replicas":1,"template":{"spec":{"nodeSelector":{%q:%q}}}}}`, hostname, nodes[1]))
			moved := s.pods(t, namespace, "app", 1)
			if moved[0].Spec.NodeName != nodes[1] {
				t.Fatalf("the pod is on %s", moved[0].Spec.NodeName)
			}
			s.wantPings(t, append(peers, moved...), true)
		})
	}
}

// A pod that is deleted by force is replaced on another node while its containers may still end: its sidecar must take nothing from the
// pod that has its address by then.
func TestForceDeletion(t *testing.T) {
	t.Parallel()
	s := needVPC(t)
	nodes := s.nodes(t)
	namespace := s.namespace(t, sidecarMode)
	s.staticNetwork(t, namespace)
	b := s.block(t)
	template := s.template("app", map[string]string{networks: fixed(b, 1)})
	set := s.stateful(t, namespace, nodes[0], template)
	old := s.pods(t, namespace, "app", 1)[0]
	s.patch(t, set, fmt.Sprintf(`{"spec":{"template":{"spec":{"nodeSelector":{%q:%q}}}}}`, hostname, nodes[1]))
	now := int64(0)
	if err := s.Client.Delete(t.Context(), &old, &client.DeleteOptions{GracePeriodSeconds: &now}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	s.create(t, namespace, "peer", nodes[0], s.template("peer", map[string]string{networks: fixed(b, 10)}))
	moved := s.pods(t, namespace, "app", 1)
	peer := s.pods(t, namespace, "peer", 1)
	s.wantPings(t, append(peer, moved...), true)
}

// A Job completes, though its pod has a sidecar.
func TestJob(t *testing.T) {
	t.Parallel()
	for name, labels := range map[string]map[string]string{"init": initMode, "sidecar": sidecarMode} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := need(t)
			namespace := s.namespace(t, labels)
			template := s.template("job", map[string]string{networks: s.makeNetwork(t, namespace)})
			template.Spec.Containers[0].Args = []string{"run", "1"}
			template.Spec.RestartPolicy = corev1.RestartPolicyNever
			none := int32(0)
			job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "job", Namespace: namespace},
				Spec: batchv1.JobSpec{BackoffLimit: &none, Template: template}}
			if err := s.Client.Create(t.Context(), job); err != nil {
				t.Fatal(err)
			}
			s.until(t.Context(), t, soon, "the job completes", func(ctx context.Context) error {
				if err := s.Client.Get(ctx, client.ObjectKeyFromObject(job), job); err != nil {
					return err
				}
				if job.Status.Failed > 0 {
					t.Fatal("its pod failed")
				}
				if job.Status.Succeeded == 0 {
					return errors.New("it runs")
				}
				return nil
			})
			pods, err := s.kube.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
			if err != nil || len(pods.Items) != 1 {
				t.Fatal(err, len(pods.Items))
			}
			if s.vpc == nil || name == "init" {
				return
			}
			for _, a := range extra(t, &pods.Items[0]) {
				if eni := s.holder(t, a); eni != "" {
					t.Errorf("%s is still on %s after the job", a, eni)
				}
			}
		})
	}
}

// A new image for ip-manager in a running pod restarts that container alone: the pod goes on, so nothing may be released.
func TestNewImageUnderARunningPod(t *testing.T) {
	t.Parallel()
	s := needVPC(t)
	namespace := s.namespace(t, sidecarMode)
	s.deploy(t, namespace, 2, s.template("app", map[string]string{networks: s.makeNetwork(t, namespace)}))
	pods := s.pods(t, namespace, "app", 2)
	image := ""
	for _, c := range pods[0].Spec.InitContainers {
		if c.Name == ours {
			image = c.Image
		}
	}
	const next = "docker.io/library/multus-ip-agent:next"
	if err := s.dir.TagImage(t.Context(), pods[0].Spec.NodeName, "docker.io/library/"+image, next); err != nil {
		t.Fatal(err)
	}
	before := s.callsFor(t, &pods[0])
	text := fmt.Sprintf(`{"spec":{"initContainers":[{"name":%q,"image":%q}]}}`, ours, next)
	if err := s.Client.Patch(t.Context(), &pods[0], client.RawPatch("application/strategic-merge-patch+json", []byte(text))); err != nil {
		t.Fatal(err)
	}
	p := s.pod(t, &pods[0], soon, "runs the new image", func(p *corev1.Pod) bool {
		return slices.ContainsFunc(p.Status.InitContainerStatuses, func(c corev1.ContainerStatus) bool {
			return c.Name == ours && c.RestartCount == 1 && c.Started != nil && *c.Started
		}) && ready(p)
	})
	for _, c := range p.Status.InitContainerStatuses {
		if end := c.LastTerminationState.Terminated; end == nil || end.ExitCode != 0 {
			t.Errorf("%s ended with %+v", c.Name, end)
		}
	}
	for _, c := range s.callsFor(t, p)[len(before):] {
		if strings.HasPrefix(c, "Unassign") {
			t.Errorf("the pod goes on, and there was the call %s", c)
		}
	}
	s.wantPings(t, pods, true)
}

// callsFor are the calls to EC2 that name an address of the pod.
func (s *suite) callsFor(t *testing.T, p *corev1.Pod) []string {
	t.Helper()
	calls, err := s.vpc.Calls(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, a := range extra(t, p) {
		for _, c := range calls {
			if slices.Contains(c.Addresses, a.String()) {
				out = append(out, fmt.Sprintf("%s %s %v: %d %s", c.Action, c.ENI, c.Addresses, c.Status, c.Code))
			}
		}
	}
	return out
}

// A node is drained, the webhook's pods on it included, and comes back: the pods are reachable where they are then.
func TestDrain(t *testing.T) {
	s := needVPC(t)
	nodes := s.nodes(t)
	namespace := s.namespace(t, sidecarMode)
	s.deploy(t, namespace, 2, s.template("app", map[string]string{networks: s.makeNetwork(t, namespace)}))
	s.pods(t, namespace, "app", 2)
	drained := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodes[1]}}
	s.patch(t, drained, `{"spec":{"unschedulable":true}}`)
	t.Cleanup(func() {
		patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"unschedulable":null}}`))
		if err := s.Client.Patch(context.WithoutCancel(t.Context()), drained, patch); err != nil {
			t.Error(err)
		}
	})
	s.until(t.Context(), t, soon, "no pods are left on "+drained.Name, func(ctx context.Context) error { return s.evict(ctx, drained.Name) })
	moved := s.pods(t, namespace, "app", 2)
	for _, p := range moved {
		if p.Spec.NodeName != nodes[0] {
			t.Errorf("%s is on %s", p.Name, p.Spec.NodeName)
		}
	}
	s.patch(t, drained, `{"spec":{"unschedulable":null}}`)
	s.create(t, namespace, "peer", drained.Name, s.template("peer", map[string]string{networks: "n3"}))
	s.wantPings(t, append(s.pods(t, namespace, "peer", 1), moved...), true)
}

// evict asks for the eviction of every pod of a node, as `kubectl drain` does.
func (s *suite) evict(ctx context.Context, node string) error {
	list, err := s.kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return err
	}
	for _, p := range list.Items {
		eviction := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace}}
		if p.DeletionTimestamp == nil {
			err = errors.Join(err, s.kube.CoreV1().Pods(p.Namespace).EvictV1(ctx, eviction))
		}
	}
	if len(list.Items) > 0 {
		return errors.Join(fmt.Errorf("%d are left", len(list.Items)), err)
	}
	return nil
}

// A node loses its power and boots again: its pods get new sandboxes, and their addresses are assigned before their applications start.
func TestNodeRestart(t *testing.T) {
	s := needVPC(t)
	nodes := s.nodes(t)
	var all [][]corev1.Pod
	for _, labels := range []map[string]string{initMode, sidecarMode} {
		namespace := s.namespace(t, labels)
		s.deploy(t, namespace, 2, s.template("app", map[string]string{networks: s.makeNetwork(t, namespace)}))
		all = append(all, s.pods(t, namespace, "app", 2))
	}
	if err := s.vpc.Kill(t.Context(), nodes[1]); err != nil {
		t.Fatal(err)
	}
	booted := time.Now()
	if err := s.vpc.Boot(t.Context(), nodes[1]); err != nil {
		t.Fatal(err)
	}
	for _, pods := range all {
		for i := range pods {
			if pods[i].Spec.NodeName != nodes[1] {
				continue
			}
			back := s.pod(t, &pods[i], soon, "is back", func(p *corev1.Pod) bool {
				running := p.Status.ContainerStatuses[0].State.Running
				return ready(p) && running != nil && running.StartedAt.After(booted.Truncate(time.Second))
			})
			pods[i] = *back
		}
		s.wantPings(t, pods, true)
		s.wantRoutableFirst(t, pods)
	}
}
