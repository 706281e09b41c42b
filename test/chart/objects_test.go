package chart

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/inject"
)

// only returns the rendered object of a kind, nil where there is none.
func only(t *testing.T, manifests, kind string) *unstructured.Unstructured {
	t.Helper()
	var found *unstructured.Unstructured
	for _, object := range decode(t, manifests) {
		if object.GetKind() == kind && found != nil {
			t.Fatalf("more than one %s was rendered", kind)
		}
		if object.GetKind() == kind {
			found = object
		}
	}
	return found
}

// ofTest tells whether an object is there for as long as `helm test` runs.
func ofTest(object *unstructured.Unstructured) bool {
	return object.GetAnnotations()["helm.sh/hook"] == "test"
}

// typed converts an object that was rendered, and refuses fields that Kubernetes does not know.
func typed[T any](t *testing.T, object *unstructured.Unstructured) *T {
	t.Helper()
	if object == nil {
		t.Fatal("was not rendered")
	}
	out := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, out, true); err != nil {
		t.Fatal(err)
	}
	return out
}

// Labels and annotations that are wanted on all objects are on all of them, whatever is switched on.
func TestCommonLabelsAndAnnotations(t *testing.T) {
	for _, name := range valueSets(t) {
		v := values(t, name)
		set(v, []string{"commonLabels"}, map[string]any{"example.com/label": "a"})
		set(v, []string{"commonAnnotations"}, map[string]any{"example.com/annotation": "b"})
		set(v, []string{"metrics", "prometheusRule", "enabled"}, true)
		set(v, []string{"metrics", "grafanaDashboards", "enabled"}, true)
		set(v, []string{"helmTest", "namespace"}, "telco")
		for _, object := range decode(t, render(t, v)) {
			check := func(what string, labels, annotations map[string]string) {
				if labels["example.com/label"] != "a" || annotations["example.com/annotation"] != "b" || labels["app.kubernetes.io/instance"] != releaseName {
					t.Errorf("%s: %s: labels %v, annotations %v", name, what, labels, annotations)
				}
			}
			check(object.GetKind()+" "+object.GetName(), object.GetLabels(), object.GetAnnotations())
			if object.GetKind() == "Deployment" {
				pod := typed[appsv1.Deployment](t, object).Spec.Template
				check("the webhook's pods", pod.Labels, pod.Annotations)
			}
		}
	}
}

// What belongs to one object wins over what belongs to all.
func TestOwnAnnotationsWin(t *testing.T) {
	type set = map[string]any
	one, all := set{"a": "one"}, set{"a": "all", "b": "all"}
	out := render(t, set{
		"commonLabels": all, "commonAnnotations": all, "podLabels": one, "podAnnotations": one,
		"webhook": set{"annotations": one}, "serviceAccount": set{"annotations": one},
		"agent":   set{"metricsPort": 9000},
		"metrics": set{"serviceMonitor": set{"enabled": true, "labels": one}, "podMonitor": set{"enabled": true, "labels": one}, "prometheusRule": set{"enabled": true, "labels": one}, "grafanaDashboards": set{"enabled": true, "labels": one, "annotations": one}},
	})
	got := map[string][]string{}
	for _, o := range decode(t, out) {
		if ofTest(o) {
			continue // labelled as all, and as TestCommonLabelsAndAnnotations says
		}
		got[o.GetKind()] = []string{o.GetLabels()["a"], o.GetLabels()["b"], o.GetAnnotations()["a"], o.GetAnnotations()["b"]}
		if o.GetKind() == "Deployment" {
			pod := typed[appsv1.Deployment](t, o).Spec.Template
			got["its pods"] = []string{pod.Labels["a"], pod.Labels["b"], pod.Annotations["a"], pod.Annotations["b"]}
		}
	}
	for kind, want := range map[string][]string{
		"Deployment": {"all", "all", "all", "all"}, "its pods": {"one", "all", "one", "all"},
		"MutatingWebhookConfiguration": {"all", "all", "one", "all"}, "ServiceAccount": {"all", "all", "one", "all"},
		"ServiceMonitor": {"one", "all", "all", "all"}, "PodMonitor": {"one", "all", "all", "all"},
		"PrometheusRule": {"one", "all", "all", "all"}, "ConfigMap": {"one", "all", "one", "all"},
	} {
		if diff := cmp.Diff(want, got[kind]); diff != "" {
			t.Errorf("%s: label a, b, annotation a, b (-want +got):\n%s", kind, diff)
		}
	}
}

// Nothing that the chart does not need by default is there: an operator's definitions may be missing, a policy in the way.
func TestOffByDefault(t *testing.T) {
	var kinds []string
	for _, object := range decode(t, render(t, nil)) {
		if !ofTest(object) {
			kinds = append(kinds, object.GetKind())
		}
	}
	slices.Sort(kinds)
	want := []string{
		"ClusterRole", "ClusterRoleBinding", "Deployment", "MutatingWebhookConfiguration", "PodDisruptionBudget",
		"Role", "RoleBinding", "Service", "ServiceAccount",
	}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Errorf("by default (-want +got):\n%s", diff)
	}
}

// With ports of the node, an upgrade that wanted a new replica first would wait for ever where every node has an old one.
func TestUpgradesOnTheNodesOwnNetwork(t *testing.T) {
	for host, want := range map[bool]string{false: "surge 1, unavailable 0", true: "surge 0, unavailable 1"} {
		out := render(t, map[string]any{"hostNetwork": host})
		rolling := typed[appsv1.Deployment](t, only(t, out, "Deployment")).Spec.Strategy.RollingUpdate
		if got := "surge " + rolling.MaxSurge.String() + ", unavailable " + rolling.MaxUnavailable.String(); got != want {
			t.Errorf("hostNetwork %v: %s, want %s", host, got, want)
		}
	}
}

// The kubelet expands the arguments of the webhook's own container; what is meant for the injected one must get past it.
func TestAgentEnvironmentPassesTheKubelet(t *testing.T) {
	for value, want := range map[string]string{
		"$(HOME)/a": "$$(HOME)/a", "$$(HOME)": "$$$$(HOME)", "a$b": "a$$b", "plain": "plain",
	} {
		args := arguments(t, render(t, map[string]any{"agent": map[string]any{"env": []map[string]any{{"name": "A", "value": value}}}}))
		if !slices.Contains(args, "--agent-env=A="+want) {
			t.Errorf("%s: %q, want %s", value, args, want)
		}
	}
}

func TestReplicaCounts(t *testing.T) {
	for count, budget := range map[int]bool{0: false, 1: false, 2: true, 5: true} {
		out := render(t, map[string]any{"replicaCount": count})
		if got := *typed[appsv1.Deployment](t, only(t, out, "Deployment")).Spec.Replicas; int(got) != count {
			t.Errorf("replicaCount %d: %d replicas", count, got)
		}
		if got := only(t, out, "PodDisruptionBudget") != nil; got != budget {
			t.Errorf("replicaCount %d: disruption budget %v, want %v: a lone replica could never be drained", count, got, budget)
		}
	}
}

// The grace period holds the sleep, the drain and one admission.
func TestDrainFitsIntoTheGracePeriod(t *testing.T) {
	for want, v := range map[string]map[string]any{
		"--drain-timeout=10s": nil,
		"--drain-timeout=4s":  {"terminationGracePeriodSeconds": 20},
		"--drain-timeout=0s":  {"terminationGracePeriodSeconds": 16},
		"--drain-timeout=9s":  {"preStopSeconds": 0, "webhook": map[string]any{"timeoutSeconds": 20}},
	} {
		if args := arguments(t, render(t, v)); !slices.Contains(args, want) {
			t.Errorf("%v: %q, want %s", v, args, want)
		}
	}
}

// The Service and everything else that selects the webhook's pods selects only them: not the pod of `helm test`.
func TestSelectors(t *testing.T) {
	out := render(t, values(t, "everything"))
	pods := typed[appsv1.Deployment](t, only(t, out, "Deployment")).Spec.Template.Labels
	test := only(t, out, "Pod").GetLabels()
	selects := func(selector, labels map[string]string) bool {
		for key, value := range selector {
			if labels[key] != value {
				return false
			}
		}
		return true
	}
	selectors := map[string]map[string]string{"Service": typed[corev1.Service](t, only(t, out, "Service")).Spec.Selector}
	for _, kind := range []string{"Deployment", "PodDisruptionBudget"} {
		selectors[kind], _, _ = unstructured.NestedStringMap(only(t, out, kind).Object, "spec", "selector", "matchLabels")
	}
	selectors["NetworkPolicy"], _, _ = unstructured.NestedStringMap(only(t, out, "NetworkPolicy").Object, "spec", "podSelector", "matchLabels")
	for kind, selector := range selectors {
		if len(selector) == 0 || !selects(selector, pods) || selects(selector, test) {
			t.Errorf("%s selects %v: the webhook's pods %v, the test's %v", kind, selector, selects(selector, pods), selects(selector, test))
		}
	}
	monitor, _, _ := unstructured.NestedStringMap(only(t, out, "ServiceMonitor").Object, "spec", "selector", "matchLabels")
	if len(monitor) == 0 || !selects(monitor, only(t, out, "Service").GetLabels()) {
		t.Errorf("the ServiceMonitor selects %v, not the Service", monitor)
	}
}

func TestNetworkPolicy(t *testing.T) {
	if only(t, render(t, map[string]any{"networkPolicy": map[string]any{"enabled": true}, "webhook": map[string]any{"url": "https://a"}}), "NetworkPolicy") != nil {
		t.Error("rendered for a webhook outside of the cluster")
	}
	out := render(t, values(t, "everything"))
	container := typed[appsv1.Deployment](t, only(t, out, "Deployment")).Spec.Template.Spec.Containers[0]
	ports := map[string]int32{}
	for _, port := range container.Ports {
		ports[port.Name] = port.ContainerPort
	}
	spec := typed[networkingv1.NetworkPolicy](t, only(t, out, "NetworkPolicy")).Spec
	if len(spec.Ingress) != 2 || len(spec.Egress) != 1 || len(spec.PolicyTypes) != 2 {
		t.Fatalf("rules: %+v", spec)
	}
	if in := spec.Ingress[0]; in.Ports[0].Port.IntVal != ports["webhook"] || len(in.From) != 0 {
		t.Errorf("the API server may not reach the webhook: %+v", in)
	}
	if in := spec.Ingress[1]; in.Ports[0].Port.IntVal != ports["metrics"] || in.From[0].NamespaceSelector.MatchExpressions[0].Values[0] != "monitoring" {
		t.Errorf("metrics: %+v", in)
	}
	if to := spec.Egress[0]; to.Ports[0].Port.IntVal != 443 || to.To[1].IPBlock.CIDR != "2001:db8::/32" {
		t.Errorf("the webhook may not reach the API server: %+v", to)
	}
}

// relabel is what Prometheus does with one target and the actions that the PodMonitor uses; nil means dropped.
func relabel(t *testing.T, rules []any, labels map[string]string) map[string]string {
	t.Helper()
	for _, each := range rules {
		rule := each.(map[string]any)
		source := labels[rule["sourceLabels"].([]any)[0].(string)]
		match := regexp.MustCompile("^(?s:" + rule["regex"].(string) + ")$")
		found := match.FindStringSubmatchIndex(source)
		switch action, _ := rule["action"].(string); {
		case action == "keep" && found == nil:
			return nil
		case action == "" && found != nil:
			labels[rule["targetLabel"].(string)] = string(match.ExpandString(nil, rule["replacement"].(string), source, found))
		}
	}
	return labels
}

// Prometheus finds one target for each container of each pod. Of these the sidecars are kept, at the agent's port.
func TestPodMonitorFindsTheSidecars(t *testing.T) {
	monitor := only(t, render(t, values(t, "monitoring")), "PodMonitor")
	endpoints, _, err := unstructured.NestedSlice(monitor.Object, "spec", "podMetricsEndpoints")
	if err != nil || len(endpoints) != 1 {
		t.Fatalf("endpoints: %v, %v", endpoints, err)
	}
	endpoint := endpoints[0].(map[string]any)
	if any, _, _ := unstructured.NestedBool(monitor.Object, "spec", "namespaceSelector", "any"); !any || endpoint["path"] != "/metrics" {
		t.Errorf("selects %v", monitor.Object["spec"])
	}
	status := func(mode settings.Mode) string {
		data, err := json.Marshal(inject.Status{Mode: mode, Version: "1-sidecar"}) // as the webhook writes it
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	// As Prometheus names the annotation.
	annotation := "__meta_kubernetes_pod_annotation_" + regexp.MustCompile(`[^a-zA-Z0-9_]`).ReplaceAllString(settings.KeyStatus, "_")
	for name, test := range map[string]struct{ container, status, ip, want string }{
		"sidecar":            {settings.ContainerName, status(settings.Sidecar), "10.0.1.2", "10.0.1.2:9464"},
		"sidecar, IPv6":      {settings.ContainerName, status(settings.Sidecar), "2001:db8::2", "[2001:db8::2]:9464"},
		"the application":    {"app", status(settings.Sidecar), "10.0.1.2", ""},
		"mode init":          {settings.ContainerName, status(settings.Init), "10.0.1.2", ""},
		"somebody else's":    {settings.ContainerName, "", "10.0.1.2", ""},
		"a name that begins": {settings.ContainerName + "-2", status(settings.Sidecar), "10.0.1.2", ""},
	} {
		got := relabel(t, endpoint["relabelings"].([]any), map[string]string{
			"__meta_kubernetes_pod_container_name": test.container, annotation: test.status, "__meta_kubernetes_pod_ip": test.ip,
		})
		if got["__address__"] != test.want {
			t.Errorf("%s: scraped at %q, want %q", name, got["__address__"], test.want)
		}
	}
}

// Alerts and dashboards reach the cluster as they are: their braces are not Helm's.
func TestAlertsAndDashboards(t *testing.T) {
	type set = map[string]any
	out := render(t, set{"metrics": set{"prometheusRule": set{"enabled": true}, "grafanaDashboards": set{"enabled": true}}})
	var want any
	if err := yaml.Unmarshal(chartFile(t, "files/alerts.yaml"), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, only(t, out, "PrometheusRule").Object["spec"]); diff != "" {
		t.Errorf("alerts (-file +rendered):\n%s", diff)
	}
	config := only(t, out, "ConfigMap")
	data, _, err := unstructured.NestedStringMap(config.Object, "data")
	if err != nil || config.GetLabels()["grafana_dashboard"] != "1" {
		t.Errorf("labels %v, %v", config.GetLabels(), err)
	}
	for _, name := range []string{"agents", "webhook"} {
		file := string(chartFile(t, "files/"+name+".json"))
		if got := data["multus-ip-manager-"+name+".json"]; got != file || !strings.HasPrefix(strings.TrimSpace(got), "{") {
			t.Errorf("%s: %d bytes, the file has %d", name, len(got), len(file))
		}
	}
}

// What `helm test` needs is its own, made for each test and removed after it: the webhook's account, which runs on, gets nothing by it.
func TestHelmTestHasAnAccountOfItsOwn(t *testing.T) {
	const account = releaseName + "-multus-ip-manager-test"
	var kinds []string
	for _, object := range decode(t, render(t, map[string]any{"helmTest": map[string]any{"namespace": "telco"}})) {
		subjects, _, err := unstructured.NestedSlice(object.Object, "subjects")
		if err != nil {
			t.Fatal(err)
		}
		if !ofTest(object) {
			for _, subject := range subjects {
				if name := subject.(map[string]any)["name"]; name == account {
					t.Errorf("%s %s is for the test's account and stays", object.GetKind(), object.GetName())
				}
			}
			continue
		}
		kinds = append(kinds, object.GetKind())
		const policy = "before-hook-creation,hook-succeeded,hook-failed"
		if got := object.GetAnnotations()["helm.sh/hook-delete-policy"]; object.GetName() != account || got != policy {
			t.Errorf("%s %s, deleted %s", object.GetKind(), object.GetName(), got)
		}
		for _, subject := range subjects {
			if name := subject.(map[string]any)["name"]; name != account {
				t.Errorf("%s is for %v", object.GetKind(), name)
			}
		}
		if object.GetKind() == "Pod" {
			if got := typed[corev1.Pod](t, object).Spec.ServiceAccountName; got != account {
				t.Errorf("the test runs as %s", got)
			}
		}
	}
	slices.Sort(kinds)
	if diff := cmp.Diff([]string{"ClusterRole", "ClusterRoleBinding", "Pod", "Role", "RoleBinding", "ServiceAccount"}, kinds); diff != "" {
		t.Errorf("kinds (-want +got):\n%s", diff)
	}
}
