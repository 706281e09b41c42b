package apply

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"

	"multus-ip-manager.io/agent/locate"
)

const (
	// idleTimeout is how long a connection that has carried a request is kept for the next one. It is short, because the server
	// closes it after a time that nobody publishes, and a request that crosses that is lost; the spare connection takes over from there.
	idleTimeout = 5 * time.Second
	// credentialsTimeout bounds one request for credentials. It is longer than an EC2 attempt: one that comes too late for its call is
	// there for the next.
	credentialsTimeout = 10 * time.Second
	// sessions is how many TLS sessions are remembered, so that a further handshake is short.
	sessions = 4
)

// sdkClient makes the HTTP client that the SDK gets first: it asks STS for credentials with it, and puts AWS_CA_BUNDLE into it.
func sdkClient(dialer locate.Dialer) *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().WithTimeout(credentialsTimeout).WithTransportOptions(func(t *http.Transport) {
		t.DialContext = dialer.DialContext
		t.ForceAttemptHTTP2 = false
		t.TLSHandshakeTimeout = attemptTimeout
		t.IdleConnTimeout = idleTimeout
	})
}

// endpointClient makes the HTTP client that asks the endpoint of EKS Pod Identity, and others of its kind, for credentials. A proxy
// must not see those requests where they are not encrypted.
func endpointClient(dialer locate.Dialer) *awshttp.BuildableClient {
	return sdkClient(dialer).WithTransportOptions(func(t *http.Transport) {
		t.Proxy = func(req *http.Request) (*url.URL, error) {
			if req.URL.Scheme == "http" {
				return nil, nil
			}
			return http.ProxyFromEnvironment(req)
		}
	})
}

// line is the way to the EC2 endpoint: a transport that takes its first connection after a quiet time from a spare one.
type line struct {
	endpoint  *url.URL
	dialer    locate.Dialer
	transport *http.Transport
	tls       *tls.Config
	// direct tells that no proxy is in between. Where there is one, connections are the transport's business alone.
	direct bool
	spare  spare
}

// newLine makes the way to the endpoint out of the SDK's transport, which has the environment's certificates.
func newLine(transport *http.Transport, dialer locate.Dialer, endpoint *url.URL) (*line, error) {
	l := &line{endpoint: endpoint, dialer: dialer, transport: transport, tls: transport.TLSClientConfig.Clone()}
	l.tls.ClientSessionCache = tls.NewLRUClientSessionCache(sessions)
	l.tls.NextProtos = []string{"http/1.1"}
	l.spare.dial = l.dial
	transport.TLSClientConfig = l.tls
	proxy, err := transport.Proxy(&http.Request{URL: endpoint})
	if err != nil {
		return nil, err
	}
	if l.direct = proxy == nil; l.direct {
		transport.DialContext = l.dialFor("http", dialer.DialContext)
		transport.DialTLSContext = l.dialFor("https", l.dialTLS)
	}
	return l, nil
}

// reachedKey is the key under which a context carries where to note that a request to EC2 was given a connection, a [*bool].
type reachedKey struct{}

// Do implements [aws.HTTPClient]. Redirects are not followed: a request is signed for one host.
//
// It notes whether the request was given a connection. Only from then on can any of it have been sent; before that there are the name's
// resolution, the dial, a proxy's tunnel and the TLS handshake. The note is made here because requests for credentials carry the same context.
func (l *line) Do(req *http.Request) (*http.Response, error) {
	if reached, ok := req.Context().Value(reachedKey{}).(*bool); ok {
		trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { *reached = true }}
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), trace))
	}
	c := &http.Client{Transport: l.transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c.Do(req)
}

// dialFor gives connections to the endpoint, if it has the scheme, by way of the spare one, and any other as dial does.
func (l *line) dialFor(scheme string, dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if l.endpoint.Scheme == scheme && address == addressOf(l.endpoint) {
			return l.spare.take(ctx)
		}
		return dial(ctx, network, address)
	}
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// dial opens a connection to the endpoint.
func (l *line) dial(ctx context.Context) (net.Conn, error) {
	if l.endpoint.Scheme == "http" {
		return l.dialer.DialContext(ctx, "tcp", addressOf(l.endpoint))
	}
	return l.dialTLS(ctx, "tcp", addressOf(l.endpoint))
}

func (l *line) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	raw, err := l.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	cfg := l.tls.Clone()
	cfg.ServerName = host
	conn := tls.Client(raw, cfg)
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("TLS handshake with %s: %w", address, err)
	}
	return conn, nil
}

// warm keeps a connection ready, without sending any request on it.
func (l *line) warm(ctx context.Context) error {
	if !l.direct {
		return nil
	}
	return l.spare.warm(ctx)
}

// close gives up the connections that are kept.
func (l *line) close() {
	l.spare.close()
	l.transport.CloseIdleConnections()
}

// addressOf is the address as a transport dials it.
func addressOf(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// wholeAnswers reads an answer to its end before the SDK sees it. The SDK closes a body it is still reading when the last bytes come in
// a segment of their own, and takes that for a lost answer.
type wholeAnswers struct{ inner aws.HTTPClient }

// Do implements [aws.HTTPClient].
func (w wholeAnswers) Do(req *http.Request) (*http.Response, error) {
	if err := repeatable(req); err != nil {
		return nil, err
	}
	resp, err := w.inner.Do(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// repeatable lets the transport send the request on another connection when the one it kept turns out to be closed before anything was
// written to it. That is no second attempt: a request of which a byte was written is never repeated.
func repeatable(req *http.Request) error {
	if req == nil || req.Body == nil || req.GetBody != nil {
		return nil
	}
	body, err := io.ReadAll(req.Body)
	if err := errors.Join(err, req.Body.Close()); err != nil {
		return err
	}
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	req.Body, err = req.GetBody()
	return err
}
