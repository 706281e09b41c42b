package apply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// claimsOf makes claims of ENI "ours", where the tests put every address.
func claimsOf(texts ...string) []Claim {
	var cs []Claim
	for _, a := range addrs(texts...) {
		cs = append(cs, Claim{Addr: a, ENI: "ours", Subnet: "subnet-b"})
	}
	return cs
}

func checked(cs []Claim) []Claim {
	for i := range cs {
		cs[i].CheckHolder, cs[i].CheckENI = true, true
	}
	return cs
}

// primaryUnknown makes them claims of a node whose primary ENI is not known.
func primaryUnknown(cs []Claim) []Claim {
	for i := range cs {
		cs[i].PrimaryUnknown = true
	}
	return cs
}

func holderChecked(cs []Claim) []Claim {
	for i := range cs {
		cs[i].CheckHolder = true
	}
	return cs
}

var verdictNames = map[Verdict]string{Done: "done", Again: "again", Rejected: "rejected", Forbidden: "forbidden", Yielded: "yielded"}

// attemptOn makes one attempt and gives the verdict of each address, and the claims to carry on.
func attemptOn(t *testing.T, f *fakeEC2, claims []Claim) (verdicts map[string]string, rest []Claim, errs map[string]error) {
	t.Helper()
	verdicts, errs = map[string]string{}, map[string]error{}
	a := Applier{EC2: f, Log: slog.New(slog.DiscardHandler)}
	for _, o := range a.Attempt(t.Context(), "ours", "subnet-b", claims) {
		text := o.Claim.Addr.String()
		if _, twice := verdicts[text]; twice {
			t.Errorf("%s has two outcomes", text)
		}
		verdicts[text] = verdictNames[o.Verdict]
		if (o.Verdict == Done) != (o.Err == nil) {
			t.Errorf("%s is %s with error %v", text, verdicts[text], o.Err)
		}
		if o.Verdict == Done && f.holder(o.Claim.Addr) != "ours" {
			t.Errorf("%s is done, but %q holds it", text, f.holder(o.Claim.Addr))
		}
		errs[text] = o.Err
		if o.Verdict == Again || o.Verdict == Yielded {
			rest = append(rest, o.Claim)
		}
	}
	if len(verdicts) != len(claims) {
		t.Errorf("%d outcomes for %d claims", len(verdicts), len(claims))
	}
	return verdicts, rest, errs
}

// step is one attempt of a test and what is to come of it.
type step struct {
	// prepare changes the world before the attempt.
	prepare func(f *fakeEC2)
	want    map[string]string
	calls   []string
}

// play makes an attempt for each step, and gives what was said last of each address.
func play(t *testing.T, world func(*fakeEC2), claims []Claim, steps []step) (f *fakeEC2, said map[string]error) {
	t.Helper()
	f, said = newFake(t), map[string]error{}
	f.eni("ours", "10.0.16.10")
	if world != nil {
		world(f)
	}
	for i, s := range steps {
		if s.prepare != nil {
			s.prepare(f)
		}
		f.journal = nil
		got, rest, errs := attemptOn(t, f, claims)
		if diff := cmp.Diff(s.want, got); diff != "" {
			t.Errorf("attempt %d, verdicts (-want +got):\n%s", i+1, diff)
		}
		if diff := cmp.Diff(s.calls, f.journal); s.calls != nil && diff != "" {
			t.Errorf("attempt %d, calls (-want +got):\n%s", i+1, diff)
		}
		maps.Copy(said, errs)
		claims = rest
	}
	return f, said
}

func TestAttempt(t *testing.T) {
	const a, b, c, d = "10.0.17.5", "10.0.17.6", "10.0.17.7", "10.0.17.8"
	const v, w, x = "2001:db8::5", "2001:db8::6", "2001:db8::7"
	throttled := apiError("RequestLimitExceeded", 503, "Request limit exceeded.")
	denied := apiError("UnauthorizedOperation", 403, "You are not authorized")
	tests := map[string]struct {
		world  func(f *fakeEC2)
		claims []Claim
		steps  []step
		held   map[string]string // of the claimed addresses, at the end
		say    map[string][]string
	}{
		"IPv4, nobody holds them: one call": {
			claims: claimsOf(a, b, c),
			steps:  []step{{want: map[string]string{a: "done", b: "done", c: "done"}, calls: []string{"assign4 ours " + a + "," + b + "," + c + " reassign"}}},
		},
		"IPv4 held elsewhere as secondary: one call": {
			world:  func(f *fakeEC2) { f.eni("theirs", "10.0.16.11", a) },
			claims: claimsOf(a),
			steps:  []step{{want: map[string]string{a: "done"}, calls: []string{"assign4 ours " + a + " reassign"}}},
		},
		"both families: one call each": {
			claims: claimsOf(v, a, w),
			steps:  []step{{want: map[string]string{a: "done", v: "done", w: "done"}, calls: []string{"assign4 ours " + a + " reassign", "assign6 ours " + v + "," + w}}},
		},
		"a restart: everything is ours already": {
			world:  func(f *fakeEC2) { f.eni("ours", "10.0.16.10", a, v) },
			claims: claimsOf(a, v),
			steps:  []step{{want: map[string]string{a: "done", v: "done"}, calls: []string{"assign4 ours " + a + " reassign", "assign6 ours " + v}}},
		},
		"IPv4, the answer names nobody: read": {
			world:  func(f *fakeEC2) { f.mute = true },
			claims: claimsOf(a, b),
			steps: []step{{want: map[string]string{a: "done", b: "done"}, calls: []string{
				"assign4 ours " + a + "," + b + " reassign", "holders subnet-b " + a + "," + b}}},
		},
		"IPv4, the answer names nobody, nor does the search yet": {
			world: func(f *fakeEC2) {
				f.mute = true
				f.stale[netip.MustParseAddr(a)], f.staleFor = "", 1
			},
			claims: claimsOf(a),
			steps: []step{
				{want: map[string]string{a: "again"}, calls: []string{"assign4 ours " + a + " reassign", "holders subnet-b " + a}},
				{want: map[string]string{a: "done"}, calls: []string{"holders subnet-b " + a}},
			},
		},
		"IPv4, one of eight is bad: taken apart, the good ones pass": {
			world:  func(f *fakeEC2) { f.bad[netip.MustParseAddr("10.0.17.13")] = true },
			claims: claimsOf("10.0.17.10", "10.0.17.11", "10.0.17.12", "10.0.17.13", "10.0.17.14", "10.0.17.15", "10.0.17.16", "10.0.17.17"),
			steps: []step{{
				want: map[string]string{"10.0.17.10": "done", "10.0.17.11": "done", "10.0.17.12": "done", "10.0.17.13": "rejected",
					"10.0.17.14": "done", "10.0.17.15": "done", "10.0.17.16": "done", "10.0.17.17": "done"},
				calls: []string{
					"assign4 ours 10.0.17.10,10.0.17.11,10.0.17.12,10.0.17.13,10.0.17.14,10.0.17.15,10.0.17.16,10.0.17.17 reassign",
					"assign4 ours 10.0.17.10,10.0.17.11,10.0.17.12,10.0.17.13 reassign",
					"assign4 ours 10.0.17.10,10.0.17.11 reassign",
					"assign4 ours 10.0.17.12,10.0.17.13 reassign",
					"assign4 ours 10.0.17.12 reassign",
					"assign4 ours 10.0.17.13 reassign",
					"holders subnet-b 10.0.17.13",
					"assign4 ours 10.0.17.14,10.0.17.15,10.0.17.16,10.0.17.17 reassign",
				},
			}},
			say: map[string][]string{"10.0.17.13": {"10.0.17.13", "InvalidParameterValue", "subnet's address range"}},
		},
		"IPv4 primary of another ENI": {
			world:  func(f *fakeEC2) { f.eni("theirs", a) },
			claims: claimsOf(a, b),
			steps: []step{{want: map[string]string{a: "rejected", b: "done"}, calls: []string{
				"assign4 ours " + a + "," + b + " reassign", "assign4 ours " + a + " reassign", "holders subnet-b " + a, "assign4 ours " + b + " reassign"}}},
			held: map[string]string{a: "theirs", b: "ours"},
			say:  map[string][]string{a: {a, "primary", "theirs", "NetworkAttachmentDefinition"}},
		},
		"IPv4 refused, and searching is not permitted: EC2's own words": {
			world: func(f *fakeEC2) {
				f.bad[netip.MustParseAddr(a)] = true
				f.faults = []fault{{op: "holders", err: denied}}
			},
			claims: claimsOf(a),
			steps:  []step{{want: map[string]string{a: "rejected"}, calls: []string{"assign4 ours " + a + " reassign", "holders subnet-b " + a}}},
			say:    map[string][]string{a: {a, "InvalidParameterValue"}},
		},
		"IPv4, room for two of four": {
			world:  func(f *fakeEC2) { f.eni("ours", "10.0.16.10").limit = 3 },
			claims: claimsOf(a, b, c, d),
			steps: []step{
				{want: map[string]string{a: "done", b: "done", c: "again", d: "again"}, calls: []string{
					"assign4 ours " + a + "," + b + "," + c + "," + d + " reassign", "assign4 ours " + a + "," + b + " reassign",
					"assign4 ours " + c + "," + d + " reassign", "assign4 ours " + c + " reassign"}},
				{want: map[string]string{c: "again", d: "again"}, calls: []string{"assign4 ours " + c + " reassign"}},
				{prepare: func(f *fakeEC2) { delete(f.enis["ours"].held, netip.MustParseAddr(a)) },
					want: map[string]string{c: "done", d: "again"}, calls: []string{"assign4 ours " + c + " reassign", "assign4 ours " + d + " reassign"}},
			},
			say: map[string][]string{d: {d, "ours", "PrivateIpAddressLimitExceeded"}},
		},
		"IPv4 throttled: nothing is read before the next try": {
			world:  func(f *fakeEC2) { f.faults = []fault{{op: "assign4", err: throttled}} },
			claims: claimsOf(a, b),
			steps: []step{
				{want: map[string]string{a: "again", b: "again"}, calls: []string{"assign4 ours " + a + "," + b + " reassign"}},
				{want: map[string]string{a: "done", b: "done"}, calls: []string{"assign4 ours " + a + "," + b + " reassign"}},
			},
		},
		"throttled inside a batch that is taken apart": {
			world: func(f *fakeEC2) {
				f.bad[netip.MustParseAddr(b)] = true
				f.before = func(call string) {
					if call == "assign4 ours "+a+" reassign" {
						f.before = nil
						f.faults = []fault{{op: "assign4", err: throttled}}
					}
				}
			},
			claims: claimsOf(a, b),
			steps: []step{
				{want: map[string]string{a: "again", b: "rejected"}, calls: []string{"assign4 ours " + a + "," + b + " reassign", "assign4 ours " + a + " reassign", "assign4 ours " + b + " reassign", "holders subnet-b " + b}},
				{want: map[string]string{a: "done"}, calls: []string{"assign4 ours " + a + " reassign"}},
			},
		},
		"no permission": {
			world:  func(f *fakeEC2) { f.faults = []fault{{op: "assign4", err: denied}, {op: "assign6", err: denied}} },
			claims: claimsOf(a, b, v),
			steps: []step{{want: map[string]string{a: "forbidden", b: "forbidden", v: "forbidden"},
				calls: []string{"assign4 ours " + a + "," + b + " reassign", "assign6 ours " + v}}},
			say: map[string][]string{a: {"UnauthorizedOperation", "ours"}},
		},
		"no permission for one family only": {
			world:  func(f *fakeEC2) { f.faults = []fault{{op: "assign6", err: denied}} },
			claims: claimsOf(a, v),
			steps: []step{{want: map[string]string{a: "done", v: "forbidden"},
				calls: []string{"assign4 ours " + a + " reassign", "assign6 ours " + v}}},
		},
		"the ENI is gone": {
			world:  func(f *fakeEC2) { delete(f.enis, "ours") },
			claims: claimsOf(a),
			steps:  []step{{want: map[string]string{a: "again"}, calls: []string{"assign4 ours " + a + " reassign"}}},
		},
		"IPv4, the answer was lost, the call was applied": {
			world:  func(f *fakeEC2) { f.faults = []fault{{op: "assign4", err: noAnswer(), applied: true}} },
			claims: claimsOf(a),
			steps: []step{
				{want: map[string]string{a: "again"}, calls: []string{"assign4 ours " + a + " reassign"}},
				{want: map[string]string{a: "done"}, calls: []string{"holders subnet-b " + a}},
			},
		},
		"IPv4, no answer, nothing applied": {
			world:  func(f *fakeEC2) { f.faults = []fault{{op: "assign4", err: noAnswer()}} },
			claims: claimsOf(a),
			steps: []step{
				{want: map[string]string{a: "again"}, calls: []string{"assign4 ours " + a + " reassign"}},
				{want: map[string]string{a: "done"}, calls: []string{"holders subnet-b " + a, "assign4 ours " + a + " reassign"}},
			},
		},
		"IPv4, no answer twice, then a newer claim: yield": {
			world: func(f *fakeEC2) {
				f.faults = []fault{{op: "assign4", err: noAnswer()}, {op: "assign4", err: noAnswer()}}
			},
			claims: claimsOf(a),
			steps: []step{
				{want: map[string]string{a: "again"}, calls: []string{"assign4 ours " + a + " reassign"}},
				{want: map[string]string{a: "again"}, calls: []string{"holders subnet-b " + a, "assign4 ours " + a + " reassign"}},
				{prepare: func(f *fakeEC2) { f.eni("theirs", "10.0.16.11", a) },
					want: map[string]string{a: "yielded"}, calls: []string{"holders subnet-b " + a}},
				{want: map[string]string{a: "yielded"}, calls: []string{"holders subnet-b " + a}},
				{prepare: func(f *fakeEC2) { delete(f.enis, "theirs") },
					want: map[string]string{a: "done"}, calls: []string{"holders subnet-b " + a, "assign4 ours " + a + " reassign"}},
			},
			say: map[string][]string{},
		},
		"only the unsure are read": {
			world: func(f *fakeEC2) {
				f.faults = []fault{{op: "assign4", err: apiError("InternalError", 500, "An internal error has occurred")}}
			},
			claims: claimsOf(a, v),
			steps: []step{
				{want: map[string]string{a: "again", v: "done"}, calls: []string{"assign4 ours " + a + " reassign", "assign6 ours " + v}},
				{want: map[string]string{a: "done"}, calls: []string{"holders subnet-b " + a, "assign4 ours " + a + " reassign"}},
			},
		},
		"the search fails too": {
			world: func(f *fakeEC2) {
				f.faults = []fault{{op: "assign4", err: noAnswer()}, {op: "holders", err: throttled}}
			},
			claims: claimsOf(a),
			steps: []step{
				{want: map[string]string{a: "again"}, calls: []string{"assign4 ours " + a + " reassign"}},
				{want: map[string]string{a: "again"}, calls: []string{"holders subnet-b " + a}},
				{want: map[string]string{a: "done"}, calls: []string{"holders subnet-b " + a, "assign4 ours " + a + " reassign"}},
			},
		},

		"IPv6 held elsewhere: moved": {
			world:  func(f *fakeEC2) { f.eni("theirs", "", v, w) },
			claims: claimsOf(v),
			steps: []step{{want: map[string]string{v: "done"}, calls: []string{
				"assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v, "assign6 ours " + v}}},
			held: map[string]string{v: "ours", w: "theirs"},
		},
		"IPv6, one free, one held elsewhere: together": {
			world:  func(f *fakeEC2) { f.eni("theirs", "", w) },
			claims: claimsOf(v, w),
			steps: []step{{want: map[string]string{v: "done", w: "done"}, calls: []string{
				"assign6 ours " + v + "," + w, "holders subnet-b " + v + "," + w, "unassign6 theirs " + w, "assign6 ours " + v + "," + w}}},
		},
		"IPv6 ours already, and EC2 calls that an error": {
			world: func(f *fakeEC2) {
				f.eni("ours", "", v)
				f.v6Again = apiError("InvalidIPAddress.InUse", 400, "already assigned")
			},
			claims: claimsOf(v),
			steps:  []step{{want: map[string]string{v: "done"}, calls: []string{"assign6 ours " + v, "holders subnet-b " + v}}},
		},
		"IPv6, one ours already with an error, one free, one elsewhere": {
			world: func(f *fakeEC2) {
				f.eni("ours", "", v)
				f.eni("theirs", "", x)
				f.v6Again = apiError("InvalidParameterValue", 400, "already assigned")
			},
			claims: claimsOf(v, w, x),
			steps: []step{{want: map[string]string{v: "done", w: "done", x: "done"}, calls: []string{
				"assign6 ours " + v + "," + w + "," + x, "holders subnet-b " + v + "," + w + "," + x, "unassign6 theirs " + x, "assign6 ours " + w + "," + x}}},
		},
		"IPv6 primary of another ENI": {
			world: func(f *fakeEC2) {
				e := f.eni("theirs", "", v)
				e.primary = append(e.primary, netip.MustParseAddr(v))
			},
			claims: claimsOf(v, w),
			steps: []step{{want: map[string]string{v: "rejected", w: "done"}, calls: []string{
				"assign6 ours " + v + "," + w, "holders subnet-b " + v + "," + w, "assign6 ours " + w}}},
			held: map[string]string{v: "theirs", w: "ours"},
			say:  map[string][]string{v: {v, "primary", "theirs"}},
		},
		"IPv6 on a node's primary ENI": {
			world:  func(f *fakeEC2) { f.eni("node", "", v).device = 0 },
			claims: claimsOf(v, w),
			steps: []step{{want: map[string]string{v: "rejected", w: "done"}, calls: []string{
				"assign6 ours " + v + "," + w, "holders subnet-b " + v + "," + w, "assign6 ours " + w}}},
			held: map[string]string{v: "node", w: "ours"},
			say:  map[string][]string{v: {v, "node", "primary ENI", "VPC CNI"}},
		},
		"VPC CNI's subnet, on a node's primary ENI, tag or no tag": {
			world: func(f *fakeEC2) {
				f.enis["ours"].unmanaged = true
				e := f.eni("node", "10.0.16.11", a)
				e.device, e.unmanaged = 0, true
			},
			claims: checked(claimsOf(a)),
			steps:  []step{{want: map[string]string{a: "rejected"}, calls: []string{"unmanaged ours", "holders subnet-b " + a}}},
		},
		"IPv6, one of four is bad: the good ones pass at once": {
			world:  func(f *fakeEC2) { f.bad[netip.MustParseAddr("2001:db8::13")] = true },
			claims: claimsOf("2001:db8::10", "2001:db8::11", "2001:db8::12", "2001:db8::13"),
			steps: []step{
				{want: map[string]string{"2001:db8::10": "done", "2001:db8::11": "done", "2001:db8::12": "done", "2001:db8::13": "again"}},
				{want: map[string]string{"2001:db8::13": "again"}, calls: []string{"holders subnet-b 2001:db8::13"}},
			},
		},
		"IPv6, the holder is not visible yet: moved once it is": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "", v)
				f.stale[netip.MustParseAddr(v)], f.staleFor = "", 2
			},
			claims: claimsOf(v),
			steps: []step{
				{want: map[string]string{v: "again"}, calls: []string{"assign6 ours " + v, "holders subnet-b " + v}},
				{want: map[string]string{v: "again"}, calls: []string{"holders subnet-b " + v}},
				{want: map[string]string{v: "done"}, calls: []string{
					"holders subnet-b " + v, "assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v, "assign6 ours " + v}},
			},
		},
		"IPv6, the holder is not visible yet at the first look: it is no newer claim": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "", v)
				f.stale[netip.MustParseAddr(v)], f.staleFor = "", 1
			},
			claims: claimsOf(v),
			steps: []step{
				{want: map[string]string{v: "again"}, calls: []string{"assign6 ours " + v, "holders subnet-b " + v}},
				{want: map[string]string{v: "done"}},
			},
		},
		"IPv6, the search shows a holder of before": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "", v)
				f.eni("former", "")
				f.stale[netip.MustParseAddr(v)], f.staleFor = "former", 1
			},
			claims: claimsOf(v),
			steps: []step{
				{want: map[string]string{v: "again"}},
				{want: map[string]string{v: "done"}, calls: []string{"assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v, "assign6 ours " + v}},
			},
		},
		"IPv6 contended: a newer claim wins between our two calls": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "", v)
				f.eni("third", "")
				f.before = func(call string) {
					if strings.HasPrefix(call, "unassign6") {
						f.before = func(string) { f.before = nil; f.enis["third"].held[netip.MustParseAddr(v)] = true }
					}
				}
			},
			claims: claimsOf(v),
			steps: []step{
				{want: map[string]string{v: "yielded"}, calls: []string{
					"assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v, "assign6 ours " + v, "holders subnet-b " + v}},
				{want: map[string]string{v: "yielded"}, calls: []string{"assign6 ours " + v, "holders subnet-b " + v}},
				{prepare: func(f *fakeEC2) { delete(f.enis["third"].held, netip.MustParseAddr(v)) },
					want: map[string]string{v: "done"}, calls: []string{"assign6 ours " + v}},
			},
		},
		"IPv6 contended: a newer claim wins, and the search shows it late": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "", v)
				f.eni("third", "")
				f.before = func(call string) {
					if strings.HasPrefix(call, "unassign6") {
						f.before = func(string) {
							f.before = nil
							f.enis["third"].held[netip.MustParseAddr(v)] = true
							f.stale[netip.MustParseAddr(v)], f.staleFor = "", 1
						}
					}
				}
			},
			claims: claimsOf(v),
			steps: []step{
				{want: map[string]string{v: "again"}, calls: []string{
					"assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v, "assign6 ours " + v, "holders subnet-b " + v}},
				{want: map[string]string{v: "yielded"}, calls: []string{"holders subnet-b " + v}},
			},
			held: map[string]string{v: "third"},
		},
		"IPv6 contended: the same holder takes it back each time": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "", v)
				f.before = func(call string) {
					if strings.HasPrefix(call, "assign6") {
						f.enis["theirs"].held[netip.MustParseAddr(v)] = true
					}
				}
			},
			claims: claimsOf(v),
			steps: []step{{want: map[string]string{v: "again"}, calls: []string{
				"assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v,
				"assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v,
				"assign6 ours " + v, "holders subnet-b " + v}}},
			held: map[string]string{v: "theirs"},
		},
		"IPv6 move, the answer to taking it off was lost": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "", v)
				f.faults = []fault{{op: "unassign6", err: noAnswer(), applied: true}}
			},
			claims: claimsOf(v),
			steps: []step{
				{want: map[string]string{v: "again"}, calls: []string{"assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v}},
				{want: map[string]string{v: "done"}, calls: []string{"holders subnet-b " + v, "assign6 ours " + v}},
			},
		},
		"IPv6 move, left between the two by throttling: keep on": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "", v)
				f.before = func(call string) {
					if strings.HasPrefix(call, "unassign6") {
						f.before = nil
						f.faults = []fault{{op: "assign6", err: throttled}}
					}
				}
			},
			claims: claimsOf(v),
			steps: []step{
				{want: map[string]string{v: "again"}, calls: []string{"assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v, "assign6 ours " + v}},
				{want: map[string]string{v: "done"}, calls: []string{"assign6 ours " + v}},
			},
		},
		"IPv6 move, no room on our ENI: given back, and left there until a slot is free": {
			world: func(f *fakeEC2) {
				f.eni("ours", "", w).limit = 1
				f.eni("theirs", "", v)
			},
			claims: claimsOf(v),
			steps: []step{
				{want: map[string]string{v: "again"}, calls: []string{"assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v,
					"assign6 ours " + v, "assign6 theirs " + v, "slots ours"}},
				{want: map[string]string{v: "again"}, calls: []string{"assign6 ours " + v, "holders subnet-b " + v, "slots ours"}},
				{prepare: func(f *fakeEC2) { delete(f.enis["ours"].held, netip.MustParseAddr(w)) },
					want: map[string]string{v: "done"}, calls: []string{
						"assign6 ours " + v, "holders subnet-b " + v, "slots ours", "unassign6 theirs " + v, "assign6 ours " + v}},
			},
		},
		"IPv6 move, no room, and it cannot be given back: kept on for": {
			world: func(f *fakeEC2) {
				f.eni("ours", "", w).limit = 1
				f.eni("theirs", "", v)
				f.before = func(call string) {
					if call == "assign6 theirs "+v {
						f.before = nil
						f.faults = []fault{{op: "assign6", err: throttled}}
					}
				}
			},
			claims: claimsOf(v),
			steps: []step{
				{want: map[string]string{v: "again"}},
				{prepare: func(f *fakeEC2) { delete(f.enis["ours"].held, netip.MustParseAddr(w)) },
					want: map[string]string{v: "done"}, calls: []string{"assign6 ours " + v}},
			},
		},
		"IPv6 move, taken off by leave and not permitted on our ENI: given back": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "", v)
				f.before = func(call string) {
					if strings.HasPrefix(call, "unassign6") {
						f.before = func(string) { f.before = nil; f.faults = []fault{{op: "assign6", err: denied}} }
					}
				}
			},
			claims: claimsOf(v),
			steps: []step{{want: map[string]string{v: "forbidden"}, calls: []string{
				"assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v, "assign6 ours " + v, "assign6 theirs " + v}}},
			held: map[string]string{v: "theirs"},
		},
		"IPv6, three with room for one: the second refusal settles the third": {
			world:  func(f *fakeEC2) { f.eni("ours", "").limit = 1 },
			claims: claimsOf(v, w, x),
			steps: []step{
				{want: map[string]string{v: "done", w: "again", x: "again"}, calls: []string{
					"assign6 ours " + v + "," + w + "," + x, "assign6 ours " + v, "assign6 ours " + w + "," + x, "assign6 ours " + w}},
				{want: map[string]string{w: "again", x: "again"}, calls: []string{"assign6 ours " + w}},
			},
		},
		"IPv6 move, not permitted on the other ENI": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "", v)
				f.faults = []fault{{op: "unassign6", err: denied}}
			},
			claims: claimsOf(v, w),
			steps: []step{{want: map[string]string{v: "forbidden", w: "done"}, calls: []string{
				"assign6 ours " + v + "," + w, "holders subnet-b " + v + "," + w, "unassign6 theirs " + v, "assign6 ours " + w}}},
		},
		"IPv6 move, one of two is not where the search shows it: the other still moves": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "", v)
				f.stale[netip.MustParseAddr(w)], f.staleFor = "theirs", 100
			},
			claims: claimsOf(v, w),
			steps:  []step{{want: map[string]string{v: "done", w: "done"}}},
		},
		"IPv6 moved, the search lags, a bad one beside it": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "", v)
				f.bad[netip.MustParseAddr(w)] = true
				f.stale[netip.MustParseAddr(v)], f.staleFor = "theirs", 100
			},
			claims: claimsOf(v, w),
			steps:  []step{{want: map[string]string{v: "done", w: "again"}}},
		},
		"IPv6, no answer, then a newer claim after a read: yield": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "", v)
				f.faults = []fault{{op: "unassign6", err: noAnswer()}}
			},
			claims: claimsOf(v),
			steps: []step{
				{want: map[string]string{v: "again"}},
				{prepare: func(f *fakeEC2) {
					delete(f.enis["theirs"].held, netip.MustParseAddr(v))
					f.eni("third", "", v)
				}, want: map[string]string{v: "yielded"}, calls: []string{"holders subnet-b " + v}},
			},
			held: map[string]string{v: "third"},
		},
		"IPv6, room for one of two": {
			world:  func(f *fakeEC2) { f.eni("ours", "").limit = 1 },
			claims: claimsOf(v, w),
			steps: []step{{want: map[string]string{v: "done", w: "again"}, calls: []string{
				"assign6 ours " + v + "," + w, "assign6 ours " + v, "assign6 ours " + w}}},
		},

		"VPC CNI's subnet, our ENI untagged": {
			claims: checked(claimsOf(a, b)),
			steps:  []step{{want: map[string]string{a: "rejected", b: "rejected"}, calls: []string{"unmanaged ours"}}},
			say:    map[string][]string{a: {a, "ours", "node.k8s.amazonaws.com/no_manage=true", "VPC CNI"}},
		},
		"unknown primary ENI, our ENI untagged": {
			claims: primaryUnknown(checked(claimsOf(a))),
			steps:  []step{{want: map[string]string{a: "rejected"}, calls: []string{"unmanaged ours"}}},
			say:    map[string][]string{a: {a, "ours", "no_manage", "may draw from", "primary ENI", "not known"}},
		},
		"unknown primary ENI, held by an untagged one": {
			world: func(f *fakeEC2) {
				f.enis["ours"].unmanaged = true
				f.eni("theirs", "10.0.16.11", a)
			},
			claims: primaryUnknown(checked(claimsOf(a))),
			steps:  []step{{want: map[string]string{a: "rejected"}, calls: []string{"unmanaged ours", "holders subnet-b " + a}}},
			say:    map[string][]string{a: {a, "theirs", "may draw from", "primary ENI", "not known"}},
		},
		"VPC CNI's subnet, nobody holds it: assigned without the right to move": {
			world:  func(f *fakeEC2) { f.enis["ours"].unmanaged = true },
			claims: checked(claimsOf(a)),
			steps:  []step{{want: map[string]string{a: "done"}, calls: []string{"unmanaged ours", "holders subnet-b " + a, "assign4 ours " + a}}},
		},
		"VPC CNI's subnet, held by a tagged ENI: moved": {
			world: func(f *fakeEC2) {
				f.enis["ours"].unmanaged = true
				f.eni("theirs", "10.0.16.11", a).unmanaged = true
			},
			claims: checked(claimsOf(a, b)),
			steps: []step{{want: map[string]string{a: "done", b: "done"}, calls: []string{
				"unmanaged ours", "holders subnet-b " + a + "," + b, "assign4 ours " + a + " reassign", "assign4 ours " + b}}},
		},
		"VPC CNI's subnet, held by its pool": {
			world: func(f *fakeEC2) {
				f.enis["ours"].unmanaged = true
				f.eni("theirs", "10.0.16.11", a, v)
			},
			claims: checked(claimsOf(a, b, v)),
			steps: []step{{want: map[string]string{a: "rejected", b: "done", v: "rejected"}, calls: []string{
				"unmanaged ours", "holders subnet-b " + a + "," + b, "assign4 ours " + b, "unmanaged ours", "holders subnet-b " + v}}},
			held: map[string]string{a: "theirs", b: "ours", v: "theirs"},
			say:  map[string][]string{a: {a, "theirs", "no_manage", "reserve"}},
		},
		"VPC CNI's subnet, ours already: no call": {
			world: func(f *fakeEC2) {
				f.eni("ours", "10.0.16.10", a).unmanaged = true
			},
			claims: checked(claimsOf(a)),
			steps:  []step{{want: map[string]string{a: "done"}, calls: []string{"unmanaged ours", "holders subnet-b " + a}}},
		},
		"VPC CNI's subnet, its pool takes the address between look and call": {
			world: func(f *fakeEC2) {
				f.enis["ours"].unmanaged = true
				f.eni("theirs", "10.0.16.11")
				f.before = func(call string) {
					if strings.HasPrefix(call, "assign4") {
						f.before = nil
						f.enis["theirs"].held[netip.MustParseAddr(a)] = true
					}
				}
			},
			claims: checked(claimsOf(a)),
			steps: []step{
				{want: map[string]string{a: "again"}, calls: []string{"unmanaged ours", "holders subnet-b " + a, "assign4 ours " + a, "holders subnet-b " + a}},
				{want: map[string]string{a: "rejected"}, calls: []string{"unmanaged ours", "holders subnet-b " + a}},
			},
			held: map[string]string{a: "theirs"},
		},
		"VPC CNI's subnet, IPv6 held by its pool, found after the refusal": {
			world: func(f *fakeEC2) {
				f.enis["ours"].unmanaged = true
				f.eni("theirs", "", v)
				f.stale[netip.MustParseAddr(v)], f.staleFor = "", 1
			},
			claims: checked(claimsOf(v)),
			steps:  []step{{want: map[string]string{v: "rejected"}, calls: []string{"unmanaged ours", "holders subnet-b " + v, "assign6 ours " + v, "holders subnet-b " + v}}},
			held:   map[string]string{v: "theirs"},
		},
		"VPC CNI's subnet, a primary ENI of ours: its tag is not asked for": {
			world: func(f *fakeEC2) {
				f.enis["ours"].device = 0
				f.eni("theirs", "10.0.16.11", b)
			},
			claims: holderChecked(claimsOf(a, b)),
			steps: []step{{want: map[string]string{a: "done", b: "rejected"}, calls: []string{
				"holders subnet-b " + a + "," + b, "assign4 ours " + a}}},
			held: map[string]string{a: "ours", b: "theirs"},
		},
		"VPC CNI's subnet, a holder that searches do not show yet: waited for, then judged": {
			world: func(f *fakeEC2) {
				f.enis["ours"].unmanaged = true
				f.eni("theirs", "10.0.16.11", a).unmanaged = true
				f.stale[netip.MustParseAddr(a)], f.staleFor = "", 3
			},
			claims: checked(claimsOf(a)),
			steps: []step{
				{want: map[string]string{a: "again"}, calls: []string{"unmanaged ours", "holders subnet-b " + a, "assign4 ours " + a, "holders subnet-b " + a}},
				{want: map[string]string{a: "again"}, calls: []string{"unmanaged ours", "holders subnet-b " + a}},
				{want: map[string]string{a: "done"}, calls: []string{"unmanaged ours", "holders subnet-b " + a, "assign4 ours " + a + " reassign"}},
			},
		},
		"VPC CNI's subnet, its pool holds the address and searches do not show it yet": {
			world: func(f *fakeEC2) {
				f.enis["ours"].unmanaged = true
				f.eni("theirs", "10.0.16.11", a)
				f.stale[netip.MustParseAddr(a)], f.staleFor = "", 2
			},
			claims: checked(claimsOf(a)),
			steps: []step{
				{want: map[string]string{a: "again"}},
				{want: map[string]string{a: "rejected"}, calls: []string{"unmanaged ours", "holders subnet-b " + a}},
			},
			held: map[string]string{a: "theirs"},
		},
		"IPv4, the answer names nobody, and searching is not permitted: EC2's success counts": {
			world: func(f *fakeEC2) {
				f.mute = true
				f.faults = []fault{{op: "holders", err: denied}}
			},
			claims: claimsOf(a, b),
			steps: []step{{want: map[string]string{a: "done", b: "done"}, calls: []string{
				"assign4 ours " + a + "," + b + " reassign", "holders subnet-b " + a + "," + b}}},
		},
		"IPv4, the answer names nobody, and the search fails otherwise: no success": {
			world: func(f *fakeEC2) {
				f.mute = true
				f.faults = []fault{{op: "holders", err: throttled}}
			},
			claims: claimsOf(a),
			steps: []step{
				{want: map[string]string{a: "again"}, calls: []string{"assign4 ours " + a + " reassign", "holders subnet-b " + a}},
				{want: map[string]string{a: "done"}},
			},
		},
		"VPC CNI's subnet, the tag cannot be read": {
			world:  func(f *fakeEC2) { f.faults = []fault{{op: "unmanaged", err: denied}} },
			claims: checked(claimsOf(a)),
			steps:  []step{{want: map[string]string{a: "forbidden"}, calls: []string{"unmanaged ours"}}},
		},
		"VPC CNI's subnet, held as another ENI's primary": {
			world: func(f *fakeEC2) {
				f.enis["ours"].unmanaged = true
				f.eni("theirs", a).unmanaged = true
			},
			claims: checked(claimsOf(a)),
			steps:  []step{{want: map[string]string{a: "rejected"}, calls: []string{"unmanaged ours", "holders subnet-b " + a}}},
			say:    map[string][]string{a: {"primary"}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, said := play(t, tt.world, tt.claims, tt.steps)
			if tt.held != nil {
				got := f.table()
				for k := range got {
					if _, asked := tt.held[k]; !asked {
						delete(got, k)
					}
				}
				if diff := cmp.Diff(tt.held, got); diff != "" {
					t.Errorf("holders at the end (-want +got):\n%s", diff)
				}
			}
			for addr, words := range tt.say {
				for _, w := range words {
					if !strings.Contains(fmt.Sprint(said[addr]), w) {
						t.Errorf("%q does not say %q", said[addr], w)
					}
				}
			}
		})
	}
}

// An address that EC2 refuses without leave to move it, and nobody is seen to hold, is asked about until the search can be trusted,
// with the pauses of a contested address; then it is refused and named.
func TestAttemptGivesUpOnABadAddress(t *testing.T) {
	for name, claims := range map[string][]Claim{
		"2001:db8::13": claimsOf("2001:db8::13"),
		"10.0.17.13":   checked(claimsOf("10.0.17.13")), // in a subnet of the VPC CNI
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.eni("ours", "").unmanaged = true
			f.bad[netip.MustParseAddr(name)] = true
			for i := range aloneLimit {
				got, rest, errs := attemptOn(t, f, claims)
				want := "again"
				if i == aloneLimit-1 {
					want = "rejected"
				}
				err := errs[name]
				if got[name] != want || !strings.Contains(err.Error(), "InvalidParameterValue") {
					t.Fatalf("attempt %d: %s (%v), want %s", i+1, got[name], err, want)
				}
				if want == "again" && ClassOf(err) != Contested {
					t.Errorf("attempt %d: class %s", i+1, ClassOf(err))
				}
				if want == "rejected" && !strings.Contains(err.Error(), "subnet-b") {
					t.Errorf("%q does not name the subnet", err)
				}
				claims = rest
			}
		})
	}
}

// obedient is an EC2 whose calls fail once their caller has given up, as real ones do.
type obedient struct{ *fakeEC2 }

func (o obedient) AssignIPv6(ctx context.Context, eni string, as []netip.Addr) error {
	if ctx.Err() != nil {
		return newOpError("assign6", eni, as, ctx.Err())
	}
	return o.fakeEC2.AssignIPv6(ctx, eni, as)
}

func (o obedient) UnassignIPv6(ctx context.Context, eni string, as []netip.Addr) error {
	if ctx.Err() != nil {
		return newOpError("unassign6", eni, as, ctx.Err())
	}
	return o.fakeEC2.UnassignIPv6(ctx, eni, as)
}

// An agent that is told to stop between taking an IPv6 address off its holder and assigning it still assigns it: else no ENI had it.
// A call to take it off that is under way is not cut off either, for nobody knew then what it did.
func TestAttemptEndsAnIPv6MoveItBegan(t *testing.T) {
	for _, told := range []string{"holders", "unassign6"} {
		t.Run("told to stop in "+told, func(t *testing.T) {
			f := newFake(t)
			f.eni("ours", "")
			f.eni("theirs", "", "2001:db8::5")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			f.before = func(call string) {
				if strings.HasPrefix(call, told) {
					cancel()
				}
			}
			out := (&Applier{EC2: obedient{f}, Log: slog.New(slog.DiscardHandler)}).Attempt(ctx, "ours", "subnet-b", claimsOf("2001:db8::5"))
			if holder := f.holder(out[0].Claim.Addr); holder != "ours" || out[0].Verdict != Done {
				t.Errorf("%s (%v), held by %q", verdictNames[out[0].Verdict], out[0].Err, holder)
			}
		})
	}
}

// What was taken off another ENI, or may have been, is owed until it is seen somewhere.
func TestClaimOwed(t *testing.T) {
	throttled := apiError("RequestLimitExceeded", 503, "Request limit exceeded.")
	tests := map[string]struct {
		fault fault
		after bool // the fault comes only once the address was taken off
		owed  bool
	}{
		"the answer to taking it off is lost": {fault{op: "unassign6", err: noAnswer(), applied: true}, false, true},
		"taking it off is throttled":          {fault{op: "unassign6", err: throttled}, false, false},
		"taken off, not assigned":             {fault{op: "assign6", err: throttled}, true, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.eni("ours", "")
			f.eni("theirs", "", "2001:db8::5")
			if tt.after {
				f.before = func(call string) {
					if strings.HasPrefix(call, "unassign6") {
						f.faults = []fault{tt.fault}
					}
				}
			} else {
				f.faults = []fault{tt.fault}
			}
			_, rest, _ := attemptOn(t, f, claimsOf("2001:db8::5"))
			if len(rest) != 1 || rest[0].Owed() != tt.owed {
				t.Fatalf("claims %+v, want one that is owed: %t", rest, tt.owed)
			}
			f.before, f.faults = nil, nil
			if v, _, _ := attemptOn(t, f, rest); v["2001:db8::5"] != "done" {
				t.Errorf("then %v", v)
			}
		})
	}
	t.Run("seen on its former ENI", func(t *testing.T) {
		f := newFake(t)
		f.eni("ours", "")
		f.eni("theirs", "", "2001:db8::5")
		f.faults = []fault{{op: "unassign6", err: noAnswer()}}
		_, rest, _ := attemptOn(t, f, claimsOf("2001:db8::5"))
		f.faults = []fault{{op: "assign6", err: throttled}}
		if _, rest, _ = attemptOn(t, f, rest); len(rest) != 1 || rest[0].Owed() {
			t.Errorf("claims %+v, want one that nobody lost", rest)
		}
	})
}

// Where primary ENIs may be used, addresses move between them as between others.
func TestAttemptAllowsPrimaryENIs(t *testing.T) {
	f := newFake(t)
	f.eni("ours", "").device = 0
	f.eni("node", "", "2001:db8::5").device = 0
	out := (&Applier{EC2: f, Log: slog.New(slog.DiscardHandler), AllowPrimaryENI: true}).Attempt(t.Context(), "ours", "subnet-b", claimsOf("2001:db8::5"))
	if len(out) != 1 || out[0].Verdict != Done || f.holder(out[0].Claim.Addr) != "ours" {
		t.Errorf("outcomes %v", out)
	}
}

// A yielded claim names the winner, with a class of its own.
func TestYieldedError(t *testing.T) {
	f := newFake(t)
	f.eni("ours", "")
	f.eni("third", "", "2001:db8::5")
	c := claimsOf("2001:db8::5")
	c[0].unsure, c[0].read, c[0].before = true, true, "former"
	_, _, errs := attemptOn(t, f, c)
	err := errs["2001:db8::5"]
	var op *OpError
	if !errors.As(err, &op) || op.Class != Contested || !strings.Contains(err.Error(), "third") || op.ENI != "ours" {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff(addrs("2001:db8::5"), op.Addrs, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
}

func TestAttemptWithoutClaims(t *testing.T) {
	f := newFake(t)
	if v, _, _ := attemptOn(t, f, nil); len(v) != 0 || len(f.journal) != 0 {
		t.Errorf("verdicts %v, calls %v", v, slices.Clone(f.journal))
	}
}
