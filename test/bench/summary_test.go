package bench

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// summary is what a person reads at the end of the run.
type summary struct {
	load     string // as it was before
	sections []section
	notes    []string
}

// section is one table: a headline, and rows of which the first is the columns' names.
type section struct {
	title string
	rows  [][]string
}

func (s *summary) begin() { s.load = loadavg() }

func (s *summary) add(t section) { s.sections = append(s.sections, t) }

// note adds a sentence that the figures need to be understood, unless it is there.
func (s *summary) note(text string) {
	if !slices.Contains(s.notes, text) {
		s.notes = append(s.notes, text)
	}
}

// write writes nothing when nothing was measured.
func (s *summary) write(w io.Writer) {
	if len(s.sections) == 0 {
		return
	}
	for _, t := range s.sections {
		fmt.Fprintf(w, "\n%s\n", t.title)
		table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
		for _, row := range t.rows {
			fmt.Fprintf(table, "  %s\n", strings.Join(row, "\t"))
		}
		_ = table.Flush()
	}
	fmt.Fprintf(w, "\n%d CPUs; load average before %s, after %s (this run's own work included); with a load above the number of CPUs, times say little.\n",
		runtime.NumCPU(), s.load, loadavg())
	for _, n := range s.notes {
		fmt.Fprintln(w, n)
	}
	fmt.Fprintln(w)
}

func loadavg() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(raw), " ")
	return first
}

// row is one figure of a program's starts.
type row struct {
	name   string
	metric string // its name in the benchmark's line; "": not there
	budget string // "": none
	unit   string
	value  func([]start) float64
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// over gives a quantile of something of the starts.
func over(q float64, of func(start) float64) func([]start) float64 {
	return func(starts []start) float64 {
		var values []float64
		for _, s := range starts {
			values = append(values, of(s))
		}
		return Quantile(values, q)
	}
}

const median, p90, largest = 0.5, 0.9, 1

// rows are the figures, of which the first is the one that programs are compared by; calls is the budget of EC2 calls.
func rows(calls int) []row {
	wall := func(s start) float64 { return millis(s.Wall) }
	above := func(s start) float64 { return millis(s.above()) }
	return []row{
		{"start to exit, median", "ms-wall", "", "ms", over(median, wall)},
		{"start to exit, p90", "", "", "ms", over(p90, wall)},
		{"above EC2's own time, median", "ms-above-EC2", "25", "ms", over(median, above)},
		{"above EC2's own time, p90", "ms-above-EC2-p90", "", "ms", over(p90, above)},
		{"CPU, median", "ms-CPU", "30", "ms", over(median, func(s start) float64 { return millis(s.CPU) })},
		{"largest resident set", "MiB-RSS", "", "MiB", over(largest, func(s start) float64 { return float64(s.MaxRSS) / 1024 })},
		{"EC2 calls", "EC2-calls", strconv.Itoa(calls), "", over(median, func(s start) float64 { return float64(len(s.calls)) })},
		{"IMDS requests", "IMDS-requests", "", "", over(median, func(s start) float64 { return float64(s.imds) })},
	}
}

// compared is a program with its starts.
type compared struct {
	program
	starts []start
}

// compare writes the figures of the first program beside those of the others, with the ratios first / other.
func compare(title string, calls int, programs []compared) section {
	head := []string{"", "budget"}
	for i, p := range programs {
		head = append(head, fmt.Sprintf("%s (%d starts)", p.name, len(p.starts)))
		if i > 0 {
			head = append(head, "ratio")
		}
	}
	t := section{title: title, rows: [][]string{head}}
	for _, r := range rows(calls) {
		ours := r.value(programs[0].starts)
		line := []string{r.name, written(r.budget, r.unit), written(digits(ours), r.unit)}
		for _, p := range programs[1:] {
			theirs := r.value(p.starts)
			line = append(line, written(digits(theirs), r.unit), fmt.Sprintf("%.2f", ours/theirs))
		}
		t.rows = append(t.rows, line)
	}
	return t
}

// written is a number with its unit; no number is nothing.
func written(number, unit string) string {
	if number == "" {
		return ""
	}
	return strings.TrimSpace(number + " " + unit)
}

// digits writes counts whole and the rest with one decimal.
func digits(f float64) string {
	if f == float64(int64(f)) {
		return fmt.Sprintf("%.0f", f)
	}
	return fmt.Sprintf("%.1f", f)
}
