package aws

import (
	"slices"
	"sync"
	"time"
)

// plane delivers changes to the data plane's watchers, in order, when they come into force.
type plane struct {
	mu       sync.Mutex // guards the fields
	seq      int
	nextID   int
	queue    []due
	watchers []watcher

	deliver sync.Mutex // held while watchers run, so that they see changes one by one and in order
}

type due struct {
	change Change
	vpc    string
	at     time.Time
}

type watcher struct {
	id int
	fn func(Change)
}

// Watch calls fn for every assignment, unassignment and move from now on, in order, one at a time, once it is in force
// in the data plane: with no DataPlane delay, before the caller of EC2 gets its answer. fn must not call anything
// that assigns or unassigns, nor stop. After stop returns fn is not called any more.
func (c *Cloud) Watch(fn func(Change)) (stop func()) {
	c.plane.deliver.Lock()
	defer c.plane.deliver.Unlock()
	return c.plane.add(fn)
}

// WatchState is Watch that first calls fn for everything that is in force already (with From "" and Seq 0), so that a
// router needs no second source of truth and misses nothing in between.
func (c *Cloud) WatchState(fn func(Change)) (stop func()) {
	c.plane.deliver.Lock()
	defer c.plane.deliver.Unlock()
	c.mu.Lock()
	now := c.inForce()
	stop = c.plane.add(fn)
	c.mu.Unlock()
	for _, change := range now {
		fn(change)
	}
	return stop
}

// inForce lists what the data plane knows: the state without what is still queued.
func (c *Cloud) inForce() []Change {
	at := map[place]string{}
	for where, id := range c.state.holders {
		at[where] = id
	}
	for _, d := range slices.Backward(c.plane.pending()) {
		at[place{d.vpc, d.change.Block}] = d.change.From
	}
	var out []Change
	for where, id := range at {
		if id == "" {
			continue
		}
		primary := false
		if e := c.state.enis[id]; e != nil && where.block.IsSingleIP() {
			h, _ := e.find(where.block.Addr())
			primary = h.primary
		}
		out = append(out, Change{At: time.Now(), Block: where.block, To: id, Primary: primary})
	}
	slices.SortFunc(out, func(a, b Change) int {
		if n := a.Block.Addr().Compare(b.Block.Addr()); n != 0 {
			return n
		}
		return a.Block.Bits() - b.Block.Bits()
	})
	return out
}

func (p *plane) add(fn func(Change)) (stop func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nextID++
	id := p.nextID
	p.watchers = append(p.watchers, watcher{id, fn})
	return func() {
		p.deliver.Lock()
		defer p.deliver.Unlock()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.watchers = slices.DeleteFunc(slices.Clone(p.watchers), func(w watcher) bool { return w.id == id })
	}
}

// enqueue takes changes in the order in which EC2 decided them; the caller holds the cloud's lock. A change never
// overtakes an earlier one, even where the delay was lowered in between: only the head of the queue is looked at.
func (p *plane) enqueue(edits []edit, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ed := range edits {
		p.seq++
		p.queue = append(p.queue, due{at: at, vpc: ed.vpc, change: Change{
			Seq: p.seq, Block: ed.block, From: ed.from, To: ed.to, Primary: ed.primary}})
	}
	if wait := time.Until(at); wait > 0 {
		time.AfterFunc(wait, p.flush)
	}
}

// flush delivers what is due and returns when it has been delivered.
func (p *plane) flush() {
	p.deliver.Lock()
	defer p.deliver.Unlock()
	for {
		change, watchers, ok := p.pop()
		if !ok {
			return
		}
		for _, w := range watchers {
			w.fn(change)
		}
	}
}

func (p *plane) pop() (Change, []watcher, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if len(p.queue) == 0 || p.queue[0].at.After(now) {
		return Change{}, nil, false
	}
	change := p.queue[0].change
	p.queue = p.queue[1:]
	change.At = now
	return change, p.watchers, true
}

func (p *plane) pending() []due {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.queue)
}
