package observe

import (
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"multus-ip-manager.io/agent/plan"
)

const (
	// forgetAfter is how long an addition that is gone is remembered. One that shares its stamp comes within a tick of 10 ms.
	forgetAfter = 2 * time.Second
	// returnedAfter is how long after its removal an address that is still there must have been added again, although that was not
	// heard (events were lost). The kernel announces a removal a moment before it is done.
	returnedAfter = 100 * time.Millisecond
)

// addition is what the kernel tells of one addition of an address to an interface.
type addition struct {
	link  int
	addr  netip.Addr
	stamp uint32
}

func additionOf(a plan.Address) addition {
	return addition{link: a.Link.Index, addr: a.Addr, stamp: a.CStamp}
}

// past is what was heard of an addition.
type past struct {
	removed bool
	epoch   uint64    // tells additions with the same stamp apart
	at      time.Time // of what was heard last
}

// additions tells additions of an address apart that the kernel stamps alike, because they fell into the same hundredth of a second: it
// has heard the removal between them. It remembers what was removed lately and those present that were told apart, no more.
type additions struct {
	epochs uint64 // given out
	heard  map[addition]past
}

// hear takes in one announcement. Those about anything but addresses, and those it cannot understand, say nothing here.
func (l *additions) hear(m syscall.NetlinkMessage, now time.Time) {
	if m.Header.Type != unix.RTM_NEWADDR && m.Header.Type != unix.RTM_DELADDR {
		return
	}
	a, link, err := parseAddress(m.Data)
	if err != nil {
		return
	}
	a.Link.Index = link
	key := additionOf(a)
	p := l.heard[key]
	switch {
	case m.Header.Type == unix.RTM_DELADDR:
		l.set(key, past{removed: true, epoch: p.epoch, at: now})
	case p.removed: // without a removal it is the same addition with other flags or lifetimes
		l.again(key, now)
	}
}

// again notes that an addition was followed by another one with the same stamp.
func (l *additions) again(key addition, now time.Time) {
	l.epochs++
	l.set(key, past{epoch: l.epochs, at: now})
}

func (l *additions) set(key addition, p past) {
	if l.heard == nil {
		l.heard = map[addition]past{}
	}
	l.heard[key] = p
}

// mark writes the epochs into a look that started then, and forgets what is long gone.
func (l *additions) mark(addrs []plan.Address, started time.Time) {
	if len(l.heard) == 0 {
		return
	}
	present := make(map[addition]bool, len(addrs))
	for i, a := range addrs {
		key := additionOf(a)
		present[key] = true
		if p := l.heard[key]; p.removed && started.Sub(p.at) > returnedAfter {
			l.again(key, started)
		}
		addrs[i].Epoch = l.heard[key].epoch
	}
	for key, p := range l.heard {
		if !present[key] && started.Sub(p.at) > forgetAfter {
			delete(l.heard, key)
		}
	}
}
