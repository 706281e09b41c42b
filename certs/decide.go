package certs

import (
	"crypto/x509"
	"time"
)

// lookAgain is the longest time between two looks at the clock: timers stand still while a machine is suspended,
// certificates do not.
const lookAgain = 10 * time.Minute

// decision is what one look at the state of things asks for.
type decision struct {
	publish bundle    // to be written to every entry; nil: nothing to write
	promote bool      // sign with the stored CA from now on
	wake    time.Time // look again then, if nothing happens before
}

// decide is the rule of CA rotation. serving is the CA that signs our leaf, stored the one in the Secret; either may
// be nil, and they differ while a rotation is under way.
//
// First every entry trusts both, then settle passes, then the stored CA serves: settle is the time for which a
// change of the webhook configuration may be unknown to some instance of the API server, and by which its clock may be behind.
func decide(now time.Time, v view, serving, stored *x509.Certificate, settle time.Duration) decision {
	d := decision{wake: now.Add(lookAgain)}
	if len(v.entries) == 0 {
		return d
	}
	var needed bundle
	for _, ca := range []*x509.Certificate{serving, stored} {
		if ca != nil {
			needed = needed.with(ca)
		}
	}
	next := v.all().successor(now, needed...)
	if len(next) > 0 && !v.holds(next) {
		d.publish = next
	}
	for _, ca := range next {
		d.wake = earlier(d.wake, ca.NotAfter.Add(time.Second)) // certificates count in whole seconds
	}
	if stored == nil || serving != nil && serving.Equal(stored) {
		return d
	}
	at, ok := v.servesFrom(now, serving, stored, settle)
	switch {
	case ok && !now.Before(at):
		d.promote = true
	case ok:
		d.wake = earlier(d.wake, at)
	}
	return d
}

// servesFrom returns the time from which leaves of stored may be served in place of those of serving; not ok while
// that depends on an event.
func (v view) servesFrom(now time.Time, serving, stored *x509.Certificate, settle time.Duration) (at time.Time, ok bool) {
	if !v.trusts(stored) || now.After(stored.NotAfter) {
		return time.Time{}, false
	}
	if len(v.trusted()) == 1 || serving != nil && (now.After(serving.NotAfter) || !v.trusts(serving)) {
		return stored.NotBefore, true // what is served now is refused anyway, so waiting helps nobody
	}
	// An API server whose clock is a little behind takes a CA that was just made for one that is not valid yet.
	return later(stored.NotBefore, v.trustedSince[string(stored.Raw)]).Add(settle), true
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
