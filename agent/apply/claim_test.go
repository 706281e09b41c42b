package apply

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func floating(cs []Claim) []Claim {
	for i := range cs {
		cs[i].Floating = true
	}
	return cs
}

func held(cs []Claim) []Claim {
	for i := range cs {
		cs[i].Held = true
	}
	return cs
}

func foundHere(cs []Claim) []Claim {
	for i := range cs {
		cs[i].Floating, cs[i].TakeNothing = true, true
	}
	return cs
}

// Claims of addresses that float, and of those that were found and not claimed.
func TestFloatingClaims(t *testing.T) {
	const a, b, v, w = "10.0.17.5", "10.0.17.6", "2001:db8::5", "2001:db8::6"
	throttled := apiError("RequestLimitExceeded", 503, "Request limit exceeded.")
	tests := map[string]struct {
		world  func(f *fakeEC2)
		claims []Claim
		steps  []step
	}{
		"the first attempt takes it": {
			world:  func(f *fakeEC2) { f.eni("theirs", "10.0.16.11", a) },
			claims: floating(claimsOf(a)),
			steps:  []step{{want: map[string]string{a: "done"}, calls: []string{"assign4 ours " + a + " reassign"}}},
		},
		"each retry reads first, also when EC2 surely did nothing; the holder of before means again": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "10.0.16.11", a)
				f.faults = []fault{{op: "assign4", err: throttled}, {op: "assign4", err: throttled}}
			},
			claims: floating(claimsOf(a)),
			steps: []step{
				{want: map[string]string{a: "again"}, calls: []string{"assign4 ours " + a + " reassign"}},
				{want: map[string]string{a: "again"}, calls: []string{"holders subnet-b " + a, "assign4 ours " + a + " reassign"}},
				{want: map[string]string{a: "done"}, calls: []string{"holders subnet-b " + a, "assign4 ours " + a + " reassign"}},
			},
		},
		"a newer claim is not overrun": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "10.0.16.11", a)
				f.eni("newer", "10.0.16.12")
				f.faults = []fault{{op: "assign4", err: throttled}, {op: "assign4", err: throttled}}
			},
			claims: floating(claimsOf(a)),
			steps: []step{
				{want: map[string]string{a: "again"}},
				{want: map[string]string{a: "again"}},
				{prepare: func(f *fakeEC2) { f.move(a, "newer") }, want: map[string]string{a: "yielded"}, calls: []string{"holders subnet-b " + a}},
			},
		},
		"found: what nobody holds is taken up, and nothing is taken from others": {
			world:  func(f *fakeEC2) { f.eni("theirs", "10.0.16.11", b, w) },
			claims: foundHere(claimsOf(a, b, v, w)),
			steps: []step{{want: map[string]string{a: "done", b: "yielded", v: "done", w: "yielded"}, calls: []string{
				"assign4 ours " + a + "," + b, "holders subnet-b " + a + "," + b, "assign4 ours " + a,
				"assign6 ours " + v + "," + w, "holders subnet-b " + v + "," + w, "assign6 ours " + v}}},
		},
		"found on our ENI: one call": {
			world:  func(f *fakeEC2) { f.eni("ours", "10.0.16.10", a, b, v) },
			claims: foundHere(claimsOf(a, b, v)),
			steps:  []step{{want: map[string]string{a: "done", b: "done", v: "done"}, calls: []string{"assign4 ours " + a + "," + b, "assign6 ours " + v}}},
		},
		"found on our ENI, and EC2 refuses what is there": {
			world:  func(f *fakeEC2) { f.eni("ours", "10.0.16.10", a, b); f.v4Again = true },
			claims: foundHere(claimsOf(a, b)),
			steps:  []step{{want: map[string]string{a: "done", b: "done"}, calls: []string{"assign4 ours " + a + "," + b, "holders subnet-b " + a + "," + b}}},
		},
		"a restart with both kinds: one call when all are where they belong": {
			world:  func(f *fakeEC2) { f.eni("ours", "10.0.16.10", a, b) },
			claims: append(claimsOf(a), foundHere(claimsOf(b))...),
			steps:  []step{{want: map[string]string{a: "done", b: "done"}, calls: []string{"assign4 ours " + a + "," + b}}},
		},
		"a restart with both kinds: the pod's own is moved, the floating one is not": {
			world:  func(f *fakeEC2) { f.eni("theirs", "10.0.16.11", a, b) },
			claims: append(claimsOf(a), foundHere(claimsOf(b))...),
			steps: []step{{want: map[string]string{a: "done", b: "yielded"}, calls: []string{
				"assign4 ours " + a + "," + b, "assign4 ours " + a + " reassign", "assign4 ours " + b, "holders subnet-b " + b}}},
		},
		"a restart with both kinds, throttled: nothing more is tried at once": {
			world:  func(f *fakeEC2) { f.faults = []fault{{op: "assign4", err: throttled}} },
			claims: append(claimsOf(a), foundHere(claimsOf(b))...),
			steps: []step{
				{want: map[string]string{a: "again", b: "again"}, calls: []string{"assign4 ours " + a + "," + b}},
				{want: map[string]string{a: "done", b: "done"}},
			},
		},
		"it was here before, and a search that lags still shows it: EC2 is asked, not the search": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "10.0.16.11", a, v)
				f.faults = []fault{{op: "assign4", err: throttled}, {op: "assign6", err: throttled}}
				f.stale[netip.MustParseAddr(a)], f.stale[netip.MustParseAddr(v)], f.staleFor = "ours", "ours", 4
			},
			claims: held(floating(claimsOf(a, v))),
			steps: []step{
				{want: map[string]string{a: "again", v: "again"}},
				{want: map[string]string{a: "done", v: "again"}, calls: []string{"holders subnet-b " + a, "assign4 ours " + a + " reassign",
					"holders subnet-b " + v, "assign6 ours " + v, "holders subnet-b " + v}},
				{want: map[string]string{v: "done"}},
			},
		},
		"it was here before, is here still, and EC2 refuses what is there: believed in the end": {
			world: func(f *fakeEC2) {
				f.eni("ours", "10.0.16.10", v)
				f.v6Again = apiError("InvalidParameterValue", 400, "already assigned")
			},
			claims: held(floating(claimsOf(v))),
			steps:  slices.Concat(slices.Repeat([]step{{want: map[string]string{v: "again"}}}, shownLimit-1), []step{{want: map[string]string{v: "done"}}}),
		},
		"what our own pod moved follows it, and from nowhere else": {
			world:  func(f *fakeEC2) { f.eni("theirs", "10.0.16.11", a); f.eni("newer", "10.0.16.12", b) },
			claims: []Claim{floating(claimsOf(a))[0].Following("theirs"), floating(claimsOf(b))[0].Following("theirs")},
			steps:  []step{{want: map[string]string{a: "done", b: "yielded"}}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) { play(t, tt.world, tt.claims, tt.steps) })
	}
}

// move is what somebody else does.
func (f *fakeEC2) move(addr, eni string) {
	a := netip.MustParseAddr(addr)
	for _, e := range f.enis {
		delete(e.held, a)
	}
	if eni != "" {
		f.enis[eni].held[a] = true
	}
}

func TestUnassign(t *testing.T) {
	const a, b, c, v = "10.0.17.5", "10.0.17.6", "10.0.17.7", "2001:db8::5"
	f := newFake(t)
	f.eni("ours", "10.0.16.10", a, c, v)
	f.eni("theirs", "10.0.16.11", b)
	applier := Applier{EC2: f, Log: slog.New(slog.DiscardHandler)}
	left, err := applier.Unassign(t.Context(), "ours", addrs(a, b, c, v))
	if len(left) > 0 || err != nil {
		t.Errorf("left %v, error %v", left, err)
	}
	want := map[string]string{a: "", b: "theirs", c: "", v: ""}
	for addr, holder := range want {
		if got := f.holder(netip.MustParseAddr(addr)); got != holder {
			t.Errorf("%s is on %q, want %q", addr, got, holder)
		}
	}

	f.eni("ours", "10.0.16.10", a, v)
	f.faults = []fault{{op: "unassign4", err: apiError("RequestLimitExceeded", 503, "Request limit exceeded.")}}
	left, err = applier.Unassign(t.Context(), "ours", addrs(a, v))
	if diff := cmp.Diff([]string{a}, texts(left)); diff != "" || ClassOf(err) != Throttled {
		t.Errorf("left %v, error %v; want the throttled one", left, err)
	}
}

func TestUndoGivesBack(t *testing.T) {
	const v = "2001:db8::5"
	tests := map[string]struct {
		world func(f *fakeEC2)
		owed  bool
		want  string
	}{
		"it came to our ENI":                          {world: func(f *fakeEC2) { f.eni("ours", "", v) }, want: ""},
		"taken off another ENI, and on none":          {owed: true, want: "theirs"},
		"taken off another ENI, and on ours":          {world: func(f *fakeEC2) { f.eni("ours", "", v) }, owed: true, want: "theirs"},
		"taken off another ENI, and claimed by a new": {world: func(f *fakeEC2) { f.eni("newer", "", v) }, owed: true, want: "newer"},
		"somebody else has it":                        {world: func(f *fakeEC2) { f.eni("newer", "", v) }, want: "newer"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.eni("ours", "")
			f.eni("theirs", "")
			if tt.world != nil {
				tt.world(f)
			}
			c := claimsOf(v)[0]
			if tt.owed {
				c.takenFrom = "theirs"
			}
			applier := Applier{EC2: f, Log: slog.New(slog.DiscardHandler)}
			if err := applier.Undo(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			if got := f.holder(netip.MustParseAddr(v)); got != tt.want {
				t.Errorf("it is on %q, want %q", got, tt.want)
			}
		})
	}
}
