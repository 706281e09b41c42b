package chart

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"multus-ip-manager.io/test/certmanager"
	"multus-ip-manager.io/test/plane"
)

// state is what an upgrade changes of an object (version) and what only making it anew changes (uid).
type state struct{ UID, Version string }

// inventory is every object of a release, by kind, namespace and name.
func inventory(t *testing.T, p *plane.Plane, release string) map[string]state {
	t.Helper()
	out := map[string]state{}
	for _, kind := range kinds() {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(kind)
		err := p.Client.List(t.Context(), list, client.MatchingLabels{"app.kubernetes.io/instance": release})
		if meta.IsNoMatchError(err) {
			continue // defined by an operator that this test does not install
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, object := range list.Items {
			out[kind.Kind+" "+object.GetNamespace()+"/"+object.GetName()] = state{string(object.GetUID()), object.GetResourceVersion()}
		}
	}
	return out
}

func kinds() []schema.GroupVersionKind {
	var out []schema.GroupVersionKind
	for group, names := range map[schema.GroupVersion][]string{
		{Version: "v1"}:                                        {"Service", "ServiceAccount", "ConfigMap", "Secret", "Pod"},
		{Group: "apps", Version: "v1"}:                         {"Deployment"},
		{Group: "policy", Version: "v1"}:                       {"PodDisruptionBudget"},
		{Group: "networking.k8s.io", Version: "v1"}:            {"NetworkPolicy"},
		{Group: "rbac.authorization.k8s.io", Version: "v1"}:    {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"},
		{Group: "admissionregistration.k8s.io", Version: "v1"}: {"MutatingWebhookConfiguration"},
		{Group: "cert-manager.io", Version: "v1"}:              {"Certificate", "Issuer"},
		{Group: "monitoring.coreos.com", Version: "v1"}:        {"ServiceMonitor", "PodMonitor", "PrometheusRule"},
	} {
		for _, name := range names {
			out = append(out, group.WithKind(name))
		}
	}
	return out
}

// uids leaves out what an upgrade may change.
func uids(objects map[string]state) map[string]string {
	out := map[string]string{}
	for name, object := range objects {
		out[name] = object.UID
	}
	return out
}

// installOperators makes the API server serve the kinds of cert-manager (its own definitions) and of the Prometheus operator.
func installOperators(t *testing.T, p *plane.Plane) {
	t.Helper()
	if err := certmanager.Install(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join("testdata", "crds", "monitoring.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	objects, err := p.Apply(t.Context(), data, "")
	if err != nil {
		t.Fatal(err)
	}
	var crds []*apiextensionsv1.CustomResourceDefinition
	for _, object := range objects {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := p.Client.Get(t.Context(), client.ObjectKeyFromObject(object), crd); err != nil {
			t.Fatal(err)
		}
		crds = append(crds, crd)
	}
	if err := envtest.WaitForCRDs(p.Config, crds, envtest.CRDInstallOptions{MaxTime: time.Minute, PollInterval: 20 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
}

// entryNames are the names by which others know the entries: who owns the caBundle owns it by them.
func (i installation) entryNames(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, entry := range i.configuration(t).Webhooks {
		out = append(out, entry.Name)
	}
	return out
}

// checkTrust fails if an entry's caBundle is another one: whoever takes it away stops admission.
func (i installation) checkTrust(t *testing.T, when string, ca []byte) {
	t.Helper()
	for _, entry := range i.configuration(t).Webhooks {
		if !bytes.Equal(entry.ClientConfig.CABundle, ca) {
			t.Errorf("%s: %s: the caBundle has changed", when, entry.Name)
		}
	}
}

// For every set of values: a second upgrade changes nothing, an upgrade that changes something leaves the caBundle, and an
// uninstallation leaves nothing.
func TestLife(t *testing.T) {
	p := plane.Shared(t)
	installOperators(t, p)
	// The other sets render no other kinds of objects.
	for _, name := range []string{"default", "cert-manager", "secret", "url", "everything"} {
		t.Run(name, func(t *testing.T) {
			v := values(t, name)
			if name == "everything" {
				set(v, []string{"metrics", "prometheusRule", "enabled"}, true)
				set(v, []string{"metrics", "grafanaDashboards", "enabled"}, true)
			}
			i := install(t, v)
			ca := newStub(t).ca()
			i.trust(t, ca)
			installed := inventory(t, p, releaseName)
			want := 0
			for _, object := range decode(t, i.rendered(t)) {
				if _, hook := object.GetAnnotations()["helm.sh/hook"]; !hook {
					want++
				}
			}
			if len(installed) != want {
				t.Errorf("%d objects were installed, %d rendered: %v", len(installed), want, installed)
			}
			if _, err := i.helm.Upgrade(t.Context(), i.release); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(installed, inventory(t, p, releaseName)); diff != "" {
				t.Errorf("an upgrade to the same chart and values changed objects (-before +after):\n%s", diff)
			}
			i.checkTrust(t, "upgrade", ca)

			if name == "default" || name == "everything" {
				i.changeTimeout(t, v)
				i.checkTrust(t, "upgrade to another timeout", ca)
			}

			if _, err := i.helm.Uninstall(t.Context(), i.release.Name, i.release.Namespace); err != nil {
				t.Fatal(err)
			}
			if left := inventory(t, p, releaseName); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// changeTimeout upgrades to values that differ in every entry of the configuration.
func (i installation) changeTimeout(t *testing.T, v map[string]any) {
	t.Helper()
	set(v, []string{"webhook", "timeoutSeconds"}, 3)
	i.release.Values = v
	if _, err := i.helm.Upgrade(t.Context(), i.release); err != nil {
		t.Fatal(err)
	}
	for _, entry := range i.configuration(t).Webhooks {
		if *entry.TimeoutSeconds != 3 {
			t.Errorf("%s: timeout %d after the upgrade", entry.Name, *entry.TimeoutSeconds)
		}
	}
}

// rendered is what is installed, with what belongs to `helm test`.
func (i installation) rendered(t *testing.T, more ...string) string {
	t.Helper()
	release := i.release
	release.Args = more
	out, err := i.helm.Template(t.Context(), release)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// loaded sets as much as the previous chart knows.
func loaded() map[string]any {
	type set = map[string]any
	return set{
		"commonLabels": set{"team": "network"}, "replicaCount": 3, "priorityClassName": "", "preStopSeconds": 5, "hostNetwork": true,
		"agent": set{
			"mode": "sidecar", "deadline": "10m", "logLevel": "debug", "allowPrimaryENI": true, "vpcCNISubnets": []string{"subnet-0a1"},
			"image": set{"repository": "registry.example.com/agent", "tag": "v1"},
			"env":   []set{{"name": "AWS_REGION", "value": "eu-central-1"}},
		},
		"webhook":          set{"timeoutSeconds": 4, "excludedNamespaces": []string{"monitoring"}, "annotations": set{"example.com/a": "b"}},
		"image":            set{"repository": "registry.example.com/webhook", "tag": "v1"},
		"imagePullSecrets": []set{{"name": "registry"}},
		"ports":            set{"webhook": 10250},
		"podLabels":        set{"tier": "system"}, "podAnnotations": set{"example.com/c": "d"},
		"tolerations":    []set{{"operator": "Exists"}},
		"serviceAccount": set{"annotations": set{"example.com/e": "f"}},
	}
}

// From the previous chart, as `helm package` packed it then, with few and with many values, given again or reused: nothing
// is made anew, nothing loses its trust, and the way back is open.
func TestUpgradeFromThePreviousChart(t *testing.T) {
	present, err := plane.ChartDir()
	if err != nil {
		t.Fatal(err)
	}
	previous := filepath.Join("testdata", "previous.tgz")
	for name, test := range map[string]struct {
		values map[string]any
		args   []string // of the upgrade
		again  bool     // the values are given to the upgrade, too
	}{
		"defaults":            {nil, nil, true},
		"many values":         {loaded(), nil, true},
		"many values, reused": {loaded(), []string{"--reuse-values"}, false},
		"as the README says":  {loaded(), []string{"--reset-then-reuse-values"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			i := installChart(t, previous, test.values)
			ca := newStub(t).ca()
			i.trust(t, ca)
			before, entries := inventory(t, i.plane, releaseName), i.entryNames(t)
			ip := i.service(t).Spec.ClusterIP

			next := i.release
			next.Chart, next.Args = present, test.args
			if !test.again {
				next.Values = nil
			}
			if _, err := i.helm.Upgrade(t.Context(), next); err != nil {
				t.Fatal(err)
			}
			check := func(when string) {
				t.Helper()
				if diff := cmp.Diff(uids(before), uids(inventory(t, i.plane, releaseName))); diff != "" {
					t.Errorf("%s: objects came, went or were made anew (-before +after):\n%s", when, diff)
				}
				if diff := cmp.Diff(entries, i.entryNames(t)); diff != "" {
					t.Errorf("%s: entries (-before +after):\n%s", when, diff)
				}
				if got := i.service(t).Spec.ClusterIP; got != ip {
					t.Errorf("%s: the Service's address is %s, was %s", when, got, ip)
				}
				i.checkTrust(t, when, ca)
			}
			check("upgrade")
			if mode, found := test.values["agent"]; found {
				args := i.deployment(t).Spec.Template.Spec.Containers[0].Args
				for _, want := range []string{"--default-mode=sidecar", "--agent-image=registry.example.com/agent:v1", "--agent-env=AWS_REGION=eu-central-1", "--port=10250"} {
					if !slices.Contains(args, want) {
						t.Errorf("the upgrade lost %s of %v: %q", want, mode, args)
					}
				}
			}
			settled := inventory(t, i.plane, releaseName)
			if _, err := i.helm.Upgrade(t.Context(), next); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(settled, inventory(t, i.plane, releaseName)); diff != "" {
				t.Errorf("a second upgrade changed objects (-before +after):\n%s", diff)
			}

			if _, err := i.helm.Run(t.Context(), nil, "rollback", i.release.Name, "1", "--namespace", i.release.Namespace); err != nil {
				t.Fatal(err)
			}
			check("rollback")
			if args := i.deployment(t).Spec.Template.Spec.Containers[0].Args; slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--drain-timeout") }) {
				t.Errorf("rolled back to the previous webhook with an argument that it does not know: %q", args)
			}
		})
	}
}

// What a later release adds goes with the rollback.
func TestRollbackTakesBackWhatWasAdded(t *testing.T) {
	i := install(t, nil)
	before := inventory(t, i.plane, releaseName)
	more := i.release
	more.Values = map[string]any{"networkPolicy": map[string]any{"enabled": true}, "metrics": map[string]any{"grafanaDashboards": map[string]any{"enabled": true}}}
	if _, err := i.helm.Upgrade(t.Context(), more); err != nil {
		t.Fatal(err)
	}
	if got := len(inventory(t, i.plane, releaseName)) - len(before); got != 2 {
		t.Errorf("the upgrade added %d objects, want 2", got)
	}
	if _, err := i.helm.Run(t.Context(), nil, "rollback", i.release.Name, "1", "--namespace", i.release.Namespace); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, inventory(t, i.plane, releaseName)); diff != "" {
		t.Errorf("rollback (-before +after):\n%s", diff)
	}
}

func (i installation) deployment(t *testing.T) *appsv1.Deployment {
	t.Helper()
	out := &appsv1.Deployment{}
	if err := i.plane.Client.Get(t.Context(), client.ObjectKey{Namespace: i.release.Namespace, Name: releaseName + "-multus-ip-manager"}, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func (i installation) service(t *testing.T) *corev1.Service {
	t.Helper()
	out := &corev1.Service{}
	if err := i.plane.Client.Get(t.Context(), client.ObjectKey{Namespace: i.release.Namespace, Name: releaseName + "-multus-ip-manager"}, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// There can be one release in a cluster. Whoever tries a second is told why, which one is there and what to do; nothing of
// the second is left, and the first goes on.
func TestSecondReleaseIsRefused(t *testing.T) {
	i := install(t, nil)
	elsewhere := i.plane.CreateNamespace(t, "second", nil)
	before := inventory(t, i.plane, releaseName)
	for title, second := range map[string]plane.Release{
		"another name and namespace": {Name: "second", Namespace: elsewhere},
		"in the same namespace":      {Name: "second", Namespace: i.release.Namespace},
		"of the same name":           {Name: releaseName, Namespace: elsewhere},
		"even if it is forced":       {Name: "second", Namespace: elsewhere, Args: []string{"--take-ownership"}},
		"webhook outside":            {Name: "second", Namespace: elsewhere, Values: map[string]any{"webhook": map[string]any{"url": "https://192.0.2.1"}}},
	} {
		second.Chart = i.release.Chart
		_, err := i.helm.Install(t.Context(), second)
		for _, want := range []string{
			"as release \"mim\" in namespace \"" + i.release.Namespace + "\"", "there can be no second one",
			"helm upgrade mim CHART --namespace " + i.release.Namespace, "helm uninstall mim --namespace " + i.release.Namespace,
			"--selector app.kubernetes.io/name=multus-ip-manager,app.kubernetes.io/instance=mim,app.kubernetes.io/component=webhook",
		} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %s", title, err, want)
			}
		}
	}
	if diff := cmp.Diff(before, inventory(t, i.plane, releaseName)); diff != "" {
		t.Errorf("the first release (-before +after):\n%s", diff)
	}
	if left := inventory(t, i.plane, "second"); len(left) > 0 {
		t.Errorf("left of the second: %v", left)
	}
	if out, err := i.helm.Run(t.Context(), nil, "list", "--all", "--all-namespaces", "--short"); err != nil || strings.Fields(out)[0] != releaseName || len(strings.Fields(out)) != 1 {
		t.Errorf("releases: %q, %v", out, err)
	}
}

// What the cluster holds decides only whether the chart is rendered, never what: tools that render without a cluster must
// get the same.
func TestOnlyRefusalsAskTheCluster(t *testing.T) {
	dir, err := plane.ChartDir()
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	err = filepath.WalkDir(filepath.Join(dir, "templates"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		count += strings.Count(string(data), "lookup ")
		for _, random := range []string{"randAlpha", "randNumeric", "randAscii", "genCA", "genSelfSigned", "genPrivateKey", "uuidv4", "now |", ".Release.Revision", ".Release.IsInstall", ".Release.IsUpgrade", ".Capabilities"} {
			if strings.Contains(string(data), random) {
				t.Errorf("%s: %s differs from one time to the next", path, random)
			}
		}
		return err
	})
	if err != nil || count != 2 {
		t.Errorf("%d lookups, %v; want the two of mim.checkOwner", count, err)
	}
}

// GitOps tools render the chart without a cluster and apply it server-side, again and again.
func TestAppliedServerSide(t *testing.T) {
	p := plane.Shared(t)
	helm, dir := offlineHelm(t)
	ns := p.CreateNamespace(t, "gitops", nil)
	i := installation{plane: p, helm: helm, release: plane.Release{Name: releaseName, Namespace: ns, Chart: dir}}
	manifests := []byte(i.rendered(t, "--skip-tests"))
	apply := func() map[string]state {
		t.Helper()
		if _, err := p.Apply(t.Context(), manifests, ns); err != nil {
			t.Fatal(err)
		}
		return inventory(t, p, releaseName)
	}
	t.Cleanup(func() { deleteAll(t, p, manifests) })
	first := apply()
	ca := newStub(t).ca()
	i.trust(t, ca)
	trusted := inventory(t, p, releaseName)
	if diff := cmp.Diff(trusted, apply()); diff != "" {
		t.Errorf("applied again (-before +after):\n%s", diff)
	}
	i.checkTrust(t, "applied again", ca)
	if diff := cmp.Diff(uids(first), uids(trusted)); diff != "" {
		t.Error(diff)
	}
	// Who set what is told by the managed fields: the tool never owns the caBundle, so it never sees a difference there.
	for _, entry := range i.configuration(t).ManagedFields {
		if owns := strings.Contains(entry.FieldsV1.GetRawString(), "f:caBundle"); owns != (entry.Manager == "test-certs") {
			t.Errorf("%s owns a caBundle: %v", entry.Manager, owns)
		}
	}
}

// deleteAll deletes what was applied, but its namespace.
func deleteAll(t *testing.T, p *plane.Plane, manifests []byte) {
	t.Helper()
	objects, err := plane.Decode(manifests)
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		if object.GetKind() == "Namespace" {
			continue
		}
		if err := p.Client.Delete(context.WithoutCancel(t.Context()), object); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	}
}
