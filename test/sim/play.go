package sim

import (
	"context"
	"fmt"
	"time"

	"multus-ip-manager.io/agent/report"
)

// Record is a run that is over.
type Record struct {
	*World
	// Status is what each agent that runs at the end says, by pod.
	Status map[int]report.Status
	// Failed are ends of agents that were not asked for, and questions that were not answered.
	Failed []string
}

// Play carries out one run. It must be called in a synctest bubble.
func Play(c Config) *Record {
	w := newWorld(c)
	for _, p := range w.pods {
		if !p.Late {
			p.start()
		}
	}
	for _, s := range c.Script {
		sleep(context.Background(), s.At-w.now())
		w.step(s)
	}
	sleep(context.Background(), c.End-w.now())
	r := &Record{World: w, Status: map[int]report.Status{}}
	for i, p := range w.pods {
		h := p.agent()
		if h == nil {
			continue
		}
		select {
		case <-h.ended:
			r.Failed = append(r.Failed, fmt.Sprintf("the agent of %s ended by itself: %v", p.Name, h.err))
			continue
		default:
		}
		s, err := h.status(context.Background())
		if err != nil {
			r.Failed = append(r.Failed, fmt.Sprintf("the agent of %s has no status: %v", p.Name, err))
			continue
		}
		r.Status[i] = s
		w.note(p.Name, func() string { return fmt.Sprintf("status: %+v", s.Addresses) })
	}
	for _, p := range w.pods {
		for _, h := range p.agents {
			h.dead.Store(true)
			h.cancel()
		}
	}
	for _, p := range w.pods {
		for _, h := range p.agents {
			<-h.ended
		}
	}
	return r
}

// step does one step of the script.
func (w *World) step(s Step) {
	w.note("script", s.String)
	p := w.pods[s.Pod]
	switch s.Do {
	case Add:
		p.change(s.Addr, true)
	case Del:
		p.change(s.Addr, false)
	case Readd:
		p.change(s.Addr, false)
		sleep(context.Background(), time.Microsecond)
		p.change(s.Addr, true)
	case Start:
		if p.agent() == nil {
			w.begin(p)
		}
	case Crash:
		if h := p.agent(); h != nil {
			h.crash()
		}
	case Stop:
		if h := p.agent(); h != nil {
			h.stop()
		}
	case Deafen:
		w.mu.Lock()
		p.deaf = true
		w.mu.Unlock()
		if h := p.agent(); h != nil {
			select {
			case h.wake <- struct{}{}:
			default:
			}
		}
	case Use, Unuse:
		w.mu.Lock()
		p.used[s.Addr] = s.Do == Use
		p.uses = append(p.uses, Change{At: w.now(), Addr: s.Addr, On: s.Do == Use})
		w.mu.Unlock()
	}
}

// begin starts the pod's agent once the one before has ended, as the kubelet does.
func (w *World) begin(p *Pod) {
	w.mu.Lock()
	var before *Handle
	if n := len(p.agents); n > 0 {
		before = p.agents[n-1]
	}
	pending := p.pending
	w.mu.Unlock()
	if pending {
		return
	}
	if before == nil || before.died >= 0 {
		p.start()
		return
	}
	select {
	case <-before.ended:
		p.start()
	default:
		w.mu.Lock()
		p.pending = true
		w.mu.Unlock()
		go func() {
			<-before.ended
			w.mu.Lock()
			p.pending = false
			w.mu.Unlock()
			p.start()
		}()
	}
}
