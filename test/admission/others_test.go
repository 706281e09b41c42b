package admission

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/inject"
)

// operation is one of a JSON patch.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// other is somebody else's webhook: what it changes in a pod; no operation leaves it as it is.
type other func(*corev1.Pod) []operation

// Names under which other webhooks sort before and after ours.
const (
	before = "a-policies"
	after  = "z-policies"
)

// webhook registers another webhook for one namespace, and returns when the API server asks it.
func (o other) register(t *testing.T, name, namespace string) {
	t.Helper()
	asked := atomic.Bool{}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		review := admissionv1.AdmissionReview{}
		pod := &corev1.Pod{}
		if json.NewDecoder(r.Body).Decode(&review) != nil || review.Request == nil || json.Unmarshal(review.Request.Object.Raw, pod) != nil {
			http.Error(w, "no pod", http.StatusBadRequest)
			return
		}
		asked.Store(true)
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		if operations := o(pod); len(operations) > 0 {
			kind := admissionv1.PatchTypeJSONPatch
			review.Response.Patch, review.Response.PatchType = []byte(mustJSON(operations)), &kind
		}
		review.Request = nil
		_ = json.NewEncoder(w).Encode(review)
	}))
	t.Cleanup(server.Close)
	fail, none, again := admissionregistrationv1.Fail, admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.IfNeededReinvocationPolicy
	config := &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name + "-" + namespace},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: name + ".example.com", AdmissionReviewVersions: []string{"v1"}, SideEffects: &none, FailurePolicy: &fail, ReinvocationPolicy: &again,
			ClientConfig: admissionregistrationv1.WebhookClientConfig{
				URL: &server.URL, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
			},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: pairs{corev1.LabelMetadataName: namespace}},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		}},
	}
	if err := shared.plane.Client.Create(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := shared.plane.Client.Delete(context.WithoutCancel(t.Context()), config); err != nil {
			t.Error(err)
		}
	})
	probe := podWith(namespace, nil)
	probe.Name = "probe"
	eventually(t, name+" to be asked", func() bool {
		if a := shared.post(t.Context(), namespace, "pods", probe, true); a.err != nil {
			t.Fatal(a.err)
		}
		return asked.Load()
	})
}

// reasonsOf are the reasons of what the webhook decided about the pod "app" of a namespace, in order.
func reasonsOf(t *testing.T, namespace string) []inject.Reason {
	t.Helper()
	var reasons []inject.Reason
	for _, c := range shared.calls(t, namespace) {
		if c.Pod == "app" {
			reasons = append(reasons, c.Reason)
		}
	}
	return reasons
}

// annotate adds the networks annotation where it is not as wanted.
func annotate(networks string) other {
	return func(pod *corev1.Pod) []operation {
		path := "/metadata/annotations/" + strings.ReplaceAll(settings.Networks, "/", "~1")
		switch {
		case pod.Annotations == nil:
			return []operation{{"add", "/metadata/annotations", pairs{settings.Networks: networks}}}
		case pod.Annotations[settings.Networks] != networks:
			return []operation{{"add", path, networks}}
		}
		return nil
	}
}

// A policy that annotates pods must sort before us, or the chart's matchConditions be off: the API server asks no webhook for the first
// time in the second round.
func TestAnnotators(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		hooks    map[string]other
		own      pairs // the pod's own annotations
		networks string
		want     []inject.Reason
	}{
		"before":           {hooks: map[string]other{before: annotate("n3")}, networks: "n3", want: []inject.Reason{inject.Injected}},
		"after: not asked": {hooks: map[string]other{after: annotate("n3")}, networks: "n3"},
		"before and after": {
			hooks: map[string]other{before: func(pod *corev1.Pod) []operation {
				if pod.Annotations[settings.Networks] != "" {
					return nil
				}
				return annotate("n3")(pod)
			}, after: annotate("n3,n4")},
			networks: "n3,n4", want: []inject.Reason{inject.Injected, inject.AlreadyInjected},
		},
		"after, and the pod has networks": {
			hooks: map[string]other{after: annotate("n3,n4")}, own: pairs{settings.Networks: "n3"},
			networks: "n3,n4", want: []inject.Reason{inject.Injected, inject.AlreadyInjected},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			namespace := shared.namespace(t, optedIn(nil))
			for hook, o := range tt.hooks {
				o.register(t, hook, namespace)
			}
			a := shared.create(t, podWith(namespace, tt.own))
			if got := reasonsOf(t, namespace); !slices.Equal(got, tt.want) {
				t.Errorf("decided %v, want %v", got, tt.want)
			}
			if injected(t, a.pod) != (len(tt.want) > 0) || a.pod.Annotations[settings.Networks] != tt.networks {
				t.Errorf("networks %q, init containers %v", a.pod.Annotations[settings.Networks], a.pod.Spec.InitContainers)
			}
		})
	}
}

// With matchConditions off, a webhook that sorts after ours may add the annotation: we were asked before, and are asked again. Not
// parallel: it upgrades the chart.
func TestAnnotatorAfterWithoutMatchConditions(t *testing.T) {
	shared.upgrade(t, map[string]any{"matchConditions": false})
	namespace := shared.namespace(t, optedIn(nil))
	annotate("n3").register(t, after, namespace)
	eventually(t, "the API server to know the chart's new configuration", func() bool {
		a := shared.post(t.Context(), namespace, "pods", podWith(namespace, nil), true)
		return a.err == nil && injected(t, a.pod)
	})
	got := reasonsOf(t, namespace)
	if len(got) < 2 || !slices.Equal(got[len(got)-2:], []inject.Reason{inject.NoNetworks, inject.Injected}) {
		t.Errorf("decided %v, want it asked in both rounds", got)
	}
}

// mesh is an injector as meshes have it: a container before all init containers and one beside the pod's own, once.
func mesh(pod *corev1.Pod) []operation {
	if slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == "mesh-init" }) {
		return nil
	}
	start := corev1.Container{Name: "mesh-init", Image: "example.com/mesh:1"}
	operations := []operation{{"add", "/spec/containers/-", corev1.Container{Name: "mesh-proxy", Image: "example.com/mesh:1"}}}
	if len(pod.Spec.InitContainers) == 0 {
		return append(operations, operation{"add", "/spec/initContainers", []corev1.Container{start}})
	}
	return append(operations, operation{"add", "/spec/initContainers/0", start})
}

// rewriter does the same by replacing the whole list, as some do.
func rewriter(pod *corev1.Pod) []operation {
	if operations := mesh(pod); operations == nil {
		return nil
	}
	list := append([]corev1.Container{{Name: "mesh-init", Image: "example.com/mesh:1"}}, pod.Spec.InitContainers...)
	return []operation{
		{"add", "/spec/containers/-", corev1.Container{Name: "mesh-proxy", Image: "example.com/mesh:1"}}, {"add", "/spec/initContainers", list},
	}
}

// credentials adds a variable to every container, as the webhooks for AWS credentials do.
func credentials(pod *corev1.Pod) []operation {
	variable := corev1.EnvVar{Name: "AWS_ROLE_ARN", Value: "arn:aws:iam::111122223333:role/pod"}
	var operations []operation
	for list, containers := range map[string][]corev1.Container{"/spec/initContainers/": pod.Spec.InitContainers, "/spec/containers/": pod.Spec.Containers} {
		for i, c := range containers {
			path := list + string(rune('0'+i)) + "/env"
			switch {
			case slices.Contains(c.Env, variable):
			case len(c.Env) == 0:
				operations = append(operations, operation{"add", path, []corev1.EnvVar{variable}})
			default:
				operations = append(operations, operation{"add", path + "/-", variable})
			}
		}
	}
	return operations
}

// Other injectors before and after ours, in any number of rounds: each container is there once and as its author made it.
func TestOtherInjectors(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		for name, tt := range map[string]struct {
			hooks map[string]other
			init  []string // names in order; the first runs first
			want  []inject.Reason
			added int // variables of somebody else in our container
		}{
			"before": {
				map[string]other{before: mesh}, []string{"ip-manager", "mesh-init"}, []inject.Reason{inject.Injected}, 0,
			},
			// Whoever comes last is first. A mesh's own first container may then have no network of ours, which it does not need.
			"after": {
				map[string]other{after: mesh}, []string{"mesh-init", "ip-manager"}, []inject.Reason{inject.Injected, inject.AlreadyInjected}, 0,
			},
			"after, and replaces the whole list": {
				map[string]other{after: rewriter}, []string{"mesh-init", "ip-manager"}, []inject.Reason{inject.Injected, inject.AlreadyInjected}, 0,
			},
			"credentials after": {
				map[string]other{after: credentials}, []string{"ip-manager"}, []inject.Reason{inject.Injected, inject.AlreadyInjected}, 1,
			},
			"mesh before, credentials after": {
				map[string]other{before: mesh, after: credentials}, []string{"ip-manager", "mesh-init"},
				[]inject.Reason{inject.Injected, inject.AlreadyInjected}, 1,
			},
			"credentials before: ours has them in the second round": {
				map[string]other{before: credentials}, []string{"ip-manager"}, []inject.Reason{inject.Injected, inject.AlreadyInjected}, 1,
			},
		} {
			t.Run(mode+", "+name, func(t *testing.T) {
				t.Parallel()
				namespace := shared.namespace(t, optedIn(pairs{settings.KeyMode: mode}))
				alone := shared.post(t.Context(), namespace, "pods", podWith(namespace, pairs{settings.Networks: "n3"}), true)
				if alone.err != nil {
					t.Fatal(alone.err)
				}
				for hook, o := range tt.hooks {
					o.register(t, hook, namespace)
				}
				asked := len(reasonsOf(t, namespace))
				a := shared.create(t, podWith(namespace, pairs{settings.Networks: "n3"}))
				if got := reasonsOf(t, namespace)[asked:]; !slices.Equal(got, tt.want) {
					t.Errorf("decided %v, want %v", got, tt.want)
				}
				injected(t, a.pod)
				var order []string
				for _, c := range a.pod.Spec.InitContainers {
					order = append(order, c.Name)
					if c.Name == settings.ContainerName {
						checkOurs(t, alone.pod.Spec.InitContainers[0], c, tt.added)
					}
				}
				if diff := cmp.Diff(tt.init, order); diff != "" {
					t.Errorf("init containers (-want +got)\n%s", diff)
				}
			})
		}
	}
}

// autoscaler gives the containers without limits some, as autoscalers do; init containers are none of its business.
func autoscaler(pod *corev1.Pod) []operation {
	var operations []operation
	for i, c := range pod.Spec.Containers {
		if len(c.Resources.Limits) == 0 {
			path := "/spec/containers/" + string(rune('0'+i)) + "/resources"
			all := amounts("200m", "128Mi")
			operations = append(operations, operation{"add", path, corev1.ResourceRequirements{Requests: all, Limits: all}})
		}
	}
	return operations
}

// A webhook that sorts after ours changes the pod's QoS class: our container follows, or it would take the class away again.
func TestResourcesFollowTheClass(t *testing.T) {
	t.Parallel()
	requests := corev1.ResourceRequirements{Requests: amounts("100m", "64Mi")}
	for _, mode := range modes {
		for name, tt := range map[string]struct {
			own  corev1.ResourceRequirements
			cpu  string // the pod's own annotation
			want string // CPU limit of ours
		}{
			"best effort":             {want: map[string]string{"init": "500m", "sidecar": "100m"}[mode]},
			"burstable":               {own: requests, want: map[string]string{"init": "500m", "sidecar": "100m"}[mode]},
			"best effort, overridden": {cpu: "250m", want: "250m"},
		} {
			t.Run(mode+", "+name, func(t *testing.T) {
				t.Parallel()
				namespace := shared.namespace(t, optedIn(pairs{settings.KeyMode: mode}))
				other(autoscaler).register(t, after, namespace)
				pod := podWith(namespace, pairs{settings.Networks: "n3"})
				pod.Spec.Containers[0].Resources = tt.own
				if tt.cpu != "" {
					pod.Annotations[settings.KeyCPU] = tt.cpu
				}
				a := shared.create(t, pod)
				if got, want := reasonsOf(t, namespace), []inject.Reason{inject.Injected, inject.ClassChanged}; !slices.Equal(got, want) {
					t.Errorf("decided %v, want %v", got, want)
				}
				ours := a.pod.Spec.InitContainers[0].Resources
				if a.pod.Status.QOSClass != corev1.PodQOSGuaranteed || ours.Limits.Cpu().String() != tt.want || !ours.Requests.Cpu().Equal(*ours.Limits.Cpu()) {
					t.Errorf("the pod is %s, our container has %+v", a.pod.Status.QOSClass, ours)
				}
			})
		}
	}
}

// checkOurs sees that our container is as it is alone, but for so many variables of the webhook for credentials.
func checkOurs(t *testing.T, want, got corev1.Container, added int) {
	t.Helper()
	without := slices.DeleteFunc(slices.Clone(got.Env), func(v corev1.EnvVar) bool { return v.Name == "AWS_ROLE_ARN" })
	if n := len(got.Env) - len(without); n != added {
		t.Errorf("%d variables were added to our container, want %d", n, added)
	}
	got.Env = without
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("our container (-alone +with others)\n%s", diff)
	}
}
