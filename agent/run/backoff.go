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

// backoff counts the failures in a row and gives the pause after each: exponential with full jitter, because thousands of pods
// may start at the same moment and must not come back at the same moment.
type backoff struct{ failures int }

// pause gives the next pause for a fault of this class.
func (b *backoff) pause(class apply.Class) time.Duration {
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
	return rand.N(ceiling) + 1 //nolint:gosec // jitter needs no cryptography
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
