package run

import (
	"context"
	"math/rand/v2"
	"time"

	"multus-ip-manager.io/agent/apply"
)

// Bounds of the pauses between attempts.
const (
	backoffBase        = 100 * time.Millisecond
	backoffCap         = 2 * time.Second
	backoffCapThrottle = 20 * time.Second
	backoffCapFull     = 30 * time.Second
)

// Jitter gives a random duration from 0 to less than its argument. Nil draws from the process's own randomness.
type Jitter func(time.Duration) time.Duration

func (j Jitter) below(d time.Duration) time.Duration {
	if j == nil {
		return rand.N(d) //nolint:gosec // jitter needs no cryptography
	}
	return j(d)
}

// backoff counts the failures in a row and gives the pause after each: exponential with full jitter, because thousands of pods
// may start at the same moment and must not come back at the same moment.
type backoff struct{ failures int }

// pause gives the next pause for a fault of this class.
func (b *backoff) pause(jitter Jitter, class apply.Class) time.Duration {
	var limit time.Duration
	switch class {
	case apply.Throttled, apply.Contested:
		limit = backoffCapThrottle
	case apply.Full:
		limit = backoffCapFull
	default:
		limit = backoffCap
	}
	ceiling := limit
	if b.failures < 10 { // 100 ms doubled ten times is beyond every cap
		ceiling = min(limit, backoffBase<<b.failures)
	}
	b.failures++
	return jitter.below(ceiling) + 1
}

// slowly gives the pause after so many failures that waiting alone does not mend: the first, doubled each time up to the most, and a quarter
// longer or shorter.
func slowly(jitter Jitter, failures int, first, most time.Duration) time.Duration {
	d := min(first<<min(failures, 12), most)
	return d*3/4 + jitter.below(d/2)
}

// sleep waits, or gives the reason why not.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
