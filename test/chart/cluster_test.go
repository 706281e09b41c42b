package chart

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/plane"
	"multus-ip-manager.io/webhook/inject"
)

// stub answers every admission with yes and remembers what it was asked.
type stub struct {
	server *httptest.Server
	mu     sync.Mutex
	calls  map[string][]string // pod name: paths
}

func newStub(t *testing.T) *stub {
	t.Helper()
	s := &stub{calls: map[string][]string{}}
	s.server = httptest.NewTLSServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.server.Close)
	return s
}

func (s *stub) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	review := admissionv1.AdmissionReview{}
	if err == nil {
		err = json.Unmarshal(body, &review)
	}
	if err != nil || review.Request == nil {
		http.Error(w, "not an AdmissionReview", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.calls[review.Request.Name] = append(s.calls[review.Request.Name], r.URL.Path)
	s.mu.Unlock()
	review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
	review.Request = nil
	_ = json.NewEncoder(w).Encode(review)
}

// of returns the paths that were called for the pod.
func (s *stub) of(pod string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls[pod])
}

func (s *stub) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw})
}

// installation is the chart, installed for a webhook outside of the cluster.
type installation struct {
	plane   *plane.Plane
	helm    *plane.Helm
	release plane.Release
}

// clusterHelm returns the API server, a Helm that works on it, and the chart's folder.
func clusterHelm(t *testing.T) (*plane.Plane, *plane.Helm, string) {
	t.Helper()
	p := plane.Shared(t)
	helm, err := p.Helm()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := plane.ChartDir()
	if err != nil {
		t.Fatal(err)
	}
	return p, helm, dir
}

func install(t *testing.T, values map[string]any) installation {
	t.Helper()
	_, _, dir := clusterHelm(t)
	return installChart(t, dir, values)
}

func installChart(t *testing.T, chart string, values map[string]any) installation {
	t.Helper()
	p, helm, _ := clusterHelm(t)
	i := installation{plane: p, helm: helm, release: plane.Release{
		Name: releaseName, Namespace: p.CreateNamespace(t, "mim-system", map[string]string{settings.LabelInject: settings.InjectEnabled}),
		Chart: chart, Values: values,
	}}
	if out, err := helm.Install(t.Context(), i.release); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		if _, err := helm.Uninstall(context.WithoutCancel(t.Context()), i.release.Name, i.release.Namespace); err != nil && !strings.Contains(err.Error(), "not found") {
			t.Errorf("uninstall: %v", err)
		}
	})
	return i
}

func (i installation) configuration(t *testing.T) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	config := &admissionregistrationv1.MutatingWebhookConfiguration{}
	if err := i.plane.Client.Get(t.Context(), client.ObjectKey{Name: "multus-ip-manager"}, config); err != nil {
		t.Fatal(err)
	}
	return config
}

// trust puts the CA into every entry, by server-side apply of that field alone, as the webhook does.
func (i installation) trust(t *testing.T, ca []byte) {
	t.Helper()
	var entries []map[string]any
	for _, entry := range i.configuration(t).Webhooks {
		entries = append(entries, map[string]any{"name": entry.Name, "clientConfig": map[string]any{"caBundle": ca}})
	}
	patch, err := json.Marshal(map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
		"metadata": map[string]any{"name": "multus-ip-manager"}, "webhooks": entries,
	})
	if err != nil {
		t.Fatal(err)
	}
	err = i.plane.Client.Patch(t.Context(), i.configuration(t), client.RawPatch(types.ApplyPatchType, patch), client.FieldOwner("test-certs"))
	if err != nil {
		t.Fatal(err)
	}
}

func pod(namespace, name string, labels, annotations map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels, Annotations: annotations},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app:1"}}},
	}
}

type pairs = map[string]string

// Which pods does the API server ask about, and where? What it does not ask about cannot be harmed by us: it must also
// start when nothing answers.
func TestWhoIsAsked(t *testing.T) {
	stub := newStub(t)
	i := install(t, map[string]any{"webhook": map[string]any{"url": stub.server.URL, "excludedNamespaces": []string{"excluded"}}})
	p := i.plane
	i.trust(t, stub.ca())

	enabled := settings.InjectEnabled
	namespaces := map[string]string{
		"plain":     p.CreateNamespace(t, "plain", nil),
		"opted in":  p.CreateNamespace(t, "in", pairs{settings.LabelInject: enabled}),
		"init":      p.CreateNamespace(t, "init", pairs{settings.LabelInject: enabled, settings.KeyMode: "init"}),
		"sidecar":   p.CreateNamespace(t, "sidecar", pairs{settings.LabelInject: enabled, settings.KeyMode: "sidecar"}),
		"node":      p.CreateNamespace(t, "node", pairs{settings.LabelInject: enabled, settings.KeyMode: "node"}),
		"unknown":   p.CreateNamespace(t, "unknown", pairs{settings.LabelInject: enabled, settings.KeyMode: "daemon"}),
		"empty":     p.CreateNamespace(t, "empty", pairs{settings.LabelInject: enabled, settings.KeyMode: ""}),
		"mode only": p.CreateNamespace(t, "mode", pairs{settings.KeyMode: "init"}),
		"disabled":  p.CreateNamespace(t, "disabled", pairs{settings.LabelInject: "disabled"}),
		"release":   i.release.Namespace, // labelled as opted in
		"system":    "kube-system",
		"excluded":  "excluded",
	}
	excluded := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "excluded", Labels: pairs{settings.LabelInject: enabled}}}
	if err := p.Client.Create(t.Context(), excluded); err != nil {
		t.Fatal(err)
	}
	system := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}}
	label := `{"metadata":{"labels":{"` + settings.LabelInject + `":"enabled"}}}`
	if err := p.Client.Patch(t.Context(), system, client.RawPatch(types.MergePatchType, []byte(label))); err != nil {
		t.Fatal(err)
	}

	multus := pairs{settings.Networks: "net"}
	tests := map[string]struct {
		namespace           string
		labels, annotations pairs
		want                string // path, "" for not asked
	}{
		"in-multus":              {"opted in", nil, multus, "/mutate"},
		"in-unparsable":          {"opted in", nil, pairs{settings.Networks: "[null]"}, "/mutate"},
		"in-mode-annotation":     {"opted in", nil, pairs{settings.KeyMode: "node"}, "/mutate"},
		"in-mode-label":          {"opted in", pairs{settings.KeyMode: "sidecar"}, nil, "/mutate"},
		"in-mode-invalid":        {"opted in", pairs{settings.KeyMode: "x"}, nil, "/mutate"},
		"in-nothing":             {"opted in", nil, nil, ""},
		"in-other-annotations":   {"opted in", pairs{"a": "b"}, pairs{"c": "d"}, ""},
		"in-no-network":          {"opted in", nil, pairs{settings.Networks: ""}, ""},
		"in-pod-out":             {"opted in", pairs{settings.LabelInject: "disabled"}, multus, ""},
		"in-pod-out-with-mode":   {"opted in", pairs{settings.LabelInject: "disabled", settings.KeyMode: "init"}, multus, ""},
		"in-pod-says-enabled":    {"opted in", pairs{settings.LabelInject: enabled}, multus, "/mutate"},
		"init-multus":            {"init", nil, multus, "/mutate/init"},
		"sidecar-multus":         {"sidecar", nil, multus, "/mutate/sidecar"},
		"node-multus":            {"node", nil, multus, "/mutate/node"},
		"unknown-multus":         {"unknown", nil, multus, "/mutate/other"},
		"unknown-nothing":        {"unknown", nil, nil, ""},
		"empty-multus":           {"empty", nil, multus, "/mutate/other"},
		"plain-multus":           {"plain", nil, multus, ""},
		"plain-with-mode":        {"plain", pairs{settings.KeyMode: "init"}, multus, ""},
		"plain-pod-says-enabled": {"plain", pairs{settings.LabelInject: enabled}, multus, ""},
		"mode-only-multus":       {"mode only", nil, multus, ""},
		"disabled-multus":        {"disabled", nil, multus, ""},
		"release-multus":         {"release", nil, multus, ""},
		"system-multus":          {"system", nil, multus, ""},
		"excluded-multus":        {"excluded", nil, multus, ""},
	}

	// The API server learns of a new configuration within a moment: wait until it asks at all.
	waitFor(t, "the first call", func() bool {
		canary := pod(namespaces["opted in"], "canary", nil, multus)
		if err := p.Client.Create(t.Context(), canary, client.DryRunAll); err != nil {
			t.Logf("not yet: %v", err)
		}
		return len(stub.of("canary")) > 0
	})
	for name, test := range tests {
		err := p.Client.Create(t.Context(), pod(namespaces[test.namespace], name, test.labels, test.annotations), client.DryRunAll)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var want []string
		if test.want != "" {
			want = []string{test.want}
		}
		if diff := cmp.Diff(want, stub.of(name)); diff != "" {
			t.Errorf("%s: calls (-want +got):\n%s", name, diff)
		}
	}

	// Only the creation of pods is asked about: an opted-in pod can be changed and deleted while nothing answers.
	made := pod(namespaces["opted in"], "made", nil, multus)
	if err := p.Client.Create(t.Context(), made); err != nil {
		t.Fatal(err)
	}

	stub.server.Close()
	for name, test := range tests {
		err := p.Client.Create(t.Context(), pod(namespaces[test.namespace], name, test.labels, test.annotations), client.DryRunAll)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s depends on the webhook: %v", name, err)
		case test.want != "" && !apierrors.IsInternalError(err):
			t.Errorf("%s starts without its addresses while nothing answers: %v", name, err)
		}
	}
	made.Annotations["changed"] = "yes"
	if err := p.Client.Update(t.Context(), made); err != nil {
		t.Errorf("change while nothing answers: %v", err)
	}
	if err := p.Client.Delete(t.Context(), made); err != nil {
		t.Errorf("delete while nothing answers: %v", err)
	}
}

// Entries as the API server keeps them, defaults filled in.
func TestEntriesInTheCluster(t *testing.T) {
	i := install(t, map[string]any{"webhook": map[string]any{"url": "https://127.0.0.1:1"}})
	entries := i.configuration(t).Webhooks
	if len(entries) != len(inject.Paths()) {
		t.Fatalf("%d entries, want %d", len(entries), len(inject.Paths()))
	}
	for _, entry := range entries {
		got := []string{
			string(*entry.FailurePolicy), string(*entry.SideEffects), string(*entry.ReinvocationPolicy), string(*entry.MatchPolicy),
		}
		if diff := cmp.Diff([]string{"Fail", "None", "IfNeeded", "Equivalent"}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", entry.Name, diff)
		}
		if *entry.TimeoutSeconds != 5 || len(entry.MatchConditions) != 1 || len(entry.ClientConfig.CABundle) != 0 {
			t.Errorf("%s: timeout %d, %d match conditions, %d bytes of caBundle", entry.Name, *entry.TimeoutSeconds, len(entry.MatchConditions), len(entry.ClientConfig.CABundle))
		}
		scope := admissionregistrationv1.NamespacedScope
		rules := []admissionregistrationv1.RuleWithOperations{{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
			Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}, Scope: &scope},
		}}
		if diff := cmp.Diff(rules, entry.Rules); diff != "" {
			t.Errorf("%s (-want +got):\n%s", entry.Name, diff)
		}
	}
}

// The webhook's pods and that of `helm test` are accepted where only restricted ones are, and as what the chart says.
func TestPodsAreRestricted(t *testing.T) {
	p := plane.Shared(t)
	ns := p.CreateNamespace(t, "restricted", pairs{"pod-security.kubernetes.io/enforce": "restricted"})
	create := func(made *corev1.Pod) *corev1.Pod {
		t.Helper()
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: made.Spec.ServiceAccountName}}
		if err := p.Client.Create(t.Context(), account); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		made.Namespace, made.Name = ns, "made"
		if err := p.Client.Create(t.Context(), made, client.DryRunAll); err != nil {
			t.Fatal(err)
		}
		return made
	}
	for _, name := range []string{"default", "secret"} {
		out := render(t, values(t, name))
		template := typed[appsv1.Deployment](t, only(t, out, "Deployment")).Spec.Template
		made := create(&corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec})
		if made.Spec.Priority == nil || *made.Spec.Priority != 2000000000 {
			t.Errorf("%s: priority %v, want that of system-cluster-critical", name, made.Spec.Priority)
		}
		if sleep := made.Spec.Containers[0].Lifecycle.PreStop.Sleep; sleep == nil || sleep.Seconds != 10 {
			t.Errorf("%s: preStop sleep: %v", name, sleep)
		}
		create(typed[corev1.Pod](t, only(t, out, "Pod")))
	}
}

// What the webhook's service account may do, and, as much, what not.
func TestRights(t *testing.T) {
	i := install(t, nil)
	ns := i.release.Namespace
	secret := releaseName + "-multus-ip-manager-ca"
	other := i.plane.CreateNamespace(t, "other", nil)
	const group, configs = "admissionregistration.k8s.io", "mutatingwebhookconfigurations"
	tests := []struct {
		verb, group, resource, namespace, name string
		want                                   bool
	}{
		{"get", "", "secrets", ns, secret, true},
		{"update", "", "secrets", ns, secret, true},
		{"watch", "", "secrets", ns, secret, true},
		{"create", "", "secrets", ns, "", true},
		{"delete", "", "secrets", ns, secret, true}, // asked of who sets its owner, where that is enforced
		{"delete", "", "secrets", ns, "another", false},
		{"get", "", "secrets", ns, "another", false},
		{"list", "", "secrets", ns, "", false},
		{"get", "", "secrets", other, secret, false},
		{"create", "", "secrets", other, "", false},
		{"get", group, configs, "", "multus-ip-manager", true},
		{"patch", group, configs, "", "multus-ip-manager", true},
		{"update", group, configs, "", "multus-ip-manager", false},
		{"delete", group, configs, "", "multus-ip-manager", false},
		{"patch", group, configs, "", "pod-identity-webhook", false},
		{"list", group, configs, "", "", false},
		{"get", "", "pods", ns, "", false},
		{"get", "", "namespaces", "", ns, false},
		{"get", "", "configmaps", ns, "", false},
	}
	waitFor(t, "the API server to learn of the roles", func() bool {
		return may(t, i.plane, ns, releaseName+"-multus-ip-manager", "create", "", "secrets", ns, "") &&
			may(t, i.plane, ns, releaseName+"-multus-ip-manager", "get", group, configs, "", "multus-ip-manager")
	})
	for _, test := range tests {
		if got := may(t, i.plane, ns, releaseName+"-multus-ip-manager", test.verb, test.group, test.resource, test.namespace, test.name); got != test.want {
			t.Errorf("%s %s %s/%s: allowed=%v, want %v", test.verb, test.resource, test.namespace, test.name, got, test.want)
		}
	}

	// List and watch work with the field selector, and only with it.
	config, err := i.plane.ServiceAccountConfig(t.Context(), ns, releaseName+"-multus-ip-manager")
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: i.plane.Client.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	one := client.MatchingFields{"metadata.name": "multus-ip-manager"}
	var list admissionregistrationv1.MutatingWebhookConfigurationList
	if err := c.List(t.Context(), &list, one); err != nil || len(list.Items) != 1 {
		t.Errorf("list by name: %d, %v", len(list.Items), err)
	}
	if err := c.List(t.Context(), &list); !apierrors.IsForbidden(err) {
		t.Errorf("list all: %v, want forbidden", err)
	}
	events, err := c.Watch(t.Context(), &corev1.SecretList{}, client.InNamespace(ns), client.MatchingFields{"metadata.name": secret})
	if err != nil {
		t.Errorf("watch the Secret by name: %v", err)
	} else {
		events.Stop()
	}
}

// may asks the API server what a service account may do.
func may(t *testing.T, p *plane.Plane, namespace, account, verb, group, resource, in, name string) bool {
	t.Helper()
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:               "system:serviceaccount:" + namespace + ":" + account,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Group: group, Resource: resource, Namespace: in, Name: name},
	}}
	if err := p.Client.Create(t.Context(), review); err != nil {
		t.Fatal(err)
	}
	return review.Status.Allowed
}

// Where others make the certificate, the webhook writes nothing: it reads what tells it how the certificate is.
func TestRightsWithForeignCertificates(t *testing.T) {
	const admission, certManager = "admissionregistration.k8s.io", "cert-manager.io"
	type right struct {
		verb, group, resource, name string
		clusterWide                 bool
	}
	account := releaseName + "-multus-ip-manager"
	configuration := right{"get", admission, "mutatingwebhookconfigurations", "multus-ip-manager", true}
	never := []right{
		{"patch", admission, "mutatingwebhookconfigurations", "multus-ip-manager", true}, {"get", "", "secrets", account + "-ca", false},
		{"create", "", "secrets", "", false}, {"get", certManager, "certificates", "another", false}, {"list", certManager, "certificates", "", false},
		{"update", certManager, "certificates", account, false}, {"get", certManager, "issuers", "another", false}, {"get", certManager, "clusterissuers", "another", true},
	}
	type set = map[string]any
	for title, test := range map[string]struct {
		certs set
		may   []right
	}{
		"secret":           {set{"source": "secret", "secretName": "mine"}, nil},
		"its own CA":       {set{"source": "cert-manager"}, []right{{"get", certManager, "certificates", account, false}, {"get", certManager, "issuers", account, false}}},
		"an Issuer":        {set{"source": "cert-manager", "certManager": set{"issuerRef": set{"name": "company"}}}, []right{{"get", certManager, "issuers", "company", false}}},
		"a ClusterIssuer":  {set{"source": "cert-manager", "certManager": set{"issuerRef": set{"name": "company", "kind": "ClusterIssuer"}}}, []right{{"get", certManager, "clusterissuers", "company", true}}},
		"another issuer's": {set{"source": "cert-manager", "certManager": set{"issuerRef": set{"name": "company", "group": "awspca.cert-manager.io"}}}, []right{{"get", certManager, "certificates", account, false}}},
	} {
		t.Run(title, func(t *testing.T) {
			p := plane.Shared(t)
			ns := p.CreateNamespace(t, "rights", nil)
			helm, dir := offlineHelm(t)
			i := installation{plane: p, helm: helm, release: plane.Release{Name: releaseName, Namespace: ns, Chart: dir, Values: set{"certs": test.certs}}}
			// Only the roles: cert-manager's kinds need not be there.
			for _, object := range decode(t, i.rendered(t, "--skip-tests")) {
				if object.GroupVersionKind().Group != "rbac.authorization.k8s.io" {
					continue
				}
				if err := p.Client.Create(t.Context(), object); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := p.Client.Delete(context.WithoutCancel(t.Context()), object); err != nil {
						t.Error(err)
					}
				})
			}
			check := func(rights []right, want bool) {
				for _, r := range rights {
					in := ns
					if r.clusterWide {
						in = ""
					}
					allowed := func() bool { return may(t, p, ns, account, r.verb, r.group, r.resource, in, r.name) }
					if want {
						// The API server learns of new roles within a moment.
						waitFor(t, "the right to "+r.verb+" "+r.resource+" "+r.name, allowed)
					} else if allowed() {
						t.Errorf("%s %s %q is allowed", r.verb, r.resource, r.name)
					}
				}
			}
			check(append(test.may, configuration), true)
			check(never, false)
		})
	}
}

func TestNotesTellTheNextCommand(t *testing.T) {
	p, helm, dir := clusterHelm(t)
	installOperators(t, p)
	ns := p.CreateNamespace(t, "notes", nil)
	type set = map[string]any
	for name, test := range map[string]struct {
		values any
		wants  []string
	}{
		"default": {nil, []string{"rollout status deployment/mim-multus-ip-manager"}},
		"url": {values(t, "url"), []string{
			"'--cert-source=self'", "'--dns-names=192.0.2.10'", "https://192.0.2.10:9443/", ns + "/mim-multus-ip-manager",
			"'--port=9443'", `--kubeconfig="$KUBECONFIG"`, "  bin/webhook \\\n    'serve' \\\n",
		}},
		"url of a port":    {set{"webhook": set{"url": "https://[2001:db8::1]:8443"}, "ports": set{"webhook": 10250}}, []string{"'--port=8443'", "'--dns-names=2001:db8::1'"}},
		"url of no port":   {set{"webhook": set{"url": "https://[2001:db8::]/"}}, []string{"'--port=443'", "'--dns-names=2001:db8::'"}},
		"url and a secret": {set{"webhook": set{"url": "https://a"}, "certs": set{"source": "secret", "secretName": "mine"}}, []string{"tls.crt and tls.key of Secret mine in /etc/multus-ip-manager/certs"}},
		"url and a quote":  {set{"webhook": set{"url": "https://a"}, "agent": set{"env": []set{{"name": "A", "value": "it's $(B)"}}}}, []string{`'--agent-env=A=it'\''s $(B)'`}},
		"secret":           {values(t, "secret"), []string{"Append the CA of Secret my-certificate to the field caBundle", "before the upgrade, and leave there what is there"}},
		"cert-manager":     {set{"certs": set{"source": "cert-manager"}}, []string{"only with cert-manager 1.19 or newer"}},
		"on the node":      {set{"hostNetwork": true, "replicaCount": 1}, []string{"with hostNetwork, so each upgrade ends it before the next one starts: while"}},
		"failure policy":   {set{"webhook": set{"failurePolicy": "Ignore"}}, []string{"failurePolicy is Ignore"}},
		"mode":             {set{"agent": set{"mode": "sidecar"}}, []string{`"sidecar"`}},
		"one replica":      {set{"replicaCount": 1}, []string{"while the only replica is away, no Multus pod"}},
		"none":             {set{"replicaCount": 0}, []string{"no webhook runs, no Multus pod"}},
		"test":             {nil, []string{"with --set helmTest.namespace=NAMESPACE", "helm test mim --namespace " + ns}},
	} {
		out, err := helm.Install(t.Context(), plane.Release{
			Name: releaseName, Namespace: ns, Chart: dir, Values: test.values, Args: []string{"--dry-run=client"},
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, notes, _ := strings.Cut(out, "\nNOTES:\n")
		if strings.Contains(notes, "<no value>") || strings.Contains(notes, "\n\n\n") {
			t.Errorf("%s:\n%s", name, notes)
		}
		for _, want := range append(test.wants, "kubectl label namespace NAMESPACE "+settings.LabelInject+"="+settings.InjectEnabled) {
			if !strings.Contains(notes, want) {
				t.Errorf("%s: the notes do not say %s:\n%s", name, want, notes)
			}
		}
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for !done() {
		select {
		case <-limit:
			t.Fatalf("waited in vain for %s", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
