package admission

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/agent/settings"
)

func mustJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func length(t *testing.T, list client.ObjectList) int {
	t.Helper()
	items, err := meta.ExtractList(list)
	if err != nil {
		t.Fatal(err)
	}
	return len(items)
}

func amounts(cpu, memory string) corev1.ResourceList {
	list := corev1.ResourceList{}
	if cpu != "" {
		list[corev1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		list[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	return list
}

// burstable is a pod with requests below its limits, guaranteed one whose requests are its limits.
func burstable(namespace string, annotations pairs) *corev1.Pod {
	pod := podWith(namespace, annotations)
	pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: amounts("100m", "64Mi"), Limits: amounts("200m", "128Mi")}
	return pod
}

func guaranteed(namespace string, annotations pairs) *corev1.Pod {
	pod := podWith(namespace, annotations)
	pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: amounts("1", "1Gi"), Limits: amounts("1", "1Gi")}
	return pod
}

// modes are the modes that inject something.
var modes = []string{"init", "sidecar"}

// A namespace that enforces the restricted standard takes the injected pods, and has nothing to warn of.
func TestPodSecurityRestricted(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			namespace := shared.namespace(t, optedIn(pairs{
				settings.KeyMode: mode, "pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted",
			}))
			networks := pairs{settings.Networks: "n3"}
			for name, pod := range map[string]*corev1.Pod{
				"best-effort": podWith(namespace, networks), "burstable": burstable(namespace, networks), "guaranteed": guaranteed(namespace, networks),
			} {
				pod.Name = name
				a := shared.create(t, pod)
				if !injected(t, a.pod) || len(a.warnings) > 0 {
					t.Errorf("%s: injected %v, warnings %v", name, injected(t, a.pod), a.warnings)
				}
			}
			forbidden := podWith(namespace, networks)
			forbidden.Spec.Containers[0].SecurityContext = nil
			if a := shared.post(t.Context(), namespace, "pods", forbidden, true); !strings.Contains(denial(a.err), "violates PodSecurity") || strings.Contains(denial(a.err), settings.ContainerName) {
				t.Errorf("got %v, want a refusal because of the user's container alone", a.err)
			}
		})
	}
}

// quota makes a quota, with the status that a cluster's controller would give it.
func quota(t *testing.T, namespace string, hard corev1.ResourceList) *corev1.ResourceQuota {
	t.Helper()
	q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "quota"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}}
	if err := shared.plane.Client.Create(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	q.Status = corev1.ResourceQuotaStatus{Hard: hard, Used: corev1.ResourceList{}}
	for name := range hard {
		q.Status.Used[name] = resource.MustParse("0")
	}
	if err := shared.plane.Client.Status().Update(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	return q
}

// A quota that demands requests and memory limits takes the injected pods and counts our container; what is beyond it is refused.
func TestResourceQuota(t *testing.T) {
	t.Parallel()
	for mode, used := range map[string]corev1.ResourceList{
		// The init container is done before the others begin and needs less than they; the sidecar stays beside them.
		"init":    {"requests.cpu": resource.MustParse("100m"), "requests.memory": resource.MustParse("64Mi"), "limits.memory": resource.MustParse("128Mi")},
		"sidecar": {"requests.cpu": resource.MustParse("120m"), "requests.memory": resource.MustParse("112Mi"), "limits.memory": resource.MustParse("176Mi")},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			namespace := shared.namespace(t, optedIn(pairs{settings.KeyMode: mode}))
			q := quota(t, namespace, corev1.ResourceList{
				"requests.cpu": resource.MustParse("1"), "requests.memory": resource.MustParse("1Gi"), "limits.memory": resource.MustParse("300Mi"),
			})
			pod := burstable(namespace, pairs{settings.Networks: "n3"})
			// The API server learns of the quota by its watch.
			eventually(t, "the quota to count", func() bool {
				if a := shared.create(t, pod); !injected(t, a.pod) {
					t.Error("not injected")
				}
				if err := shared.plane.Client.Get(t.Context(), client.ObjectKeyFromObject(q), q); err != nil {
					t.Fatal(err)
				}
				if !q.Status.Used["requests.cpu"].Equal(resource.MustParse("0")) {
					return true
				}
				if err := shared.plane.Client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
					t.Fatal(err)
				}
				return false
			})
			for name, want := range used {
				if got := q.Status.Used[name]; !got.Equal(want) {
					t.Errorf("%s: %s is used, want %s", name, got.String(), want.String())
				}
			}
			for i := range 3 { // 300Mi hold two init pods, and one with a sidecar
				pod.Name = "more-" + string(rune('a'+i))
				if a := shared.post(t.Context(), namespace, "pods", pod, false); a.err != nil {
					if !apierrors.IsForbidden(a.err) || !strings.Contains(denial(a.err), "exceeded quota") {
						t.Error(a.err)
					}
					return
				}
			}
			t.Error("the quota was never exceeded")
		})
	}
}

// A quota on CPU limits wants one of every container. Where all of the user's have one, ours has, too; where one has none, the API server
// says which, and a LimitRange with a default is the cure, as it is without us.
func TestQuotaOnCPULimits(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			namespace := shared.namespace(t, optedIn(pairs{settings.KeyMode: mode}))
			quota(t, namespace, corev1.ResourceList{"limits.cpu": resource.MustParse("4")})
			without := podWith(namespace, pairs{settings.Networks: "n3"})
			without.Name = "without"
			without.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: amounts("100m", "64Mi")}
			eventually(t, "the quota to count", func() bool {
				a := shared.post(t.Context(), namespace, "pods", without, true)
				return strings.Contains(denial(a.err), "must specify limits.cpu for: ")
			})
			limit := map[string]string{"init": "500m", "sidecar": "100m"}[mode]
			for name, pod := range map[string]*corev1.Pod{
				limit:  burstable(namespace, pairs{settings.Networks: "n3"}),
				"150m": burstable(namespace, pairs{settings.Networks: "n3", settings.KeyCPU: "150m"}),
			} {
				pod.Name = "limit-" + name
				a := shared.create(t, pod)
				if got := a.pod.Spec.InitContainers[0].Resources.Limits.Cpu().String(); !injected(t, a.pod) || got != name || a.pod.Status.QOSClass != corev1.PodQOSBurstable {
					t.Errorf("CPU limit %s, want %s; %s", got, name, a.pod.Status.QOSClass)
				}
			}
			if a := shared.create(t, guaranteed(namespace, pairs{settings.Networks: "n3"})); !injected(t, a.pod) {
				t.Error("a Guaranteed pod was not injected")
			}
			limitRange(t, namespace, corev1.LimitRangeItem{Type: corev1.LimitTypeContainer, Default: amounts("700m", "")})
			eventually(t, "the LimitRange to count", func() bool {
				a := shared.post(t.Context(), namespace, "pods", without, true)
				return a.err == nil && a.pod.Spec.InitContainers[0].Resources.Limits.Cpu().String() == limit
			})
		})
	}
}

func limitRange(t *testing.T, namespace string, item corev1.LimitRangeItem) {
	t.Helper()
	l := &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "limits"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{item}}}
	if err := shared.plane.Client.Create(t.Context(), l); err != nil {
		t.Fatal(err)
	}
}

// A LimitRange's defaults reach pods before we see them, so the injected container goes by the class that they make; its bounds
// hold for our container, too, and the pod's own annotation moves it inside them.
func TestLimitRange(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		for name, tt := range map[string]struct {
			item    corev1.LimitRangeItem
			pod     func(string, pairs) *corev1.Pod
			refused string // part of the refusal without the cure
			cure    pairs
			class   corev1.PodQOSClass
		}{
			"defaults": {
				item: corev1.LimitRangeItem{Default: amounts("200m", "64Mi"), DefaultRequest: amounts("100m", "32Mi")},
				pod:  podWith, class: corev1.PodQOSBurstable,
			},
			"defaults that make it Guaranteed": {
				item: corev1.LimitRangeItem{Default: amounts("200m", "64Mi")},
				pod:  podWith, class: corev1.PodQOSGuaranteed,
			},
			"memory at least 64Mi": {
				item: corev1.LimitRangeItem{Min: amounts("", "64Mi")}, pod: burstable,
				refused: "minimum memory usage per Container is 64Mi", cure: pairs{settings.KeyMemory: "64Mi"}, class: corev1.PodQOSBurstable,
			},
			"cpu at most 200m, Burstable": {
				item: corev1.LimitRangeItem{Max: amounts("200m", "")}, pod: burstable,
				refused: map[string]string{"init": "maximum cpu usage per Container is 200m"}[mode], cure: pairs{settings.KeyCPU: "150m"},
				class: corev1.PodQOSBurstable,
			},
			"cpu at most 200m, Guaranteed": {
				item: corev1.LimitRangeItem{Max: amounts("200m", "")}, pod: func(namespace string, annotations pairs) *corev1.Pod {
					pod := guaranteed(namespace, annotations)
					pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: amounts("200m", "1Gi"), Limits: amounts("200m", "1Gi")}
					return pod
				},
				refused: map[string]string{"init": "maximum cpu usage per Container is 200m"}[mode], cure: pairs{settings.KeyCPU: "150m"},
				class: corev1.PodQOSGuaranteed,
			},
		} {
			t.Run(mode+", "+name, func(t *testing.T) {
				t.Parallel()
				namespace := shared.namespace(t, optedIn(pairs{settings.KeyMode: mode}))
				tt.item.Type = corev1.LimitTypeContainer
				limitRange(t, namespace, tt.item)
				annotations := pairs{settings.Networks: "n3"}
				if tt.refused != "" {
					eventually(t, "the LimitRange to count", func() bool {
						a := shared.post(t.Context(), namespace, "pods", tt.pod(namespace, annotations), true)
						return strings.Contains(denial(a.err), tt.refused)
					})
				}
				for key, value := range tt.cure {
					annotations[key] = value
				}
				eventually(t, "the pod in the class "+string(tt.class), func() bool {
					a := shared.post(t.Context(), namespace, "pods", tt.pod(namespace, annotations), true)
					if a.err != nil {
						t.Fatal(a.err)
					}
					return injected(t, a.pod) && a.pod.Status.QOSClass == tt.class
				})
			})
		}
	}
}

// Whatever the API has for pods, it is as it would be without us: the patch only adds. The file names fields that few programs know.
func TestEveryFieldSurvives(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/everything.yaml")
	if err != nil {
		t.Fatal(err)
	}
	object := map[string]any{}
	if err := yaml.UnmarshalStrict(data, &object); err != nil {
		t.Fatal(err)
	}
	plain := shared.namespace(t, nil)
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			want := shared.post(t.Context(), plain, "pods", object, true)
			if want.err != nil || len(want.warnings) > 0 {
				t.Fatalf("without us: %v, %v", want.err, want.warnings)
			}
			namespace := shared.namespace(t, optedIn(pairs{settings.KeyMode: mode}))
			got := shared.post(t.Context(), namespace, "pods", object, false)
			if got.err != nil || !injected(t, got.pod) {
				t.Fatalf("%v, injected %v", got.err, got.pod)
			}
			spec := got.object["spec"].(map[string]any)
			spec["initContainers"] = spec["initContainers"].([]any)[1:]
			if diff := cmp.Diff(want.object["spec"], spec); diff != "" {
				t.Errorf("(-without +with us)\n%s", diff)
			}
			annotations := got.pod.Annotations
			delete(annotations, settings.KeyStatus)
			if diff := cmp.Diff(want.pod.Annotations, annotations); diff != "" {
				t.Errorf("(-without +with us)\n%s", diff)
			}
		})
	}
}
