package dashboards

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	"multus-ip-manager.io/test/tools"
)

// These are promcheck's request and answer; its source has their documentation.
type (
	request struct {
		Rules       string     `json:"rules,omitempty"`
		Expressions []string   `json:"expressions,omitempty"`
		Cases       []testCase `json:"cases,omitempty"`
	}
	testCase struct {
		Alert  string            `json:"alert"`
		Series map[string]string `json:"series"`
		At     int               `json:"at"`
	}
	answer struct {
		Errors      []string     `json:"errors"`
		Alerts      []alert      `json:"alerts"`
		Expressions []expression `json:"expressions"`
		Cases       []outcome    `json:"cases"`
	}
	alert struct {
		Group, Name, Expression string
		For                     float64
		Labels, Annotations     map[string]string
	}
	expression struct {
		Error     string
		Selectors []selector
		Groupings []struct {
			Labels    []string
			Selectors []int
		}
	}
	selector struct {
		Metric   string
		Labels   map[string]string
		Function string
		Range    bool
	}
	outcome struct {
		Error    string
		Warnings []string
		Firing   []struct{ Labels, Annotations map[string]string }
	}
)

// promcheck asks Prometheus's libraries.
func promcheck(t *testing.T, req request) answer {
	t.Helper()
	program, err := tools.Build(t.Context(), "promcheck", os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	in, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program) //nolint:gosec // a program that was built here
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var a answer
	decode(t, out, &a)
	return a
}

// folder is what is tested.
const folder = "../../manifests/dashboards/"

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
