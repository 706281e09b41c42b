package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// patience is how long a request may take until its body is there, with waiting for its turn, and how long its answer
	// may take to be read. API servers wait for an answer for 10 s by default and 5 s with the chart's settings, say so in
	// the request, and send a body at once.
	patience = 12 * time.Second
	// smallBody is the size up to which requests never wait for others: far beyond that of most pods.
	smallBody = 128 << 10
	// largestBody is what the handler accepts.
	largestBody = 7 << 20
	// largeBodies is how many bytes of larger bodies are worked on at a time. They take some five times as much memory until
	// they are answered, 35 MiB beside the 25 MiB that the webhook has anyway; the chart's memory limit is 128 MiB.
	largeBodies = largestBody
)

// load bounds the memory that requests take at a time: large ones wait for their turn, and slow ones are given up.
type load struct {
	turns    *semaphore.Weighted
	patience time.Duration
}

func newLoad() *load { return &load{semaphore.NewWeighted(largeBodies), patience} }

// limit is the handler within the bounds.
func (l *load) limit(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		deadline := time.Now().Add(l.patienceWith(r))
		control := http.NewResponseController(w)
		if err := errors.Join(control.SetReadDeadline(deadline), control.SetWriteDeadline(deadline.Add(l.patience))); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		size := r.ContentLength
		if size < 0 || size > largestBody {
			size = largestBody
		}
		if size > smallBody {
			ctx, cancel := context.WithDeadline(r.Context(), deadline)
			defer cancel()
			if err := l.turns.Acquire(ctx, size); err != nil {
				w.Header().Set("Retry-After", "1") // an API server that still waits then tries again by itself
				http.Error(w, "too many large requests at a time", http.StatusServiceUnavailable)
				return
			}
			defer l.turns.Release(size)
		}
		handler.ServeHTTP(w, r)
	})
}

// patienceWith is the patience with one request: no longer than the API server waits for the answer. A request that waits
// for its turn when nobody waits for it any more is in the way of others.
func (l *load) patienceWith(r *http.Request) time.Duration {
	said, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || said <= 0 {
		return l.patience
	}
	return min(said, l.patience)
}
