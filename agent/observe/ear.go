package observe

import (
	"sync"
	"time"

	"multus-ip-manager.io/agent/plan"
)

// ear takes in events while the namespace is looked at, so that the kernel's buffer stays empty and the time of an event is when it
// came. It outlives subscriptions: what it knows of additions must not change by a loss.
type ear struct {
	// woken holds one item when something was heard since the last take.
	woken chan struct{}

	mu    sync.Mutex
	first time.Time // when the first event since the last take was heard
	past  additions
}

// subscription is one source that an ear listens to in a goroutine.
type subscription struct {
	source events
	// ended is closed when nothing more will be heard, because of err.
	ended chan struct{}
	err   error
}

// listenTo starts to listen.
func (e *ear) listenTo(source events) *subscription {
	s := &subscription{source: source, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		for s.err == nil {
			s.err = e.listen(source)
		}
	}()
	return s
}

// close ends the subscription and waits for its goroutine.
func (s *subscription) close() {
	s.source.close()
	<-s.ended
}

// listen takes in what is announced next.
func (e *ear) listen(source events) error {
	msgs, err := source.receive()
	if err != nil {
		return err
	}
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range msgs {
		e.past.hear(m, now)
	}
	if e.first.IsZero() {
		e.first = now
		e.woken <- struct{}{} // has room: take empties both
	}
	return nil
}

// heard is when the first event since the last take came.
func (e *ear) heard() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.first
}

// take gives what heard gives, and starts anew.
func (e *ear) take() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	first := e.first
	e.first = time.Time{}
	select {
	case <-e.woken:
	default:
	}
	return first
}

// mark writes into a look, which started then, what tells its additions apart.
func (e *ear) mark(addrs []plan.Address, started time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.past.mark(addrs, started)
}
