package dashboards

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
)

// targetLabels are those that Prometheus adds to what it scrapes.
const targetLabels = " namespace pod instance job container service "

// elsewhere are the metrics of others that no test here can gather, with their labels: kube-state-metrics documents them.
func elsewhere() map[string][]string {
	return map[string][]string{"kube_pod_init_container_status_restarts_total": {"container", "namespace", "pod", "uid"}}
}

// unshown are metrics of ours that neither a dashboard nor an alert shows, and why.
func unshown() map[string]string { return map[string]string{} }

const (
	ours    = "multus_ip_manager_"
	counter = "counter"
)

// known is one metric as selectors name it: a histogram has three.
type known struct {
	counts bool // it only grows
	labels map[string]map[string]bool
}

// index makes the names that selectors use of families.
func (f families) index() map[string]known {
	all := map[string]known{}
	for name, family := range f {
		k := known{family.GetType() == dto.MetricType_COUNTER, map[string]map[string]bool{}}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if k.labels[l.GetName()] == nil {
					k.labels[l.GetName()] = map[string]bool{}
				}
				k.labels[l.GetName()][l.GetValue()] = true
			}
		}
		if family.GetType() != dto.MetricType_HISTOGRAM {
			all[name] = k
			continue
		}
		k.counts = true
		all[name+"_sum"], all[name+"_count"] = k, k
		all[name+"_bucket"] = known{true, maps.Clone(k.labels)}
		all[name+"_bucket"].labels["le"] = nil
	}
	for name, labels := range elsewhere() {
		k := known{true, map[string]map[string]bool{}}
		for _, l := range labels {
			k.labels[l] = nil
		}
		all[name] = k
	}
	return all
}

// queried finds what the text of an alert asks Prometheus for.
var queried = regexp.MustCompile(`printf "([^"]+)"[^}]*\| query`)

// Whatever an alert or a panel asks for is there: the metric, its labels, the values that are asked for. And whatever we tell is
// shown somewhere.
func TestReferences(t *testing.T) {
	rules := promcheck(t, request{Rules: string(read(t, folder+"alerts.yaml"))})
	var all []asked
	for _, a := range rules.Alerts {
		all = append(all, asked{"alert " + a.Name, a.Expression})
		for name, text := range a.Annotations {
			for _, m := range queried.FindAllStringSubmatch(text, -1) {
				all = append(all, asked{"alert " + a.Name + ", " + name, strings.ReplaceAll(m[1], "%q", `"x"`)})
			}
		}
	}
	for _, name := range names() {
		all = append(all, load(t, name).expressions(t)...)
	}
	texts := make([]string, len(all))
	for i, a := range all {
		texts[i] = a.text
	}
	gathered := exposed(t)
	index := gathered.index()
	used := map[string]bool{}
	for i, e := range promcheck(t, request{Expressions: texts}).Expressions {
		where := all[i].where
		if e.Error != "" {
			t.Errorf("%s: %s in %s", where, e.Error, all[i].text)
		}
		for _, s := range e.Selectors {
			used[s.Metric] = true
			k, there := index[s.Metric]
			if !there {
				t.Errorf("%s: nobody tells %s", where, s.Metric)
				continue
			}
			s.check(t, where, k)
		}
		for _, g := range e.Groupings {
			for _, label := range g.Labels {
				if !slices.ContainsFunc(g.Selectors, func(n int) bool { return index[e.Selectors[n].Metric].has(label) }) {
					t.Errorf("%s: nothing has the label %s in %s", where, label, all[i].text)
				}
			}
		}
	}
	for name := range gathered {
		shown := used[name] || used[name+"_bucket"] || used[name+"_count"] || used[name+"_sum"]
		_, excused := unshown()[name]
		if strings.HasPrefix(name, ours) && shown == excused {
			t.Errorf("%s: shown %v, listed as not shown %v", name, shown, excused)
		}
	}
}

func (k known) has(label string) bool {
	_, own := k.labels[label]
	return own || strings.Contains(targetLabels, " "+label+" ")
}

// growing are the functions that make sense of what only grows, and of nothing else.
var growing = []string{"rate", "increase", "irate"}

func (s selector) check(t *testing.T, where string, k known) {
	t.Helper()
	for label, value := range s.Labels {
		switch {
		case !k.has(label):
			t.Errorf("%s: %s has no label %s", where, s.Metric, label)
		case strings.HasPrefix(s.Metric, ours) && k.labels[label] != nil && value != "" && !k.labels[label][value]:
			t.Errorf("%s: %s never has %s=%q", where, s.Metric, label, value)
		}
	}
	if s.Metric == "" || slices.Contains(growing, s.Function) != k.counts {
		t.Errorf("%s: %s of %q; it only grows: %v", where, s.Function, s.Metric, k.counts)
	}
}
