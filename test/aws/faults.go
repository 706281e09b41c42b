package aws

import (
	"context"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"
)

// FaultKind is what a fault does to a request.
type FaultKind string

// The kinds of faults.
const (
	// FaultError answers with Status, Code and Message.
	FaultError FaultKind = "error"
	// FaultThrottle answers RequestLimitExceeded (503), or what throttles at STS and at the Pod Identity agent.
	FaultThrottle FaultKind = "throttle"
	// FaultHang never answers: the request ends when the client gives up or the fault is removed.
	FaultHang FaultKind = "hang"
	// FaultDrop closes the connection without an answer.
	FaultDrop FaultKind = "drop"
	// FaultDelay waits for Delay and goes on. As with AWS, a client that gives up meanwhile does not take its request
	// back: it still takes effect, late.
	FaultDelay FaultKind = "delay"
)

// Fault is one scripted failure. The zero value of each condition means "any".
type Fault struct {
	Kind FaultKind
	// AfterApply lets the request take effect first: with FaultDrop or FaultHang the answer is lost, with FaultError it
	// is wrong. Requests that EC2 refuses anyway do not meet such a fault.
	AfterApply bool

	Action    string // action with wildcards * and ?; IMDS requests are "IMDS:PUT" and "IMDS:GET", others as in Call
	Principal string // ARN, with wildcards
	ENI       string // the interface the call names, with wildcards
	Address   string // one of the addresses it names, with wildcards
	Instance  string // IMDS: whose metadata service; EC2: whose role
	Path      string // path of IMDS or Pod Identity, with wildcards

	Skip    int // let this many matching requests pass first
	Times   int // then hit this many, 0 = until removed
	Percent int // hit only this share of the matching requests, 0 = all; seeded by WithSeed

	Status  int           // FaultError: HTTP status, default 500
	Code    string        // FaultError: default InternalError
	Message string        // FaultError
	Delay   time.Duration // FaultDelay
}

// Faults is the list of scripted failures. The first one that hits decides; delays add up.
type Faults struct {
	mu   sync.Mutex
	list []*ActiveFault
	rand *rand.Rand
}

// ActiveFault is a fault that has been added.
type ActiveFault struct {
	fault  Fault
	owner  *Faults
	seen   int
	hits   int
	remove chan struct{}
	once   sync.Once
}

func newFaults(seed uint64) *Faults {
	return &Faults{rand: rand.New(rand.NewPCG(seed, 0x5eed))} //nolint:gosec // reproducible on purpose
}

// Add puts a fault into force. Faults are tried in the order in which they were added.
func (f *Faults) Add(fault Fault) *ActiveFault {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := &ActiveFault{fault: fault, owner: f, remove: make(chan struct{})}
	f.list = append(f.list, a)
	return a
}

// Clear removes all faults; requests that hang end.
func (f *Faults) Clear() {
	f.mu.Lock()
	list := f.list
	f.mu.Unlock()
	for _, a := range list {
		a.Remove()
	}
}

// Remove takes the fault out of force; requests that hang on it end without an answer.
func (a *ActiveFault) Remove() {
	a.owner.mu.Lock()
	a.owner.list = slices.DeleteFunc(slices.Clone(a.owner.list), func(b *ActiveFault) bool { return a == b })
	a.owner.mu.Unlock()
	a.once.Do(func() { close(a.remove) })
}

// Hits is how many requests it has hit.
func (a *ActiveFault) Hits() int {
	a.owner.mu.Lock()
	defer a.owner.mu.Unlock()
	return a.hits
}

// draw returns the faults that hit a call: delays, and at most one other as the last.
func (f *Faults) draw(c Call, after bool) []*ActiveFault {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*ActiveFault
	for _, a := range f.list {
		if a.fault.AfterApply != after || !a.fault.matches(c) || !a.due(f.rand) {
			continue
		}
		a.hits++
		out = append(out, a)
		if a.fault.Kind != FaultDelay {
			break
		}
	}
	return out
}

// due counts a matching request and says whether the fault hits it.
func (a *ActiveFault) due(r *rand.Rand) bool {
	a.seen++
	switch {
	case a.seen <= a.fault.Skip, a.fault.Times > 0 && a.hits >= a.fault.Times:
		return false
	case a.fault.Percent > 0:
		return r.IntN(100) < a.fault.Percent
	}
	return true
}

func (f Fault) matches(c Call) bool {
	fits := func(pattern, value string) bool { return pattern == "" || wildcard(pattern, value) }
	return fits(f.Action, c.Action) && fits(f.Principal, c.Principal) && fits(f.ENI, c.ENI) &&
		fits(f.Instance, c.Instance) && fits(f.Path, c.Path) && (f.Address == "" ||
		slices.ContainsFunc(c.Addresses, func(a string) bool { return wildcard(f.Address, a) }))
}

// suffer lets the faults happen. It returns a refusal to answer with, or nil to go on; a request that gets no answer
// ends in a panic with http.ErrAbortHandler, which is how net/http closes a connection in the middle.
func suffer(ctx context.Context, faults []*ActiveFault) *APIError {
	for _, a := range faults {
		switch a.fault.Kind {
		case FaultError:
			return a.fault.refusal()
		case FaultThrottle:
			return errThrottled()
		case FaultDrop:
			panic(http.ErrAbortHandler)
		case FaultHang:
			select {
			case <-ctx.Done():
			case <-a.remove:
			}
			panic(http.ErrAbortHandler)
		case FaultDelay:
			pause(a.fault.Delay)
		}
	}
	return nil
}

func (f Fault) refusal() *APIError {
	e := &APIError{Status: f.Status, Code: f.Code, Message: f.Message}
	if e.Status == 0 {
		e.Status = http.StatusInternalServerError
	}
	if e.Code == "" {
		e.Code = "InternalError"
	}
	if e.Message == "" {
		e.Message = "An internal error has occurred"
	}
	return e
}

// pause waits. Whether the client is still there does not matter: AWS does not look either.
func pause(d time.Duration) {
	if d > 0 {
		<-time.After(d)
	}
}
