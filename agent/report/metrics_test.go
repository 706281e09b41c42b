package report

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

var update = flag.Bool("update", false, "write the golden files")

// scrape gives what a handler answers.
func scrape(t *testing.T, h http.Handler) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != textFormat {
		t.Errorf("status %d, type %q", w.Code, w.Header().Get("Content-Type"))
	}
	return w.Body.String()
}

// parse reads the text as Prometheus does.
func parse(t *testing.T, text string) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return families
}

// find gives the series of a family with these label values, in the order of its labels; nil when there is none.
func find(families map[string]*dto.MetricFamily, name string, values ...string) *dto.Metric {
	for _, m := range families[metricPrefix+name].GetMetric() {
		var got []string
		for _, l := range m.GetLabel() {
			got = append(got, l.GetValue())
		}
		if cmp.Equal(got, values) {
			return m
		}
	}
	return nil
}

// busy is an agent's metrics after some work.
func busy() *Metrics {
	m := NewMetrics("v1.2.3")
	m.goVersion, m.started = "go1.26", time.UnixMilli(1_790_000_000_250)
	m.Publish(fixed(sample()))
	m.EC2Call("AssignPrivateIpAddresses", "OK", 120*time.Millisecond)
	m.EC2Call("AssignPrivateIpAddresses", "RequestLimitExceeded", 40*time.Millisecond)
	m.EC2Call("AssignPrivateIpAddresses", "RequestLimitExceeded", 50*time.Millisecond)
	m.EC2Call("AssignIpv6Addresses", "timeout", 3*time.Second)
	m.ThrottleWait("AssignPrivateIpAddresses", 400*time.Millisecond)
	m.ThrottleWait("AssignPrivateIpAddresses", 12*time.Second)
	m.Takeover("ipv4", 130*time.Millisecond)
	m.Takeover("ipv6", 2*time.Minute)
	m.Lost()
	m.Resync("overflow")
	m.MetadataError()
	return m
}

// The names and labels are a contract with dashboards and alerts: the golden file is what users see.
func TestMetricsText(t *testing.T) {
	got := scrape(t, busy())
	golden := filepath.Join("testdata", "metrics.txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("(-want +got); go test -update writes it anew:\n%s", d)
	}
	problems, err := promlint.New(strings.NewReader(got)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	parse(t, got)
}

// An idle agent has what an alert on an increase needs.
func TestMetricsFromTheStart(t *testing.T) {
	families := parse(t, scrape(t, NewMetrics("v1")))
	for _, name := range []string{"addresses_lost_total", "imds_errors_total"} {
		if m := find(families, name); m == nil || m.GetCounter().GetValue() != 0 {
			t.Errorf("%s: %v", name, m)
		}
	}
	for _, reason := range []string{"overflow", "error"} {
		if m := find(families, "netlink_resyncs_total", reason); m == nil {
			t.Errorf("no series for the reason %s", reason)
		}
	}
	if m := find(families, "ready"); m == nil || m.GetGauge().GetValue() != 0 {
		t.Errorf("ready: %v", m)
	}
	if m := find(families, "build_info", "v1", runtime.Version()); m.GetGauge().GetValue() != 1 {
		t.Errorf("build_info: %v", m)
	}
}

func TestMetricsGauges(t *testing.T) {
	m := NewMetrics("v1")
	for name, tt := range map[string]struct {
		status          StatusFunc
		ready           float64
		assigned, lost6 *float64
	}{
		"ready":     {fixed(Status{Ready: true, Addresses: []AddressStatus{{Address: "10.0.4.80", ENI: "eni-1", State: StateAssigned}}}), 1, ptr(1), nil},
		"not ready": {fixed(sample()), 0, ptr(1), ptr(1)},
		"unknown": {func(context.Context) (Status, error) {
			return Status{Ready: true, Addresses: sample().Addresses}, errors.New("ending")
		}, 0, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m.Publish(tt.status)
			families := parse(t, scrape(t, m))
			if got := find(families, "ready").GetGauge().GetValue(); got != tt.ready {
				t.Errorf("ready %v", got)
			}
			check := func(want *float64, values ...string) {
				if m := find(families, "addresses", values...); (m == nil) != (want == nil) || m != nil && m.GetGauge().GetValue() != *want {
					t.Errorf("%v: %v", values, m)
				}
			}
			check(tt.assigned, StateAssigned, "ipv4", "eni-1")
			check(tt.lost6, StateLost, "ipv6", "eni-2")
		})
	}
}

// An ENI is told to be full while an address waits for room on it, and no longer: neither the ENI's other family nor one that
// waits for something else is.
func TestMetricsOfAFullENI(t *testing.T) {
	m := NewMetrics("v1")
	addresses := []AddressStatus{
		{Address: "10.0.4.80", ENI: "eni-1", State: StateWaiting, Fault: FaultFull},
		{Address: "10.0.4.81", ENI: "eni-1", State: StateWaiting, Fault: FaultFull},
		{Address: "2001:db8::9", ENI: "eni-1", State: StateWaiting, Fault: "throttled"},
		{Address: "10.0.5.80", ENI: "eni-2", State: StateAssigned, Fault: FaultFull},
	}
	m.Publish(fixed(Status{Addresses: addresses}))
	families := parse(t, scrape(t, m))
	if free := find(families, "slots_free", "eni-1", "ipv4"); free == nil || free.GetGauge().GetValue() != 0 {
		t.Errorf("the full ENI: %v", free)
	}
	if n := len(families[metricPrefix+"slots_free"].GetMetric()); n != 1 {
		t.Errorf("%d series, want that of the full ENI alone", n)
	}
	if got := find(families, "addresses", StateWaiting, "ipv4", "eni-1").GetGauge().GetValue(); got != 2 {
		t.Errorf("%v addresses wait", got)
	}
	m.Publish(fixed(Status{Addresses: addresses[3:]}))
	families = parse(t, scrape(t, m))
	if families[metricPrefix+"slots_free"] != nil || find(families, "addresses", StateWaiting, "ipv4", "eni-1") != nil {
		t.Errorf("what is past is still told: %v", families)
	}
}

// Each start of the agent is another time: that is how a restart is noticed.
func TestMetricsTellTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		<-time.After(1500 * time.Millisecond) // a time that is no whole second
		m := NewMetrics("v1")
		want := float64(time.Now().UnixMilli()) / 1e3
		<-time.After(time.Hour)
		if got := find(parse(t, scrape(t, m)), "start_time_seconds").GetGauge().GetValue(); got != want {
			t.Errorf("started at %v, want %v", got, want)
		}
	})
}

func ptr(v float64) *float64 { return &v }

// A stuck agent does not keep its counters from being read: they are what tells why.
func TestMetricsOfAStuckAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := busy()
		m.Publish(func(ctx context.Context) (Status, error) { <-ctx.Done(); return sample(), ctx.Err() })
		start := time.Now()
		families := parse(t, scrape(t, m))
		if took := time.Since(start); took != patience {
			t.Errorf("took %s", took)
		}
		if find(families, "addresses_lost_total").GetCounter().GetValue() != 1 || find(families, "ready").GetGauge().GetValue() != 0 {
			t.Errorf("%v", families)
		}
	})
}

func TestHistogramBuckets(t *testing.T) {
	f := newHistogram("x_seconds", "x", []float64{0.005, 0.1, 1}, "op")
	for _, v := range []float64{0, 0.005, 0.0050001, 0.1, 1, 1.5, 100} {
		f.observe(v, "a")
	}
	h := find(parse(t, string(f.append(nil))), "x_seconds", "a").GetHistogram()
	var got []uint64
	for _, b := range h.GetBucket() {
		got = append(got, b.GetCumulativeCount())
	}
	if d := cmp.Diff([]uint64{2, 4, 5, 7}, got); d != "" || h.GetSampleCount() != 7 || math.Abs(h.GetSampleSum()-102.6100001) > 1e-9 {
		t.Errorf("%s count %d, sum %v", d, h.GetSampleCount(), h.GetSampleSum())
	}
}

// Whatever a label's value is, the parser reads it back.
func TestEscaping(t *testing.T) {
	values := []string{"", "plain", `quo"te`, `back\slash`, "line\nbreak", `\n`, `\"`, "größer", "{a=\"b\"} 1", "\r\t\x00"}
	f := newCounter("x_total", "a help with a \\ and\na second line", "first", "second")
	for i, v := range values {
		f.add(float64(i+1), v, "b")
	}
	text := string(f.append(nil))
	families := parse(t, text)
	for i, v := range values {
		if m := find(families, "x_total", v, "b"); m == nil || m.GetCounter().GetValue() != float64(i+1) {
			t.Errorf("%q: %v in\n%s", v, m, text)
		}
	}
	if got := families[metricPrefix+"x_total"].GetHelp(); got != "a help with a \\ and\na second line" {
		t.Errorf("help %q", got)
	}
	f.add(1, "not \xff UTF-8", "b")
	if m := find(parse(t, string(f.append(nil))), "x_total", "not ? UTF-8", "b"); m == nil {
		t.Error("no series for a value that is not UTF-8")
	}
}

// Whoever answers in EC2's place cannot fill the agent's memory or Prometheus's.
func TestBoundedLabels(t *testing.T) {
	m := NewMetrics("v1")
	for i := range 10_000 {
		m.EC2Call("AssignPrivateIpAddresses", fmt.Sprintf("Code%d", i), time.Millisecond)
	}
	m.EC2Call("AssignPrivateIpAddresses", "Code0", time.Millisecond)
	families := parse(t, scrape(t, m))
	if n := len(families[metricPrefix+"ec2_requests_total"].GetMetric()); n != maxLabelValues+1 {
		t.Errorf("%d series", n)
	}
	if got := find(families, "ec2_requests_total", "AssignPrivateIpAddresses", otherValue).GetCounter().GetValue(); got != 10_000-maxLabelValues {
		t.Errorf("%v others", got)
	}
	if got := find(families, "ec2_requests_total", "AssignPrivateIpAddresses", "Code0").GetCounter().GetValue(); got != 2 {
		t.Errorf("a known code is counted %v times", got)
	}
}

func TestFormatFloat(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 1: "1", -3: "-3", 1e6: "1000000", 123456789: "123456789", 0.005: "0.005", 2.5: "2.5", 1e300: "1e+300", math.Inf(1): "+Inf",
	} {
		if got := formatFloat(v); got != want {
			t.Errorf("%v is written %s, want %s", v, got, want)
		}
	}
}

// Everything at once, for the race detector; and nothing is lost.
func TestMetricsConcurrently(t *testing.T) {
	m := NewMetrics("v1")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 100 {
				m.EC2Call("A", fmt.Sprint(i%3), time.Millisecond)
				m.Takeover("ipv4", time.Millisecond)
				m.Lost()
				m.Resync("overflow")
				m.MetadataError()
			}
			m.Publish(fixed(sample()))
			scrape(t, m)
		})
	}
	wg.Wait()
	families := parse(t, scrape(t, m))
	if n := find(families, "takeover_duration_seconds", "ipv4").GetHistogram().GetSampleCount(); n != 800 {
		t.Errorf("%d takeovers", n)
	}
	if n := find(families, "addresses_lost_total").GetCounter().GetValue(); n != 800 {
		t.Errorf("%v lost", n)
	}
}

// startMetrics starts a server at a port that was free a moment ago.
func startMetrics(t *testing.T, m *Metrics) (url string, stop func()) {
	t.Helper()
	for range 10 {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		told := make(lines, 10)
		stop := m.Start(t.Context(), []netip.Addr{netip.MustParseAddr("127.0.0.1")}, port, slog.New(slog.NewTextHandler(told, nil)))
		url := fmt.Sprintf("http://127.0.0.1:%d", port)
		for len(told) == 0 {
			if _, _, err := get(url + "/metrics"); err == nil {
				t.Cleanup(stop)
				return url, stop
			}
		}
		stop() // somebody else took the port
	}
	t.Fatal("no free port")
	return "", nil
}

func request(method, url string) (status int, body string, err error) {
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func get(url string) (status int, body string, err error) { return request(http.MethodGet, url) }

func TestMetricsServer(t *testing.T) {
	url, stop := startMetrics(t, busy())
	if status, body, err := get(url + "/metrics"); err != nil || status != http.StatusOK || !strings.Contains(body, "_ready 0\n") {
		t.Errorf("%d, %v:\n%s", status, err, body)
	}
	if status, _, err := get(url + "/debug/pprof/"); err != nil || status != http.StatusNotFound {
		t.Errorf("another path: %d, %v", status, err)
	}
	if status, _, err := request(http.MethodPost, url+"/metrics"); err != nil || status != http.StatusMethodNotAllowed {
		t.Errorf("a POST: %d, %v", status, err)
	}

	// A client that holds on to its connection does not keep the port open after the stop.
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	stop()
	stop() // once more does no harm
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection outlives the stop")
	}
	if _, _, err := get(url + "/metrics"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the stop: %v", err)
	}
}

// Connections that nobody uses do not keep Prometheus out.
func TestMetricsServerIsNotFilled(t *testing.T) {
	url, _ := startMetrics(t, busy())
	var conns []net.Conn
	for range 3 * maxScrapes {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conns = append(conns, conn)
	}
	if status, _, err := get(url + "/metrics"); err != nil || status != http.StatusOK {
		t.Errorf("%d, %v", status, err)
	}
	// It has ended long before its silence would end it.
	if err := conns[0].SetDeadline(time.Now().Add(exchange / 2)); err != nil {
		t.Fatal(err)
	}
	if _, err := conns[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the oldest connection still is kept: %v", err)
	}
}

func TestMetricsPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	told := make(lines, 10)
	stop := NewMetrics("v1").Start(t.Context(), nil, l.Addr().(*net.TCPAddr).Port, slog.New(slog.NewTextHandler(told, nil)))
	if line := <-told; !strings.Contains(line, "level=WARN") || !strings.Contains(line, "metrics at :") || !strings.Contains(line, "address already in use") {
		t.Errorf("log line %q", line)
	}
	stop()
}

func BenchmarkScrape(b *testing.B) {
	m := busy()
	var buf bytes.Buffer
	for b.Loop() {
		w := httptest.NewRecorder()
		w.Body = &buf
		buf.Reset()
		m.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	}
}
