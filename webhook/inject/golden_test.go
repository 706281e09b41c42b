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

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/admission/cases"
	"multus-ip-manager.io/webhook/inject"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// testConfig is the configuration of the golden files.
func testConfig() inject.Config { return cases.Config() }

func injector(t testing.TB, c inject.Config) *inject.Injector {
	t.Helper()
	i, err := inject.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// fixture is one case of the table as this package's tests use it.
type fixture struct {
	cases.Case
	name    string
	request inject.Request
}

func fixtures(t testing.TB) []fixture {
	t.Helper()
	all, err := cases.All()
	if err != nil || len(all) == 0 {
		t.Fatal("no cases:", err)
	}
	out := make([]fixture, len(all))
	for i, c := range all {
		out[i] = fixture{c, c.Name, c.Request()}
	}
	return out
}

func TestGolden(t *testing.T) {
	i := injector(t, testConfig())
	wanted := map[string]bool{}
	for _, f := range fixtures(t) {
		wanted[f.name] = true
		t.Run(f.name, func(t *testing.T) {
			d := i.Decide(f.request)
			file, got, err := f.Golden(d)
			if err != nil {
				t.Fatal(err)
			}
			file = filepath.Join("../../test/admission/cases", file)
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("%v (run with -update to write it)", err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", file, diff)
			}
			switch {
			case d.Action == inject.ActionInject:
				checkInjected(t, i, f.request, d)
			case d.Action == inject.ActionAdjust:
				checkAdjusted(t, i, f.request, d)
			case d.Patch != nil:
				t.Errorf("a patch without injection: %s", d.Patch)
			}
			for _, w := range d.Warnings {
				if len(w) > 256 || strings.ContainsAny(w, "\n\r") {
					t.Errorf("warning of %d bytes or with line breaks: %q", len(w), w)
				}
			}
		})
	}
	goldens, err := cases.Goldens()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range goldens {
		if !wanted[name] {
			t.Errorf("the golden file of %s belongs to no case", name)
		}
	}
}

// checkAdjusted checks what holds for every pod whose injected container is adjusted: nothing else changes, and nothing a second time.
func checkAdjusted(t *testing.T, i *inject.Injector, r inject.Request, d inject.Decision) {
	t.Helper()
	again := r
	again.Pod = apply(t, r.Pod, d.Patch)
	if second := i.Decide(again); second.Reason != inject.AlreadyInjected || second.Patch != nil {
		t.Errorf("adjusted a second time: %+v", second)
	}
	var before, after corev1.Pod
	for _, p := range []struct {
		data []byte
		into *corev1.Pod
	}{{r.Pod, &before}, {again.Pod, &after}} {
		if err := json.Unmarshal(p.data, p.into); err != nil {
			t.Fatal(err)
		}
		for n, c := range p.into.Spec.InitContainers {
			if c.Name == settings.ContainerName {
				p.into.Spec.InitContainers[n].Resources = corev1.ResourceRequirements{}
			}
		}
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("more than our container's resources changed (-before +after):\n%s", diff)
	}
}

// checkInjected checks what holds for every injected pod.
func checkInjected(t *testing.T, i *inject.Injector, r inject.Request, d inject.Decision) {
	t.Helper()
	after := apply(t, r.Pod, d.Patch)

	again := r
	again.Pod = after
	if second := i.Decide(again); second.Action != inject.ActionKeep || second.Reason != inject.AlreadyInjected || second.Patch != nil || second.Warnings != nil {
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
	seen := map[inject.Reason]bool{}
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
		"none/minimal": inject.BestEffort, "sidecar/minimal": inject.BestEffort,
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
	c.Agent["deadline"], c.Agent["metrics-port"] = "5m", "9100" // each for one mode
	wantArgs := map[settings.Mode][]string{
		settings.Init:    {"init", "--deadline=5m", "--vpc-cni-subnets=subnet-0a1b2c3d4e5f60718"},
		settings.Sidecar: {"sidecar", "--vpc-cni-subnets=subnet-0a1b2c3d4e5f60718", "--metrics-port=9100"},
	}
	for n := range 2 * len(inject.Classes()) {
		mode, class := settings.Modes()[n%2], inject.Classes()[n/2]
		data, err := c.Container(mode, class)
		if err != nil {
			t.Fatal(err)
		}
		d := json.NewDecoder(strings.NewReader(string(data)))
		d.DisallowUnknownFields()
		var container corev1.Container
		if err := d.Decode(&container); err != nil {
			t.Errorf("%s: %v", class, err)
		}
		if want := wantArgs[mode]; !slices.Equal(container.Args, want) {
			t.Errorf("args %q, want %q", container.Args, want)
		}
		if container.LivenessProbe != nil || container.ReadinessProbe != nil || container.Lifecycle != nil {
			t.Errorf("%s: probes or hooks that may stop the container: %s", mode, data)
		}
		sidecar := container.RestartPolicy != nil && *container.RestartPolicy == corev1.ContainerRestartPolicyAlways
		if sidecar != (mode == settings.Sidecar) || sidecar != (container.StartupProbe != nil) {
			t.Errorf("%s: restartPolicy and startup probe: %s", mode, data)
		}
		if p := container.StartupProbe; p != nil {
			want := &corev1.Probe{
				ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/agent", "ready"}}},
				PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: 2147483647,
			}
			if diff := cmp.Diff(want, p); diff != "" {
				t.Errorf("startup probe (-want +got):\n%s", diff)
			}
		}
		if len(container.Env) != len(settings.Env())+1 {
			t.Errorf("%d variables", len(container.Env))
		}
		if container.TerminationMessagePath != "/dev/termination-log" || container.TerminationMessagePolicy != corev1.TerminationMessageReadFile {
			t.Errorf("termination message: %s, %s", container.TerminationMessagePath, container.TerminationMessagePolicy)
		}
	}
}
