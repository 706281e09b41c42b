package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/semaphore"

	"multus-ip-manager.io/webhook/inject"
)

// gated is a server behind a load whose handler reads the body, tells what it began with, and waits to be let go on.
func gated(t *testing.T, l *load) (address string, begun chan int64, goOn chan struct{}) {
	t.Helper()
	begun, goOn = make(chan int64), make(chan struct{})
	server := httptest.NewServer(l.limit(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusRequestTimeout)
			return
		}
		begun <- r.ContentLength
		<-goOn
	})))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String(), begun, goOn
}

// send posts so many bytes that look like JSON, of which the first are sent now.
func send(t *testing.T, conn net.Conn, size, now int) {
	t.Helper()
	if err := postText(conn, size, "{"+strings.Repeat("a", now-1)); err != nil {
		t.Fatal(err)
	}
}

// post posts so many bytes that look like nothing.
func post(conn net.Conn, size, now int) error { return postText(conn, size, strings.Repeat("a", now)) }

func postText(conn net.Conn, size int, text string) error {
	_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: webhook\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		inject.Paths()[0].Path, size, text)
	return err
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Who sends too slowly is given up, and what it held is free.
func TestSlowBodiesAreGivenUp(t *testing.T) {
	for name, size := range map[string]int{"small": smallBody, "large": largestBody} {
		t.Run(name, func(t *testing.T) {
			l := newLoad()
			l.patience = 100 * time.Millisecond
			address, _, _ := gated(t, l)
			conn := dial(t, address)
			send(t, conn, size, 10)
			if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(conn) // ends with the connection
			if err != nil || !strings.Contains(string(answer), "408") {
				t.Errorf("%q, %v", answer, err)
			}
			if !l.small.TryAcquire(smallBodies) || !l.large.TryAcquire(largeBodies) || !l.work.TryAcquire(workedOn) {
				t.Error("the turn was not given back")
			}
		})
	}
}

// Large bodies are worked on in turns, and small ones never wait for them.
func TestLargeBodiesTakeTurns(t *testing.T) {
	address, begun, goOn := gated(t, newLoad())
	const large = largeBodies/2 + 1 // one at a time
	for range 2 {
		conn := dial(t, address)
		go func() { _ = postText(conn, large, "{"+strings.Repeat("a", large-1)) }() // blocks until it is read
	}
	if first := <-begun; first != large {
		t.Fatalf("%d bytes", first)
	}
	send(t, dial(t, address), smallBody, smallBody)
	if next := <-begun; next != smallBody {
		t.Fatalf("%d bytes while one large body is worked on", next)
	}
	goOn <- struct{}{}
	goOn <- struct{}{}
	if next := <-begun; next != large {
		t.Fatalf("%d bytes", next)
	}
	goOn <- struct{}{}
}

// A turn that does not come is an answer, too.
func TestNoTurn(t *testing.T) {
	for name, take := range map[string]func(*load) bool{
		"no room for large bodies": func(l *load) bool { return l.large.TryAcquire(1) },
		"too much is worked on":    func(l *load) bool { return l.work.TryAcquire(1) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLoad()
			l.patience = 500 * time.Millisecond
			address, begun, goOn := gated(t, l)
			if !take(l) {
				t.Fatal("no turn")
			}
			go func() { // nothing begins, or it ends at once
				select {
				case <-begun:
					goOn <- struct{}{}
				case <-t.Context().Done():
				}
			}()
			body := "{" + strings.Repeat(" ", largestBody-1)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if answeredEarly(err) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _ = resp.Body.Close(); resp.StatusCode != http.StatusServiceUnavailable {
				t.Error(resp.Status)
			}
		})
	}
}

// Small bodies have bounds together, too: who sends very many slowly does not take a node's memory.
func TestManySlowBodies(t *testing.T) {
	l := newLoad()
	l.small = semaphore.NewWeighted(2 * smallBody)
	l.patience = 20 * time.Second
	address, begun, goOn := gated(t, l)
	holders := []net.Conn{dial(t, address), dial(t, address)}
	for _, conn := range holders {
		send(t, conn, smallBody, 1)
	}
	for l.small.TryAcquire(1) { // both are there
		l.small.Release(1)
		runtime.Gosched()
	}
	send(t, dial(t, address), 2, 2)
	select {
	case <-begun:
		t.Fatal("it is worked on though there is no room")
	case <-time.After(50 * time.Millisecond):
	}
	for _, conn := range holders {
		_ = conn.Close()
	}
	if n := <-begun; n != 2 {
		t.Errorf("%d bytes", n)
	}
	goOn <- struct{}{}
}

// What is not JSON is not decoded: in YAML, which the decoder takes, a few bytes can stand for very many.
func TestOnlyJSON(t *testing.T) {
	address, begun, goOn := gated(t, newLoad())
	for body, want := range map[string]int{"kind: AdmissionReview": 400, " \n{}": 200, "[]": 400, "": 400} {
		go func() {
			select {
			case <-begun:
				goOn <- struct{}{}
			case <-t.Context().Done():
			}
		}()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _ = resp.Body.Close(); resp.StatusCode != want {
			t.Errorf("%q: %s, want %d", body, resp.Status, want)
		}
	}
}

// The process does so: while somebody holds all turns, a large request waits, and a small one does not.
func TestServeTakesTurns(t *testing.T) {
	p := startProcess(t, "--cert-source=secret", "--webhook-configuration=", "--cert-dir="+keyPair(t))
	p.waitReady()
	connect := func() net.Conn {
		conn, err := tls.Dial("tcp", p.at, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the certificate is not what is tested
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	answered := func(conn net.Conn, within time.Duration) bool {
		if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		_, err := conn.Read(make([]byte, 1))
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		return err == nil
	}
	holder := connect()
	send(t, holder, largestBody, 1)
	var large net.Conn
	p.eventually("a large request waits while another holds all turns", func() error {
		large = connect()
		send(t, large, 2*smallBody, 2*smallBody)
		if answered(large, 200*time.Millisecond) {
			return errors.New("it was answered")
		}
		return nil
	})
	small := connect()
	send(t, small, 2, 2)
	if !answered(small, 10*time.Second) {
		t.Error("a small request waits, too")
	}
	_ = holder.Close()
	if !answered(large, 10*time.Second) {
		t.Error("a large request waits though the other is gone")
	}
}

// Who never reads its answer is given up, too.
func TestUnreadAnswersAreGivenUp(t *testing.T) {
	l := newLoad()
	l.patience = 50 * time.Millisecond
	written := make(chan error, 1)
	server := httptest.NewServer(l.limit(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var err error
		for err == nil { // beyond what the kernel keeps for a reader
			_, err = w.Write(make([]byte, 1<<20))
		}
		written <- err
	})))
	t.Cleanup(server.Close)
	send(t, dial(t, server.Listener.Addr().String()), 2, 2)
	select {
	case err := <-written:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it still writes")
	}
}

// timed is a response that notes the deadlines it is given.
type timed struct {
	*httptest.ResponseRecorder
	read, write time.Time
}

func (w *timed) SetReadDeadline(at time.Time) error  { w.read = at; return nil }
func (w *timed) SetWriteDeadline(at time.Time) error { w.write = at; return nil }

// A request is worked on no longer than its API server waits, which says how long that is; who waits in vain for a turn is told so
// while there is time to ask again, which an API server does by itself.
func TestPatience(t *testing.T) {
	for query, want := range map[string]time.Duration{
		"": patience, "?timeout=5s": 5 * time.Second, "?timeout=30s": patience, "?timeout=-1s": patience, "?timeout=soon": patience,
	} {
		synctest.Test(t, func(t *testing.T) {
			l, begin, w := newLoad(), time.Now(), &timed{ResponseRecorder: httptest.NewRecorder()}
			if !l.large.TryAcquire(largeBodies) {
				t.Fatal("no turn")
			}
			body := strings.NewReader(strings.Repeat("a", smallBody+1))
			l.limit(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/mutate"+query, body))
			if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" {
				t.Errorf("%q: %d, Retry-After %q", query, w.Code, w.Header().Get("Retry-After"))
			}
			if took := time.Since(begin); took != want/2 {
				t.Errorf("%q: it waited for a turn for %s, want %s", query, took, want/2)
			}
			if read, write := w.read.Sub(begin), w.write.Sub(begin); read != want || write != want+patience {
				t.Errorf("%q: %s for the body and %s for the answer, want %s and %s more", query, read, write, want, patience)
			}
		})
	}
}
