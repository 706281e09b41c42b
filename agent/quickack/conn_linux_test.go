package quickack

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// exchanges is how many requests a test sends on one connection: enough for the kernel to see requests and answers in turn.
const exchanges = 50

// listen answers each byte on loopback with two writes of one byte. Nothing holds the second one back (Go switches Nagle's algorithm off), so
// that no delay runs out before the test has looked: a kernel whose delay ran out delays no more for a while.
func listen(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return l.Addr().String()
}

func serve(conn net.Conn) {
	defer conn.Close()
	for request := make([]byte, 1); ; {
		if _, err := conn.Read(request); err != nil {
			return
		}
		for _, part := range []string{"h", "b"} {
			if _, err := conn.Write([]byte(part)); err != nil {
				return
			}
		}
	}
}

// delays tells whether the kernel delays acknowledgements on a connection.
func delays(t *testing.T, conn syscall.Conn) bool {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	quick := 0
	if cerr := raw.Control(func(fd uintptr) { quick, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return quick == 0
}

// delayed counts the exchanges on a kept connection after whose second read acknowledgements are delayed.
func delayed(t *testing.T, dial DialFunc) int {
	t.Helper()
	conn, err := dial(t.Context(), "tcp", listen(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	n := 0
	for range exchanges {
		if _, err := conn.Write([]byte("r")); err != nil {
			t.Fatal(err)
		}
		for b := make([]byte, 1); ; {
			if _, err := conn.Read(b); err != nil {
				t.Fatal(err)
			}
			if b[0] == 'b' {
				break
			}
		}
		if delays(t, conn.(syscall.Conn)) { //nolint:forcetypeassert,errcheck // it must be one
			n++
		}
	}
	return n
}

// A server that writes header and body apart on a kept connection waits for the acknowledgement of the header.
func TestAcknowledgesAtOnce(t *testing.T) {
	t.Parallel()
	var d net.Dialer
	if n := delayed(t, Dial(d.DialContext)); n > 0 {
		t.Errorf("after %d of %d answers the kernel delays acknowledgements", n, exchanges)
	}
}

// The measure shows a plain connection's delays, or the test above would show nothing.
func TestPlainConnectionsDelay(t *testing.T) {
	t.Parallel()
	var d net.Dialer
	if n := delayed(t, d.DialContext); n == 0 {
		t.Error("no acknowledgement is delayed on a plain connection")
	}
}

// What net/http and crypto/tls rely on is there.
func TestConnIsAConnection(t *testing.T) {
	t.Parallel()
	var d net.Dialer
	conn, err := Dial(d.DialContext)(t.Context(), "tcp", listen(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a deadline in the past gives %v", err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		t.Fatal("no half-close")
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after the half-close %d bytes, %v, want the end", n, err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed connection gives %v", err)
	}
}

func TestHTTPAndTLSOverIt(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(http.Handler) *httptest.Server{"http": httptest.NewServer, "https": httptest.NewTLSServer} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
			defer server.Close()
			transport := server.Client().Transport.(*http.Transport) //nolint:forcetypeassert,errcheck // it is one
			transport.DialContext = Dial((&net.Dialer{}).DialContext)
			transport.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := transport.DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				cfg := transport.TLSClientConfig.Clone()
				cfg.ServerName = "example.com"
				return tls.Client(conn, cfg), nil
			}
			for range 3 {
				resp, err := server.Client().Post(server.URL, "text/plain", http.NoBody) //nolint:noctx // loopback
				if err != nil {
					t.Fatal(err)
				}
				if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
					t.Errorf("%s, %v", resp.Status, err)
				}
			}
		})
	}
}

// What is no TCP connection is not touched, and a failure stays one.
func TestDialLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	failure := errors.New("no way")
	for _, want := range []struct {
		conn net.Conn
		err  error
	}{{client, nil}, {nil, failure}} {
		got, err := Dial(func(context.Context, string, string) (net.Conn, error) { return want.conn, want.err })(t.Context(), "tcp", "x")
		if got != want.conn || !errors.Is(err, want.err) {
			t.Errorf("%v, %v", got, err)
		}
	}
}
