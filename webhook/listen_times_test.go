package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"multus-ip-manager.io/test/pipes"
	"multus-ip-manager.io/webhook/inject"
)

// apiServerKeeps is how long an API server keeps a connection on which it asks nothing.
const apiServerKeeps = 90 * time.Second

// inVirtualTime runs a test with connections to a front door that has its own, true times.
func inVirtualTime(t *testing.T, handler http.Handler, test func(t *testing.T, dial func() net.Conn)) {
	t.Helper()
	config := serving(t)
	synctest.Test(t, func(t *testing.T) {
		listener := pipes.New()
		server := newFrontDoor(handler, config, newDrain(0), slog.New(slog.DiscardHandler)).server
		server.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		served, end := make(chan error), func() {}
		go func() { served <- server.Serve(tls.NewListener(listener, config)) }()
		defer func() {
			end()
			_ = server.Shutdown(t.Context()) // waits for the connections
			<-served
		}()
		test(t, func() net.Conn {
			client, err := listener.DialContext(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			end = func() { _ = client.Close() }
			return client
		})
	})
}

// secured makes the TLS handshake.
func secured(conn net.Conn) net.Conn {
	return tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the certificate is not what is tested
}

// endsWithin reads what comes until the connection ends, and fails if it does not in that time.
func endsWithin(t *testing.T, conn net.Conn, limit time.Duration) (said string) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(limit))
	all, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("still there after %s, with %q", limit, all)
	}
	return string(all)
}

// No connection that an API server keeps is closed for being idle, whether or not something was asked on it before.
func TestIdleConnectionsStay(t *testing.T) {
	inVirtualTime(t, http.NotFoundHandler(), func(t *testing.T, dial func() net.Conn) {
		conn := secured(dial())
		for _, when := range []string{"never used", "used once", "used twice"} {
			_ = conn.SetReadDeadline(time.Now().Add(apiServerKeeps + 10*time.Second))
			if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%s: %d bytes, %v", when, n, err)
			}
			if err := post(conn, 1, 1); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			if answer, err := readUntil(conn, "404 page not found\n"); err != nil {
				t.Fatalf("%s: %q, %v", when, answer, err)
			}
		}
	})
}

// Handshakes and headers that do not come, or too slowly, or without end, are given up.
func TestSlowHeadersAreGivenUp(t *testing.T) {
	begin := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: webhook\r\nX-Slow: ", inject.Paths()[0].Path)
	inVirtualTime(t, http.NotFoundHandler(), func(t *testing.T, dial func() net.Conn) {
		endsWithin(t, dial(), 15*time.Second)
	})
	inVirtualTime(t, http.NotFoundHandler(), func(t *testing.T, dial func() net.Conn) {
		conn := secured(dial())
		if _, err := io.WriteString(conn, begin); err != nil {
			t.Fatal(err)
		}
		var writer sync.WaitGroup
		writer.Go(func() {
			for tick := time.Tick(time.Second); ; <-tick {
				if _, err := io.WriteString(conn, "a"); err != nil {
					return
				}
			}
		})
		endsWithin(t, conn, 2*apiServerKeeps)
		_ = conn.Close()
		writer.Wait()
	})
	inVirtualTime(t, http.NotFoundHandler(), func(t *testing.T, dial func() net.Conn) {
		conn := secured(dial())
		go func() { _, _ = io.WriteString(conn, begin+strings.Repeat("a", 1<<20)) }() // until nobody reads it
		if said := endsWithin(t, conn, 15*time.Second); !strings.HasPrefix(said, "HTTP/1.1 431 ") {
			t.Errorf("%q", said)
		}
	})
}

// Who is refused without its body being looked at is answered even if the body does not come, and holds nothing for long.
func TestRefusedBodiesAreGivenUp(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("/mutate", front(http.NotFoundHandler(), slog.New(slog.DiscardHandler)))
	for name, tt := range map[string]struct{ method, path, contentType, length, want string }{
		"not posted":           {"PUT", "/mutate", "application/json", "1000", "405"},
		"another content type": {"POST", "/mutate", "text/plain", "1000", "415"},
		"too large":            {"POST", "/mutate", "application/json", fmt.Sprint(largestBody + 1), "413"},
		"nowhere":              {"POST", "/other", "application/json", "1000", "404"},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, mux, func(t *testing.T, dial func() net.Conn) {
				conn := secured(dial())
				if _, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: webhook\r\nContent-Type: %s\r\nContent-Length: %s\r\n\r\n{",
					tt.method, tt.path, tt.contentType, tt.length); err != nil {
					t.Fatal(err)
				}
				if said := endsWithin(t, conn, 15*time.Second); !strings.HasPrefix(said, "HTTP/1.1 "+tt.want) {
					t.Errorf("%q", said)
				}
			})
		})
	}
}
