package apply

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// An address that was given back for want of room is moved again when a slot became free, also when that was between EC2's refusal and
// the count of the slots; and not at every look, for each time interrupts whoever has it.
func TestRoomThatIsNotSeen(t *testing.T) {
	const v, w, x, y = "2001:db8::5", "2001:db8::6", "2001:db8::7", "2001:db8::8"
	var (
		move   = []string{"assign6 ours " + v, "holders subnet-b " + v, "slots ours", "unassign6 theirs " + v, "assign6 ours " + v}
		inVain = append(move[:5:5], "assign6 theirs "+v, "slots ours")
		look   = move[:3:3]
		again  = map[string]string{v: "again"}
	)
	free := func(f *fakeEC2, addr string) { delete(f.enis["ours"].held, netip.MustParseAddr(addr)) }
	full := func(f *fakeEC2) {
		f.eni("ours", "", w, x).limit = 2
		f.eni("theirs", "", v)
	}
	// freed frees a slot between the first refusal and the count.
	freed := func(f *fakeEC2) {
		full(f)
		f.before = func(call string) {
			if call == "slots ours" {
				f.before = nil
				free(f, x)
			}
		}
	}
	first := step{want: again, calls: []string{"assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v, "assign6 ours " + v, "assign6 theirs " + v, "slots ours"}}
	after := func(d time.Duration) func(*fakeEC2) { return func(*fakeEC2) { <-time.After(d) } }
	for name, tt := range map[string]struct {
		world func(*fakeEC2)
		steps []step
	}{
		"freed before the count": {freed, []step{
			first,
			{want: again, calls: look, prepare: after(fullFirst)},
			{want: map[string]string{v: "done"}, calls: move, prepare: after(time.Millisecond)},
		}},
		"freed before the count, and one more later": {freed, []step{
			first,
			{want: again, calls: look, prepare: func(f *fakeEC2) { f.enis["ours"].held[netip.MustParseAddr(y)] = true }},
			{want: map[string]string{v: "done"}, calls: move, prepare: func(f *fakeEC2) { free(f, y) }},
		}},
		"never": {full, []step{
			first,
			{want: again, calls: look, prepare: after(fullFirst)},
			{want: again, calls: inVain, prepare: after(time.Millisecond)},
			{want: again, calls: look, prepare: after(2 * fullFirst)},
			{want: again, calls: inVain, prepare: after(time.Millisecond)},
			{want: again, calls: look, prepare: after(4 * fullFirst)},
			{want: again, calls: inVain, prepare: after(fullMost)},
			{want: again, calls: inVain, prepare: after(fullMost)},
			{want: again, calls: inVain, prepare: after(fullMost)},
			{want: again, calls: look, prepare: after(fullMost)},
			{want: again, calls: inVain, prepare: after(time.Millisecond)},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { play(t, tt.world, claimsOf(v), tt.steps) })
		})
	}
}
