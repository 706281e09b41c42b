package run

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/report"
)

const (
	// doubtFor is how long after a look that shows the address elsewhere, or nowhere, another one must show the same.
	doubtFor = 3 * time.Second
	// nobody is the doubt that no ENI holds the address.
	nobody = "no ENI"
)

// calmTicks bounds how many ticks an address is left alone that metadata does not list though EC2 has it on the ENI.
const calmTicks = 60

// errNoLists means that there is no metadata, and need not be: the node's ENIs are known from EC2.
var errNoLists = errors.New("there is no metadata that lists addresses")

// subject is an address whose holder is looked at, as it is when the look begins.
type subject struct {
	addr             netip.Addr
	serial           int
	mac, eni, subnet string
}

func (l *loop) subject(e *entry) subject {
	d := e.decision
	return subject{addr: e.addr, serial: e.serial, mac: d.Address.Link.MAC, eni: d.ENI.ID, subnet: d.ENI.SubnetID}
}

// drift compares metadata's lists with what is assigned. What is not listed twice in a row is looked at in EC2: the lists are stale.
func (l *loop) drift() {
	var all []subject
	for _, e := range l.addresses {
		if !e.here() || e.busy || e.state != report.StateAssigned || len(e.looks) > 0 {
			continue
		}
		if e.wait > 0 {
			e.wait--
			continue
		}
		all = append(all, l.subject(e))
	}
	if len(all) == 0 || l.List == nil {
		return
	}
	l.start("comparing metadata's lists", stuckAfter, func(ctx context.Context) func() {
		absent, err := l.unlisted(ctx, all)
		return func() {
			if errors.Is(err, errNoLists) {
				return
			}
			if err != nil {
				l.Meter.MetadataError()
				l.Log.Debug("cannot compare metadata's lists", "error", err)
				return
			}
			l.compared(all, absent)
		}
	})
}

// unlisted gives the subjects that metadata does not list on their ENIs.
func (l *loop) unlisted(ctx context.Context, all []subject) ([]subject, error) {
	var macs []string
	for _, s := range all {
		if !slices.Contains(macs, s.mac) {
			macs = append(macs, s.mac)
		}
	}
	listed, err := l.List.Listed(ctx, macs)
	if err != nil {
		return nil, err
	}
	if listed == nil {
		return nil, errNoLists
	}
	return slices.DeleteFunc(slices.Clone(all), func(s subject) bool {
		at := listed[s.mac]
		return at.ENI == s.eni && slices.Contains(at.Addrs, s.addr)
	}), nil
}

// compared takes in which addresses metadata listed.
func (l *loop) compared(all, absent []subject) {
	var suspect []subject
	for _, s := range all {
		e, still := l.still(s)
		switch {
		case !still:
		case !slices.ContainsFunc(absent, func(a subject) bool { return a.addr == s.addr }):
			e.absent, e.calm = 0, 0
		default:
			if e.absent++; e.absent >= 2 {
				suspect = append(suspect, s)
			}
		}
	}
	if len(suspect) > 0 {
		l.Log.Debug("metadata does not list addresses, EC2 is asked", "addresses", len(suspect))
		l.start("looking who holds addresses", searchTime(suspect), func(ctx context.Context) func() { return l.holders(ctx, suspect) })
	}
}

// still finds the entry of a subject, unless anything has happened to it since.
func (l *loop) still(s subject) (*entry, bool) {
	e, ok := l.addresses[s.addr]
	if !ok || !e.here() || e.busy || e.decision.ENI.ID != s.eni || e.serial != s.serial {
		return nil, false
	}
	return e, e.state == report.StateAssigned || e.state == report.StateLost || e.state == report.StateElsewhere
}

// inspectDue looks again at addresses that were taken over, or lost, a moment ago: metadata first, which costs no EC2 call.
func (l *loop) inspectDue(now time.Time) {
	if l.ec2 == nil {
		return
	}
	var all, sure []subject
	for _, e := range l.addresses {
		if len(e.looks) == 0 || e.looks[0].After(now) || !e.here() {
			continue
		}
		e.looks = e.looks[1:]
		switch {
		case e.busy || e.open():
		case e.state != report.StateAssigned || e.doubt != "" || len(e.looks) == 1:
			// Metadata may lag; the look in the middle is after whatever an older claim's agent takes back.
			sure = append(sure, l.subject(e))
		default:
			all = append(all, l.subject(e))
		}
	}
	if len(all)+len(sure) == 0 {
		return
	}
	l.start("looking who holds addresses", searchTime(all, sure), func(ctx context.Context) func() {
		doubtful := slices.Concat(all, sure)
		if l.List != nil && len(all) > 0 {
			if absent, err := l.unlisted(ctx, all); err == nil {
				doubtful = slices.Concat(absent, sure)
			}
		}
		then := func() {}
		if len(doubtful) > 0 {
			then = l.holders(ctx, doubtful)
		}
		return func() {
			for _, s := range all {
				if e, still := l.still(s); still && !slices.ContainsFunc(doubtful, func(d subject) bool { return d.addr == s.addr }) {
					l.confirmed(e)
				}
			}
			then()
		}
	})
}

// holders asks EC2 who holds the addresses, and gives what then is to be done.
func (l *loop) holders(ctx context.Context, all []subject) (then func()) {
	held := map[netip.Addr]apply.Holder{}
	known := map[netip.Addr]bool{}
	for _, group := range grouped(all) {
		h, err := l.ec2.Holders(ctx, group[0].subnet, addressesOf(group))
		if err != nil {
			l.Log.Warn("cannot see who holds addresses", "error", err)
			continue
		}
		for _, s := range group {
			known[s.addr] = true
			if holder, ok := h[s.addr]; ok {
				held[s.addr] = holder
			}
		}
	}
	return func() {
		for _, s := range all {
			if e, still := l.still(s); still && known[s.addr] {
				l.seen(e, held[s.addr].ENI)
			}
		}
	}
}

// searchTime bounds searches for these subjects: each is one attempt or more.
func searchTime(lists ...[]subject) time.Duration {
	d := stuckAfter
	for _, list := range lists {
		d += time.Duration(len(list)) * 5 * time.Second
	}
	return d
}

// grouped sorts subjects by subnet and family: one search is about one of each.
func grouped(all []subject) [][]subject {
	var groups [][]subject
next:
	for _, s := range all {
		for i, g := range groups {
			if g[0].subnet == s.subnet && g[0].addr.Is4() == s.addr.Is4() {
				groups[i] = append(g, s)
				continue next
			}
		}
		groups = append(groups, []subject{s})
	}
	return groups
}

func addressesOf(ss []subject) []netip.Addr {
	addrs := make([]netip.Addr, len(ss))
	for i, s := range ss {
		addrs[i] = s.addr
	}
	return addrs
}

// confirmed takes in that the address is where it belongs.
func (l *loop) confirmed(e *entry) {
	e.doubt, e.absent = "", 0
	if e.state != report.StateAssigned {
		l.Log.Info("address is on the ENI again", "address", e.addr, "eni", e.decision.ENI.ID)
		e.enter(report.StateAssigned, nil)
	}
}

// seen takes in which ENI EC2 shows to hold an address, "" for none. What is lost to another stays there; what nobody holds is put back.
func (l *loop) seen(e *entry, holder string) {
	now, shown := time.Now(), holder
	if shown == "" {
		shown = nobody
	}
	switch {
	case holder == e.decision.ENI.ID:
		l.confirmed(e)
		e.calm = min(2*e.calm+1, calmTicks)
		e.wait = e.calm
	case e.doubt != shown:
		// Searches lag behind assignments, and an IPv6 address is on no ENI in the midst of a move, so one look alone proves nothing.
		e.doubt = shown
		if again := now.Add(doubtFor); len(e.looks) == 0 || e.looks[0].After(again) {
			e.looks = slices.Insert(e.looks, 0, again)
		}
	case holder == "":
		at := e.own(now)
		l.Log.Warn("no ENI holds the address any more, it is put back", "address", e.addr, "interface", e.link, "eni", e.decision.ENI.ID, "in", at.Sub(now).String())
		e.origin, e.from = found, ""
		looks := e.looks
		e.press(at)
		e.looks = looks
	case e.state != report.StateAssigned:
		l.lose(e, e.state, holder, nil)
		l.await(e, now)
	default:
		l.lose(e, report.StateLost, holder, nil)
		l.await(e, now)
	}
}

// await has an address that another ENI holds looked at again some day.
func (l *loop) await(e *entry, now time.Time) {
	if e.doubt = ""; len(e.looks) == 0 {
		e.looks = []time.Time{now.Add(e.patience())}
	}
}
