package sim

import (
	"flag"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"multus-ip-manager.io/agent/apply"
)

var (
	runs  = flag.Int("runs", 6000, "how many random runs TestRandom makes")
	first = flag.Uint64("first", 1, "the seed of the first one")
	seed  = flag.Uint64("seed", 0, "play only this run of TestRandom, and show its trace")
	again = flag.Int("again", 100, "how often to play it, for it to fail")
	fails = flag.Int("fails", 1, "how many failing runs to tell before giving up")
	late  = flag.Bool("late", false, "let calls take effect after the client gave up: the rules cannot all hold then, see TestLateEffects")
)

// play carries out one run in a bubble of its own.
func play(t *testing.T, c Config) (r *Record) {
	t.Helper()
	synctest.Test(t, func(*testing.T) { r = Play(c) })
	return r
}

// tally counts how the addresses of all runs ended.
type tally struct {
	mu    sync.Mutex
	runs  int
	ended map[Verdict]int
}

func (y *tally) add(ended map[Verdict]int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.runs++
	for v, n := range ended {
		y.ended[v] += n
	}
}

// each plays numbered runs on all processors, until some have failed.
func each(t *testing.T, n int, config func(i int) (c Config, replay string)) *tally {
	t.Helper()
	y := &tally{ended: map[Verdict]int{}}
	var next, failed atomic.Int64
	began := time.Now()
	t.Run("runs", func(t *testing.T) {
		for w := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(w), func(t *testing.T) {
				t.Parallel()
				for failed.Load() < int64(*fails) {
					i := int(next.Add(1)) - 1
					if i >= n {
						return
					}
					c, replay := config(i)
					r := play(t, c)
					wrong, ended := r.Check()
					y.add(ended)
					if len(wrong) > 0 && failed.Add(1) <= int64(*fails) {
						t.Errorf("%s\nreplay: %s\n%s", strings.Join(wrong, "\n"), replay, r.Trace())
					}
				}
			})
		}
	})
	took := time.Since(began)
	t.Logf("%d runs in %v, %.0f a second; so the addresses ended: %v", y.runs, took.Round(time.Millisecond), float64(y.runs)/took.Seconds(), y.ended)
	return y
}

// Random schedules of pods, faults and lags.
func TestRandom(t *testing.T) {
	faults := Faults{Rate: 1, Late: *late}
	if *seed != 0 {
		replay(t, Random(*seed, faults))
		return
	}
	n := *runs
	if testing.Short() {
		n = min(n, 1000)
	}
	y := each(t, n, func(i int) (Config, string) {
		s := *first + uint64(i) //nolint:gosec // a small number
		return Random(s, faults), fmt.Sprintf("go test ./test/sim -run 'TestRandom$' -seed %d", s)
	})
	if y.ended[Won] < y.runs {
		t.Errorf("the last claim won %d times in %d runs: these runs show nothing", y.ended[Won], y.runs)
	}
}

// replay plays one run until it fails, and shows it.
func replay(t *testing.T, c Config) {
	t.Helper()
	for i := range *again {
		r := play(t, c)
		wrong, ended := r.Check()
		if len(wrong) > 0 {
			t.Fatalf("try %d: %s\n%s", i+1, strings.Join(wrong, "\n"), r.Trace())
		}
		if i == 0 {
			t.Logf("%v\n%s", ended, r.Trace())
		}
	}
}

// The fates that TestHandOver combines.
var smallFates = []struct {
	name string
	fate Fate
}{
	{"fast", good(20*time.Millisecond, 30*time.Millisecond)},
	{"slow", good(1200*time.Millisecond, 1500*time.Millisecond)},
	{"throttled", Fate{Effect: -1, Answer: 20 * time.Millisecond, Fault: apply.Throttled, Faulty: true}},
	{"lost, done", Fate{Effect: 20 * time.Millisecond, Answer: -1}},
	{"lost, not done", Fate{Effect: -1, Answer: -1}},
	{"failed, done", Fate{Effect: 20 * time.Millisecond, Answer: 30 * time.Millisecond, Fault: apply.Unavailable, Faulty: true}},
}

// The gaps between the events of TestHandOver.
var smallGaps = []time.Duration{time.Millisecond, 25 * time.Millisecond, 700 * time.Millisecond, 4 * time.Second}

// handOver is one combination: the first pod has the address, the second adds it, and in three of four ways somebody then removes it or
// adds it again.
type handOver struct {
	addr   netip.Addr
	shared bool
	way    int
	gaps   [2]time.Duration
	fates  [4]int // of the first two changing calls of each pod after the start
}

func (o handOver) String() string {
	return fmt.Sprintf("%s shared=%v way=%d gaps=%v fates=%v", o.addr, o.shared, o.way, o.gaps, o.fates)
}

// handOvers lists all combinations.
func handOvers() (all []handOver) {
	n := len(smallFates)
	for _, addr := range []netip.Addr{vip4, vip6} {
		for _, shared := range []bool{false, true} {
			for way := range 4 {
				for _, g1 := range smallGaps {
					for _, g2 := range smallGaps {
						if way < 2 && g2 != smallGaps[0] {
							continue // there is no second gap
						}
						for f := range n * n * n {
							all = append(all, handOver{addr, shared, way, [2]time.Duration{g1, g2}, [4]int{f % n, 0, f / n % n, f / n / n}})
						}
					}
				}
			}
		}
	}
	return all
}

func (o handOver) config() Config {
	second := "eni-b"
	if o.shared {
		second = "eni-a"
	}
	start := time.Second
	c := Config{
		Pods:    []PodConfig{{Name: "a", ENI: "eni-a", Floating: []netip.Addr{o.addr}, Restarted: true}, {Name: "b", ENI: second}},
		Initial: map[netip.Addr]string{o.addr: "eni-a"}, KernelDelay: 2 * time.Millisecond,
	}
	c.Fate = func(a Ask) Fate {
		switch {
		case a.Op == holders || a.Pod == 0 && a.N == 0 && (a.Op == assign4 || a.Op == assign6):
			return smallFates[0].fate // the start of the first pod
		case a.Pod == 0:
			return smallFates[o.fates[min(a.N-1, 1)&1]].fate
		case a.N < 2:
			return smallFates[o.fates[2+a.N]].fate
		}
		return smallFates[0].fate
	}
	one, two := start+o.gaps[0], start+o.gaps[0]+o.gaps[1]
	steps := [][]Step{
		{{start, 0, Del, o.addr}, {one, 1, Add, o.addr}},                          // handed over
		{{start, 1, Add, o.addr}, {one, 0, Del, o.addr}},                          // added first
		{{start, 1, Add, o.addr}, {one, 0, Readd, o.addr}, {two, 1, Del, o.addr}}, // and won back
		{{start, 0, Del, o.addr}, {one, 1, Add, o.addr}, {two, 0, Add, o.addr}},   // and kept by both
	}
	c.Script = steps[o.way]
	c.Calm = two + 15*time.Second
	c.End = c.Calm + 6*time.Minute + rest
	return c
}

// All combinations of a small set of gaps and fates.
func TestHandOver(t *testing.T) {
	all := handOvers()
	if *only != "" {
		i := slices.IndexFunc(all, func(o handOver) bool { return o.String() == *only })
		if i < 0 {
			t.Fatal("there is no such combination")
		}
		replay(t, all[i].config())
		return
	}
	stride := 1
	if testing.Short() {
		stride = 7
	}
	each(t, len(all)/stride, func(i int) (Config, string) {
		o := all[i*stride]
		return o.config(), fmt.Sprintf("go test ./test/sim -run 'TestHandOver$' -only %q", o)
	})
}

var only = flag.String("only", "", "play only this combination of TestHandOver")
