package main

import (
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// expression is what an expression refers to.
type expression struct {
	// Error is set where the expression cannot be parsed.
	Error string `json:"error,omitempty"`
	// Selectors are its series selectors, in the order of the text.
	Selectors []selector `json:"selectors"`
	// Groupings are the labels by which it aggregates and matches, each with the selectors below it.
	Groupings []grouping `json:"groupings"`
}

// selector chooses series of one metric.
type selector struct {
	// Metric is the name, with the suffix of a histogram's parts.
	Metric string `json:"metric"`
	// Labels are the names and, for plain equality, the values that are asked for.
	Labels map[string]string `json:"labels"`
	// Function is the innermost function around it, empty for none.
	Function string `json:"function"`
	// Range tells a range vector from an instant one.
	Range bool `json:"range"`
}

// grouping is an aggregation or a matching by labels.
type grouping struct {
	Labels []string `json:"labels"`
	// Selectors are indexes of those below it.
	Selectors []int `json:"selectors"`
}

func takeApart(p parser.Parser, text string) expression {
	root, err := p.ParseExpr(text)
	if err != nil {
		return expression{Error: err.Error()}
	}
	var e expression
	above := map[parser.Node]int{} // index of a node's grouping
	// Nodes are visited from the outside in, so those above a selector are known when it is met.
	parser.Inspect(root, func(node parser.Node, path []parser.Node) error {
		switch n := node.(type) {
		case *parser.AggregateExpr:
			if !n.Without && len(n.Grouping) > 0 {
				above[n] = len(e.Groupings)
				e.Groupings = append(e.Groupings, grouping{Labels: n.Grouping})
			}
		case *parser.BinaryExpr:
			if m := n.VectorMatching; m != nil && m.On && len(m.MatchingLabels)+len(m.Include) > 0 {
				above[n] = len(e.Groupings)
				e.Groupings = append(e.Groupings, grouping{Labels: slices.Concat(m.MatchingLabels, m.Include)})
			}
		case *parser.VectorSelector:
			for _, outer := range path {
				if g, ok := above[outer]; ok {
					e.Groupings[g].Selectors = append(e.Groupings[g].Selectors, len(e.Selectors))
				}
			}
			e.Selectors = append(e.Selectors, newSelector(n, path))
		}
		return nil
	})
	return e
}

func newSelector(n *parser.VectorSelector, path []parser.Node) selector {
	s := selector{Metric: n.Name, Labels: map[string]string{}}
	for _, m := range n.LabelMatchers {
		switch {
		case m.Name == model.MetricNameLabel:
			s.Metric = m.Value
		case m.Type == labels.MatchEqual:
			s.Labels[m.Name] = m.Value
		default:
			s.Labels[m.Name] = ""
		}
	}
	for _, outer := range slices.Backward(path) {
		switch o := outer.(type) {
		case *parser.MatrixSelector:
			s.Range = true
		case *parser.Call:
			s.Function = o.Func.Name
			return s
		}
	}
	return s
}
