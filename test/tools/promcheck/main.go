// Command promcheck reads a request in JSON from its standard input and answers in JSON: it checks a file of Prometheus rules,
// takes PromQL expressions apart, and tells which alerts fire on given series. Prometheus's own libraries do all of that; this
// program is a module of its own so that they stay out of the product's.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

// request is what is asked; what is left out is not done.
type request struct {
	// Rules is the content of a rules file.
	Rules string `json:"rules"`
	// Expressions are to be taken apart.
	Expressions []string `json:"expressions"`
	// Cases are series on which the alerts of Rules are evaluated.
	Cases []testCase `json:"cases"`
}

// answer has one element for each element of the request, in the same order.
type answer struct {
	// Errors tell what is wrong with the rules.
	Errors      []string     `json:"errors"`
	Alerts      []alert      `json:"alerts"`
	Expressions []expression `json:"expressions"`
	Cases       []outcome    `json:"cases"`
}

// alert is one alerting rule as Prometheus understands it; For is in seconds.
type alert struct {
	Group       string            `json:"group"`
	Name        string            `json:"name"`
	Expression  string            `json:"expression"`
	For         float64           `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func main() {
	if err := run(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "promcheck:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, in io.Reader, out io.Writer) error {
	var req request
	decoder := json.NewDecoder(in)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&req); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	p := parser.NewParser(parser.Options{})
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var a answer
	groups, errs := rulefmt.Parse([]byte(req.Rules), false, model.LegacyValidation, p, log)
	for _, err := range errs {
		a.Errors = append(a.Errors, err.Error())
	}
	if groups == nil {
		groups = &rulefmt.RuleGroups{}
	}
	rules := map[string]rulefmt.Rule{}
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			switch {
			case r.Alert == "" || r.KeepFiringFor != 0:
				a.Errors = append(a.Errors, fmt.Sprintf("group %s: only alerts without keep_firing_for are known here: %s%s", g.Name, r.Record, r.Alert))
				continue
			case rules[r.Alert].Alert != "":
				a.Errors = append(a.Errors, "two alerts are called "+r.Alert)
			}
			rules[r.Alert] = r
			a.Alerts = append(a.Alerts, alert{g.Name, r.Alert, r.Expr, float64(r.For) / 1e9, r.Labels, r.Annotations})
		}
	}
	for _, text := range req.Expressions {
		a.Expressions = append(a.Expressions, takeApart(p, text))
	}
	if len(a.Errors) == 0 {
		for _, c := range req.Cases {
			a.Cases = append(a.Cases, c.run(ctx, p, rules))
		}
	}
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(a)
}
