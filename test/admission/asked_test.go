package admission

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/admit"
	"multus-ip-manager.io/webhook/inject"
)

// label sets labels of a namespace that is there; nil removes one.
func (r *rig) label(ctx context.Context, namespace string, labels map[string]any) error {
	patch := fmt.Appendf(nil, `{"metadata": {"labels": %s}}`, mustJSON(labels))
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	return r.plane.Client.Patch(ctx, ns, client.RawPatch(types.MergePatchType, patch))
}

// injected tells whether a pod has our container, and fails if it has it twice.
func injected(t *testing.T, pod *corev1.Pod) bool {
	t.Helper()
	n := 0
	for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		if c.Name == settings.ContainerName {
			n++
		}
	}
	if n > 1 || (n == 1) != (pod.Annotations[settings.KeyStatus] != "") {
		t.Errorf("%d containers %s, status %q", n, settings.ContainerName, pod.Annotations[settings.KeyStatus])
	}
	return n > 0
}

// Whoever did not opt in must never wait for us, nor be changed.
func TestNeverAsked(t *testing.T) {
	t.Parallel()
	networks := pairs{settings.Networks: "n3"}
	for name, tt := range map[string]struct {
		namespace pairs
		labels    pairs
		networks  pairs
	}{
		"namespace without labels":          {networks: networks},
		"namespace with a mode only":        {namespace: pairs{settings.KeyMode: "sidecar"}, networks: networks},
		"namespace that opted out":          {namespace: pairs{settings.LabelInject: "disabled"}, networks: networks},
		"namespace with another value":      {namespace: pairs{settings.LabelInject: "true"}, networks: networks},
		"pod without networks":              {namespace: optedIn(nil)},
		"pod with empty networks":           {namespace: optedIn(nil), networks: pairs{settings.Networks: ""}},
		"pod with another of our settings":  {namespace: optedIn(nil), networks: pairs{settings.KeyDeadline: "nonsense"}},
		"pod that opted out":                {namespace: optedIn(nil), labels: pairs{settings.LabelInject: settings.InjectDisabled}, networks: networks},
		"opted-out pod, unknown mode there": {namespace: optedIn(pairs{settings.KeyMode: "x"}), labels: pairs{settings.LabelInject: settings.InjectDisabled}, networks: networks},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pod := podWith(shared.namespace(t, tt.namespace), tt.networks)
			pod.Labels = tt.labels
			a := shared.create(t, pod)
			if injected(t, a.pod) || len(a.warnings) > 0 {
				t.Errorf("changed or warned of: %v, %v", a.pod.Spec.InitContainers, a.warnings)
			}
			if got := shared.calls(t, pod.Namespace); len(got) > 0 {
				t.Errorf("asked %v", got)
			}
		})
	}
}

// Only a pod's creation is our business: its life goes on without us.
func TestOnlyCreationAsks(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	namespace := shared.namespace(t, optedIn(nil))
	pod := shared.create(t, podWith(namespace, pairs{settings.Networks: "n3"})).pod
	pods := shared.client.CoreV1().Pods(namespace)
	pod.Labels = pairs{"a": "b"}
	pod, err := pods.Update(ctx, pod, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := pods.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: pod.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: "node"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if pod, err = pods.Get(ctx, pod.Name, metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	pod.Status.Phase = corev1.PodRunning
	if pod, err = pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "example.com/debug:1"}}}
	if pod, err = pods.UpdateEphemeralContainers(ctx, pod.Name, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := pods.Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := shared.calls(t, namespace); len(got) != 1 || got[0].Reason != inject.Injected {
		t.Errorf("asked %v, want one question, at the creation", got)
	}
}

// What the webhook itself needs to run must never wait for it, whatever somebody labels. Not parallel: it labels kube-system.
func TestOwnNamespaceAndKubeSystemAreOut(t *testing.T) {
	ctx := t.Context()
	control := shared.namespace(t, nil)
	t.Cleanup(func() {
		for _, ns := range []string{metav1.NamespaceSystem, releaseNamespace} {
			if err := shared.label(context.WithoutCancel(ctx), ns, map[string]any{settings.LabelInject: nil, settings.KeyMode: nil}); err != nil {
				t.Error(err)
			}
		}
	})
	for i, mode := range []any{nil, "init", "sidecar", "node", "other"} {
		labels := map[string]any{settings.LabelInject: settings.InjectEnabled, settings.KeyMode: mode}
		// The control comes last: what the API server knows of it, it knows of the others, too.
		for _, ns := range []string{metav1.NamespaceSystem, releaseNamespace, control} {
			if err := shared.label(ctx, ns, labels); err != nil {
				t.Fatal(err)
			}
		}
		wanted := "default"
		if mode != nil {
			wanted = fmt.Sprint(mode)
		}
		eventually(t, "the labels to be known", func() bool {
			probe := podWith(control, pairs{settings.Networks: "n3"})
			a := shared.post(ctx, control, "pods", probe, true)
			switch wanted {
			case "node", "other":
				return strings.Contains(denial(a.err), `"`+wanted+`.multus-ip-manager.io"`)
			case "sidecar":
				return a.err == nil && injected(t, a.pod) && a.pod.Spec.InitContainers[0].Args[0] == wanted
			}
			return a.err == nil && injected(t, a.pod) && a.pod.Spec.InitContainers[0].Args[0] == "init"
		})
		for _, ns := range []string{metav1.NamespaceSystem, releaseNamespace} {
			pod := podWith(ns, pairs{settings.Networks: "n3"})
			pod.Name = fmt.Sprintf("app-%d", i)
			if a := shared.create(t, pod); injected(t, a.pod) {
				t.Errorf("mode %v: a pod of %s was injected", mode, ns)
			}
			if got := shared.calls(t, ns); len(got) > 0 {
				t.Errorf("mode %v: asked about pods of %s: %v", mode, ns, got)
			}
		}
	}
}

// While no webhook answers, pods that need it are refused, for they would start unreachable, and all others are not touched. Not
// parallel: it stops the webhook.
func TestWebhookDown(t *testing.T) {
	ctx := t.Context()
	in, out := shared.namespace(t, optedIn(nil)), shared.namespace(t, nil)
	networks := pairs{settings.Networks: "n3"}
	running := podWith(in, networks)
	running.Name = "running"
	runs := shared.create(t, running).pod
	if err := shared.stopWebhook(); err != nil {
		t.Fatal(err)
	}
	started := false
	restart := func() {
		if started {
			return
		}
		started = true
		if err := shared.startWebhook(context.WithoutCancel(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(restart)

	a := shared.post(ctx, in, "pods", podWith(in, networks), false)
	if !apierrors.IsInternalError(a.err) || !strings.Contains(denial(a.err), `failed calling webhook "default.multus-ip-manager.io"`) {
		t.Errorf("got %v, want a refusal that names the webhook", a.err)
	}
	optedOut := podWith(in, networks)
	optedOut.Labels = pairs{settings.LabelInject: settings.InjectDisabled}
	for name, pod := range map[string]*corev1.Pod{
		"no-networks": podWith(in, nil), "opted-out": optedOut, "plain": podWith(out, networks),
		"kube-system": podWith(metav1.NamespaceSystem, networks), "own": podWith(releaseNamespace, networks),
	} {
		pod.Name = name
		if a := shared.post(ctx, pod.Namespace, "pods", pod, false); a.err != nil {
			t.Errorf("%s: refused while the webhook is down: %v", name, a.err)
		}
	}
	runs.Labels = pairs{"a": "b"}
	if err := shared.plane.Client.Update(ctx, runs); err != nil {
		t.Errorf("a pod that runs cannot be changed while the webhook is down: %v", err)
	}

	restart()
	if a := shared.create(t, podWith(in, networks)); !injected(t, a.pod) {
		t.Error("not injected after the webhook came back")
	}
}

// The other policy, for those who want it: the pod starts, and the API server's audit log says that nobody was there. Not parallel: it
// upgrades the chart and stops the webhook.
func TestFailurePolicyIgnore(t *testing.T) {
	ctx := t.Context()
	namespace := shared.namespace(t, optedIn(nil))
	shared.upgrade(t, map[string]any{"failurePolicy": "Ignore"})
	if err := shared.stopWebhook(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := shared.startWebhook(context.WithoutCancel(ctx)); err != nil {
			t.Fatal(err)
		}
	})
	pod := podWith(namespace, pairs{settings.Networks: "n3"})
	eventually(t, "the API server to know the policy", func() bool { return shared.post(ctx, namespace, "pods", pod, true).err == nil })
	if a := shared.create(t, pod); injected(t, a.pod) {
		t.Error("injected by whom?")
	}
	told := false
	for key, value := range shared.audit.of(t, namespace).Annotations {
		told = told || strings.HasPrefix(key, "failed-open.mutation") && value == "default.multus-ip-manager.io"
	}
	if !told {
		t.Error("the audit log does not say that the webhook was passed over")
	}
}

// A dry run is answered and counted as any other, and leaves nothing behind. Not parallel: it reads the webhook's counters.
func TestDryRun(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			namespace := shared.namespace(t, optedIn(pairs{settings.KeyMode: mode}))
			pod := podWith(namespace, pairs{settings.Networks: "n3"})
			counter := admit.DecisionsMetric + `{mode="` + mode + `",outcome="inject",reason="injected"} `
			before := shared.metric(t, counter)
			a := shared.post(t.Context(), namespace, "pods", pod, true)
			if a.err != nil || !injected(t, a.pod) {
				t.Fatalf("%v, %v", a.err, a.pod)
			}
			if counted := shared.metric(t, counter) - before; counted != 1 {
				t.Errorf("%v decisions were counted, want 1", counted)
			}
			if got := shared.calls(t, namespace); len(got) != 1 || !got[0].DryRun || got[0].Outcome != inject.ActionInject {
				t.Errorf("asked %+v, want one dry run", got)
			}
			if err := shared.plane.Client.Get(t.Context(), client.ObjectKeyFromObject(pod), &corev1.Pod{}); !apierrors.IsNotFound(err) {
				t.Errorf("the pod is there: %v", err)
			}
			for _, list := range []client.ObjectList{&corev1.EventList{}, &corev1.ConfigMapList{}, &corev1.SecretList{}} {
				if err := shared.plane.Client.List(t.Context(), list, client.InNamespace(namespace)); err != nil {
					t.Fatal(err)
				}
				if n := length(t, list); n > 0 {
					t.Errorf("%d objects were left: %+v", n, list)
				}
			}
			// The real run after it gets the same.
			if real := shared.create(t, pod); mustJSON(real.pod.Spec) != mustJSON(a.pod.Spec) {
				t.Errorf("dry %s\nreal %s", mustJSON(a.pod.Spec), mustJSON(real.pod.Spec))
			}
		})
	}
}
