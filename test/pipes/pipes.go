// Package pipes is a network without a kernel, so that time can be virtual: goroutines that wait for a real connection keep a bubble
// of testing/synctest from going on.
package pipes

import (
	"context"
	"net"
	"sync"
)

// Listener accepts what its own DialContext dials, whatever the address.
type Listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

var _ net.Listener = (*Listener)(nil)

// New returns a listener. In a bubble it must be made there.
func New() *Listener { return &Listener{conns: make(chan net.Conn), done: make(chan struct{})} }

// Accept implements [net.Listener].
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (l *Listener) Close() error { l.once.Do(func() { close(l.done) }); return nil }

// Addr implements [net.Listener].
func (*Listener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// DialContext connects to the listener, once it accepts.
func (l *Listener) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
