package aws

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"
)

type connKey struct{}

// ServeIMDS serves the metadata service of an instance on a listener until ctx ends, when it returns nil. The answer to
// a token request leaves with the instance's hop limit as its IP TTL (IPv6: hop limit), so that only clients that few
// routers away get it; everything else has the system's default. On connections that are no sockets (net.Pipe) there is no TTL and no limit.
func (c *Cloud) ServeIMDS(ctx context.Context, l net.Listener, instanceID string) error {
	c.mu.Lock()
	_, ok := c.state.instances[instanceID]
	c.mu.Unlock()
	if !ok {
		return fmt.Errorf("aws: no instance %s", instanceID)
	}
	srv := &http.Server{
		Handler:           c.limitHops(c.IMDS(instanceID), instanceID),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conn)
		},
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) || ctx.Err() == nil {
		return fmt.Errorf("aws: metadata service of %s: %w", instanceID, err)
	}
	return nil
}

// limitHops sets a connection's TTL for the answer that is about to be written. It stays until the connection's next
// request, because an answer that got lost is sent again by the kernel later, and must not get further then.
func (c *Cloud) limitHops(next http.Handler, instanceID string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conn, ok := r.Context().Value(connKey{}).(syscall.Conn); ok {
			ttl := defaultTTL
			if r.Method == http.MethodPut {
				c.mu.Lock()
				ttl = c.state.instances[instanceID].HopLimit
				c.mu.Unlock()
			}
			if err := setTTL(conn, ttl); err != nil {
				// A limit that cannot be kept must not look as if it were.
				panic(http.ErrAbortHandler)
			}
		}
		next.ServeHTTP(w, r)
	})
}
