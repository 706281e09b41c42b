package apply

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// spareAge is how old a spare connection may become. The names of AWS's endpoints lead to other servers every minute, and what lies
// between forgets connections on which nothing was sent; this is below the shortest such time that AWS publishes (NAT gateways, 350 s).
const spareAge = 5 * time.Minute

// spare keeps one established connection ready on which nothing was sent yet. Connections that have carried a request are the
// transport's to keep, for a few seconds; this one is for the first call after a quiet time.
type spare struct {
	// dial establishes a connection, with TLS where the endpoint has it.
	dial func(context.Context) (net.Conn, error)

	mu      sync.Mutex
	held    *heldConn
	dialing chan struct{} // closed when the dial under way has ended
	closed  bool
}

// warm sees to it that there is a spare connection, with one dial at most.
func (s *spare) warm(ctx context.Context) error {
	s.mu.Lock()
	old := s.held
	if s.closed || s.dialing != nil || old != nil && old.idle() && time.Since(old.since) < spareAge {
		s.mu.Unlock()
		return nil
	}
	done := make(chan struct{})
	s.dialing = done
	s.mu.Unlock()

	conn, err := s.dial(ctx)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.dialing = nil
	close(done)
	if err != nil {
		return err
	}
	if s.closed {
		return conn.Close()
	}
	if s.held != nil {
		s.held.discard()
	}
	s.held = hold(conn)
	return nil
}

// take gives the spare connection if its server has not closed it, or one that is being established, else a new one.
func (s *spare) take(ctx context.Context) (net.Conn, error) {
	conn, dialing := s.fetch()
	if conn == nil && dialing != nil {
		select {
		case <-dialing:
			conn, _ = s.fetch()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if conn != nil {
		return conn, nil
	}
	return s.dial(ctx)
}

// fetch takes the spare connection if there is one that can be used, and tells of a dial under way.
func (s *spare) fetch() (net.Conn, chan struct{}) {
	s.mu.Lock()
	h, dialing := s.held, s.dialing
	s.held = nil
	s.mu.Unlock()
	if h == nil || !h.release() {
		return nil, dialing
	}
	return h.Conn, nil
}

// close gives the spare connection up and keeps no other.
func (s *spare) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.held != nil {
		s.held.discard()
		s.held = nil
	}
}

// heldConn is a connection that waits for its use. A read is under way on it all the time: it takes in what TLS sends after the
// handshake (session tickets), and ends when the server closes the connection.
type heldConn struct {
	net.Conn
	since time.Time
	// ended is closed at the end of the read; quiet, written before that, tells that nothing had come.
	ended chan struct{}
	quiet bool
}

func hold(conn net.Conn) *heldConn {
	h := &heldConn{Conn: conn, since: time.Now(), ended: make(chan struct{})}
	go func() {
		defer close(h.ended)
		n, err := conn.Read(make([]byte, 1))
		if h.quiet = n == 0 && errors.Is(err, os.ErrDeadlineExceeded); !h.quiet {
			_ = conn.Close() // the server closed it, or said what nobody asked for
		}
	}()
	return h
}

// idle tells whether the connection still waits.
func (h *heldConn) idle() bool {
	select {
	case <-h.ended:
		return false
	default:
		return true
	}
}

// release ends the read and tells whether the connection can be used.
func (h *heldConn) release() bool {
	// A deadline in the past ends the read without a mark on the connection.
	if err := h.SetReadDeadline(time.Unix(1, 0)); err != nil {
		h.discard()
		return false
	}
	<-h.ended
	return h.quiet && h.SetReadDeadline(time.Time{}) == nil
}

// discard closes the connection; the read ends with it.
func (h *heldConn) discard() { _ = h.Close() }
