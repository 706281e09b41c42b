package dashboards

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write prometheusrule.yaml anew")

// example is one situation of testdata/alerts.yaml: series, and what the alert says about them.
type example struct {
	Alert string `json:"alert"`
	// Doc says what happens.
	Doc string `json:"doc"`
	// Series are samples, one a minute, in Prometheus's notation.
	Series map[string]string `json:"series"`
	// At is the minute that is looked at.
	At int `json:"at"`
	// Fires are the summaries of the alerts that fire then; none: the situation is healthy, or too short.
	Fires []string `json:"fires"`
}

func TestAlerts(t *testing.T) {
	var examples []example
	if err := yaml.UnmarshalStrict(read(t, "testdata/alerts.yaml"), &examples); err != nil {
		t.Fatal(err)
	}
	req := request{Rules: string(read(t, folder+"alerts.yaml"))}
	for _, e := range examples {
		req.Cases = append(req.Cases, testCase{e.Alert, e.Series, e.At})
	}
	a := promcheck(t, req)
	if len(a.Errors) > 0 || len(a.Alerts) == 0 {
		t.Fatalf("%d alerts: %q", len(a.Alerts), a.Errors)
	}
	fires, quiet := map[string]bool{}, map[string]bool{}
	for i, e := range examples {
		if len(e.Fires) > 0 {
			fires[e.Alert] = true
		} else {
			quiet[e.Alert] = true
		}
		t.Run(e.Alert+"/"+e.Doc, func(t *testing.T) { compare(t, e, a.Cases[i]) })
	}
	for _, alert := range a.Alerts {
		if !fires[alert.Name] || !quiet[alert.Name] {
			t.Errorf("%s: an example that fires: %v, one that does not: %v", alert.Name, fires[alert.Name], quiet[alert.Name])
		}
		alert.check(t)
	}
}

func compare(t *testing.T, e example, got outcome) {
	t.Helper()
	if got.Error != "" || len(got.Warnings) > 0 {
		t.Fatalf("%s %q", got.Error, got.Warnings)
	}
	var summaries []string
	for _, f := range got.Firing {
		summaries = append(summaries, f.Annotations["summary"])
		for _, text := range f.Annotations {
			if strings.Contains(text, "<no value>") || strings.Contains(text, "{{") {
				t.Errorf("annotation %q", text)
			}
		}
	}
	slices.Sort(summaries)
	if d := cmp.Diff(e.Fires, summaries); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

var sentence = regexp.MustCompile(`^[^a-z].*[.?a-z]$`)

// check looks at what people get to read.
func (a alert) check(t *testing.T) {
	t.Helper()
	if !strings.HasPrefix(a.Name, "MultusIPManager") {
		t.Errorf("%s: a name that could be anybody's", a.Name)
	}
	if got := a.Labels["severity"]; got != "critical" && got != "warning" || len(a.Labels) != 1 {
		t.Errorf("%s: labels %v", a.Name, a.Labels)
	}
	if d := cmp.Diff([]string{"description", "summary"}, slices.Sorted(maps.Keys(a.Annotations))); d != "" {
		t.Errorf("%s: %s", a.Name, d)
	}
	for name, text := range a.Annotations {
		if !sentence.MatchString(strings.ReplaceAll(strings.TrimPrefix(text, "{{"), "\n", " ")) {
			t.Errorf("%s: the %s is no sentence: %q", a.Name, name, text)
		}
	}
}

// The Prometheus operator needs the alerts in another form.
func TestPrometheusRule(t *testing.T) {
	const path = folder + "prometheusrule.yaml"
	want := prometheusRule(read(t, folder+"alerts.yaml"))
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil { //nolint:gosec // a file of the repository
			t.Fatal(err)
		}
	}
	if got := read(t, path); !bytes.Equal(got, want) {
		t.Errorf("%s is not what it is made of; `make golden` writes it anew", path)
	}
}

// There is one of each file, and it lies in the chart: Helm warns of links there, and a package of the chart would hold copies.
func TestFilesAreTheCharts(t *testing.T) {
	const files = "../chart/files/"
	for _, name := range []string{"alerts.yaml", "webhook.json", "agents.json"} {
		if to, err := os.Readlink(folder + name); err != nil || to != files+name {
			t.Errorf("%s is a link to %q: %v", name, to, err)
		}
		if info, err := os.Lstat(folder + files + name); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s in the chart is no file: %v", name, err)
		}
	}
}

// prometheusRule is the rules file as an object of the Prometheus operator.
func prometheusRule(rules []byte) []byte {
	var out bytes.Buffer
	out.WriteString(`# alerts.yaml for the Prometheus operator: kubectl apply -f prometheusrule.yaml, with the labels and in the namespace that your
# Prometheus selects rules by. Made by go test ./test/dashboards -update.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: multus-ip-manager
  labels:
    app.kubernetes.io/name: multus-ip-manager
spec:
`)
	for line := range strings.Lines(string(rules)) {
		if strings.HasPrefix(line, "#") {
			continue // speaks of the files
		}
		if strings.TrimSpace(line) != "" {
			line = "  " + line
		}
		fmt.Fprint(&out, line)
	}
	return out.Bytes()
}
