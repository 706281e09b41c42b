package chart

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/test/plane"
	"multus-ip-manager.io/webhook/inject"
)

// Names that YAML takes for something else are names all the same: the render is that of ordinary names, but for the names.
func TestNamesThatYAMLReadsOtherwise(t *testing.T) {
	helm, dir := offlineHelm(t)
	render := func(release, namespace string, name map[string]string) []any {
		t.Helper()
		type set = map[string]any
		more := set{"enabled": true, "labels": set{"a": name["label"]}}
		out, err := helm.Template(t.Context(), plane.Release{Name: release, Namespace: namespace, Chart: dir, Values: set{
			"nameOverride": name["chart"], "fullnameOverride": name["full"], "priorityClassName": name["priority"],
			"commonLabels": set{"a": name["label"]}, "commonAnnotations": set{"a": name["label"]},
			"nodeSelector": set{"a": name["label"]}, "imagePullSecrets": []set{{"name": name["pull"]}},
			"webhook":        set{"excludedNamespaces": []string{name["namespace"]}},
			"serviceAccount": set{"name": name["account"]},
			"certs": set{"source": "cert-manager", "secretName": name["secret"], "certManager": set{"issuerRef": set{
				"name": name["issuer"], "kind": name["kind"], "group": name["group"],
			}}},
			"agent":    set{"metricsPort": 9000},
			"metrics":  set{"serviceMonitor": more, "podMonitor": set{"enabled": true, "namespaces": []string{name["namespace"]}}},
			"helmTest": set{"namespace": name["namespace"]}, "networkPolicy": set{"enabled": true, "metricsNamespaces": []string{name["namespace"]}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		var objects []any
		for _, object := range decode(t, out) {
			objects = append(objects, object.Object)
		}
		return objects
	}
	for title, odd := range map[string][]string{
		"words":   {"on", "off", "yes", "no", "null", "true", "false", "y", "n", "on", "yes", "off", "no"},
		"numbers": {"1e3", "123", "5", "", "0x1", "0123", "1e3", "12", "0o7", "4711", "1e1", "0b1", "077"},
	} {
		t.Run(title, func(t *testing.T) {
			keys := []string{"chart", "full", "priority", "label", "pull", "namespace", "account", "secret", "issuer", "kind", "group"}
			strange, plain := map[string]string{}, map[string]string{}
			words := []string{"zzrelease", odd[0], "zzhome", odd[1]}
			for n, key := range keys {
				strange[key], plain[key] = odd[n+2], "zz"+key
				if odd[n+2] == "" { // not given: derived from the release's
					plain[key] = ""
					continue
				}
				words = append(words, plain[key], strange[key])
			}
			want := replaceIn(render("zzrelease", "zzhome", plain), strings.NewReplacer(words...))
			if title == "numbers" {
				// A Service's name begins with a letter.
				want = replaceIn(want, strings.NewReplacer("1e3-5", "mim-1e3-5"))
			}
			if diff := cmp.Diff(want, render(odd[0], odd[1], strange)); diff != "" {
				t.Errorf("-ordinary names, replaced +these names:\n%s", diff)
			}
		})
	}
}

// replaceIn replaces in every string of a decoded YAML value.
func replaceIn[T any](value T, replacer *strings.Replacer) T {
	var walk func(any) any
	walk = func(value any) any {
		switch v := value.(type) {
		case string:
			return replacer.Replace(v)
		case []any:
			out := make([]any, len(v))
			for n := range v {
				out[n] = walk(v[n])
			}
			return out
		case map[string]any:
			out := map[string]any{}
			for key, inner := range v {
				out[key] = walk(inner)
			}
			return out
		default:
			return value
		}
	}
	return walk(any(value)).(T)
}

// What Helm allows as a release's name, and Kubernetes as a namespace's, can be installed.
func TestReleasesOfAnyName(t *testing.T) {
	p, helm, dir := clusterHelm(t)
	for _, name := range []string{"on", "9.x", strings.Repeat("a", 49) + "-b.c"} {
		release := plane.Release{Name: name, Namespace: p.CreateNamespace(t, "names", nil), Chart: dir}
		if name == "on" {
			release.Namespace = "123"
			home := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: release.Namespace}}
			if err := p.Client.Create(t.Context(), home); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := helm.Install(t.Context(), release); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if left := inventory(t, p, name); len(left) != 9 {
			t.Errorf("%s: %d objects: %v", name, len(left), left)
		}
		if _, err := helm.Uninstall(t.Context(), name, release.Namespace); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A release whose namespace was deleted leaves what belongs to none. Helm knows that release no more, so advice about it would be
// of no use; Helm's own way to take over what is there is open.
func TestReleaseOfADeletedNamespace(t *testing.T) {
	p, helm, dir := clusterHelm(t)
	home := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "gone-"}}
	if err := p.Client.Create(t.Context(), home); err != nil {
		t.Fatal(err)
	}
	first := plane.Release{Name: "first", Namespace: home.Name, Chart: dir}
	if _, err := helm.Install(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	second := plane.Release{Name: "second", Namespace: p.CreateNamespace(t, "second", nil), Chart: dir}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		_, err := helm.Uninstall(ctx, second.Name, second.Namespace)
		_, errFirst := helm.Uninstall(ctx, first.Name, first.Namespace)
		if err := errors.Join(err, errFirst); err != nil {
			t.Error(err)
		}
	})
	refused := func(when, says string) {
		t.Helper()
		if _, err := helm.Install(t.Context(), second); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %s", when, err, says)
		}
	}
	const helms = "exists and cannot be imported into the current release"
	refused("there", "there can be no second one")
	if err := p.Client.Delete(t.Context(), home); err != nil {
		t.Fatal(err)
	}
	refused("being deleted", helms)
	// What the namespace's controller does when it has deleted all that is in it.
	if err := p.Client.Get(t.Context(), client.ObjectKeyFromObject(home), home); err != nil {
		t.Fatal(err)
	}
	home.Spec.Finalizers = nil
	if err := p.Client.SubResource("finalize").Update(t.Context(), home); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the namespace to be gone", func() bool {
		return apierrors.IsNotFound(p.Client.Get(t.Context(), client.ObjectKeyFromObject(home), home))
	})
	refused("gone", helms)
	taking := second
	taking.Args = []string{"--take-ownership"}
	if _, err := helm.Install(t.Context(), taking); err != nil {
		t.Fatal(err)
	}
	i := installation{plane: p, helm: helm, release: second}
	if got := i.configuration(t).Webhooks[0].ClientConfig.Service.Namespace; got != second.Namespace {
		t.Errorf("the webhook is called in %s, want %s", got, second.Namespace)
	}
}

// Alerts and panels are about this webhook: every operator that kubebuilder made has paths that begin alike.
func TestAlertsKnowThePathsOfTheWebhook(t *testing.T) {
	strange := []string{"/mutate-v1-pod", "/mutate--v1-pod", "/mutate/v1", "/mutate/", "/mutation", "/validate-v1-pod"}
	count := 0
	for _, file := range []string{"files/alerts.yaml", "files/webhook.json", "files/agents.json"} {
		for _, match := range regexp.MustCompile(`webhook=~\\*"([^"\\]*)`).FindAllStringSubmatch(string(chartFile(t, file)), -1) {
			count++
			expression := regexp.MustCompile("^(?:" + match[1] + ")$") // as Prometheus does
			for _, path := range inject.Paths() {
				if !expression.MatchString(path.Path) {
					t.Errorf("%s: %s does not match %s", file, match[1], path.Path)
				}
			}
			if n := slices.IndexFunc(strange, expression.MatchString); n >= 0 {
				t.Errorf("%s: %s matches %s", file, match[1], strange[n])
			}
		}
	}
	if count != 3 {
		t.Errorf("%d expressions, want that of an alert and those of two panels", count)
	}
}
