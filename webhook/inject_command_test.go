package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/test/admission/cases"
	"multus-ip-manager.io/webhook/inject"
)

// command runs one command line.
func command(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, told bytes.Buffer
	err = execute(t.Context(), args, strings.NewReader(stdin), &out, &told, func(string) string { return "" })
	return out.String(), told.String(), err
}

// configFile is the configuration of the cases as the server reads it.
func configFile(t *testing.T) string {
	t.Helper()
	data, err := json.Marshal(cases.Config())
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "config.json", string(data))
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Every case of the table by the command line: the decision, the texts and the pod are the server's.
func TestInjectCases(t *testing.T) {
	all, err := cases.All()
	if err != nil || len(all) == 0 {
		t.Fatal("no cases:", err)
	}
	config := configFile(t)
	for _, c := range all {
		if c.Operation != "CREATE" {
			continue // a manifest has no operation
		}
		t.Run(c.Name, func(t *testing.T) {
			label, _ := c.ModeLabel()
			args := []string{"inject", "-f", write(t, "pod.yaml", string(c.YAML)), "--config", config, "--namespace-mode", label}
			out, told, err := command(t, "", args...)
			if (err != nil) != (c.Want.Action == inject.ActionDeny) {
				t.Fatal(err)
			}
			if err != nil && out != "" {
				t.Errorf("something was printed: %.200s", out)
			}
			if err == nil && (out == string(c.YAML)) != (len(c.Want.Patch) == 0) {
				t.Errorf("changed: %v", out != string(c.YAML))
			}
			if c.Resource != "pods" {
				if told != "" {
					t.Errorf("told %q", told)
				}
				return
			}
			for _, want := range append([]string{": " + string(c.Want.Action) + " (" + string(c.Want.Reason), c.Want.Message}, c.Want.Warnings...) {
				if !strings.Contains(told, want) {
					t.Errorf("%q lacks %q", told, want)
				}
			}
			if c.Want.Action != inject.ActionInject {
				return
			}
			again, told, err := command(t, out, "inject", "-f", "-", "--config", config, "--namespace-mode", label)
			if err != nil || again != out || !strings.Contains(told, string(inject.AlreadyInjected)) {
				t.Errorf("a second time: %v %s", err, told)
			}
		})
	}
}

const twoPods = `apiVersion: v1
kind: Pod
metadata:
  name: good
  annotations:
    k8s.v1.cni.cncf.io/networks: n3
spec:
  containers:
  - name: app
---
apiVersion: v1
kind: Pod
metadata:
  name: bad
  annotations:
    k8s.v1.cni.cncf.io/networks: n3
    multus-ip-manager.io/deadline: soon
spec:
  containers:
  - name: app
`

func TestInjectDenial(t *testing.T) {
	for _, output := range []string{"yaml", "diff", "explain"} {
		out, told, err := command(t, twoPods, "inject", "-f", "-", "-o", output)
		if err == nil || !strings.Contains(err.Error(), "1 of 2") {
			t.Errorf("%s: %v", output, err)
		}
		text := told
		if output == "explain" {
			text = out
		} else if out != "" {
			t.Errorf("%s: half of the input was printed:\n%s", output, out)
		}
		for _, want := range []string{"Pod default/good", "Pod default/bad", "deny", "invalid-setting", `multus-ip-manager.io/deadline="soon"`, "1s to 24h"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q lacks %q", output, text, want)
			}
		}
	}
}

func TestInjectOutputs(t *testing.T) {
	good, _, _ := strings.Cut(twoPods, "---\n")
	file := write(t, "good.yaml", good)
	other := write(t, "other.yaml", "a: b") // no end of line
	args := func(more ...string) []string {
		return append([]string{"inject", "-f", other, "-f", file, "--image", "example.com/agent:7", "--mode", "sidecar", "-n", "telco"}, more...)
	}

	out, told, err := command(t, "", args()...)
	if err != nil {
		t.Fatal(err)
	}
	if rest, ok := strings.CutPrefix(out, "a: b\n---\napiVersion: v1\nkind: Pod\n"); !ok || !strings.Contains(rest, "image: example.com/agent:7") {
		t.Errorf("printed\n%s", out)
	}
	if want := file + ": Pod telco/good: inject (injected, mode sidecar): the container ip-manager was added\n"; told != want {
		t.Errorf("told %q, want %q", told, want)
	}

	diff, _, err := command(t, "", args("-o", "diff")...)
	if err != nil || !strings.HasPrefix(diff, "--- "+file+"\n+++ "+file+"\n@@ ") || strings.Contains(diff, "\n-") {
		t.Errorf("%v\n%s", err, diff)
	}

	table, told, err := command(t, "", args("-o", "explain")...)
	if err != nil || told != "" {
		t.Error(err, told)
	}
	var got [][]string
	for line := range strings.Lines(table) {
		got = append(got, strings.Fields(line)[:5])
	}
	if d := cmp.Diff([][]string{{"INPUT", "OBJECT", "DECISION", "MODE", "REASON"}, {file, "Pod", "telco/good", "inject", "sidecar"}}, got); d != "" {
		t.Error(d)
	}
}

// The arguments that the chart gives to the server say the same to the command.
func TestInjectTakesTheFlagsOfServe(t *testing.T) {
	good, _, _ := strings.Cut(twoPods, "---\n")
	out, told, err := command(t, good, "inject", "-f", "-", "--default-mode=init", "--agent-image=i:1", "--agent-pull-policy=Always", "--agent-arg=deadline=10m", "--agent-env=A=yes")
	if err != nil || strings.Contains(told, "anew") {
		t.Fatal(err, told)
	}
	var pod struct {
		Spec struct {
			InitContainers []struct {
				Image, ImagePullPolicy string
				Args                   []string
				Env                    []struct{ Name, Value string }
			}
		}
	}
	if err := yaml.Unmarshal([]byte(out), &pod); err != nil || len(pod.Spec.InitContainers) != 1 {
		t.Fatal(err, out)
	}
	c := pod.Spec.InitContainers[0]
	if last := c.Env[len(c.Env)-1]; c.Image != "i:1" || c.ImagePullPolicy != "Always" || strings.Join(c.Args, " ") != "init --deadline=10m" || last.Value != "yes" {
		t.Errorf("%+v", c)
	}
}

func TestInjectErrors(t *testing.T) {
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"no file":         {nil, "-f FILE"},
		"no such file":    {[]string{"-f", dir + "/none"}, dir + "/none"},
		"a folder":        {[]string{"-f", dir}, dir},
		"unknown output":  {[]string{"-f", "-", "-o", "json"}, "allowed: yaml, diff, explain"},
		"unknown mode":    {[]string{"-f", "-", "--mode", "daemon"}, "--default-mode"},
		"mode not there":  {[]string{"-f", "-", "--mode", "node"}, "not available yet"},
		"an argument":     {[]string{"pod.yaml"}, "pod.yaml"},
		"a server's flag": {[]string{"-f", "-", "--port=1"}, "--port"},
		"no config":       {[]string{"-f", "-", "--config", dir + "/none"}, dir + "/none"},
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := command(t, "", append([]string{"inject"}, tt.args...)...)
			if err == nil || !strings.Contains(err.Error(), tt.want) || out != "" {
				t.Errorf("%v, printed %q; want %q", err, out, tt.want)
			}
		})
	}
	if _, _, err := command(t, "a: [\n", "inject", "-f", "-"); err == nil || !strings.Contains(err.Error(), "stdin: line 1") {
		t.Error(err)
	}
}
