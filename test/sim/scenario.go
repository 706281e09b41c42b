package sim

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"multus-ip-manager.io/agent/apply"
)

// dice are the choices of one run.
type dice struct{ *rand.Rand }

func (d dice) chance(p float64) bool { return d.Float64() < p }

// span gives a time between lo and hi, short ones as often as long ones.
func (d dice) span(lo, hi time.Duration) time.Duration {
	l, h := math.Log(float64(lo)), math.Log(float64(hi))
	return time.Duration(math.Exp(l + d.Float64()*(h-l)))
}

func pick[T any](d dice, of ...T) T { return of[d.IntN(len(of))] }

// Faults says which faults a run may have.
type Faults struct {
	// Rate is the share of calls that fail in one way or another.
	Rate float64
	// Late allows calls to take effect after the client gave up.
	Late bool
}

// fates gives a function that draws the fate of each call from the seed, whatever the order of calls.
func fates(seed uint64, f Faults) func(Ask) Fate {
	return func(a Ask) Fate {
		d := dice{rand.New(rand.NewPCG(mix(seed, a.Pod, a.Op, a.N), 7))} //nolint:gosec // a seeded test
		effect := d.span(2*time.Millisecond, 400*time.Millisecond)
		answer := effect + d.span(time.Millisecond, 100*time.Millisecond)
		if !d.chance(f.Rate) {
			return good(effect, answer)
		}
		kinds := 7
		if f.Late {
			kinds = 9
		}
		switch d.IntN(kinds) {
		case 0: // slow
			e := d.span(400*time.Millisecond, 2500*time.Millisecond)
			return good(e, e+d.span(time.Millisecond, 400*time.Millisecond))
		case 1:
			return Fate{Effect: -1, Answer: answer, Fault: apply.Throttled, Faulty: true}
		case 2:
			return Fate{Effect: -1, Answer: answer, Fault: apply.Unavailable, Faulty: true}
		case 3:
			return Fate{Effect: effect, Answer: answer, Fault: apply.Unavailable, Faulty: true}
		case 4:
			return Fate{Effect: -1, Answer: answer, Fault: apply.Unanswered, Faulty: true}
		case 5: // lost, with effect
			return Fate{Effect: effect, Answer: answer, Fault: apply.Unanswered, Faulty: true}
		case 6: // hangs
			return Fate{Effect: pick(d, -1, effect, d.span(time.Second, 2900*time.Millisecond)), Answer: -1}
		case 7: // takes effect after the client gave up
			return Fate{Effect: d.span(3100*time.Millisecond, 10*time.Second), Answer: -1}
		default: // the connection breaks first
			return Fate{Effect: answer + d.span(10*time.Millisecond, 5*time.Second), Answer: answer, Fault: apply.Unanswered, Faulty: true}
		}
	}
}

var (
	vip4  = netip.MustParseAddr("10.0.17.50")
	vip6  = netip.MustParseAddr("2001:db8:0:17::50")
	other = netip.MustParseAddr("10.0.17.51")
)

// Random draws a whole run from a seed.
func Random(seed uint64, allow Faults) Config {
	d := dice{rand.New(rand.NewPCG(seed, 1))} //nolint:gosec // a seeded test
	c := Config{
		Seed: seed, Initial: map[netip.Addr]string{},
		AgainRefused: d.chance(0.3), Mute: d.chance(0.1),
		HoldersLag:  pick(d, 0, 0, 0, time.Second, 4*time.Second),
		MetadataLag: pick(d, 0, 2*time.Second, 20*time.Second, 90*time.Second),
		KernelDelay: pick(d, 2*time.Millisecond, 2*time.Millisecond, 20*time.Millisecond),
	}
	allow.Rate = pick(d, 0, 0.1, 0.3, 0.6) * allow.Rate
	c.Fate = fates(seed, allow)
	enis := pick(d, []string{"eni-a", "eni-b"}, []string{"eni-a", "eni-b"}, []string{"eni-a", "eni-a"}, []string{"eni-a", "eni-a", "eni-b"}, []string{"eni-a", "eni-b", "eni-c"})
	for i, eni := range enis {
		p := PodConfig{Name: string(rune('a' + i)), ENI: eni, Keep: d.chance(0.2)}
		if d.chance(0.3) {
			p.Came = append(p.Came, netip.AddrFrom4([4]byte{10, 0, 17, byte(10 + i)})) //nolint:gosec // small
		}
		c.Pods = append(c.Pods, p)
	}
	vips := pick(d, []netip.Addr{vip4}, []netip.Addr{vip6}, []netip.Addr{vip4}, []netip.Addr{vip6}, []netip.Addr{vip4, vip6}, []netip.Addr{vip4, other})
	for _, v := range vips {
		d.origin(&c, v)
	}
	at := d.span(time.Millisecond, time.Second)
	on := map[int]bool{}
	for i, p := range c.Pods {
		on[i] = slices.Contains(p.Floating, vips[0]) || slices.Contains(p.Came, vips[0])
	}
	for range 2 + d.IntN(7) {
		at += d.span(time.Millisecond, 8*time.Second)
		d.happens(&c, vips, on, at)
	}
	slices.SortStableFunc(c.Script, func(a, b Step) int { return int(a.At - b.At) })
	if n := len(c.Script); n > 0 {
		at = max(at, c.Script[n-1].At)
	}
	if d.chance(0.15) && !slices.Contains(vips, vip6) {
		c.FullUntil = map[string]time.Duration{pick(d, enis...): d.span(time.Second, at+30*time.Second)}
	}
	c.Calm = at + d.span(100*time.Millisecond, 40*time.Second)
	c.End = c.Calm + 6*time.Minute + rest
	return c
}

// origin chooses where a floating address is at the start.
func (d dice) origin(c *Config, v netip.Addr) {
	if d.chance(0.4) {
		c.Initial[v] = pick(d, "eni-a", "eni-b", "eni-z")
	}
	for i := range c.Pods {
		switch d.IntN(8) {
		case 0: // the agent was restarted
			c.Pods[i].Floating, c.Pods[i].Restarted = append(c.Pods[i].Floating, v), true
		case 1:
			if d.chance(0.3) {
				c.Pods[i].Came = append(c.Pods[i].Came, v)
			}
		}
	}
}

// happens adds something to the script: a change of hands, a flap, both at once, or the agent's end.
func (d dice) happens(c *Config, vips []netip.Addr, on map[int]bool, at time.Duration) {
	pod := d.IntN(len(c.Pods))
	steps := func(pod int, do Do, at time.Duration) {
		for _, v := range vips {
			c.Script = append(c.Script, Step{At: at, Pod: pod, Do: do, Addr: v})
		}
		on[pod] = do != Del
	}
	gap := d.span(time.Millisecond, 4*time.Second)
	switch d.IntN(12) {
	case 0, 1, 2, 3: // remove, then add elsewhere, or the other way round
		to := d.IntN(len(c.Pods))
		for p := range c.Pods {
			if on[p] && p != to {
				steps(p, Del, at+time.Duration(pick(d, 0, 0, 1))*2*gap)
			}
		}
		steps(to, Add, at+gap)
	case 4, 5: // added, and the other one keeps it
		steps(pod, Add, at)
	case 6:
		steps(pod, Del, at)
	case 7: // flap
		steps(pod, Del, at)
		steps(pod, Add, at+gap)
	case 8:
		steps(pod, Readd, at)
	case 9: // the agent crashes and is started again, or not
		c.Script = append(c.Script, Step{At: at, Pod: pod, Do: Crash})
		if d.chance(0.8) {
			c.Script = append(c.Script, Step{At: at + gap, Pod: pod, Do: Start})
		}
	case 10: // it is told to stop, for good or not
		if d.chance(0.5) {
			c.Script = append(c.Script, Step{At: at - time.Millisecond, Pod: pod, Do: Use, Addr: vips[0]})
		}
		c.Script = append(c.Script, Step{At: at, Pod: pod, Do: Stop})
		if d.chance(0.7) {
			c.Script = append(c.Script, Step{At: at + gap, Pod: pod, Do: Start})
		}
	case 11:
		c.Script = append(c.Script, Step{At: at, Pod: pod, Do: Deafen})
	}
}
