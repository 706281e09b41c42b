package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config is one run: who is there, what happens when, and how EC2 and metadata behave. All times count from the start of the run.
type Config struct {
	// Pods are the pods, in a fixed order that [Step.Pod] refers to.
	Pods []PodConfig
	// Initial is what EC2's table holds at the start.
	Initial map[netip.Addr]string
	// Script is what happens, in order of time.
	Script []Step
	// Fate decides what becomes of a call; nil means that all are answered well. It must depend on its arguments only.
	Fate func(Ask) Fate
	// HoldersLag bounds how much older than the present the answer to a search is; each search has its own lag.
	HoldersLag time.Duration
	// MetadataLag is how much older than the present the lists of metadata are.
	MetadataLag time.Duration
	// AgainRefused makes EC2 refuse an address that is on the ENI already: always in IPv6, in IPv4 without leave to move.
	AgainRefused bool
	// Mute leaves the addresses out of the answers to AssignPrivateIpAddresses.
	Mute bool
	// FullUntil is, by ENI, up to when it has no room for another address.
	FullUntil map[string]time.Duration
	// KernelDelay is how long after a change the agent has its snapshot.
	KernelDelay time.Duration
	// Calm is when faults, lags and the script are over; End is when the run is judged.
	Calm, End time.Duration
	// Seed salts what is chosen within the model, such as the lag of a search.
	Seed uint64
}

// PodConfig is one pod.
type PodConfig struct {
	// Name is for reading, ENI the network interface that its net1 shares.
	Name, ENI string
	// Came are the addresses that came with the pod; all others float.
	Came []netip.Addr
	// Floating are those that are on the interface before the agent's first start besides.
	Floating []netip.Addr
	// Late leaves the agent's first start to the script; Restarted makes that start one with a network-status.
	Late, Restarted bool
	// Keep switches the release off.
	Keep bool
}

// Do is what a [Step] does.
type Do int

// What steps do.
const (
	// Add puts the address on the pod's interface.
	Add Do = iota
	// Del takes it off.
	Del
	// Readd does both within the same hundredth of a second.
	Readd
	// Start starts the pod's agent: anew, with a network-status, if it ran before.
	Start
	// Crash ends it without any farewell. Calls under way may still take effect.
	Crash
	// Stop tells it to stop, and waits for nothing.
	Stop
	// Deafen makes the kernel drop the events up to the next snapshot.
	Deafen
	// Use makes a socket use the address; Unuse closes it.
	Use
	Unuse
)

var doNames = [...]string{"add", "del", "readd", "start", "crash", "stop", "deafen", "use", "unuse"}

// String names the step as the trace does.
func (d Do) String() string { return doNames[d] }

// Step is one thing that happens.
type Step struct {
	At   time.Duration
	Pod  int
	Do   Do
	Addr netip.Addr
}

// String gives the step as the trace shows it.
func (s Step) String() string {
	if s.Addr.IsValid() {
		return fmt.Sprintf("%v pod %d %v %v", s.At, s.Pod, s.Do, s.Addr)
	}
	return fmt.Sprintf("%v pod %d %v", s.At, s.Pod, s.Do)
}

// Hold is who holds an address from a time on; no ENI means nobody.
type Hold struct {
	At  time.Duration
	ENI string
}

// World is one run under way, and the record of it.
type World struct {
	Config
	began time.Time

	mu    sync.Mutex
	holds map[netip.Addr][]Hold
	calls []*Call
	asked map[Ask]int
	pods  []*Pod
	notes []note
}

// note is one line of the trace, written only when somebody reads it.
type note struct {
	at   time.Duration
	who  string
	text func() string
}

func newWorld(c Config) *World {
	w := &World{Config: c, began: time.Now(), holds: map[netip.Addr][]Hold{}, asked: map[Ask]int{}}
	for addr, eni := range c.Initial {
		w.holds[addr] = []Hold{{At: -time.Hour, ENI: eni}}
	}
	for i, pc := range c.Pods {
		w.pods = append(w.pods, newPod(w, i, pc))
	}
	return w
}

// now is the time of the run.
func (w *World) now() time.Duration { return time.Since(w.began) }

func (w *World) note(who string, text func() string) {
	at := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes = append(w.notes, note{at, who, text})
}

// Trace is everything that happened, one line each.
func (w *World) Trace() string {
	w.mu.Lock()
	notes := slices.Clone(w.notes)
	w.mu.Unlock()
	var b strings.Builder
	for _, n := range notes {
		fmt.Fprintf(&b, "%12.6f %-6s %s\n", n.at.Seconds(), n.who, n.text())
	}
	return b.String()
}

// holder tells who held the address at a time. The caller has the lock, or the run is over.
func (w *World) holder(addr netip.Addr, at time.Duration) string {
	hs := w.holds[addr]
	for i := len(hs) - 1; i >= 0; i-- {
		if hs[i].At <= at {
			return hs[i].ENI
		}
	}
	return ""
}

func (w *World) hold(addr netip.Addr, eni string) {
	if was := w.holder(addr, w.now()); was != eni {
		w.holds[addr] = append(w.holds[addr], Hold{At: w.now(), ENI: eni})
	}
}

// addrs are all addresses that occur in the run, in order.
func (w *World) addrs() []netip.Addr {
	set := map[netip.Addr]bool{}
	for a := range w.Initial {
		set[a] = true
	}
	for _, p := range w.Pods {
		for _, a := range slices.Concat(p.Came, p.Floating) {
			set[a] = true
		}
	}
	for _, s := range w.Script {
		if s.Addr.IsValid() {
			set[s.Addr] = true
		}
	}
	all := make([]netip.Addr, 0, len(set))
	for a := range set {
		all = append(all, a)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

// mix makes a number of numbers and texts that looks random and is always the same.
func mix(seed uint64, parts ...any) uint64 {
	h := seed ^ 0x9e3779b97f4a7c15
	eat := func(x uint64) {
		h ^= x
		h *= 0xbf58476d1ce4e5b9
		h ^= h >> 29
		h *= 0x94d049bb133111eb
		h ^= h >> 32
	}
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			for _, c := range []byte(p) {
				eat(uint64(c) + 1)
			}
		case int:
			eat(uint64(p) + 257) //nolint:gosec // only mixed
		}
		eat(511)
	}
	return h
}
