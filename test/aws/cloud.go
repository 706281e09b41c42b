package aws

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Cloud is one AWS account in one region. It is safe for concurrent use.
type Cloud struct {
	region, account string
	seed            uint64
	journalLimit    int // how many calls each journal keeps, 0 = all

	mu       sync.Mutex // guards everything below
	settings Settings
	state    *state
	history  history
	iam      iam
	buckets  buckets
	sessions map[string]session // IMDS tokens
	serial   uint64             // source of request ids, keys and tokens

	journal *journal // EC2 calls
	lookups *journal // IMDS requests
	logins  *journal // requests to STS and to the Pod Identity agents
	faults  *Faults
	plane   *plane
}

// New makes an empty cloud.
func New(opts ...Option) *Cloud {
	c := &Cloud{region: "us-east-1", account: "123456789012", state: newState(), sessions: map[string]session{}}
	for _, o := range opts {
		o(c)
	}
	c.state.region = c.region
	c.iam = newIAM()
	c.buckets = buckets{}
	c.faults = newFaults(c.seed)
	c.plane = &plane{}
	c.journal, c.lookups, c.logins = newJournal(c.journalLimit), newJournal(c.journalLimit), newJournal(c.journalLimit)
	return c
}

// Region is the cloud's region.
func (c *Cloud) Region() string { return c.region }

// Account is the cloud's account number.
func (c *Cloud) Account() string { return c.account }

// Tune changes settings; it takes effect with the next request. Turning Throttle on fills all buckets. A delay that
// is raised applies to what happens from now on.
func (c *Cloud) Tune(change func(*Settings)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.settings.clone()
	change(&c.settings)
	now := time.Now()
	if c.settings.Throttle != before.Throttle {
		c.buckets = buckets{}
	}
	c.history.freeze(&c.history.imdsFrozen, before.FreezeIMDS, c.settings.FreezeIMDS, now)
	c.history.freeze(&c.history.describeFrozen, before.FreezeDescribe, c.settings.FreezeDescribe, now)
}

// Settings returns the settings in force.
func (c *Cloud) Settings() Settings {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.settings.clone()
}

// Faults are the scripted failures of the endpoints.
func (c *Cloud) Faults() *Faults { return c.faults }

// Journal is every EC2 call so far, in the order in which they arrived; the newest of them with WithJournalLimit.
func (c *Cloud) Journal() []Call { return c.journal.all() }

// Calls is how many EC2 calls there were, those that a limited journal has forgotten included.
func (c *Cloud) Calls() int { return c.journal.count() }

// IMDSJournal is every request to a metadata service so far, in the order in which they arrived.
func (c *Cloud) IMDSJournal() []Call { return c.lookups.all() }

// CredentialsJournal is every request to STS and to a Pod Identity agent so far, in the order in which they arrived. What instances get
// from their metadata services is in IMDSJournal.
func (c *Cloud) CredentialsJournal() []Call { return c.logins.all() }

// Holder says who has an address, in any VPC (the first by id where two VPCs use the same one).
func (c *Cloud) Holder(a netip.Addr) (Holder, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, vpc := range sortedKeys(c.state.vpcs) {
		if h, ok := c.state.holder(vpc, a.Unmap()); ok {
			return h, true
		}
	}
	return Holder{}, false
}

// ENI returns an interface as it is now.
func (c *Cloud) ENI(id string) (ENI, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.state.enis[id]
	if !ok {
		return ENI{}, false
	}
	return e.export(), true
}

// ENIs returns all interfaces as they are now, by id.
func (c *Cloud) ENIs() []ENI {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []ENI
	for _, id := range sortedKeys(c.state.enis) {
		out = append(out, c.state.enis[id].export())
	}
	return out
}

// Subnet returns a subnet.
func (c *Cloud) Subnet(id string) (Subnet, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.state.subnets[id]
	return s, ok
}

// clock is what time it is at AWS.
func (c *Cloud) clock() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now()
}

// now is clock for whoever holds c.mu.
func (c *Cloud) now() time.Time { return time.Now().Add(c.settings.ClockOffset) }

// commit applies edits under c.mu, remembers the versions and hands the changes to the data plane's queue. The caller
// must call c.plane.flush after releasing c.mu.
func (c *Cloud) commit(edits []edit) {
	if len(edits) == 0 {
		return
	}
	edits = c.state.located(edits)
	now := time.Now()
	touched := map[string]bool{}
	for _, ed := range edits {
		touched[ed.from], touched[ed.to] = true, true
	}
	delete(touched, "")
	for id := range touched {
		c.history.remember(id, c.state.enis[id], now)
	}
	c.state.apply(edits)
	c.history.prune(now, c.settings)
	c.plane.enqueue(edits, now.Add(c.settings.Delays.DataPlane))
}

// history keeps superseded versions of interfaces for views that lag behind.
type history struct {
	past                       map[string][]version
	imdsFrozen, describeFrozen time.Time // zero = not frozen
}

// version is what an interface was until a moment; nil = it did not exist.
type version struct {
	until time.Time
	eni   *eni
}

func (h *history) remember(id string, old *eni, now time.Time) {
	if h.past == nil {
		h.past = map[string][]version{}
	}
	h.past[id] = append(h.past[id], version{until: now, eni: old})
}

// prune forgets what no view can need any more.
func (h *history) prune(now time.Time, s Settings) {
	oldest := now.Add(-max(s.Delays.IMDS, s.Delays.Describe))
	for _, frozen := range []time.Time{h.imdsFrozen, h.describeFrozen} {
		if !frozen.IsZero() && frozen.Before(oldest) {
			oldest = frozen
		}
	}
	for id, past := range h.past {
		past = slices.DeleteFunc(past, func(v version) bool { return !v.until.After(oldest) })
		if len(past) == 0 {
			delete(h.past, id)
			continue
		}
		h.past[id] = past
	}
}

func (h *history) freeze(at *time.Time, before, after bool, now time.Time) {
	switch {
	case after && !before:
		*at = now
	case !after:
		*at = time.Time{}
	}
}

// view is the interfaces as they were at a moment.
func (c *Cloud) view(at time.Time) map[string]*eni {
	out := make(map[string]*eni, len(c.state.enis))
	for id, e := range c.state.enis {
		out[id] = e
	}
	for id, past := range c.history.past {
		// The first version that was still in force after that moment is the one to show.
		i := slices.IndexFunc(past, func(v version) bool { return v.until.After(at) })
		switch {
		case i < 0:
		case past[i].eni == nil:
			delete(out, id)
		default:
			out[id] = past[i].eni
		}
	}
	return out
}

// describeView is the interfaces as the Describe calls see them.
func (c *Cloud) describeView() map[string]*eni {
	return c.view(moment(c.settings.Delays.Describe, c.history.describeFrozen))
}

// imdsView is the interfaces as the metadata service sees them.
func (c *Cloud) imdsView() map[string]*eni {
	return c.view(moment(c.settings.Delays.IMDS, c.history.imdsFrozen))
}

func moment(delay time.Duration, frozen time.Time) time.Time {
	at := time.Now().Add(-delay)
	if !frozen.IsZero() && frozen.Before(at) {
		return frozen
	}
	return at
}
