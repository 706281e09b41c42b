package report

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sample is a status that has everything.
func sample() Status {
	at := time.Date(2026, 8, 21, 10, 0, 0, 0, time.UTC)
	return Status{
		Version: "v1", Mode: "sidecar", Namespace: "telco", Pod: "amf-0", Started: at, Reason: "10.0.4.81 on net1 waits: throttled",
		Addresses: []AddressStatus{
			{Address: "10.0.4.80", Interface: "net1", ENI: "eni-1", Subnet: "subnet-1", Origin: OriginPod, State: StateAssigned, Since: at, Attempts: 1},
			{Address: "10.0.4.81", Interface: "net1", ENI: "eni-1", Subnet: "subnet-1", Origin: OriginPod, State: StateWaiting, Reason: "throttled", Fault: "throttled", Since: at, Attempts: 7},
			{Address: "2001:db8::9", Interface: "net2", ENI: "eni-2", Origin: OriginFloating, State: StateLost, Holder: "eni-7", Since: at},
		},
		Waiting: []string{"metadata: no answer"},
	}
}

func fixed(s Status) StatusFunc { return func(context.Context) (Status, error) { return s, nil } }

// large has more than fits the buffer of a socket (208 KiB by default).
func large() Status {
	s := sample()
	s.Reason = strings.Repeat("x", 300<<10)
	return s
}

// unique is a name that no other test uses.
func unique(t *testing.T) string {
	return fmt.Sprintf("@multus-ip-manager-%s-%d", t.Name(), os.Getpid())
}

// start serves at a name and waits until somebody listens there. stop waits for the end.
func start(t *testing.T, name string, status StatusFunc) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Serve(ctx, name, status, slog.New(slog.DiscardHandler))
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	for {
		conn, err := net.Dial("unix", name)
		if err == nil {
			conn.Close()
			return stop
		}
		runtime.Gosched()
	}
}

func TestAsk(t *testing.T) {
	name := unique(t)
	start(t, name, fixed(sample()))
	got, err := Ask(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sample(), got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A script that counts the addresses is given a list, not null.
func TestServeNoAddresses(t *testing.T) {
	name := unique(t)
	start(t, name, fixed(Status{Mode: "sidecar"}))
	conn, err := net.Dial("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(b), `"addresses":[]`) || strings.Contains(string(b), `"error"`) || !strings.HasSuffix(string(b), "}\n") {
		t.Errorf("%q, %v", b, err)
	}
}

func TestAskNobody(t *testing.T) {
	_, err := Ask(t.Context(), unique(t))
	if !errors.Is(err, ErrNoAgent) || !strings.Contains(err.Error(), unique(t)) {
		t.Errorf("error %v", err)
	}
	if _, err := Ask(t.Context(), "/nowhere/socket"); err == nil || errors.Is(err, ErrNoAgent) {
		t.Errorf("a path that cannot be there: %v", err)
	}
}

func TestServeManyAtOnce(t *testing.T) {
	name := unique(t)
	start(t, name, fixed(sample()))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if s, err := Ask(t.Context(), name); err != nil || s.Pod != "amf-0" {
				t.Errorf("%v, %v", s, err)
			}
		})
	}
	wg.Wait()
}

// What a client says is of no interest, and does not keep its answer from it.
func TestServeGarbage(t *testing.T) {
	name := unique(t)
	start(t, name, fixed(sample()))
	for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x00\xff", strings.Repeat("x", 100_000)} {
		conn, err := net.Dial("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, garbage) // the server may have gone by then
		got, err := ask(t.Context(), conn)
		if err != nil || got.Pod != "amf-0" {
			t.Errorf("after %q…: %v, %v", garbage[:2], got, err)
		}
	}
}

// Real sockets: clients that never read hold nobody up, and are gone when the server is.
func TestServeHangingClients(t *testing.T) {
	name := unique(t)
	stop := start(t, name, fixed(large()))
	var conns []net.Conn
	for range maxClients + 8 {
		conn, err := net.Dial("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	if _, err := Ask(t.Context(), name); err != nil {
		t.Error(err)
	}
	stop()
	for _, conn := range conns {
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a connection outlives the server")
		}
		conn.Close()
	}
	if _, err := Ask(t.Context(), name); !errors.Is(err, ErrNoAgent) {
		t.Errorf("somebody still listens: %v", err)
	}
}

// The other agent, which may be the one that this one replaces, keeps its name; this one says so and goes on.
func TestServeNameInUse(t *testing.T) {
	name := unique(t)
	first := sample()
	first.Pod = "first"
	start(t, name, fixed(first))
	told := make(chan string, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Serve(ctx, name, fixed(sample()), slog.New(slog.NewTextHandler(lines(told), nil)))
	}()
	if line := <-told; !strings.Contains(line, "level=WARN") || !strings.Contains(line, name) || !strings.Contains(line, "address already in use") {
		t.Errorf("log line %q", line)
	}
	if s, err := Ask(t.Context(), name); err != nil || s.Pod != "first" {
		t.Errorf("%v, %v", s.Pod, err)
	}
	cancel()
	<-done
}

// lines sends each write to a channel.
type lines chan string

func (l lines) Write(b []byte) (int, error) { l <- string(b); return len(b), nil }

// pipes is a listener in memory, so that a test can run in virtual time.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "@pipes", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	here, there := net.Pipe()
	p.conns <- there
	return here
}

// virtual runs a server over pipes in virtual time. That the bubble ends shows that no goroutine is left.
func virtual(t *testing.T, status func(t *testing.T) StatusFunc, test func(ctx context.Context, p *pipes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := newPipes()
		done := make(chan struct{})
		s := &server{questions: newQuestions(ctx, status(t))}
		go func() {
			defer close(done)
			_ = s.serve(ctx, p)
		}()
		test(ctx, p)
		at := time.Now()
		cancel()
		<-done
		if took := time.Since(at); took > time.Second {
			t.Errorf("the server takes %s to end", took)
		}
	})
}

// ask asks over a connection.
func ask(ctx context.Context, conn net.Conn) (Status, error) {
	return askOver(ctx, "@pipes", func(context.Context) (net.Conn, error) { return conn, nil })
}

// The clients that hold on fill the house; one more is answered at once, and the others are sent away in time.
func TestServeEvictsTheOldest(t *testing.T) {
	virtual(t, func(*testing.T) StatusFunc { return fixed(sample()) }, func(ctx context.Context, p *pipes) {
		start := time.Now()
		var hanging []net.Conn
		for range maxClients {
			hanging = append(hanging, p.dial())
		}
		synctest.Wait()
		if _, err := ask(ctx, p.dial()); err != nil || time.Since(start) != 0 {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		one := make([]byte, 1)
		if _, err := hanging[0].Read(one); err == nil {
			t.Error("the oldest was not sent away")
		}
		if _, err := hanging[1].Read(one); err != nil {
			t.Errorf("more than the oldest was sent away: %v", err)
		}
		if time.Since(start) != 0 {
			t.Errorf("took %s", time.Since(start))
		}
		<-time.After(exchange + time.Millisecond)
		for i, c := range hanging[2:] {
			if _, err := c.Read(one); err == nil {
				t.Fatalf("client %d still is served after %s", i, exchange)
			}
		}
	})
}

func TestServeStuckAgent(t *testing.T) {
	tests := map[string]struct {
		heeds bool
		want  time.Duration
	}{
		"heeds its context": {true, patience},
		"heeds nothing":     {false, patience + patience/10},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			var release chan struct{}
			status := func(*testing.T) StatusFunc {
				release = make(chan struct{})
				return func(ctx context.Context) (Status, error) {
					calls.Add(1)
					if !tt.heeds {
						ctx = context.Background()
					}
					select {
					case <-release:
						return sample(), nil
					case <-ctx.Done():
						return Status{}, ctx.Err()
					}
				}
			}
			virtual(t, status, func(ctx context.Context, p *pipes) {
				start := time.Now()
				var wg sync.WaitGroup
				for range 50 {
					conn := p.dial()
					wg.Go(func() {
						_, err := ask(ctx, conn)
						if err == nil || !strings.Contains(err.Error(), "stuck for 1.5s") {
							t.Errorf("error %v", err)
						}
					})
				}
				wg.Wait()
				if took := time.Since(start); took != tt.want {
					t.Errorf("the clients waited for %s, want %s", took, tt.want)
				}
				if n := calls.Load(); n != 1 {
					t.Errorf("%d calls for the same answer", n)
				}
				close(release) // it gets on
				synctest.Wait()
				if s, err := ask(ctx, p.dial()); err != nil || s.Pod != "amf-0" {
					t.Errorf("afterwards: %v, %v", s, err)
				}
			})
		})
	}
}

// A client that left takes nothing with it.
func TestServeFirstClientLeaves(t *testing.T) {
	release := make(chan struct{})
	status := func(*testing.T) StatusFunc {
		release = make(chan struct{})
		return func(ctx context.Context) (Status, error) {
			select {
			case <-release:
				return sample(), nil
			case <-ctx.Done():
				return Status{}, ctx.Err()
			}
		}
	}
	virtual(t, status, func(ctx context.Context, p *pipes) {
		first := p.dial()
		synctest.Wait()
		first.Close()
		second := p.dial()
		synctest.Wait()
		close(release)
		if _, err := ask(ctx, second); err != nil {
			t.Error(err)
		}
	})
}

// The end of the agent is the end of every question.
func TestServeEndsWhileAsked(t *testing.T) {
	status := func(*testing.T) StatusFunc {
		return func(ctx context.Context) (Status, error) { <-ctx.Done(); return Status{}, ctx.Err() }
	}
	virtual(t, status, func(_ context.Context, p *pipes) {
		p.dial()
		synctest.Wait()
	})
}

// The end of the agent does not wait for clients that do not read.
func TestServeEndsWithHangingClients(t *testing.T) {
	virtual(t, func(*testing.T) StatusFunc { return fixed(sample()) }, func(_ context.Context, p *pipes) {
		for range 10 {
			p.dial()
		}
		synctest.Wait()
	})
}

func TestServeStatusFails(t *testing.T) {
	status := func(*testing.T) StatusFunc {
		return func(context.Context) (Status, error) { return Status{}, errors.New("the agent is ending") }
	}
	virtual(t, status, func(ctx context.Context, p *pipes) {
		if _, err := ask(ctx, p.dial()); err == nil || !strings.Contains(err.Error(), "@pipes cannot tell its status: the agent is ending") {
			t.Errorf("error %v", err)
		}
	})
}

// A time that JSON cannot say is told as an error, not as an empty answer.
func TestServeImpossibleStatus(t *testing.T) {
	status := func(*testing.T) StatusFunc {
		return fixed(Status{Mode: "sidecar", Started: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)})
	}
	virtual(t, status, func(ctx context.Context, p *pipes) {
		if _, err := ask(ctx, p.dial()); err == nil || !strings.Contains(err.Error(), "year") {
			t.Errorf("error %v", err)
		}
	})
}

// Anybody in the pod may hold the name and answer what they like.
func TestHearOthers(t *testing.T) {
	tests := map[string]struct {
		say  string
		hang bool
		want string
	}{
		"nothing":        {"", false, "without an answer"},
		"silence":        {"", true, "does not answer: context deadline exceeded"},
		"half":           {`{"mode":"side`, false, "not a status: unexpected EOF"},
		"half, then not": {`{"mode":"side`, true, "does not answer"},
		"no JSON":        {"HTTP/1.1 400 Bad Request\r\n\r\n", false, "not a status: invalid character"},
		"null":           {"null", false, "names no mode"},
		"other JSON":     {`{"ok":true,"ready":true}`, false, "names no mode"},
		"a list":         {`[]`, false, "not a status"},
		"wrong types":    {`{"mode":7}`, false, "not a status"},
		"an error":       {`{"error":"stuck"}`, false, "cannot tell its status: stuck"},
		"no end":         {`{"mode":"` + strings.Repeat("x", maxStatus) + `"}`, false, "not a status: unexpected EOF"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				here, there := net.Pipe()
				go func() {
					_, _ = io.WriteString(there, tt.say)
					if !tt.hang {
						there.Close()
					}
				}()
				defer there.Close()
				start := time.Now()
				_, err := ask(t.Context(), here)
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "@pipes") {
					t.Errorf("error %v, want %q", err, tt.want)
				}
				if took := time.Since(start); took > exchange || tt.hang != (took == exchange) {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

// Whoever asks may give up earlier.
func TestAskCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	here, there := net.Pipe()
	defer there.Close()
	if _, err := ask(ctx, here); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var log bytes.Buffer
		var at []time.Duration
		began := time.Now()
		listen := func(context.Context) (net.Listener, error) {
			at = append(at, time.Since(began))
			if len(at) <= 4 {
				return nil, errors.New("address already in use")
			}
			return newPipes(), nil
		}
		served := 0
		serve := func(_ context.Context, l net.Listener) error {
			l.Close()
			if served++; served == 2 {
				cancel()
			}
			return errors.New("too many open files")
		}
		keep(ctx, "the status socket @x", listen, serve, slog.New(slog.NewTextHandler(&log, nil)))
		if len(at) != 6 || served != 2 {
			t.Fatalf("tried %d times, served %d times", len(at), served)
		}
		jitter := false
		for i := range at[1:] {
			d := at[i+1] - at[i]
			if d < 8*time.Second || d > 12*time.Second {
				t.Errorf("tried again after %s", d)
			}
			jitter = jitter || d != at[1]-at[0]
		}
		if !jitter {
			t.Error("no jitter")
		}
		text := log.String()
		for want, times := range map[string]int{"address already in use": 1, "@x is served after all": 2, "too many open files": 1} {
			if n := strings.Count(text, want); n != times {
				t.Errorf("the log says %q %d times, want %d:\n%s", want, n, times, text)
			}
		}
		if n := strings.Count(text, "\n"); n != 4 {
			t.Errorf("%d lines:\n%s", n, text)
		}
	})
}
