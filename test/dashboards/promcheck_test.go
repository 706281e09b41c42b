package dashboards

import (
	"strings"
	"testing"
)

// A check that finds nothing wrong must be one that would.
func TestPromcheckFindsFaults(t *testing.T) {
	rule := func(lines ...string) string {
		return "groups:\n- name: g\n  rules:\n  - alert: A\n    " + strings.Join(lines, "\n    ") + "\n"
	}
	for name, tt := range map[string]struct{ rules, want string }{
		"an expression that is none":    {rule("expr: sum by (pod"), "parse error"},
		"an unknown function":           {rule("expr: summe(up)"), "unknown function"},
		"a misspelt field":              {rule("expr: up", "anotations: {}"), "anotations"},
		"a template that is none":       {rule("expr: up", "annotations: {summary: '{{ $labels.pod'}"), "unclosed action"},
		"an unknown function in a text": {rule("expr: up", "annotations: {summary: '{{ $value | humanise }}'}"), "humanise"},
		"an alert twice":                {rule("expr: up") + "  - alert: A\n    expr: down\n", "two alerts"},
		"a duration that is none":       {rule("expr: up", "for: soon"), "duration"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(promcheck(t, request{Rules: tt.rules}).Errors, "\n"); !strings.Contains(got, tt.want) {
				t.Errorf("told %q, want %q", got, tt.want)
			}
		})
	}
}

// Alerts fire as in Prometheus: once the result has been there for the time of the rule, without a gap.
func TestPromcheckEvaluates(t *testing.T) {
	const rules = "groups:\n- name: g\n  rules:\n  - alert: A\n    expr: x > 0\n    for: 5m\n    annotations: {summary: 'pod {{ $labels.pod }}'}\n"
	series := func(values string) map[string]string { return map[string]string{`x{pod="p"}`: values} }
	cases := []testCase{
		{"A", series("0x2 1x20"), 7}, {"A", series("0x2 1x20"), 8}, {"A", series("1x4 0 1x20"), 10}, {"A", series("1x4 0 1x20"), 11},
		{"A", series("1x2 stale _x10"), 6}, {"A", map[string]string{"x": "1x20"}, 10}, {"B", series("1"), 0},
	}
	for i, o := range promcheck(t, request{Rules: rules, Cases: cases}).Cases {
		// It is there from minute 3 on, then from minute 6 on after a gap.
		if fires, want := len(o.Firing) == 1, i == 1 || i == 3; i < 5 && fires != want {
			t.Errorf("case %d fires: %v, want %v", i, fires, want)
		}
		if i == 5 && !strings.Contains(o.Error, "pod") {
			t.Errorf("a label that is not there: %+v", o)
		}
		if i == 6 && !strings.Contains(o.Error, "no alert B") {
			t.Errorf("an alert that is not there: %+v", o)
		}
	}
}
