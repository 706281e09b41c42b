package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// handshakeTime is for the TLS handshake.
	handshakeTime = 10 * time.Second
	// idleTime is longer than the 90 s for which API servers keep a connection on which nothing is asked: they close it then.
	// Who closes a connection must know that nothing is about to be asked on it, and only the API server knows that.
	idleTime = 5 * time.Minute
	// headerTime is for the header of a request. Of a connection's first one it begins with the end of the handshake, long before
	// anything is asked where an API server has dialed for later: so it is longer than those 90 s, too. Who sends a header
	// byte by byte holds a connection for that long, which is less than who asks once may hold it.
	headerTime = 2 * time.Minute
	// mostConnections is how many connections there may be, each of which takes some 28 KiB for as long as it lives: many more than
	// API servers make.
	mostConnections = 1000
	// lingerTime is how long connections stay that were told to go, for what is on its way on them.
	lingerTime = time.Second
	// finishTime is how long the rest may take. The kubelet ends it earlier with the chart's settings.
	finishTime = time.Minute
)

// goodbye is what a webhook that ends says on a connection on which nothing was asked. An API server that asks at that very
// moment takes it for the answer, and, by its client's rule for 503 with Retry-After, asks again on another connection.
// Without it, what it asked would be lost: it repeats no call whose connection ended.
const goodbye = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

// frontDoor serves admission requests over TLS. It is not controller-runtime's server because that one closes idle connections
// when it ends, and also when they are idle for 90 s, without regard to what is on its way on them.
type frontDoor struct {
	server *http.Server
	config *tls.Config
	drain  *drain
	log    *slog.Logger
	linger time.Duration
	most   int // connections

	address atomic.Pointer[string] // once it listens

	mu      sync.Mutex
	open    int
	idle    map[*tls.Conn]time.Time // connections on which nothing is being asked, and since when
	leaving bool                    // goodbye is being said
}

func newFrontDoor(handler http.Handler, config *tls.Config, drain *drain, log *slog.Logger) *frontDoor {
	d := &frontDoor{config: config, drain: drain, log: log, linger: lingerTime, most: mostConnections, idle: map[*tls.Conn]time.Time{}}
	d.server = &http.Server{
		Handler: drain.handler(inTime(handler)), ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: 64 << 10,
		WriteTimeout: handshakeTime, // of the two timeouts, the handshake has the shorter
		ConnState:    d.follow,
	}
	return d
}

// inTime gives up bodies that do not come, and answers that nobody reads. Who refuses a request without its body needs that as well
// as load, which sets its own times: net/http reads the body before it sends the answer.
func inTime(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		deadline, control := time.Now().Add(patience), http.NewResponseController(w)
		_, _ = control.SetReadDeadline(deadline), control.SetWriteDeadline(deadline.Add(patience)) // they fail where the connection is gone
		next.ServeHTTP(w, r)
	})
}

// serve listens until ctx ends, and then drains, says goodbye, and finishes what is in flight. When failed ends, it does not
// take that time.
func (d *frontDoor) serve(ctx, failed context.Context, host string, port int) error {
	listener, err := (&net.ListenConfig{}).Listen(context.WithoutCancel(ctx), "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	address := listener.Addr().String()
	d.address.Store(&address)
	d.log.Info("listening", "for", "admissions", "address", address)
	ended := make(chan error, 1)
	go func() { ended <- d.server.Serve(tls.NewListener(listener, d.config)) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-failed.Done():
	case <-ctx.Done():
		d.log.Info("draining", "limit", d.drain.limit.String())
		d.drain.run(failed)
	}
	_ = listener.Close()
	d.sayGoodbye(failed)
	finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTime)
	defer cancel()
	if err := d.server.Shutdown(finish); err != nil && !errors.Is(err, net.ErrClosed) { // the listener is
		return fmt.Errorf("finish what is in flight: %w", err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// follow keeps the list of idle connections. A new one counts as idle: an API server may have opened it for nothing and
// keep it for later.
func (d *frontDoor) follow(conn net.Conn, state http.ConnState) {
	c, ok := conn.(*tls.Conn)
	if !ok {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch state {
	case http.StateNew:
		if d.open++; d.open > d.most {
			d.makeRoom(c)
		}
		d.idle[c] = time.Now()
	case http.StateIdle:
		d.idle[c] = time.Now()
		if d.leaving {
			d.dismiss(c)
		}
	case http.StateActive:
		delete(d.idle, c)
	case http.StateClosed, http.StateHijacked:
		delete(d.idle, c)
		d.open--
	}
}

// makeRoom ends the connection that has been idle for longest, or the newcomer where none is.
func (d *frontDoor) makeRoom(newcomer *tls.Conn) {
	var longest *tls.Conn
	for c, since := range d.idle {
		if longest == nil || since.Before(d.idle[longest]) {
			longest = c
		}
	}
	if longest == nil {
		_ = newcomer.NetConn().Close()
		return
	}
	d.idle[longest] = time.Now().Add(idleTime) // the next newcomer takes another one's place
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), d.linger)
		defer cancel()
		d.farewell(ctx, longest)
		<-ctx.Done()
		d.mu.Lock()
		defer d.mu.Unlock()
		if _, idle := d.idle[longest]; idle {
			_ = longest.NetConn().Close()
		}
	}()
}

// sayGoodbye tells those who hold idle connections to go, and waits until they have, or for a while.
func (d *frontDoor) sayGoodbye(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, d.linger)
	defer cancel()
	d.mu.Lock()
	d.leaving = true
	for c := range d.idle {
		go d.farewell(ctx, c) // it may be in its handshake
	}
	d.mu.Unlock()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for d.waiting() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// farewell says goodbye on a connection if it is still idle.
func (d *frontDoor) farewell(ctx context.Context, c *tls.Conn) {
	if c.HandshakeContext(ctx) != nil {
		return
	}
	d.mu.Lock() // what is asked meanwhile begins after this, so that its answer does not mix with ours
	defer d.mu.Unlock()
	if _, idle := d.idle[c]; idle {
		d.dismiss(c)
	}
}

// dismiss says goodbye on one connection.
func (d *frontDoor) dismiss(c *tls.Conn) {
	_ = c.SetWriteDeadline(time.Now().Add(d.linger))
	_, _ = c.Write([]byte(goodbye))
	_ = c.CloseWrite()
}

// waiting reports whether there are idle connections.
func (d *frontDoor) waiting() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.idle) > 0
}

// check fails unless a TLS connection can be made, which needs a certificate, too.
func (d *frontDoor) check(r *http.Request) error {
	address := d.address.Load()
	if address == nil {
		return errors.New("not listening yet")
	}
	ctx, cancel := context.WithTimeout(r.Context(), handshakeTime)
	defer cancel()
	dialer := &tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}} //nolint:gosec // it is ourselves
	conn, err := dialer.DialContext(ctx, "tcp", *address)
	if err != nil {
		return fmt.Errorf("the webhook's port does not answer: %w", err)
	}
	return conn.Close()
}
