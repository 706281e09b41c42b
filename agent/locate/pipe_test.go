package locate

import (
	"context"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
)

// pipes is a network without a kernel, so that time can be virtual.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipes) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// inBubble runs a test in virtual time against the server. The test must not read side by side while a token is waited for: in the
// SDK one read then waits for the other's lock, which virtual time cannot see.
func (s *imdsServer) inBubble(t *testing.T, run func(t *testing.T, m *Metadata)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		s.stop = make(chan struct{})
		server := &http.Server{Handler: s} //nolint:gosec // timeouts would be virtual
		var wg sync.WaitGroup
		wg.Go(func() { _ = server.Serve(l) })
		m, err := New(l)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			close(s.stop)
			_ = server.Close()
			wg.Wait()
		}()
		run(t, m)
	})
}
