package offline_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/admission/cases"
	"multus-ip-manager.io/webhook/inject"
	"multus-ip-manager.io/webhook/offline"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func options(t testing.TB) offline.Options {
	t.Helper()
	i, err := inject.New(cases.Config())
	if err != nil {
		t.Fatal(err)
	}
	return offline.Options{Injector: i, Namespace: "default"}
}

// run injects into one text.
func run(t testing.TB, o offline.Options, text string) (string, []offline.Report) {
	t.Helper()
	result, err := offline.Run(o, []offline.Input{{Name: "in", Data: []byte(text)}})
	if err != nil {
		t.Fatal(err)
	}
	return string(result.Outputs[0]), result.Reports
}

// Every case of the table: the same decision as the server's, and the same pod; a second time nothing changes.
func TestCases(t *testing.T) {
	all, err := cases.All()
	if err != nil || len(all) == 0 {
		t.Fatal("no cases:", err)
	}
	for _, c := range all {
		if c.Operation != "CREATE" {
			continue // a manifest has no operation
		}
		t.Run(c.Name, func(t *testing.T) {
			o := options(t)
			o.ModeLabel, _ = c.ModeLabel()
			got, reports := run(t, o, string(c.YAML))
			if c.Resource != "pods" {
				if len(reports) != 0 || got != string(c.YAML) {
					t.Errorf("%d reports about something else than a pod", len(reports))
				}
				return
			}
			if len(reports) != 1 {
				t.Fatalf("%d reports", len(reports))
			}
			d := reports[0].Decision
			if _, golden, err := c.Golden(d); err != nil || !sameYAML(t, golden, marshal(t, c.Want)) {
				t.Errorf("%v\n%s", err, golden)
			}
			if d.Patch == nil {
				if got != string(c.YAML) {
					t.Error("changed without injection")
				}
				return
			}
			if reports[0].Rewritten {
				t.Error("comments lost")
			}
			patch, err := jsonpatch.DecodePatch(d.Patch)
			if err != nil {
				t.Fatal(err)
			}
			want, err := patch.Apply(c.Object)
			if err != nil {
				t.Fatal(err)
			}
			if !sameYAML(t, []byte(got), want) {
				t.Errorf("another pod than the server's:\n%s", got)
			}
			again, reports := run(t, o, got)
			if again != got || reports[0].Decision.Reason != inject.AlreadyInjected {
				t.Errorf("changed a second time: %+v", reports)
			}
		})
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func sameYAML(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y any
	if err := yaml.UnmarshalStrict(a, &x); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &y); err != nil {
		t.Fatal(err)
	}
	return cmp.Equal(x, y)
}

// The texts that people write, before and after: what is not ours stays as it is.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.in")
	if err != nil || len(files) == 0 {
		t.Fatal("no files:", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got, reports := run(t, options(t), string(data))
			for _, r := range reports {
				got += fmt.Sprintf("# %s: %s (%s) %s rewritten=%t\n", r.Object, r.Decision.Action, r.Decision.Reason, r.Decision.Mode, r.Rewritten)
			}
			golden := strings.TrimSuffix(file, ".in") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatalf("%v (run with -update to write it)", err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", golden, diff)
			}
		})
	}
}

// Lines end as those of the input do, in whatever way it is edited.
func TestLineEndings(t *testing.T) {
	files, err := filepath.Glob("testdata/*.in")
	if err != nil || len(files) == 0 {
		t.Fatal("no files:", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(data), "\r\n", "\n")
		want, _ := run(t, options(t), text)
		got, _ := run(t, options(t), strings.ReplaceAll(text, "\n", "\r\n"))
		if diff := cmp.Diff(strings.ReplaceAll(want, "\n", "\r\n"), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
}

// What kubectl reads is read, with the same result.
func TestMergeKeys(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  annotations:\n    k8s.v1.cni.cncf.io/networks: n3\nspec:\n  containers:\n"
	for name, tt := range map[string]struct{ containers, fails string }{
		"an override":         {"  - &c\n    name: a\n    image: x\n  - <<: *c\n    name: b\n", ""},
		"an override before":  {"  - &c\n    name: a\n    image: x\n  - name: b\n    <<: *c\n", ""},
		"and a key twice":     {"  - &c\n    name: a\n    image: x\n  - <<: *c\n    name: b\n    name: d\n", `"name" already set`},
		"elsewhere, and here": {"  - &c\n    name: a\n    name: b\n  - <<: *c\n    image: x\n", `"name" already set`},
	} {
		t.Run(name, func(t *testing.T) {
			text := pod + tt.containers
			result, err := offline.Run(options(t), []offline.Input{{Name: "in", Data: []byte(text)}})
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) {
					t.Errorf("got %v, want %q", err, tt.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var want, got struct{ Spec struct{ Containers []any } }
			if err := yaml.Unmarshal([]byte(text), &want); err != nil { // as kubectl does
				t.Fatal(err)
			}
			if err := yaml.Unmarshal(result.Outputs[0], &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" || result.Reports[0].Decision.Reason != inject.Injected {
				t.Errorf("%s (-kubectl +got)\n%s", result.Reports[0].Decision.Reason, diff)
			}
		})
	}
}

// Each kind that makes pods, with the path of its pod; and others that look like it.
func TestKinds(t *testing.T) {
	const pod = `{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/networks":"n3"}},"spec":{"containers":[{"name":"app"}]}}`
	for name, tt := range map[string]struct {
		apiVersion, kind, body string
		want                   bool
	}{
		"pod":                    {"v1", "Pod", `"spec":{"containers":[{"name":"app"}]}`, false}, // without the annotation
		"pod template":           {"v1", "PodTemplate", `"template":` + pod, true},
		"replication controller": {"v1", "ReplicationController", `"spec":{"template":` + pod + `}`, true},
		"deployment":             {"apps/v1", "Deployment", `"spec":{"template":` + pod + `}`, true},
		"old deployment":         {"extensions/v1beta1", "Deployment", `"spec":{"template":` + pod + `}`, true},
		"replica set":            {"apps/v1", "ReplicaSet", `"spec":{"template":` + pod + `}`, true},
		"stateful set":           {"apps/v1", "StatefulSet", `"spec":{"template":` + pod + `}`, true},
		"daemon set":             {"apps/v1", "DaemonSet", `"spec":{"template":` + pod + `}`, true},
		"job":                    {"batch/v1", "Job", `"spec":{"template":` + pod + `}`, true},
		"cron job":               {"batch/v1", "CronJob", `"spec":{"jobTemplate":{"spec":{"template":` + pod + `}}}`, true},
		"another group's job":    {"batch.volcano.sh/v1alpha1", "Job", `"spec":{"template":` + pod + `}`, false},
		"no template":            {"v1", "ReplicationController", `"spec":{}`, false},
		"a template of null":     {"apps/v1", "Deployment", `"spec":{"template":null}`, false},
		"no spec":                {"apps/v1", "Deployment", `"a":1`, false},
		"a service":              {"v1", "Service", `"spec":{"template":` + pod + `}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			text := fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":"x"},%s}`, tt.apiVersion, tt.kind, tt.body)
			for form, text := range map[string]string{
				"object":       text,
				"list":         `{"apiVersion":"v1","kind":"List","items":[{"a":1},` + text + `]}`,
				"list in list": `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"List","items":[` + text + `]}]}`,
				"list of a kind": fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"items":[{"metadata":{"name":"x"},%s}]}`,
					tt.apiVersion, tt.kind+"List", tt.body),
				"YAML": toYAML(t, text),
			} {
				got, reports := run(t, options(t), text)
				if injected := strings.Contains(got, "ip-manager"); injected != tt.want && name != "pod" || injected != (got != text) {
					t.Errorf("%s: injected %v\n%s", form, injected, got)
				}
				if tt.want && (len(reports) != 1 || reports[0].Object != tt.kind+" default/x") {
					t.Errorf("%s: %+v", form, reports)
				}
			}
		})
	}
}

func toYAML(t *testing.T, text string) string {
	t.Helper()
	data, err := yaml.JSONToYAML([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// The namespace decides as it does in a cluster, where the input tells of it.
func TestNamespaces(t *testing.T) {
	const pod = `---
apiVersion: v1
kind: Pod
metadata:
  name: upf
  namespace: %s
  annotations:
    k8s.v1.cni.cncf.io/networks: n3
spec:
  containers:
  - name: app
`
	namespace := func(labels string) string {
		return "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: telco\n  labels: {" + labels + "}\n"
	}
	const enabled = settings.LabelInject + ": enabled"
	for name, tt := range map[string]struct {
		text, label string
		reason      inject.Reason
		mode        settings.Mode
	}{
		"not in the input":            {fmt.Sprintf(pod, "telco"), "", inject.Injected, settings.Init},
		"not in the input, labelled":  {fmt.Sprintf(pod, "telco"), "sidecar", inject.Injected, settings.Sidecar},
		"with an unknown label":       {fmt.Sprintf(pod, "telco"), "daemon", inject.UnknownMode, ""},
		"in the input, before":        {namespace(enabled+", "+settings.KeyMode+": sidecar") + fmt.Sprintf(pod, "telco"), "", inject.Injected, settings.Sidecar},
		"in the input, after":         {fmt.Sprintf(pod, "telco") + namespace(enabled+", "+settings.KeyMode+": sidecar"), "", inject.Injected, settings.Sidecar},
		"in the input, without label": {namespace(enabled) + fmt.Sprintf(pod, "telco"), "sidecar", inject.Injected, settings.Init},
		"in the input, empty label":   {namespace(enabled+", "+settings.KeyMode+`: ""`) + fmt.Sprintf(pod, "telco"), "", inject.UnknownMode, ""},
		"in the input, not opted in":  {namespace("a: b") + fmt.Sprintf(pod, "telco"), "", offline.NotAsked, ""},
		"another in the input":        {namespace("a: b") + fmt.Sprintf(pod, "other"), "", inject.Injected, settings.Init},
		"kube-system":                 {fmt.Sprintf(pod, "kube-system"), "", offline.NotAsked, ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			o.ModeLabel = tt.label
			got, reports := run(t, o, tt.text)
			d := reports[0].Decision
			if d.Reason != tt.reason || d.Mode != tt.mode || d.Message == "" {
				t.Errorf("%+v", d)
			}
			if (got != tt.text) != (tt.reason == inject.Injected) {
				t.Errorf("changed: %v", got != tt.text)
			}
		})
	}
}

func TestErrorsNameFileAndLine(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"not YAML":              {"a: b\n---\na: [\n", "in: line 2: not YAML"},
		"a template":            {"a: {{ .Values.a }}\n", "Render it first"},
		"a key twice":           {"apiVersion: v1\nkind: Pod\nkind: Pod\n", `"kind" already set`},
		"a list without a list": {"apiVersion: v1\nkind: List\nitems: 7\n", "List"},
		"labels of a namespace": {"a: b\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  labels: [x]\n", "in: line 2: Namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := offline.Run(options(t), []offline.Input{{Name: "in", Data: []byte(tt.text)}})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// What is none of our business comes out as it went in, whatever it is.
func TestUntouched(t *testing.T) {
	for _, text := range []string{
		"", "\n", "# nothing\n", "---\n", "---\n---\n...\n", "a: b", "- a\n- b\n", "just text\n", "%YAML 1.1\n---\na: b\n",
		"apiVersion: v1\nkind: ConfigMap\ndata:\n  file: |\n    a\n    ---\n    b\n", `{"a":1}` + "\n" + `{"b":2}`, "[1]\n", "null\n",
		"kind: 7\nitems: x\n", "metadata: 7\nkind: Kustomization\n", "a: b\r\n---\r\nc: d\r\n",
	} {
		got, reports := run(t, options(t), text)
		if got != text || len(reports) != 0 {
			t.Errorf("%q became %q, %+v", text, got, reports)
		}
	}
}

func TestSeveralInputs(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  annotations:\n    k8s.v1.cni.cncf.io/networks: n3\nspec:\n  containers:\n  - name: app\n"
	result, err := offline.Run(options(t), []offline.Input{{Name: "one", Data: []byte("a: b\n")}, {Name: "two", Data: []byte(pod)}})
	if err != nil {
		t.Fatal(err)
	}
	if string(result.Outputs[0]) != "a: b\n" || !strings.Contains(string(result.Outputs[1]), "ip-manager") || result.Reports[0].Input != "two" {
		t.Errorf("%s\n%+v", result.Outputs, result.Reports)
	}
}

func TestDiff(t *testing.T) {
	for name, tt := range map[string]struct{ before, after, want string }{
		"the same":       {"a\n", "a\n", ""},
		"a line more":    {"a\nb\n", "a\nx\nb\n", "--- f\n+++ f\n@@ -1,2 +1,3 @@\n a\n+x\n b\n"},
		"no end of line": {"a", "a\nb", "--- f\n+++ f\n@@ -1 +1,2 @@\n a\n+b\n"},
	} {
		if got, err := offline.Diff("f", []byte(tt.before), []byte(tt.after)); err != nil || got != tt.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// FuzzRun feeds any text: what comes out either is what went in, or holds the same and the injection, and a second time
// does not change.
func FuzzRun(f *testing.F) {
	files, err := filepath.Glob("testdata/*.in")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	o := options(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		first, err := offline.Run(o, []offline.Input{{Name: "in", Data: data}})
		if err != nil {
			return
		}
		second, err := offline.Run(o, []offline.Input{{Name: "in", Data: first.Outputs[0]}})
		if err != nil {
			t.Fatalf("%v\n%s", err, first.Outputs[0])
		}
		if string(second.Outputs[0]) != string(first.Outputs[0]) || len(second.Reports) != len(first.Reports) {
			t.Fatalf("changed a second time:\n%s", second.Outputs[0])
		}
		for i, r := range second.Reports {
			if was := first.Reports[i].Decision; was.Action == inject.ActionInject && r.Decision.Reason != inject.AlreadyInjected {
				t.Fatalf("%s: %s, then %s", r.Object, was.Reason, r.Decision.Reason)
			}
		}
	})
}
