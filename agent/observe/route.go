package observe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dialTimeout bounds one connection attempt, below the bound of a whole EC2 attempt (3 s).
const dialTimeout = 2 * time.Second

// RouteError says that a connection the agent needs leads out of the pod by an interface whose addresses it is about to
// assign. The VPC drops what such an interface sends until then, so nothing can ever answer.
type RouteError struct {
	// Endpoint is the address and port that was dialled.
	Endpoint string
	// Interface is the name of the interface the kernel's route leads to.
	Interface string
	// Err is the failure of the connection.
	Err error
}

// Error implements error.
func (e *RouteError) Error() string {
	return fmt.Sprintf("the route to %s leads out by %s, whose addresses are not assigned yet, and nothing answers there (%v): "+
		"a Multus default-route (or a wide route) takes the agent's own traffic; remove it, or add a route to the metadata service, "+
		"to DNS and to the EC2 endpoint by the pod's own interface", e.Endpoint, e.Interface, e.Err)
}

// Unwrap gives the failure of the connection.
func (e *RouteError) Unwrap() error { return e.Err }

// Guard opens the agent's connections and notices those that a managed interface would swallow. Before each connection it asks
// the kernel which way it would go. A connection over a managed interface is still tried: after a restart the addresses may be
// assigned, and then it works.
type Guard struct {
	managed atomic.Pointer[map[int]string]
	blocked atomic.Pointer[RouteError]
}

// Manage names the interfaces (by index) whose addresses are to be assigned.
func (g *Guard) Manage(links map[int]string) { g.managed.Store(&links) }

// Blocked gives the last connection that failed on a managed interface, nil if none did or a later one succeeded.
func (g *Guard) Blocked() *RouteError { return g.blocked.Load() }

// DialContext opens a connection as [net.Dialer] does, bounded to two seconds.
func (g *Guard) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	dialCtx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var by atomic.Pointer[RouteError]
	lookup := func(_, resolved string, _ syscall.RawConn) error { //nolint:unparam // the type of net.Dialer.Control
		if name, managed := g.leadsOutBy(resolved); managed {
			by.Store(&RouteError{Endpoint: resolved, Interface: name})
		}
		return nil
	}
	// Name look-ups take the same way out, so they are watched too. The pure Go resolver is the one that dials through us.
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		d := net.Dialer{Control: lookup}
		return d.DialContext(ctx, network, address)
	}}
	d := net.Dialer{Control: lookup, Resolver: resolver, KeepAlive: 30 * time.Second}
	conn, err := d.DialContext(dialCtx, network, address)
	if err == nil {
		g.blocked.Store(nil)
		return conn, nil
	}
	if e := by.Load(); e != nil && swallowed(err) && !errors.Is(ctx.Err(), context.Canceled) {
		e.Err = err
		g.blocked.Store(e)
		return nil, e
	}
	return nil, err
}

// swallowed tells a connection nobody answered from one that was answered with a refusal.
func swallowed(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout() ||
		errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}

// leadsOutBy asks the kernel which interface a packet to this address and port would leave by, and whether it is managed.
// What the kernel cannot tell counts as not managed: the connection itself will show it.
func (g *Guard) leadsOutBy(hostport string) (name string, managed bool) {
	links := g.managed.Load()
	if links == nil {
		return "", false
	}
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return "", false
	}
	ip := net.ParseIP(host)
	if ip == nil {
		return "", false
	}
	routes, err := netlink.RouteGet(ip)
	if err != nil || len(routes) == 0 {
		return "", false
	}
	name, managed = (*links)[routes[0].LinkIndex]
	return name, managed
}
