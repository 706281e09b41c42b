package certs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxAnswer is how much of a refusal is read for its message.
const maxAnswer = 64 << 10

// library stands between cert-manager's authority, which only logs what fails, and the API server. It knows the last failure, and
// it holds writing back while that would do harm: see gate.
type library struct {
	// gate waits until a CA may be written, or says why that must not be done now.
	gate func(context.Context) error

	mu          sync.Mutex
	read, write error
	running     context.Context //nolint:containedctx // the library calls some of its requests without one of ours
}

// wrap puts the library's requests through l.
func (l *library) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		if request.Method == http.MethodGet {
			response, err := next.RoundTrip(request)
			l.set(&l.read, outcome(ReasonReadCA, "read", request, response, err))
			return response, err
		}
		ctx, cancel := context.WithCancel(request.Context())
		defer cancel()
		defer context.AfterFunc(l.context(), cancel)()
		if err := l.gate(ctx); err != nil {
			return nil, err
		}
		response, err := next.RoundTrip(request)
		if response != nil && response.StatusCode == http.StatusConflict {
			return response, err // another replica was faster: nobody's fault
		}
		l.set(&l.write, outcome(ReasonWriteCA, "write", request, response, err))
		return response, err
	})
}

// start says how long the library runs.
func (l *library) start(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running = ctx
}

func (l *library) context() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running == nil {
		return context.Background()
	}
	return l.running
}

// faults returns what failed last, of what was not done since.
func (l *library) faults() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return []error{l.read, l.write}
}

// healed says that a CA is there that need not be written, whoever wrote it: the library itself tells nothing when it is the one
// from before.
func (l *library) healed() { l.set(&l.write, nil) }

func (l *library) set(field *error, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*field = err
}

// outcome returns what a request failed with, nil when it did not. The body of a refusal can still be read afterwards.
func outcome(reason, verb string, request *http.Request, response *http.Response, err error) error {
	if err != nil {
		if request.Context().Err() != nil {
			return nil //nolint:nilerr // given up by us
		}
		return faultf(reason, "%s the CA's Secret: %w", verb, err)
	}
	if response.StatusCode < http.StatusBadRequest {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), response.Body), response.Body}
	var status metav1.Status
	message := response.Status
	if err == nil && json.Unmarshal(body, &status) == nil && status.Message != "" {
		message = status.Message
	}
	return &FaultError{Reason: reason, Err: fmt.Errorf("%s the CA's Secret: %s", verb, message)}
}
