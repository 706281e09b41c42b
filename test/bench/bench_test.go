package bench

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// startsPerRound is how often the agent is started for each start of the samples, which are slow and only the yardstick.
const startsPerRound = 3

var (
	onlyIPv4  = interfaces{1: {"10.0.4.80/22"}}
	dualStack = interfaces{1: {"10.0.4.80/22", "fd50:0:0:4::80/64"}, 2: {"10.0.8.80/24", "fd50:0:0:8::80/64"}}
)

// BenchmarkInit is a pod's first start: nothing is assigned before. Agent and samples take turns, so that a change of the machine's
// load meets all of them.
func BenchmarkInit(b *testing.B) {
	shared.summary.note("EC2's own time: calls that name no ENI one after the other, then the ENI whose calls took longest, by the emulator's clock.")
	shared.summary.note("Ratios are agent / sample. CPU includes child processes; the resident set is that of the largest process.")
	shared.summary.note("Sample in Go: the EC2 calls of the AWS Python sample made by a Go program with AWS's SDK: what is left when the language is the same.")
	python, err := sampleInPython(b.Context())
	if err != nil {
		shared.summary.note("No sample in Python: " + err.Error())
	} else {
		shared.summary.note("Sample in Python: not AWS's program but our own script after a description of it, kinder where the description leaves a choice.")
	}
	for _, pod := range []struct {
		name  string
		links interfaces
		calls int
	}{
		{"IPv4, one ENI", onlyIPv4, 1},
		{"dual-stack, two ENIs", dualStack, 4},
	} {
		for _, latency := range []time.Duration{0, 100 * time.Millisecond} {
			name := fmt.Sprintf("%s, EC2 latency %d ms", pod.name, latency.Milliseconds())
			b.Run(name, func(b *testing.B) {
				programs := []compared{{program: agent()}, {program: sampleInGo()}}
				if err == nil {
					programs = append(programs, compared{program: python})
				}
				measure(b, newRig(b, latency, pod.links), programs)
				shared.summary.add(compare("A pod's first start: "+name, pod.calls, programs))
			})
		}
	}
}

// measure lets the programs take turns at the pod's first start.
func measure(b *testing.B, r *rig, programs []compared) {
	b.Helper()
	for _, p := range programs { // from the disk into memory
		r.run(p.program)
		r.forget()
	}
	for b.Loop() {
		for i := range programs {
			p := &programs[i]
			times := 1
			if i == 0 {
				times = startsPerRound
			}
			for range times {
				s := r.run(p.program)
				if i == 0 {
					r.budget(s)
				}
				p.starts = append(p.starts, s)
				r.forget()
			}
		}
	}
	report(b, programs)
}

// report gives the figures to the benchmark's line.
func report(b *testing.B, programs []compared) {
	b.Helper()
	b.ReportMetric(0, "ns/op") // a round of several programs, which says nothing
	for _, r := range rows(0) {
		if r.metric != "" {
			b.ReportMetric(r.value(programs[0].starts), r.metric)
		}
	}
	wall := rows(0)[0].value
	for _, p := range programs[1:] {
		b.ReportMetric(wall(programs[0].starts)/wall(p.starts), "wall/"+strings.ReplaceAll(p.name, " ", "-"))
	}
}

// BenchmarkRestart is an agent that finds its addresses assigned: it may cost one call per ENI and family, and no description.
func BenchmarkRestart(b *testing.B) {
	r := newRig(b, 0, dualStack)
	c := compared{program: agent()}
	r.run(c.program)
	for b.Loop() {
		s := r.run(c.program)
		r.budget(s)
		c.starts = append(c.starts, s)
	}
	report(b, []compared{c})
	shared.summary.add(compare("A restarted agent, all addresses there already: dual-stack, two ENIs, EC2 latency 0 ms", 4, []compared{c}))
}

// roots is where the image has the roots of trust.
const roots = "/etc/ssl/certs/ca-certificates.crt"

// BenchmarkSize is what a node downloads and stores. It is computed from what Dockerfile.agent puts into the image, each file a gzipped
// layer; "make image-ci" builds the image itself and holds it to the same budgets.
func BenchmarkSize(b *testing.B) {
	t := section{title: "What a node stores and downloads", rows: [][]string{{"", "budget", "unpacked", "budget", "gzip"}}}
	program, packed, err := layer(filepath.Join(shared.bin, "agent"), "agent")
	if err != nil {
		b.Fatal(err)
	}
	t.rows = append(t.rows, []string{"agent, stripped", "", megabytes(program), "", megabytes(packed)})
	bundle, bundlePacked, err := layer(roots, roots[1:])
	if errors.Is(err, fs.ErrNotExist) {
		shared.summary.note("The image is without roots of trust, which this machine does not have: about 0.2 MB, 0.1 MB compressed.")
	} else if err != nil {
		b.Fatal(err)
	}
	for b.Loop() { // sizes do not differ from run to run
	}
	program, packed = program+bundle, packed+bundlePacked
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(program-bundle)/1e6, "MB-binary")
	b.ReportMetric(float64(program)/1e6, "MB-image")
	b.ReportMetric(float64(packed)/1e6, "MB-image-compressed")
	t.rows = append(t.rows, []string{"image", "15 MB", megabytes(program), "6 MB", megabytes(packed)})
	shared.summary.note("The image's sizes are computed from its two files, the program and this machine's roots of trust; make image-ci builds the image itself (its gzip may differ by a few percent).")
	shared.summary.add(t)
	if program > 15e6 || packed > 6e6 {
		b.Errorf("the image is over its budget: %d bytes unpacked, %d compressed", program, packed)
	}
}

func megabytes(n int64) string { return fmt.Sprintf("%.2f MB", float64(n)/1e6) }

// layer is the size of a file, and that of the image's layer with it.
func layer(path, name string) (size, compressed int64, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	archive := tar.NewWriter(zip)
	if err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data))}); err != nil {
		return 0, 0, err
	}
	if _, err := io.Copy(archive, bytes.NewReader(data)); err != nil {
		return 0, 0, err
	}
	if err := errors.Join(archive.Close(), zip.Close()); err != nil {
		return 0, 0, err
	}
	return int64(len(data)), int64(out.Len()), nil
}
