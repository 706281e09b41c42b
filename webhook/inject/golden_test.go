package inject_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/inject"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// testConfig is the configuration of the golden files.
func testConfig() inject.Config {
	c := inject.DefaultConfig()
	c.Image = "example.com/multus-ip-agent:v1.0.0"
	c.Version = "v1.0.0"
	c.Agent = map[string]string{"vpc-cni-subnets": "subnet-0a1b2c3d4e5f60718", "log-format": "json"}
	c.Env = []inject.EnvVar{{Name: "AWS_REGION", Value: "eu-central-1"}}
	return c
}

func injector(t testing.TB, c inject.Config) *inject.Injector {
	t.Helper()
	i, err := inject.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// fixture is one pod file. Its directory is the mode of its namespace.
type fixture struct {
	name    string
	file    string
	request inject.Request
}

func fixtures(t testing.TB) []fixture {
	t.Helper()
	files, err := filepath.Glob("testdata/*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var out []fixture
	for _, file := range files {
		if strings.HasSuffix(file, ".golden.yaml") {
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pod, err := yaml.YAMLToJSON(data)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		mode := filepath.Base(filepath.Dir(file))
		out = append(out, fixture{
			name: mode + "/" + strings.TrimSuffix(filepath.Base(file), ".yaml"),
			file: file,
			request: inject.Request{
				Operation: "CREATE", Resource: "pods", Namespace: "telco",
				NamespaceMode: inject.NamespaceMode(mode), Pod: pod,
			},
		})
	}
	if len(out) == 0 {
		t.Fatal("no fixtures")
	}
	return out
}

// golden is the form of a golden file.
type golden struct {
	Action   inject.Action     `json:"action"`
	Reason   inject.Reason     `json:"reason"`
	Mode     settings.Mode     `json:"mode,omitempty"`
	Message  string            `json:"message"`
	Warnings []string          `json:"warnings,omitempty"`
	Audit    map[string]string `json:"auditAnnotations"`
	Patch    json.RawMessage   `json:"patch,omitempty"`
}

func TestGolden(t *testing.T) {
	i := injector(t, testConfig())
	wanted := map[string]bool{}
	for _, f := range fixtures(t) {
		path := strings.TrimSuffix(f.file, ".yaml") + ".golden.yaml"
		wanted[path] = true
		t.Run(f.name, func(t *testing.T) {
			d := i.Decide(f.request)
			got, err := yaml.Marshal(golden{d.Action, d.Reason, d.Mode, d.Message, d.Warnings, d.AuditAnnotations, d.Patch})
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatalf("%v (run with -update to write it)", err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", path, diff)
			}
			if d.Action == inject.ActionInject {
				checkInjected(t, i, f.request, d)
			} else if d.Patch != nil {
				t.Errorf("a patch without injection: %s", d.Patch)
			}
			for _, w := range d.Warnings {
				if len(w) > 256 || strings.ContainsAny(w, "\n\r") {
					t.Errorf("warning of %d bytes or with line breaks: %q", len(w), w)
				}
			}
		})
	}
	stale, err := filepath.Glob("testdata/*/*.golden.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stale {
		if !wanted[path] {
			t.Errorf("%s belongs to no fixture", path)
		}
	}
}

// checkInjected checks what holds for every injected pod.
func checkInjected(t *testing.T, i *inject.Injector, r inject.Request, d inject.Decision) {
	t.Helper()
	after := apply(t, r.Pod, d.Patch)

	again := r
	again.Pod = after
	if second := i.Decide(again); second.Action != inject.ActionSkip || second.Reason != inject.AlreadyInjected || second.Patch != nil || second.Warnings != nil {
		t.Errorf("injected a second time: %+v", second)
	}

	var pod corev1.Pod
	if err := json.Unmarshal(after, &pod); err != nil {
		t.Fatal(err)
	}
	ours := pod.Spec.InitContainers[0]
	if ours.Name != settings.ContainerName {
		t.Errorf("first init container is %q", ours.Name)
	}
	checkRestricted(t, &pod)
	checkOnlyAdded(t, r.Pod, after)

	var status inject.Status
	if err := json.Unmarshal([]byte(pod.Annotations[settings.KeyStatus]), &status); err != nil || status != (inject.Status{Mode: d.Mode, Version: "v1.0.0"}) {
		t.Errorf("status %+v, %v", status, err)
	}
}

func apply(t testing.TB, pod, patch []byte) []byte {
	t.Helper()
	p, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		t.Fatal(err)
	}
	after, err := p.Apply(pod)
	if err != nil {
		t.Fatalf("the patch does not apply: %v", err)
	}
	return after
}

// checkRestricted judges our container by Kubernetes' own rules, in a pod whose
// security context is the user's.
func checkRestricted(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	e, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	alone := &corev1.PodSpec{Containers: pod.Spec.InitContainers[:1]}
	level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for _, result := range e.EvaluatePod(level, &pod.ObjectMeta, alone) {
		if !result.Allowed {
			t.Errorf("Pod Security restricted: %s: %s", result.ForbiddenReason, result.ForbiddenDetail)
		}
	}
}

// checkOnlyAdded takes what we added out again and expects the pod of before,
// with every field, known to the API types or not.
func checkOnlyAdded(t *testing.T, before, after []byte) {
	t.Helper()
	var want, got map[string]any
	for _, d := range []struct {
		data []byte
		into *map[string]any
	}{{before, &want}, {after, &got}} {
		if err := json.Unmarshal(d.data, d.into); err != nil {
			t.Fatal(err)
		}
	}
	tidy := func(pod map[string]any) {
		spec, meta := pod["spec"].(map[string]any), pod["metadata"].(map[string]any)
		if list, _ := spec["initContainers"].([]any); len(list) == 0 {
			delete(spec, "initContainers")
		}
		annotations, _ := meta["annotations"].(map[string]any)
		delete(annotations, settings.KeyStatus)
		if len(annotations) == 0 {
			delete(meta, "annotations")
		}
	}
	spec := got["spec"].(map[string]any)
	spec["initContainers"] = spec["initContainers"].([]any)[1:]
	tidy(got)
	tidy(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("something of the user's changed (-before +after):\n%s", diff)
	}
}

// Every reason that a pod can have is shown by a fixture.
func TestEveryReasonHasAFixture(t *testing.T) {
	seen := map[inject.Reason]bool{
		// Not of the pod but of the request, or too large for a file: see
		// TestRequests and TestNetworksTooLong.
		inject.NotAPod: true, inject.NotCreated: true, inject.BadRequest: true, inject.NetworksTooLong: true,
	}
	i := injector(t, testConfig())
	for _, f := range fixtures(t) {
		seen[i.Decide(f.request).Reason] = true
	}
	for _, r := range inject.Reasons() {
		if !seen[r.Reason] {
			t.Errorf("no fixture for %q", r.Reason)
		}
	}
}

// The class of a pod is what was promised to it: injection does not lower it,
// and a Guaranteed or pod-level one stays exactly what it was.
func TestClassAfterInjection(t *testing.T) {
	i := injector(t, testConfig())
	promised := map[string]inject.Class{
		"none/guaranteed": inject.Guaranteed, "none/guaranteed-limits-only": inject.Guaranteed,
		"none/guaranteed-override": inject.Guaranteed, "none/ephemeral-containers": inject.Guaranteed,
		"none/burstable": inject.Burstable, "none/burstable-init-without-limits": inject.Burstable,
		"none/pod-level-resources": inject.PodLevel, "none/pod-level-override": inject.PodLevel,
	}
	checked := 0
	for _, f := range fixtures(t) {
		want, ok := promised[f.name]
		if !ok {
			continue
		}
		checked++
		after := apply(t, f.request.Pod, i.Decide(f.request).Patch)
		for when, pod := range map[string][]byte{"before": f.request.Pod, "after": after} {
			if got, err := inject.ClassOf(pod); err != nil || got != want {
				t.Errorf("%s %s: %s, %v, want %s", f.name, when, got, err, want)
			}
		}
	}
	if checked != len(promised) {
		t.Errorf("%d of %d fixtures found", checked, len(promised))
	}
}

// The container is written by hand, so every field must be one the API knows.
func TestContainerIsValid(t *testing.T) {
	c := testConfig()
	c.ImagePullPolicy = "IfNotPresent"
	for _, class := range inject.Classes() {
		data, err := c.Container(settings.Init, class)
		if err != nil {
			t.Fatal(err)
		}
		d := json.NewDecoder(strings.NewReader(string(data)))
		d.DisallowUnknownFields()
		var container corev1.Container
		if err := d.Decode(&container); err != nil {
			t.Errorf("%s: %v", class, err)
		}
		if want := []string{"init", "--vpc-cni-subnets=subnet-0a1b2c3d4e5f60718"}; !slices.Equal(container.Args, want) {
			t.Errorf("args %q, want %q", container.Args, want)
		}
		if len(container.Env) != len(settings.Env())+1 {
			t.Errorf("%d variables", len(container.Env))
		}
		if container.TerminationMessagePath != "/dev/termination-log" || container.TerminationMessagePolicy != corev1.TerminationMessageReadFile {
			t.Errorf("termination message: %s, %s", container.TerminationMessagePath, container.TerminationMessagePolicy)
		}
	}
}
