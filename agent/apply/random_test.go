package apply

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// world is a fake EC2 in which anything may happen: faults, others who claim the same addresses, searches that lag.
type world struct {
	*fakeEC2
	r *rand.Rand
	// wasOurs: our ENI held the address at some time.
	wasOurs map[netip.Addr]bool
	// contended: others act between our calls, or searches lag.
	contended bool
}

func newWorld(t *testing.T, r *rand.Rand, pool []netip.Addr) *world {
	w := &world{fakeEC2: newFake(t), r: r, wasOurs: map[netip.Addr]bool{}, contended: r.IntN(2) == 0}
	w.eni("ours", "10.0.16.10").unmanaged = r.IntN(3) > 0
	w.eni("theirs", "10.0.16.11").unmanaged = r.IntN(3) > 0
	w.eni("third", "10.0.16.12").unmanaged = r.IntN(3) > 0
	w.enis["third"].device = r.IntN(2)
	ids := []string{"ours", "theirs", "third", "", "", ""}
	for _, a := range pool {
		e := w.enis[ids[r.IntN(len(ids))]]
		if e == nil {
			w.bad[a] = r.IntN(8) == 0
			continue
		}
		e.held[a] = true
		if r.IntN(6) == 0 && e != w.enis["ours"] {
			e.primary = append(e.primary, a)
		}
	}
	if r.IntN(3) == 0 {
		w.enis["ours"].limit = 2 + r.IntN(6)
	}
	if r.IntN(2) == 0 {
		w.v6Again = apiError("InvalidParameterValue", 400, "already here")
	}
	w.mute = r.IntN(8) == 0
	w.before = w.meddle
	return w
}

// meddle happens before each call.
func (w *world) meddle(call string) {
	w.note()
	op, _, _ := strings.Cut(call, " ")
	w.faults = nil
	if w.r.IntN(6) == 0 {
		faults := []fault{
			{op, apiError("RequestLimitExceeded", 503, "later"), false},
			{op, apiError("InternalError", 500, "oops"), w.r.IntN(2) == 0},
			{op, noAnswer(), w.r.IntN(2) == 0},
			{op, apiError("ExpiredToken", 400, "old"), false},
			{op, apiError("UnauthorizedOperation", 403, "no"), false},
			{op, apiError("IncorrectState", 400, "attaching"), false},
		}
		w.faults = []fault{faults[w.r.IntN(len(faults))]}
	}
	if !w.contended || w.r.IntN(4) > 0 {
		return
	}
	// Somebody else claims a secondary address, or lets it go.
	for _, id := range []string{"ours", "theirs", "third"} {
		for _, a := range slices.SortedFunc(maps.Keys(w.enis[id].held), netip.Addr.Compare) {
			if slices.Contains(w.enis[id].primary, a) {
				continue
			}
			w.stale[a], w.staleFor = id, w.r.IntN(3)
			delete(w.enis[id].held, a)
			if w.r.IntN(2) == 0 {
				w.enis["third"].held[a] = true
			}
			return
		}
	}
}

func (w *world) note() {
	for a := range w.enis["ours"].held {
		w.wasOurs[a] = true
	}
}

// Whatever EC2 does: each claim has one outcome, Done is never a lie, nothing is ever taken off our own ENI nor a primary address
// off any, protected holders keep theirs, and an attempt makes a bounded number of calls.
func TestAttemptProperties(t *testing.T) {
	seeds := 20000
	if testing.Short() {
		seeds = 2000
	}
	most := 0.0
	for seed := range uint64(seeds) { //nolint:gosec // a small number
		most = max(most, oneWorld(t, seed))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("at most %.1f calls an address in one attempt", most)
}

func oneWorld(t *testing.T, seed uint64) (most float64) {
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a seeded test
	var pool []netip.Addr
	for i := range 1 + r.IntN(10) {
		text := fmt.Sprintf("10.0.17.%d", i)
		if r.IntN(2) == 0 {
			text = fmt.Sprintf("2001:db8::%x", i)
		}
		pool = append(pool, netip.MustParseAddr(text))
	}
	w := newWorld(t, r, pool)
	check := r.IntN(3) == 0
	var claims []Claim
	for _, a := range pool {
		claims = append(claims, Claim{Addr: a, ENI: "ours", Subnet: "subnet-b", CheckHolder: check, CheckENI: check})
	}
	protected := map[netip.Addr]string{}
	for id, e := range w.enis {
		for a := range e.held {
			pool := check && !e.unmanaged || e.device == 0 && a.Is6()
			if id != "ours" && (pool || slices.Contains(e.primary, a)) {
				protected[a] = id
			}
		}
	}
	applier := Applier{EC2: w, Log: slog.New(slog.DiscardHandler)}
	for round := range 12 {
		if len(claims) == 0 {
			break
		}
		w.journal = nil
		outcomes := applier.Attempt(t.Context(), "ours", "subnet-b", claims)
		w.note()
		most = max(most, float64(len(w.journal))/float64(len(claims)))
		if len(w.journal) > 12*len(claims)+4 {
			t.Errorf("%d calls for %d claims:\n%s", len(w.journal), len(claims), strings.Join(w.journal, "\n"))
		}
		claims = w.checkOutcomes(t, round, claims, outcomes)
		if !w.contended {
			for a, id := range protected {
				if got := w.holder(a); got != id {
					t.Errorf("%s was protected on %s and is on %q now", a, id, got)
				}
			}
		}
		for _, call := range w.journal {
			if strings.HasPrefix(call, "unassign6 ours ") {
				t.Errorf("our own ENI loses an address: %s", call)
			}
		}
	}
	return most
}

// checkOutcomes gives the claims that go on.
func (w *world) checkOutcomes(t *testing.T, round int, claims []Claim, outcomes []Outcome) (rest []Claim) {
	seen := map[netip.Addr]int{}
	for _, o := range outcomes {
		seen[o.Claim.Addr]++
		switch {
		case (o.Err == nil) != (o.Verdict == Done):
			t.Errorf("attempt %d: %s is %s with error %v", round, o.Claim.Addr, verdictNames[o.Verdict], o.Err)
		case o.Verdict == Done && !w.wasOurs[o.Claim.Addr], o.Verdict == Done && !w.contended && w.holder(o.Claim.Addr) != "ours":
			t.Errorf("attempt %d: %s is done, but %q holds it:\n%s", round, o.Claim.Addr, w.holder(o.Claim.Addr), strings.Join(w.journal, "\n"))
		case o.Verdict == Again, o.Verdict == Yielded:
			rest = append(rest, o.Claim)
		}
	}
	for _, c := range claims {
		if seen[c.Addr] != 1 {
			t.Errorf("attempt %d: %s has %d outcomes", round, c.Addr, seen[c.Addr])
		}
	}
	return rest
}
