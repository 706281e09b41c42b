package aws

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// Record is the ordered history of who had which address, as the data plane saw it.
type Record struct {
	stop func()

	mu      sync.Mutex
	blocks  map[netip.Prefix][]Change
	changed chan struct{} // closed and replaced with each change
}

// Record starts a history. What is in force already comes first, with Seq 0.
func (c *Cloud) Record() *Record {
	r := &Record{blocks: map[netip.Prefix][]Change{}, changed: make(chan struct{})}
	r.stop = c.WatchState(r.add)
	return r
}

func (r *Record) add(c Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blocks[c.Block] = append(r.blocks[c.Block], c)
	close(r.changed)
	r.changed = make(chan struct{})
}

// Stop ends the history; what it holds can still be read.
func (r *Record) Stop() { r.stop() }

// Of is what happened to one address, in order.
func (r *Record) Of(a netip.Addr) []Change {
	changes, _ := r.snapshot(a)
	return changes
}

func (r *Record) snapshot(a netip.Addr) ([]Change, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.blocks[single(a.Unmap())]), r.changed
}

// Wait waits until an address's history satisfies met, which is asked at once and after every change of any address.
func (r *Record) Wait(ctx context.Context, a netip.Addr, met func([]Change) bool) error {
	for {
		changes, changed := r.snapshot(a)
		if met(changes) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("aws: waiting for %s, so far %v: %w", a, changes, context.Cause(ctx))
		}
	}
}

// WaitHolder waits until the interface has the address; "" means until no one has it.
func (r *Record) WaitHolder(ctx context.Context, a netip.Addr, eni string) error {
	return r.Wait(ctx, a, func(changes []Change) bool {
		if len(changes) == 0 {
			return eni == ""
		}
		return changes[len(changes)-1].To == eni
	})
}
