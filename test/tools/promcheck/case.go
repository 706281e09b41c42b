package main

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/template"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// interval is how often series have a sample and alerts are evaluated.
const interval = time.Minute

// testCase is one alert over some series.
type testCase struct {
	// Alert is the alert's name.
	Alert string `json:"alert"`
	// Series are the samples by series, in Prometheus's notation for tests ("0+1x10"), one a minute from time 0 on.
	Series map[string]string `json:"series"`
	// At is the time in minutes of which the answer tells.
	At int `json:"at"`
}

// outcome is what the alert does at that time.
type outcome struct {
	Error string `json:"error,omitempty"`
	// Warnings are Prometheus's own about the query, such as a rate of what is no counter.
	Warnings []string `json:"warnings"`
	Firing   []firing `json:"firing"`
}

// firing is one alert that fires, as Alertmanager gets it.
type firing struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func (c testCase) run(ctx context.Context, p parser.Parser, rules map[string]rulefmt.Rule) outcome {
	var o outcome
	firing, err := c.evaluate(ctx, p, rules, &o)
	if err != nil {
		return outcome{Error: err.Error()}
	}
	o.Firing = firing
	return o
}

// evaluate does as Prometheus does: a result must have been there at each evaluation for as long as the rule says.
func (c testCase) evaluate(ctx context.Context, p parser.Parser, rules map[string]rulefmt.Rule, o *outcome) ([]firing, error) {
	rule, ok := rules[c.Alert]
	if !ok {
		return nil, fmt.Errorf("there is no alert %s", c.Alert)
	}
	db, err := load(p, c.Series)
	if err != nil {
		return nil, err
	}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1_000_000, Timeout: time.Minute, Parser: p})
	since := map[string]time.Time{}
	for minute := range c.At + 1 {
		now := time.UnixMilli(0).Add(time.Duration(minute) * interval)
		vector, err := query(ctx, engine, db, rule.Expr, now, o)
		if err != nil {
			return nil, err
		}
		before := since
		since = map[string]time.Time{}
		var all []firing
		for _, sample := range vector {
			key := sample.Metric.DropReserved(func(n string) bool { return n == model.MetricNameLabel }).String()
			if since[key] = now; !before[key].IsZero() {
				since[key] = before[key]
			}
			if now.Sub(since[key]) < time.Duration(rule.For) {
				continue
			}
			f, err := expand(ctx, rule, sample, now, engine, db, o)
			if err != nil {
				return nil, err
			}
			all = append(all, f)
		}
		if minute == c.At {
			return all, nil
		}
	}
	return nil, nil
}

func query(ctx context.Context, engine *promql.Engine, db storage.Queryable, text string, at time.Time, o *outcome) (promql.Vector, error) {
	q, err := engine.NewInstantQuery(ctx, db, nil, text, at)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	result := q.Exec(ctx)
	if result.Err != nil {
		return nil, result.Err
	}
	for _, w := range result.Warnings.AsErrors() {
		if text := w.Error(); !slices.Contains(o.Warnings, text) {
			o.Warnings = append(o.Warnings, text)
		}
	}
	return result.Vector()
}

// expand writes labels and annotations as Prometheus does.
func expand(ctx context.Context, rule rulefmt.Rule, sample promql.Sample, now time.Time, engine *promql.Engine, db storage.Queryable, o *outcome) (firing, error) {
	own := sample.Metric.Map()
	delete(own, model.MetricNameLabel)
	data := template.AlertTemplateData(own, nil, "", sample)
	ask := func(ctx context.Context, text string, at time.Time) (promql.Vector, error) {
		return query(ctx, engine, db, text, at, o)
	}
	texts := func(templates map[string]string) (map[string]string, error) {
		out := map[string]string{}
		for name, text := range templates {
			defined := "{{$labels := .Labels}}{{$value := .Value}}" + text
			expanded, err := template.NewTemplateExpander(ctx, defined, "alert", data, model.TimeFromUnixNano(now.UnixNano()), ask, &url.URL{},
				[]string{"missingkey=error"}).Expand()
			if err != nil {
				return nil, fmt.Errorf("%s of %s: %w", name, rule.Alert, err)
			}
			out[name] = strings.TrimSpace(expanded)
		}
		return out, nil
	}
	more, err := texts(rule.Labels)
	if err != nil {
		return firing{}, err
	}
	notes, err := texts(rule.Annotations)
	if err != nil {
		return firing{}, err
	}
	maps.Copy(own, more)
	own["alertname"] = rule.Alert
	return firing{Labels: own, Annotations: notes}, nil
}

// memory is a storage of a few series.
type memory []storage.Series

func load(p parser.Parser, series map[string]string) (memory, error) {
	var db memory
	for name, values := range series {
		lset, sequence, err := p.ParseSeriesDesc(name + " " + values)
		if err != nil {
			return nil, fmt.Errorf("series %s: %w", name, err)
		}
		var samples []chunks.Sample
		for i, v := range sequence {
			if !v.Omitted {
				samples = append(samples, point{(time.Duration(i) * interval).Milliseconds(), v.Value})
			}
		}
		db = append(db, storage.NewListSeries(lset, samples))
	}
	return db, nil
}

// Querier implements storage.Queryable.
func (m memory) Querier(_, _ int64) (storage.Querier, error) { return querier{m}, nil }

type querier struct{ db memory }

func (q querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	var found []storage.Series
	for _, s := range q.db {
		if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.Labels().Get(m.Name)) }) {
			found = append(found, s)
		}
	}
	slices.SortFunc(found, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
	return &set{found: found, at: -1}
}

func (querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (querier) Close() error { return nil }

type set struct {
	found []storage.Series
	at    int
}

func (s *set) Next() bool                        { s.at++; return s.at < len(s.found) }
func (s *set) At() storage.Series                { return s.found[s.at] }
func (s *set) Err() error                        { return nil }
func (s *set) Warnings() annotations.Annotations { return nil }

// point is one sample.
type point struct {
	ms    int64
	value float64
}

func (p point) T() int64                      { return p.ms }
func (p point) ST() int64                     { return 0 }
func (p point) F() float64                    { return p.value }
func (p point) H() *histogram.Histogram       { return nil }
func (p point) FH() *histogram.FloatHistogram { return nil }
func (p point) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (p point) Copy() chunks.Sample           { return p }
