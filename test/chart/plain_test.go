package chart

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/test/plane"
	"multus-ip-manager.io/test/tools"
)

// plainHead is what stands before the render: Helm makes the namespace by itself, people without it do not.
const plainHead = `# The chart with its default values, for installations without Helm. Made from manifests/chart by
# "go test ./test/chart -update"; change that. The images' names get your registry on the way to the cluster:
#
#   sed -E 's#multus-ip-(webhook|agent):#registry.example/team/&#' manifests/install.yaml | kubectl apply --server-side -f -
#
# Other values: helm template multus-ip-manager manifests/chart --namespace multus-ip-manager --skip-tests --values ...
apiVersion: v1
kind: Namespace
metadata:
  name: multus-ip-manager
  labels:
    pod-security.kubernetes.io/enforce: restricted
`

// plainRelease is the release whose render people get who have no Helm: the one of the README.
func plainRelease(dir string) plane.Release {
	return plane.Release{Name: "multus-ip-manager", Namespace: "multus-ip-manager", Chart: dir}
}

func plainFile(t *testing.T) string {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "manifests", "install.yaml")
}

func readPlain(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile(plainFile(t))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// manifests/install.yaml is what Helm renders, and nothing else.
func TestPlainYAML(t *testing.T) {
	helm, dir := offlineHelm(t)
	release := plainRelease(dir)
	release.Args = []string{"--skip-tests"}
	rendered, err := helm.Template(t.Context(), release)
	if err != nil {
		t.Fatal(err)
	}
	got := plainHead + rendered
	if *update {
		if err := os.WriteFile(plainFile(t), []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(readPlain(t)), got); diff != "" {
		t.Errorf("manifests/install.yaml differs from the chart (-want +got); if it is meant: go test ./test/chart -update\n%s", diff)
	}
	for _, object := range decode(t, got) {
		if _, hook := object.GetAnnotations()["helm.sh/hook"]; hook {
			t.Errorf("%s %s belongs to helm test", object.GetKind(), object.GetName())
		}
	}
	// The command of the file's head reaches both images and nothing else.
	registry := "registry.example/team/multus-ip-"
	sed := exec.CommandContext(t.Context(), "sed", "-E", `s#multus-ip-(webhook|agent):#registry.example/team/&#`)
	sed.Stdin = strings.NewReader(rendered)
	out, err := sed.Output()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(out, []byte(`image: "`+registry+`webhook:`)) || !bytes.Contains(out, []byte("--agent-image="+registry+"agent:")) ||
		strings.ReplaceAll(string(out), "registry.example/team/", "") != rendered || bytes.Count(out, []byte(registry)) != 2 {
		t.Errorf("the head's sed makes\n%s", cmp.Diff(rendered, string(out)))
	}
}

// People without Helm: one command brings it, brings it again without a change, and takes it away. Who comes later with Helm
// is told by Helm, and can have it.
func TestPlainYAMLInTheCluster(t *testing.T) {
	p, helm, dir := clusterHelm(t)
	release := plainRelease(dir)
	i := installation{plane: p, helm: helm, release: release}
	t.Cleanup(func() { deleteAll(t, p, readPlain(t)) })
	apply := func() map[string]state {
		t.Helper()
		if _, err := p.Apply(t.Context(), readPlain(t), ""); err != nil {
			t.Fatal(err)
		}
		return inventory(t, p, release.Name)
	}
	apply()
	ca := newStub(t).ca()
	i.trust(t, ca)
	before := inventory(t, p, release.Name)
	if diff := cmp.Diff(before, apply()); diff != "" {
		t.Errorf("applied again (-before +after):\n%s", diff)
	}
	i.checkTrust(t, "applied again", ca)

	_, err := helm.Install(t.Context(), release)
	if err == nil || !strings.Contains(err.Error(), "exists and cannot be imported into the current release") {
		t.Errorf("a release beside the plain manifests: %v", err)
	}
	adopting := release
	adopting.Args = []string{"--take-ownership"}
	if _, err := helm.Install(t.Context(), adopting); err != nil {
		t.Fatalf("a release that takes over: %v", err)
	}
	if diff := cmp.Diff(uids(before), uids(inventory(t, p, release.Name))); diff != "" {
		t.Errorf("taken over by Helm (-before +after):\n%s", diff)
	}
	i.checkTrust(t, "taken over by Helm", ca)
	if _, err := helm.Uninstall(t.Context(), release.Name, release.Namespace); err != nil {
		t.Fatal(err)
	}
	if left := inventory(t, p, release.Name); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Plain manifests beside a release in another namespace would point its webhook configuration elsewhere: server-side apply
// tells whose it is.
func TestPlainYAMLBesideARelease(t *testing.T) {
	i := install(t, nil)
	before := i.configuration(t)
	for _, object := range decode(t, string(readPlain(t))) {
		if object.GetKind() != "MutatingWebhookConfiguration" {
			continue
		}
		err := i.plane.Client.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(object), client.FieldOwner("kubectl"))
		if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "helm"`) && !strings.Contains(err.Error(), `conflicts with "helm"`) {
			t.Errorf("got %v, want a conflict that names Helm", err)
		}
	}
	if after := i.configuration(t); after.ResourceVersion != before.ResourceVersion {
		t.Error("the release's configuration was changed")
	}
}

// kubectl's own apply, on the client's side, remembers what it set, which must not hold the caBundle.
func TestPlainYAMLByKubectl(t *testing.T) {
	kubectl, err := plane.Binary("kubectl")
	if err != nil {
		t.Skipf("kubectl is not built, and no other test needs it (go run ./test/tools/cmd/tools build kubectl): %v", err)
	}
	p := plane.Shared(t)
	ns := p.CreateNamespace(t, "kubectl", nil)
	helm, dir := offlineHelm(t)
	i := installation{plane: p, helm: helm, release: plane.Release{Name: releaseName, Namespace: ns, Chart: dir}}
	manifests := i.rendered(t, "--skip-tests")
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), kubectl, append([]string{"--kubeconfig", p.Kubeconfig, "--cache-dir", t.TempDir()}, args...)...)
		cmd.Stdin = strings.NewReader(manifests)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	t.Cleanup(func() { deleteAll(t, p, []byte(manifests)) })
	run("apply", "-f", "-")
	ca := newStub(t).ca()
	i.trust(t, ca)
	before := inventory(t, p, releaseName)
	out := run("apply", "-f", "-")
	if diff := cmp.Diff(before, inventory(t, p, releaseName)); diff != "" {
		t.Errorf("applied again (-before +after):\n%s\n%s", diff, out)
	}
	i.checkTrust(t, "applied again", ca)
	manifests = strings.ReplaceAll(manifests, "timeoutSeconds: 5", "timeoutSeconds: 4")
	run("apply", "-f", "-")
	if got := *i.configuration(t).Webhooks[0].TimeoutSeconds; got != 4 {
		t.Errorf("timeout %d", got)
	}
	i.checkTrust(t, "applied with a change", ca)
	run("delete", "--wait=false", "-f", "-")
	if left := inventory(t, p, releaseName); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
