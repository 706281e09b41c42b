package report

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const (
	// maxLabelValues is how many values of one label are told apart; what comes after them is [otherValue]. EC2 has hundreds of
	// error codes, and whoever answers in its place may invent more.
	maxLabelValues = 40
	otherValue     = "other"
	infinity       = "+Inf"
)

// family is one metric with all its series, in the text format of Prometheus: metrics of the kinds counter, gauge and histogram.
type family struct {
	name, help, kind string
	labels           []string
	buckets          []float64 // of a histogram, ascending, without +Inf

	mu     sync.Mutex
	values []map[string]bool // by label, those seen
	series map[string]*series
}

// series is one combination of label values.
type series struct {
	labels []string
	value  float64  // of a counter or gauge; of a histogram the sum
	counts []uint64 // of a histogram, by bucket, the last is +Inf; not cumulative
}

func newFamily(kind, name, help string, buckets []float64, labels []string) *family {
	f := &family{name: metricPrefix + name, help: help, kind: kind, labels: labels, buckets: buckets, series: map[string]*series{}}
	for range labels {
		f.values = append(f.values, map[string]bool{})
	}
	return f
}

func newCounter(name, help string, labels ...string) *family {
	return newFamily("counter", name, help, nil, labels)
}

func newGauge(name, help string, labels ...string) *family {
	return newFamily("gauge", name, help, nil, labels)
}

func newHistogram(name, help string, buckets []float64, labels ...string) *family {
	return newFamily("histogram", name, help, buckets, labels)
}

// add adds to the series with these label values, one for each label of the family.
func (f *family) add(n float64, values ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.get(values).value += n
}

// observe counts v in the histogram with these label values.
func (f *family) observe(v float64, values ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.get(values)
	s.value += v
	i, _ := slices.BinarySearch(f.buckets, v) // the first bucket whose bound is v or more
	s.counts[i]++
}

func (f *family) get(values []string) *series {
	labels := make([]string, len(f.labels))
	for i := range labels {
		labels[i] = f.bounded(i, values[i])
	}
	key := strings.Join(labels, "\xff") // no UTF-8 text has this byte
	s := f.series[key]
	if s == nil {
		s = &series{labels: labels}
		if f.kind == "histogram" {
			s.counts = make([]uint64, len(f.buckets)+1)
		}
		f.series[key] = s
	}
	return s
}

// bounded is the value that label i gets in place of v.
func (f *family) bounded(i int, v string) string {
	v = strings.ToValidUTF8(v, "?")
	seen := f.values[i]
	if !seen[v] {
		if len(seen) >= maxLabelValues {
			return otherValue
		}
		seen[v] = true
	}
	return v
}

// append appends the family's text to b. A family without series has none.
func (f *family) append(b []byte) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.series) == 0 {
		return b
	}
	b = append(b, "# HELP "+f.name+" "+escapeHelp.Replace(f.help)+"\n# TYPE "+f.name+" "+f.kind+"\n"...)
	keys := make([]string, 0, len(f.series))
	for key := range f.series {
		keys = append(keys, key)
	}
	slices.Sort(keys) // so that two scrapes can be compared
	for _, key := range keys {
		s := f.series[key]
		if f.kind == "histogram" {
			b = f.appendHistogram(b, s)
		} else {
			b = f.appendSample(b, "", s, "", s.value)
		}
	}
	return b
}

// appendHistogram appends the buckets, each with the count of all up to it, the sum and the count.
func (f *family) appendHistogram(b []byte, s *series) []byte {
	var total uint64
	for i, count := range s.counts {
		total += count
		bound := infinity
		if i < len(f.buckets) {
			bound = formatFloat(f.buckets[i])
		}
		b = f.appendSample(b, "_bucket", s, bound, float64(total))
	}
	b = f.appendSample(b, "_sum", s, "", s.value)
	return f.appendSample(b, "_count", s, "", float64(total))
}

// appendSample appends one line; bound is the label le, "" for none.
func (f *family) appendSample(b []byte, suffix string, s *series, bound string, value float64) []byte {
	var pairs []string
	for i, label := range f.labels {
		pairs = append(pairs, label+`="`+escapeValue.Replace(s.labels[i])+`"`)
	}
	if bound != "" {
		pairs = append(pairs, `le="`+bound+`"`)
	}
	b = append(b, f.name+suffix...)
	if len(pairs) > 0 {
		b = append(b, "{"+strings.Join(pairs, ",")+"}"...)
	}
	return append(b, " "+formatFloat(value)+"\n"...)
}

var (
	escapeHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	escapeValue = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

// formatFloat writes whole numbers without an exponent, as people read them, and all others as short as they are exact.
func formatFloat(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return infinity
	case v == math.Trunc(v) && math.Abs(v) < 1<<53:
		return strconv.FormatInt(int64(v), 10)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}
