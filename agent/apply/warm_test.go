package apply

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"multus-ip-manager.io/agent/locate"
)

// network is a network without a kernel, so that time can be virtual: hosts by the address they are dialled at.
type network struct {
	mu    sync.Mutex
	hosts map[string]*host
	wg    sync.WaitGroup
}

// host is one server of a [network]. It is its own listener.
type host struct {
	server http.Server
	conns  chan net.Conn
	done   chan struct{}
	dials  atomic.Int32

	mu   sync.Mutex
	open []net.Conn
}

func (h *host) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *host) Close() error   { return nil }
func (h *host) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// hangUp closes every connection, as a server does that has waited long enough.
func (h *host) hangUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.open {
		_ = c.Close()
	}
	h.open = nil
}

func (n *network) DialContext(_ context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	h := n.hosts[address]
	n.mu.Unlock()
	if h == nil {
		return nil, fmt.Errorf("no route to %s", address)
	}
	h.dials.Add(1)
	client, server := net.Pipe()
	h.mu.Lock()
	h.open = append(h.open, server)
	h.mu.Unlock()
	h.conns <- server
	return client, nil
}

// serve adds a host, with TLS if there is a configuration for it.
func (n *network) serve(address string, cfg *tls.Config, handler http.HandlerFunc) *host {
	h := &host{conns: make(chan net.Conn), done: make(chan struct{})}
	h.server = http.Server{Handler: handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)} //nolint:gosec // timeouts would be virtual
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts == nil {
		n.hosts = map[string]*host{}
	}
	n.hosts[address] = h
	n.wg.Go(func() {
		if cfg != nil {
			h.server.TLSConfig = cfg
			_ = h.server.ServeTLS(h, "", "")
			return
		}
		_ = h.server.Serve(h)
	})
	return h
}

func (n *network) stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.hosts {
		close(h.done)
		_ = h.server.Close()
		h.hangUp()
	}
	n.wg.Wait()
}

// certificate gives a certificate for example.com and puts its authority into the environment.
func certificate(t *testing.T) *tls.Config {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CA_BUNDLE", path)
	return &tls.Config{Certificates: server.TLS.Certificates, MinVersion: tls.VersionTLS12}
}

// podIdentity sets the environment of a pod with EKS Pod Identity and an EC2 endpoint of its own.
func podIdentity(t *testing.T, endpoint string) {
	t.Helper()
	(&wire{status: 200}).client(t, true)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials")
	t.Setenv("AWS_ENDPOINT_URL_EC2", endpoint)
}

// newTestClient makes a client whose connections are the dialer's.
func newTestClient(t *testing.T, dialer locate.Dialer, log *slog.Logger, options ...Option) *Client {
	t.Helper()
	metadata, err := locate.New(dialer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(t.Context(), metadata, dialer, log, "multus-ip-manager-test", options...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// tick keeps a client warm for a number of minutes.
func tick(t *testing.T, c *Client, minutes int) {
	t.Helper()
	for range minutes {
		c.Warm(t.Context())
		pass(time.Minute)
	}
	synctest.Wait()
}

const assigned = `<R><networkInterfaceId>eni-1</networkInterfaceId><assignedPrivateIpAddressesSet><item><privateIpAddress>10.0.17.5</privateIpAddress></item></assignedPrivateIpAddressesSet></R>`

func assign(t *testing.T, c *Client) error {
	t.Helper()
	_, err := c.AssignIPv4(t.Context(), "eni-1", addrs("10.0.17.5"), true)
	return err
}

// A takeover after ten quiet minutes, with the first credentials over, is one round trip: no connection, no handshake and no request for
// credentials is on its way.
func TestTakeoverAfterTenIdleMinutes(t *testing.T) {
	cfg := certificate(t)
	podIdentity(t, "https://example.com")
	synctest.Test(t, func(t *testing.T) {
		started := time.Now()
		var fetched, asked atomic.Int32
		var signed atomic.Value
		n := &network{}
		defer n.stop()
		n.serve("169.254.170.23:80", nil, func(w http.ResponseWriter, _ *http.Request) {
			fetched.Add(1)
			// New credentials are there only from five minutes before the end of the old ones.
			key, end := "AKIAOLD", started.Add(11*time.Minute)
			if time.Since(started) >= 6*time.Minute {
				key, end = "AKIANEW", started.Add(6*time.Hour)
			}
			_, _ = fmt.Fprintf(w, `{"AccessKeyId":%q,"SecretAccessKey":"s","Token":"t","Expiration":%q}`, key, end.Format(time.RFC3339))
		})
		ec2 := n.serve("example.com:443", cfg, func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			signed.Store(r.Header.Get("Authorization"))
			if r.TLS.NegotiatedProtocol != "http/1.1" || r.ProtoMajor != 1 {
				t.Errorf("speaks %s (ALPN %q)", r.Proto, r.TLS.NegotiatedProtocol)
			}
			_, _ = io.WriteString(w, assigned)
		})
		c := newTestClient(t, n, slog.New(slog.DiscardHandler))
		defer c.Close()
		tick(t, c, 10)
		pass(55 * time.Second) // 5 s before the end of the first credentials
		if f := fetched.Load(); f < 2 || f > 8 {
			t.Errorf("credentials were fetched %d times in ten minutes", f)
		}
		if d := ec2.dials.Load(); d < 1 || d > 3 || asked.Load() != 0 {
			t.Errorf("%d connections and %d requests in ten quiet minutes", d, asked.Load())
		}
		dials, fetches, at := ec2.dials.Load(), fetched.Load(), time.Now()
		if err := assign(t, c); err != nil {
			t.Fatal(err)
		}
		if d, f, a := ec2.dials.Load()-dials, fetched.Load()-fetches, asked.Load(); d != 0 || f != 0 || a != 1 {
			t.Errorf("the takeover took %d connections, %d requests for credentials, %d EC2 requests; want 0, 0, 1", d, f, a)
		}
		if took := time.Since(at); took != 0 {
			t.Errorf("took %s of waiting", took)
		}
		if !strings.Contains(signed.Load().(string), "AKIANEW") {
			t.Errorf("signed with %s", signed.Load())
		}
	})
}

// A spare connection that the server closes is replaced at the next tick, with one connection a tick at most, and is never used.
func TestSpareClosedByTheServer(t *testing.T) {
	for scheme, cfg := range map[string]*tls.Config{"https": certificate(t), "http": nil} {
		t.Run(scheme, func(t *testing.T) {
			podIdentity(t, scheme+"://example.com")
			t.Setenv("AWS_ACCESS_KEY_ID", "AKIA")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
			synctest.Test(t, func(t *testing.T) {
				n := &network{}
				defer n.stop()
				var asked atomic.Int32
				ec2 := n.serve("example.com:"+map[string]string{"https": "443", "http": "80"}[scheme], cfg, func(w http.ResponseWriter, _ *http.Request) {
					asked.Add(1)
					_, _ = io.WriteString(w, assigned)
				})
				c := newTestClient(t, n, slog.New(slog.DiscardHandler))
				defer c.Close()
				want := func(dials int32, when string) {
					t.Helper()
					synctest.Wait()
					if d := ec2.dials.Load(); d != dials {
						t.Errorf("%s: %d connections, want %d", when, d, dials)
					}
				}
				tick(t, c, 2)
				want(1, "two ticks")
				ec2.hangUp()
				want(1, "closed by the server")
				if err := assign(t, c); err != nil {
					t.Fatalf("a call after that: %v", err)
				}
				want(2, "a call after that")
				if err := assign(t, c); err != nil {
					t.Fatal(err)
				}
				want(2, "the next call, on the same connection")
				pass(2 * idleTimeout)
				c.Warm(t.Context())
				want(3, "the next tick")
				c.Warm(t.Context())
				want(3, "a tick with a living spare")
				pass(spareAge)
				c.Warm(t.Context())
				want(4, "a tick with an old spare")
				if err := assign(t, c); err != nil || asked.Load() != 3 {
					t.Errorf("%v after %d requests", err, asked.Load())
				}
				want(4, "a call with a fresh spare")
				pass(2 * idleTimeout)
				c.Warm(t.Context())
				want(5, "a tick")
				ec2.hangUp()
				synctest.Wait()
				c.Warm(t.Context())
				want(6, "a tick after the server closed a young spare")
			})
		})
	}
}

// With an endpoint that is away the tick fails quietly, once a minute, and a call says what is wrong.
func TestSpareEndpointAway(t *testing.T) {
	podIdentity(t, "https://example.com")
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIA")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	synctest.Test(t, func(t *testing.T) {
		c := newTestClient(t, &network{}, slog.New(slog.DiscardHandler))
		defer c.Close()
		tick(t, c, 2)
		if err := assign(t, c); classOf(t, err) != Unsent || !strings.Contains(err.Error(), "no route to example.com:443") {
			t.Errorf("%v", err)
		}
	})
}

// slowDialer gives connections when told to.
type slowDialer struct {
	dials   int
	release chan error
}

func (d *slowDialer) dial(ctx context.Context) (net.Conn, error) {
	d.dials++
	select {
	case err := <-d.release:
		if err != nil {
			return nil, err
		}
		client, server := net.Pipe()
		context.AfterFunc(ctx, func() { _ = server.Close() })
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A call that comes while the spare connection is being established takes that one; when that fails it tries itself.
func TestSpareUnderWay(t *testing.T) {
	for name, first := range map[string]error{"established": nil, "failed": errors.New("refused")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &slowDialer{release: make(chan error)}
				s := &spare{dial: d.dial}
				defer s.close()
				go func() { _ = s.warm(t.Context()) }()
				synctest.Wait()
				if err := s.warm(t.Context()); err != nil || d.dials != 1 {
					t.Errorf("a second tick meanwhile: %v, %d connections", err, d.dials)
				}
				taken := make(chan error, 1)
				go func() {
					conn, err := s.take(t.Context())
					if err == nil {
						err = conn.Close()
					}
					taken <- err
				}()
				synctest.Wait()
				if d.dials != 1 {
					t.Errorf("%d connections while one is being established", d.dials)
				}
				d.release <- first
				want := 1
				if first != nil {
					d.release <- nil
					want = 2
				}
				if err := <-taken; err != nil || d.dials != want {
					t.Errorf("%v, %d connections, want %d", err, d.dials, want)
				}
			})
		})
	}
	t.Run("the caller gives up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &slowDialer{release: make(chan error)}
			s := &spare{dial: d.dial}
			defer s.close()
			go func() { _ = s.warm(t.Context()) }()
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := s.take(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
			d.release <- nil
		})
	})
}

// A server that speaks before it is asked is none to send requests to.
func TestSpareWithUnexpectedBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var servers []net.Conn
		s := &spare{dial: func(context.Context) (net.Conn, error) {
			client, server := net.Pipe()
			servers = append(servers, server)
			return client, nil
		}}
		defer s.close()
		if err := s.warm(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := servers[0].Write([]byte("!")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		conn, err := s.take(t.Context())
		if err != nil || len(servers) != 2 {
			t.Errorf("%v, %d connections, want a second one", err, len(servers))
		}
		_ = conn.Close()
	})
}

// counted counts the connections of a real dialer.
type counted struct {
	net.Dialer
	dials atomic.Int32
	to    string
}

func (d *counted) DialContext(ctx context.Context, network, _ string) (net.Conn, error) {
	d.dials.Add(1)
	return d.Dialer.DialContext(ctx, network, d.to)
}

// Over a real TLS server: session tickets that come after the handshake do not spoil the spare connection, and a further handshake
// resumes the session.
func TestSpareOverRealTLS(t *testing.T) {
	for version, name := range map[uint16]string{tls.VersionTLS12: "TLS 1.2", tls.VersionTLS13: "TLS 1.3"} {
		t.Run(name, func(t *testing.T) {
			cfg := certificate(t)
			podIdentity(t, "https://example.com")
			t.Setenv("AWS_ACCESS_KEY_ID", "AKIA")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
			var resumed []bool
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				resumed = append(resumed, r.TLS.DidResume)
				w.Header().Set("Connection", "close")
				_, _ = io.WriteString(w, assigned)
			}))
			server.TLS = &tls.Config{Certificates: cfg.Certificates, MinVersion: version, MaxVersion: version}
			server.EnableHTTP2 = true
			server.StartTLS()
			t.Cleanup(server.Close)
			d := &counted{to: server.Listener.Addr().String()}
			c := newTestClient(t, d, slog.New(slog.DiscardHandler))
			defer c.Close()
			c.Warm(t.Context())
			for range 3 {
				if err := assign(t, c); err != nil {
					t.Fatal(err)
				}
			}
			if got := d.dials.Load(); got != 3 {
				t.Errorf("%d connections for three calls on connections that are closed each time, want 3: the first call has the spare one", got)
			}
			if len(resumed) != 3 || resumed[0] || !resumed[1] || !resumed[2] {
				t.Errorf("handshakes resumed a session: %v, want the second and the third", resumed)
			}
		})
	}
}

// The spare connection leads to where the SDK sends its requests, whatever the environment says of endpoints.
func TestSpareEndpoints(t *testing.T) {
	tests := map[string]struct {
		env  map[string]string
		want string
	}{
		"the Region's":    {nil, "ec2.eu-central-1.amazonaws.com:443"},
		"FIPS":            {map[string]string{"AWS_USE_FIPS_ENDPOINT": "true", "AWS_REGION": "us-east-1"}, "ec2-fips.us-east-1.amazonaws.com:443"},
		"dual stack":      {map[string]string{"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "ec2.eu-central-1.api.aws:443"},
		"China":           {map[string]string{"AWS_REGION": "cn-north-1"}, "ec2.cn-north-1.amazonaws.com.cn:443"},
		"custom":          {map[string]string{"AWS_ENDPOINT_URL_EC2": "https://vpce-1.ec2.example.com:8443/"}, "vpce-1.ec2.example.com:8443"},
		"custom, IPv6":    {map[string]string{"AWS_ENDPOINT_URL_EC2": "http://[2001:db8::1]"}, "[2001:db8::1]:80"},
		"of all services": {map[string]string{"AWS_ENDPOINT_URL": "http://127.0.0.1:4566"}, "127.0.0.1:4566"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			podIdentity(t, "")
			t.Setenv("AWS_ACCESS_KEY_ID", "AKIA")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			d := &refusing{}
			c := newTestClient(t, d, slog.New(slog.DiscardHandler))
			defer c.Close()
			c.Warm(t.Context())
			if err := assign(t, c); err == nil {
				t.Error("succeeds")
			}
			if len(d.asked) != 2 || d.asked[0] != tt.want || d.asked[1] != tt.want {
				t.Errorf("the spare and the request dialled %q, want twice %q", d.asked, tt.want)
			}
		})
	}
}

// refusing notes what is dialled and refuses it.
type refusing struct{ asked []string }

func (r *refusing) DialContext(_ context.Context, _, address string) (net.Conn, error) {
	r.asked = append(r.asked, address)
	return nil, errors.New("refused")
}

// Behind a proxy connections are the transport's alone: the spare one would go past the proxy.
func TestNoSpareBehindAProxy(t *testing.T) {
	t.Setenv("AWS_CA_BUNDLE", "")
	d := &refusing{}
	transport := sdkClient(d).GetTransport()
	proxy, err := http.NewRequest(http.MethodGet, "http://proxy.example.com:3128", nil)
	if err != nil {
		t.Fatal(err)
	}
	endpoint, err := http.NewRequest(http.MethodPost, "https://ec2.eu-central-1.amazonaws.com/", strings.NewReader("a"))
	if err != nil {
		t.Fatal(err)
	}
	transport.Proxy = http.ProxyURL(proxy.URL)
	l, err := newLine(transport, d, endpoint.URL)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.warm(t.Context()); err != nil || len(d.asked) != 0 {
		t.Errorf("%v, dialled %q", err, d.asked)
	}
	if resp, err := l.Do(endpoint); err == nil {
		_ = resp.Body.Close()
		t.Error("succeeds")
	}
	if len(d.asked) != 1 || d.asked[0] != "proxy.example.com:3128" {
		t.Errorf("a request dialled %q, want the proxy", d.asked)
	}
}

// A kept connection that turns out to be closed before anything was written to it costs no attempt.
func TestRequestsCanMoveToAnotherConnection(t *testing.T) {
	req, err := http.NewRequest(http.MethodPost, "http://example.com", io.MultiReader(strings.NewReader("a="), strings.NewReader("b")))
	if err != nil || req.GetBody != nil {
		t.Fatal(err)
	}
	if err := repeatable(req); err != nil || req.GetBody == nil {
		t.Fatalf("%v, GetBody is %v", err, req.GetBody != nil)
	}
	again, err := req.GetBody()
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]io.Reader{"the body": req.Body, "the same again": again} {
		if b, err := io.ReadAll(body); string(b) != "a=b" || err != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if c := (&wire{status: 200}).client(t, true); c.line.transport.IdleConnTimeout != idleTimeout || idleTimeout > 10*time.Second {
		t.Errorf("connections are kept for %s", c.line.transport.IdleConnTimeout)
	}
}

// refusingEC2 connects to loopback only.
type refusingEC2 struct{ net.Dialer }

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }
