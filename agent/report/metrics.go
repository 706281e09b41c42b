package report

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// metricPrefix begins the name of each metric of the agent.
const metricPrefix = "multus_ip_manager_agent_"

// Buckets, in seconds. An EC2 call takes 100 ms to 2 s and may take 3 s; a takeover is one call in good times, and what waits out
// throttling is told apart up to a minute. A single wait after throttling is at most 20 s.
var (
	callBuckets     = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}
	throttleBuckets = []float64{0.1, 0.5, 1, 2.5, 5, 10, 20}
	takeoverBuckets = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}
)

// Metrics counts what happens in an agent and serves it in the Prometheus text format. It is safe for concurrent use. Make one
// with [NewMetrics].
//
// The format is written by hand because the usual library would add 2.6 MB to the program's 10.8 MB and 2 MiB to its memory in
// every pod.
type Metrics struct {
	requests, lost, resyncs, metadataErrors *family
	calls, throttled, takeovers             *family
	version, goVersion                      string
	started                                 time.Time

	questions atomic.Pointer[questions]
}

// NewMetrics makes the metrics of an agent of the given version.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		version:        version,
		goVersion:      runtime.Version(),
		started:        time.Now(),
		requests:       newCounter("ec2_requests_total", "Requests to EC2, by operation and by EC2's error code, or OK, timeout or unanswered in its place.", "operation", "code"),
		lost:           newCounter("addresses_lost_total", "Addresses that another ENI claimed after this agent did, counted each time."),
		resyncs:        newCounter("netlink_resyncs_total", "Times that the kernel's events had to be subscribed to anew, by reason (overflow, error).", "reason"),
		metadataErrors: newCounter("imds_errors_total", "Failures to read the instance's metadata (IMDS)."),
		calls:          newHistogram("ec2_request_duration_seconds", "How long requests to EC2 took, by operation.", callBuckets, "operation"),
		throttled:      newHistogram("ec2_throttle_wait_seconds", "How long the agent waits before it asks again because EC2 throttled a request, by the request's operation.", throttleBuckets, "operation"),
		takeovers:      newHistogram("takeover_duration_seconds", "Time from the kernel's event of a new address to EC2's answer that it is assigned.", takeoverBuckets, "family"),
	}
	// An alert on an increase needs a value to increase from.
	m.lost.add(0)
	m.metadataErrors.add(0)
	for _, reason := range []string{"overflow", "error"} {
		m.resyncs.add(0, reason)
	}
	return m
}

// Takeover records how long an address took from the kernel's event to EC2's answer; family is "ipv4" or "ipv6".
func (m *Metrics) Takeover(family string, d time.Duration) { m.takeovers.observe(d.Seconds(), family) }

// Lost counts an address that another ENI claimed.
func (m *Metrics) Lost() { m.lost.add(1) }

// Resync counts a new subscription to the kernel's events, and why it was needed.
func (m *Metrics) Resync(reason string) { m.resyncs.add(1, reason) }

// MetadataError counts a failure to read metadata.
func (m *Metrics) MetadataError() { m.metadataErrors.add(1) }

// EC2Call counts a request to EC2 with EC2's error code and records how long it took.
func (m *Metrics) EC2Call(operation, code string, d time.Duration) {
	m.requests.add(1, operation, code)
	m.calls.observe(d.Seconds(), operation)
}

// ThrottleWait records how long the agent will wait because EC2 throttled a request, with the EC2 action of that request.
func (m *Metrics) ThrottleWait(operation string, d time.Duration) {
	m.throttled.observe(d.Seconds(), operation)
}

// Publish hands over the function that tells the present status: each scrape asks it for the gauges.
func (m *Metrics) Publish(status StatusFunc) {
	m.questions.Store(newQuestions(context.Background(), status))
}

// gauges are made anew for each scrape, so that an ENI or an address that is gone leaves no series behind. While the status is not
// known the agent is not ready, and its addresses are left out.
func (m *Metrics) gauges(ctx context.Context) []*family {
	ready := newGauge("ready", "1 when every address that the pod needs is routed to it.")
	build := newGauge("build_info", "Always 1; the labels tell what runs.", "version", "go_version")
	build.add(1, m.version, m.goVersion)
	start := newGauge("start_time_seconds", "When the agent started, in seconds since 1970.")
	start.add(float64(m.started.UnixMilli()) / 1e3)
	s := m.present(ctx)
	ready.add(0)
	if s.Ready {
		ready.add(1)
	}
	return []*family{ready, addresses(s), slotsFree(s), start, build}
}

// addresses counts the pod's addresses.
func addresses(s Status) *family {
	f := newGauge("addresses", "The pod's addresses, by state, IP family and ENI (empty while it is not known).", "state", "family", "eni")
	for _, a := range s.Addresses {
		family := familyOf(a.Address)
		for _, state := range states() { // so that a graph shows a state falling to 0
			f.add(0, state, family, a.ENI)
		}
		f.add(1, a.State, family, a.ENI)
	}
	return f
}

// slotsFree tells of full ENIs. Only EC2's refusals tell an agent in a pod of them: how many addresses an ENI may have depends on the
// instance's type, and nothing but one more kind of request, with a permission of its own, would tell.
func slotsFree(s Status) *family {
	f := newGauge("slots_free", "How many more addresses of the family the ENI takes: 0 while EC2 refuses more; no series while that is not known.", "eni", "family")
	for _, a := range s.Addresses {
		if a.State == StateWaiting && a.Fault == FaultFull {
			f.add(0, a.ENI, familyOf(a.Address))
		}
	}
	return f
}

// present is the present status, or an empty one when it cannot be told.
func (m *Metrics) present(ctx context.Context) Status {
	q := m.questions.Load()
	if q == nil {
		return Status{}
	}
	asked, err := q.ask(ctx)
	if err != nil || asked.err != nil {
		return Status{}
	}
	return asked.status
}

func states() []string {
	return []string{StatePending, StateWaiting, StateAssigned, StateRouted, StateRefused, StateElsewhere, StateLost}
}

func familyOf(address string) string {
	if a, err := netip.ParseAddr(address); err == nil && a.Is4() {
		return "ipv4"
	}
	return "ipv6"
}

const (
	// maxScrapes is how many connections the metrics server keeps.
	maxScrapes = 8
	// textFormat is the media type of the Prometheus text format.
	textFormat = "text/plain; version=0.0.4; charset=utf-8"
)

// ServeHTTP implements [http.Handler]: every metric, whatever is asked for.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var b []byte
	for _, f := range append(m.gauges(r.Context()), m.requests, m.calls, m.throttled, m.takeovers, m.lost, m.resyncs, m.metadataErrors) {
		b = f.append(b)
	}
	w.Header().Set("Content-Type", textFormat)
	_, _ = w.Write(b) // an error is the client's
}

// Start serves /metrics over HTTP at a TCP port of the pod's own addresses, and of no other: the networks that Multus attaches are
// none of a scraper's. Without any it is every address. It ends with ctx, or when stop is called, which returns when every socket is
// closed. A port in use is told in the log and tried again now and then.
func (m *Metrics) Start(ctx context.Context, own []netip.Addr, port int, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	hosts := []string{""}
	if len(own) > 0 {
		hosts = nil
	}
	for _, a := range own {
		hosts = append(hosts, a.String())
	}
	serve := func(ctx context.Context, l net.Listener) error { return m.serve(ctx, l, log) }
	var wg sync.WaitGroup
	for _, host := range hosts {
		address := net.JoinHostPort(host, strconv.Itoa(port))
		listen := func(ctx context.Context) (net.Listener, error) {
			var lc net.ListenConfig
			return lc.Listen(ctx, "tcp", address)
		}
		wg.Go(func() { keep(ctx, "metrics at "+address, listen, serve, log) })
	}
	return func() { cancel(); wg.Wait() }
}

func (m *Metrics) serve(ctx context.Context, l net.Listener, log *slog.Logger) error {
	clients := crowd{most: maxScrapes}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m)
	server := &http.Server{
		Handler:           mux,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: exchange,
		ReadTimeout:       exchange,
		WriteTimeout:      2 * exchange,
		IdleTimeout:       2 * time.Minute, // scrapes are 15 to 60 s apart
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnState: func(c net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				clients.enter(c)
			case http.StateClosed, http.StateHijacked:
				clients.leave(c)
			default:
			}
		},
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	err := server.Serve(l)
	_ = server.Close() // the connections
	return err
}
