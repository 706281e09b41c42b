package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// door is a front door that echoes, with one connection to it.
type door struct {
	*frontDoor
	end    context.CancelFunc
	fail   context.CancelFunc
	served chan error
}

// serving is a door's TLS configuration.
func serving(t *testing.T) *tls.Config {
	t.Helper()
	dir := keyPair(t)
	pair, err := tls.LoadX509KeyPair(dir+"/tls.crt", dir+"/tls.key")
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
}

// openDoor starts a front door that answers after goOn, if that is not nil. It ends as the drain says, and lingers longer than any
// step of a test takes.
func openDoor(t *testing.T, goOn chan struct{}, drain *drain) *door {
	t.Helper()
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if goOn != nil {
			<-goOn
		}
		if err == nil {
			_, _ = w.Write(body)
		}
	})
	d := &door{frontDoor: newFrontDoor(echo, serving(t), drain, slog.New(slog.DiscardHandler)), served: make(chan error, 1)}
	d.linger = 20 * time.Second
	ctx, end := context.WithCancel(t.Context())
	failed, fail := context.WithCancel(context.WithoutCancel(ctx))
	d.end, d.fail = end, fail
	t.Cleanup(fail)
	go func() { d.served <- d.serve(ctx, failed, "127.0.0.1", 0) }()
	d.until(t, "it listens", func() bool { return d.check(httptest.NewRequest(http.MethodGet, "/readyz", nil)) == nil })
	return d
}

func (d *door) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !done() {
		select {
		case <-limit:
			t.Fatal("in vain: ", what)
		case <-tick.C:
		}
	}
}

func (d *door) connect(t *testing.T) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", *d.address.Load(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the certificate is not what is tested
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (d *door) awaitEnd(t *testing.T) {
	t.Helper()
	select {
	case err := <-d.served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
}

// answerOn reads an answer and the end of the connection.
func answerOn(t *testing.T, conn net.Conn) (status int, body string) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("%q, %v", all, err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(all)), nil)
	if err != nil {
		t.Fatalf("%q, %v", all, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, _ := io.ReadAll(resp.Body)
	if !resp.Close {
		t.Errorf("it does not say that the connection ends: %q", all)
	}
	return resp.StatusCode, string(text)
}

// Idle connections are told to go, in a way that is an answer to what is asked at the same moment; what was asked before is
// answered.
func TestGoodbye(t *testing.T) {
	goOn := make(chan struct{})
	d := openDoor(t, goOn, newDrain(0))
	unused, idle, asking := d.connect(t), d.connect(t), d.connect(t)
	if err := post(idle, 2, 2); err != nil {
		t.Fatal(err)
	}
	goOn <- struct{}{}
	if _, err := io.ReadFull(idle, make([]byte, len("HTTP/1.1 200 OK\r\n"))); err != nil {
		t.Fatal(err)
	}
	if _, err := readUntil(idle, "aa"); err != nil {
		t.Fatal(err)
	}
	if err := post(asking, 3, 3); err != nil {
		t.Fatal(err)
	}
	d.until(t, "two connections are idle", func() bool { return d.isIdle(unused) && d.isIdle(idle) && !d.isIdle(asking) })
	d.end()
	for name, conn := range map[string]net.Conn{"unused": unused, "idle": idle} {
		if status, _ := answerOn(t, conn); status != http.StatusServiceUnavailable {
			t.Errorf("%s: %d", name, status)
		}
		_ = conn.Close()
	}
	select {
	case err := <-d.served:
		t.Fatalf("it ended (%v) before everything was answered", err)
	default:
	}
	if _, err := net.Dial("tcp", *d.address.Load()); err == nil {
		t.Error("it takes new connections")
	}
	close(goOn)
	if answer, err := readUntil(asking, "aaa"); err != nil || !strings.HasPrefix(answer, "HTTP/1.1 200") {
		t.Fatalf("%q, %v", answer, err)
	}
	_ = asking.Close()
	d.awaitEnd(t)
}

// What becomes idle after the goodbye to others gets its own.
func TestLateGoodbye(t *testing.T) {
	goOn := make(chan struct{})
	d := openDoor(t, goOn, newDrain(0))
	holder, late := d.connect(t), d.connect(t) // without the holder it would not wait
	if err := post(late, 3, 3); err != nil {
		t.Fatal(err)
	}
	d.until(t, "it asks", func() bool { return d.isIdle(holder) && !d.isIdle(late) })
	d.end()
	if status, _ := answerOn(t, holder); status != http.StatusServiceUnavailable { // and still holds it
		t.Errorf("%d", status)
	}
	close(goOn)
	if answer, err := readUntil(late, "aaa"); err != nil || strings.Contains(answer, "close") {
		t.Fatalf("%q, %v", answer, err)
	}
	if status, _ := answerOn(t, late); status != http.StatusServiceUnavailable {
		t.Errorf("%d", status)
	}
	_, _ = holder.Close(), late.Close()
	d.awaitEnd(t)
}

// isIdle reports whether the door holds the other end of a connection for idle.
func (d *door) isIdle(conn net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.idle {
		if c.RemoteAddr().String() == conn.LocalAddr().String() {
			return true
		}
	}
	return false
}

// readUntil reads until the text ends in end.
func readUntil(conn net.Conn, end string) (string, error) {
	var text strings.Builder
	for one := make([]byte, 1); !strings.HasSuffix(text.String(), "\r\n\r\n"+end); {
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Read(one); err != nil {
			return text.String(), err
		}
		text.Write(one)
	}
	return text.String(), nil
}

// What is asked once goodbye was said finds its connection still there, with the goodbye in it, and not a reset: that is what an
// API server sees that had not read the goodbye yet.
func TestGoodbyeIsNoReset(t *testing.T) {
	d := openDoor(t, nil, newDrain(0))
	conn := d.connect(t)
	d.end()
	if _, err := conn.Read(make([]byte, 1)); err != nil { // the goodbye is there, but the client has not looked
		t.Fatal(err)
	}
	if err := post(conn, 2*smallBody, 2*smallBody); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if rest, err := io.ReadAll(conn); err != nil || string(rest) != goodbye[1:] {
		t.Errorf("%q, %v", rest, err)
	}
	_ = conn.Close()
	d.awaitEnd(t)
}

// The client that API servers use asks again after a goodbye, with the same body.
func TestGoodbyeIsAskedAgain(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	go func() {
		for first := true; ; first = false {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			reader := bufio.NewReader(conn)
			req, err := http.ReadRequest(reader)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(req.Body)
			if first {
				_, _ = io.WriteString(conn, goodbye)
			} else {
				_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			}
			_ = conn.Close()
		}
	}()
	client, err := rest.UnversionedRESTClientFor(&rest.Config{
		Host: "http://" + listener.Addr().String(), QPS: -1,
		ContentConfig: rest.ContentConfig{NegotiatedSerializer: serializer.NewCodecFactory(runtime.NewScheme())},
	})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Post().Body([]byte(`"once"`)).DoRaw(t.Context())
	if err != nil || string(answer) != `"once"` {
		t.Errorf("%q, %v", answer, err)
	}
}

// Where something else has failed there is no time to be friendly.
func TestDoorEndsWithAFailure(t *testing.T) {
	d := openDoor(t, nil, newDrain(time.Hour))
	d.fail()
	d.awaitEnd(t)
}
