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
	"strings"
	"testing"
	"time"

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

// send posts so many bytes, of which the first are sent now.
func send(t *testing.T, conn net.Conn, size, now int) {
	t.Helper()
	if err := post(conn, size, now); err != nil {
		t.Fatal(err)
	}
}

func post(conn net.Conn, size, now int) error {
	_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: webhook\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		inject.Paths()[0].Path, size, strings.Repeat("a", now))
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
			if !l.turns.TryAcquire(largeBodies) {
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
		go func() { _ = post(conn, large, large) }() // blocks until it is read
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

// A turn that does not come is an answer, too; a size that is not said counts as the largest.
func TestNoTurn(t *testing.T) {
	l := newLoad()
	l.patience = 50 * time.Millisecond
	address, _, _ := gated(t, l)
	if !l.turns.TryAcquire(1) {
		t.Fatal("no turn")
	}
	for name, body := range map[string]io.Reader{
		"size unknown": io.MultiReader(strings.NewReader("{}")), "above all sizes": io.LimitReader(strings.NewReader(strings.Repeat("a", largestBody+1)), largestBody+1),
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address, body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(err.Error(), "reset") || strings.Contains(err.Error(), "broken pipe") {
				continue // answered before all of it was sent
			}
			t.Fatal(err)
		}
		if _ = resp.Body.Close(); resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
}

// The process does so: while somebody holds all turns, a large request waits, and a small one does not.
func TestServeTakesTurns(t *testing.T) {
	p := startProcess(t, "--cert-source=secret", "--webhook-configuration=", "--cert-dir="+keyPair(t))
	p.waitReady()
	connect := func() net.Conn {
		conn, err := tls.Dial("tcp", p.address(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the certificate is not what is tested
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	inFlight := func(n int) {
		p.eventually("requests are being handled", func() error {
			if body, err := get(p.scrape); err != nil || !strings.Contains(body, fmt.Sprintf("requests_in_flight{webhook=%q} %d", inject.Paths()[0].Path, n)) {
				return errors.New("not yet")
			}
			return nil
		})
	}
	holder, large, small := connect(), connect(), connect()
	send(t, holder, largestBody, 1)
	inFlight(1)
	send(t, large, 2*smallBody, 2*smallBody)
	inFlight(2)
	send(t, small, 2, 2)
	if _, err := small.Read(make([]byte, 1)); err != nil {
		t.Errorf("a small request: %v", err)
	}
	if err := large.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := large.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a large request was answered (%d, %v) while another holds all turns", n, err)
	}
	_ = holder.Close()
	if err := large.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := large.Read(make([]byte, 1)); err != nil {
		t.Errorf("a large request, after the other is gone: %v", err)
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

// A request is worked on no longer than its API server waits, which says how long that is; who waited in vain is told when to
// ask again, and an API server does so by itself.
func TestPatience(t *testing.T) {
	l := newLoad()
	for query, want := range map[string]time.Duration{
		"": patience, "?timeout=5s": 5 * time.Second, "?timeout=30s": patience, "?timeout=-1s": patience, "?timeout=soon": patience,
	} {
		if got := l.patienceWith(httptest.NewRequest(http.MethodPost, "/mutate"+query, nil)); got != want {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
	}
	if !l.turns.TryAcquire(largeBodies) {
		t.Fatal("no turn")
	}
	server := httptest.NewServer(l.limit(http.NotFoundHandler()))
	t.Cleanup(server.Close)
	resp, err := postTo(t, server.URL+"?timeout=50ms", strings.Repeat("a", smallBody+1))
	if err != nil {
		t.Fatal(err)
	}
	if _ = resp.Body.Close(); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("%s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
}
