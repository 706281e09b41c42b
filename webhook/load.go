package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// patience is how long a request may take until its body is there, with waiting for its turn, which takes half of it at
	// most, and how long its answer may take to be read. API servers wait for an answer for 10 s by default and 5 s with the
	// chart's settings, and say so in the request.
	patience = 12 * time.Second
	// receiveTime is how long a body itself may take to arrive. API servers send it at once.
	receiveTime = 3 * time.Second
	// smallBody is the size up to which requests never wait for larger ones: far beyond that of most pods.
	smallBody = 128 << 10
	// largestBody is the size that is accepted. API servers take pods of 3 MiB at most, and etcd keeps half of that.
	largestBody = 7 << 19
	// smallBodies and largeBodies are how many bytes of such bodies are held at a time. A pod takes some five times as much
	// memory as its JSON while it is worked on, but what somebody made for that purpose takes up to 25 times as much: so
	// no more than workedOn is worked on at a time. With the 25 MiB that the webhook has anyway, all of it fits into the
	// chart's memory limit of 128 MiB.
	smallBodies = 12 << 20
	largeBodies = largestBody
	workedOn    = largestBody
)

// load bounds the memory that requests take at a time: they wait for their turn, and slow ones are given up. A request that waits
// for its turn when nobody waits for its answer any more is in the way of others.
type load struct {
	small, large, work *semaphore.Weighted
	patience           time.Duration
}

func newLoad() *load {
	return &load{
		small: semaphore.NewWeighted(smallBodies), large: semaphore.NewWeighted(largeBodies), work: semaphore.NewWeighted(workedOn), patience: patience,
	}
}

// limit is the handler within the bounds. Bodies of unknown size, and larger ones, must have been refused before.
func (l *load) limit(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin, patience := time.Now(), l.patienceWith(r)
		deadline := begin.Add(patience)
		control := http.NewResponseController(w)
		if err := errors.Join(control.SetReadDeadline(deadline), control.SetWriteDeadline(deadline.Add(l.patience))); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		ctx, cancel := context.WithDeadline(r.Context(), begin.Add(patience/2)) // while the API server is there to hear the answer
		defer cancel()
		size, room := max(0, r.ContentLength), l.small
		if size > smallBody {
			room = l.large
		}
		if !turn(ctx, w, room, size) {
			return
		}
		defer room.Release(size)
		body, status, err := receive(control, r, size, time.Now().Add(min(receiveTime, time.Until(deadline))))
		if err != nil {
			http.Error(w, err.Error(), status)
			return
		}
		if !turn(ctx, w, l.work, size) {
			return
		}
		defer l.work.Release(size)
		r.Body = io.NopCloser(bytes.NewReader(body))
		handler.ServeHTTP(w, r)
	})
}

// turn waits for room for so many bytes. Where it does not come in time, it says so, and the API server tries again by itself.
func turn(ctx context.Context, w http.ResponseWriter, room *semaphore.Weighted, size int64) bool {
	if room.Acquire(ctx, size) == nil {
		return true
	}
	w.Header().Set("Retry-After", "1")
	http.Error(w, "too many large requests at a time", http.StatusServiceUnavailable)
	return false
}

// receive reads a body of JSON until the deadline. The decoder behind would take YAML as well, in which a few bytes can stand for
// very many.
func receive(control *http.ResponseController, r *http.Request, size int64, deadline time.Time) (body []byte, status int, err error) {
	if err := control.SetReadDeadline(deadline); err != nil {
		return nil, http.StatusInternalServerError, err
	}
	body = make([]byte, size)
	if _, err := io.ReadFull(r.Body, body); errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, http.StatusRequestTimeout, fmt.Errorf("the body did not arrive in time: %w", err)
	} else if err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("read the body: %w", err)
	}
	if !bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("{")) {
		return nil, http.StatusBadRequest, errors.New("an admission review is a JSON object")
	}
	// The connection is watched while the answer is made, and a deadline would look like its end.
	if err := control.SetReadDeadline(time.Time{}); err != nil {
		return nil, http.StatusInternalServerError, err
	}
	return body, 0, nil
}

// patienceWith is the patience with one request: no longer than the API server waits for the answer.
func (l *load) patienceWith(r *http.Request) time.Duration {
	said, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || said <= 0 {
		return l.patience
	}
	return min(said, l.patience)
}
