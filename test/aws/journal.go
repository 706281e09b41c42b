package aws

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Call is one request to EC2, to a metadata service, to STS or to a Pod Identity agent, without its secrets.
type Call struct {
	Seq       int        // 1, 2, 3, … in order of arrival
	Action    string     // EC2: the action. IMDS: "IMDS:PUT", "IMDS:GET". STS: "STS:<action>". Pod Identity: "PodIdentity:GET"
	Params    url.Values // EC2, STS: the parameters, without the signature's and without tokens
	Path      string     // IMDS, Pod Identity: the path
	ENI       string     // the interface it names, if it names one
	Addresses []string   // the addresses and prefixes it names, as written
	Principal string     // ARN of whoever signed it; "" = not authenticated. STS, Pod Identity: ARN of the role to be taken
	Instance  string     // IMDS: whose service it is. EC2: the instance whose role's credentials were used
	Start     time.Time
	End       time.Time // zero = still under way
	Status    int       // HTTP status of the answer; 0 = no answer was given (dropped, hanging or under way)
	Code      string    // error code; "" = success
	Applied   bool      // an assignment or unassignment took effect
	Changes   int       // how many addresses and prefixes changed hands
	Fault     string    // the scripted fault it met, if any
}

// Done says whether the request has come to its end.
func (c Call) Done() bool { return !c.End.IsZero() }

// end notes the end, once.
func (c *Call) end() {
	if c.End.IsZero() {
		c.End = time.Now()
	}
}

// String is a one-line form for logs and test failures.
func (c Call) String() string {
	what := c.Action
	if c.Path != "" {
		what += " " + c.Path
	}
	result := fmt.Sprintf("%d %s", c.Status, c.Code)
	if !c.Done() {
		result = "under way"
	}
	if c.Fault != "" {
		result += " fault=" + c.Fault
	}
	return fmt.Sprintf("#%d %s %s %v %s: %s", c.Seq, what, c.ENI, c.Addresses, c.Principal, result)
}

// entry is a call in a journal, which may still be under way.
type entry struct {
	Call
	told bool // to the followers
}

type journal struct {
	limit int // how many calls are kept, 0 = all

	mu        sync.Mutex
	seq       int
	calls     []*entry
	followers []*follower
	changed   chan struct{} // closed and replaced whenever a call begins or ends
}

func newJournal(limit int) *journal { return &journal{limit: limit, changed: make(chan struct{})} }

func (j *journal) begin(c Call) *entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seq++
	c.Seq, c.Start = j.seq, time.Now()
	e := &entry{Call: c}
	if j.limit > 0 && len(j.calls) >= 2*j.limit { // so that moving them costs nothing to speak of
		j.calls = slices.Clone(j.calls[len(j.calls)-j.limit:])
	}
	j.calls = append(j.calls, e)
	j.wake()
	return e
}

// note changes a call that is under way.
func (j *journal) note(e *entry, change func(*Call)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change(&e.Call)
	if e.Done() && !e.told {
		e.told = true
		for _, f := range j.followers {
			f.queue = append(f.queue, e.copy())
		}
	}
	j.wake()
}

func (j *journal) wake() {
	close(j.changed)
	j.changed = make(chan struct{})
}

// kept is the entries that the limit leaves.
func (j *journal) kept() []*entry {
	if j.limit > 0 && len(j.calls) > j.limit {
		return j.calls[len(j.calls)-j.limit:]
	}
	return j.calls
}

func (j *journal) count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.seq
}

func (j *journal) all() []Call {
	calls, _ := j.snapshot()
	return calls
}

func (j *journal) snapshot() ([]Call, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	kept := j.kept()
	out := make([]Call, len(kept))
	for i, e := range kept {
		out[i] = e.copy()
	}
	return out, j.changed
}

func (e *entry) copy() Call {
	c := e.Call
	c.Addresses = slices.Clone(e.Addresses)
	return c
}

// follower is somebody who wants each call once.
type follower struct{ queue []Call }

// follow calls fn with each call that has ended or ends, once, until ctx ends. What it costs does not grow with the journal.
func (j *journal) follow(ctx context.Context, fn func(Call)) {
	f := &follower{}
	j.mu.Lock()
	for _, e := range j.kept() {
		if e.Done() {
			f.queue = append(f.queue, e.copy())
		}
	}
	j.followers = append(j.followers, f)
	j.mu.Unlock()
	defer func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.followers = slices.DeleteFunc(j.followers, func(o *follower) bool { return o == f })
	}()
	for {
		j.mu.Lock()
		news, changed := f.queue, j.changed
		f.queue = nil
		j.mu.Unlock()
		for _, c := range news {
			fn(c)
		}
		if len(news) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (j *journal) wait(ctx context.Context, met func([]Call) bool) error {
	for {
		calls, changed := j.snapshot()
		if met(calls) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("aws: waiting for calls, %d so far: %w", len(calls), context.Cause(ctx))
		}
	}
}

// WaitJournal waits until the journal of EC2 calls satisfies met, which it looks at whenever a call begins or ends.
func (c *Cloud) WaitJournal(ctx context.Context, met func([]Call) bool) error {
	return c.journal.wait(ctx, met)
}

// WaitIMDSJournal is WaitJournal for the metadata services.
func (c *Cloud) WaitIMDSJournal(ctx context.Context, met func([]Call) bool) error {
	return c.lookups.wait(ctx, met)
}

// WaitCredentialsJournal is WaitJournal for STS and the Pod Identity agents.
func (c *Cloud) WaitCredentialsJournal(ctx context.Context, met func([]Call) bool) error {
	return c.logins.wait(ctx, met)
}

// read is a call as it is now.
func (j *journal) read(e *entry) Call {
	j.mu.Lock()
	defer j.mu.Unlock()
	return e.Call
}

// Follow calls fn with each EC2 call that has ended or ends, once and in order of their ends, until ctx ends. Unlike a condition given to
// WaitJournal it costs the same per call however many there have been; fn may take its time.
func (c *Cloud) Follow(ctx context.Context, fn func(Call)) { c.journal.follow(ctx, fn) }
