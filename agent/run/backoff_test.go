package run

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"multus-ip-manager.io/agent/apply"
)

func TestBackoffBounds(t *testing.T) {
	caps := map[apply.Class]time.Duration{
		apply.Unanswered: 2 * time.Second, apply.Unsent: 2 * time.Second, apply.Unavailable: 2 * time.Second, apply.Expired: 2 * time.Second, apply.NoCredentials: 2 * time.Second,
		apply.Gone: 2 * time.Second, apply.Throttled: 20 * time.Second, apply.Contested: 20 * time.Second, apply.Full: 30 * time.Second,
	}
	for class, limit := range caps {
		longest, shortest := map[int]time.Duration{}, limit
		for range 300 {
			var b backoff
			for n := range 100 {
				d := b.pause(nil, class)
				ceiling := limit
				if n < 9 {
					ceiling = min(limit, 100*time.Millisecond<<n)
				}
				if d <= 0 || d > ceiling {
					t.Fatalf("%s: pause %d is %s, want at most %s", class, n+1, d, ceiling)
				}
				longest[n] = max(longest[n], d)
				if n > 50 {
					shortest = min(shortest, d)
				}
			}
		}
		// Full jitter uses the whole room.
		if longest[0] < 80*time.Millisecond || longest[99] < limit*8/10 || shortest > limit/10 {
			t.Errorf("%s: at most %s first and %s to %s later, want nearly 100 ms and 0 to %s", class, longest[0], shortest, longest[99], limit)
		}
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		started := time.Now()
		if err := sleep(t.Context(), time.Minute); err != nil || time.Since(started) != time.Minute {
			t.Errorf("slept %s: %v", time.Since(started), err)
		}
		why := errors.New("why")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, why)
		defer cancel()
		if err := sleep(ctx, time.Minute); !errors.Is(err, why) {
			t.Errorf("woken by %v, want the cause", err)
		}
	})
}
