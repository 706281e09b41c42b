package aws

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Call is one request to EC2 or to a metadata service, without its secrets.
type Call struct {
	Seq       int        // 1, 2, 3, … in order of arrival
	Action    string     // EC2: the action. IMDS: "IMDS:PUT", "IMDS:GET"
	Params    url.Values // EC2: the parameters, without the signature's
	Path      string     // IMDS: the path
	ENI       string     // the interface it names, if it names one
	Addresses []string   // the addresses and prefixes it names, as written
	Principal string     // ARN of whoever signed it; "" = not authenticated
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

type journal struct {
	mu      sync.Mutex
	calls   []*Call
	changed chan struct{} // closed and replaced whenever a call begins or ends
}

func newJournal() *journal { return &journal{changed: make(chan struct{})} }

func (j *journal) begin(c Call) *Call {
	j.mu.Lock()
	defer j.mu.Unlock()
	c.Seq, c.Start = len(j.calls)+1, time.Now()
	j.calls = append(j.calls, &c)
	j.wake()
	return &c
}

// note changes a call that is under way.
func (j *journal) note(c *Call, change func(*Call)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change(c)
	j.wake()
}

func (j *journal) wake() {
	close(j.changed)
	j.changed = make(chan struct{})
}

func (j *journal) all() []Call {
	calls, _ := j.snapshot()
	return calls
}

func (j *journal) snapshot() ([]Call, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]Call, len(j.calls))
	for i, c := range j.calls {
		out[i] = *c
		out[i].Addresses = slices.Clone(c.Addresses)
	}
	return out, j.changed
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

// read is a call as it is now.
func (j *journal) read(c *Call) Call {
	j.mu.Lock()
	defer j.mu.Unlock()
	return *c
}
