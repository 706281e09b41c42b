package main

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"
)

// quietTime is how long nobody must have asked before a draining webhook closes the connections that are left. What is
// asked on a connection at the very moment at which it is closed is lost, for an API server repeats no call; the longer
// nobody asked, the less likely that is.
const quietTime = time.Second

var errDraining = errors.New("draining: this replica was told to end")

// drain is what happens between SIGTERM and the end of listening: the webhook says that it is not ready, goes on
// answering, and closes each connection with an answer on it.
//
// An API server keeps connections for a minute and a half and asks on them whatever the Service's endpoints are by then.
// Nothing but an answer can close one without a race: the API server reads "Connection: close" in it, and asks nothing
// there any more.
type drain struct {
	limit time.Duration // 0: no draining
	quiet time.Duration
	begun atomic.Bool
	asked chan struct{} // holds a value when somebody has asked since the last look
}

func newDrain(limit time.Duration) *drain {
	return &drain{limit: limit, quiet: quietTime, asked: make(chan struct{}, 1)}
}

// handler closes connections once draining has begun.
func (d *drain) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.begun.Load() {
			w.Header().Set("Connection", "close")
			select {
			case d.asked <- struct{}{}:
			default:
			}
		}
		next.ServeHTTP(w, r)
	})
}

// check fails once draining has begun.
func (d *drain) check(*http.Request) error {
	if d.begun.Load() {
		return errDraining
	}
	return nil
}

// run begins to drain, and returns when nobody has asked for a while, at the limit, or when ctx ends.
func (d *drain) run(ctx context.Context) {
	d.begun.Store(true)
	ctx, cancel := context.WithTimeout(ctx, d.limit)
	defer cancel()
	quiet := time.NewTimer(d.quiet)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-quiet.C:
			return
		case <-d.asked:
			quiet.Reset(d.quiet)
		}
	}
}
