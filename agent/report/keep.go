package report

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

// retryEvery is about how long a name or port in use is left alone before it is tried again: the agent that holds it may be the
// one that this agent replaces, and end soon.
const retryEvery = 10 * time.Second

// keep has serve work on what listen gives, until ctx ends. What goes wrong is told once and tried again now and then: an agent
// that nobody can ask is still an agent.
func keep(ctx context.Context, what string, listen func(context.Context) (net.Listener, error), serve func(context.Context, net.Listener) error, log *slog.Logger) {
	told := ""
	for ctx.Err() == nil {
		l, err := listen(ctx)
		if err == nil {
			if told != "" {
				log.Info(what + " is served after all")
			}
			told = ""
			err = serve(ctx, l)
		}
		if ctx.Err() != nil {
			return
		}
		if text := fmt.Sprint(err); text != told {
			log.Warn(what+" is not served; trying again now and then", "error", err)
			told = text
		}
		pause(ctx, retryEvery)
	}
}

// pause waits for d, give or take a fifth, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	spread := float64(d) * (0.8 + 0.4*rand.Float64()) //nolint:gosec // jitter is no secret
	select {
	case <-ctx.Done():
	case <-time.After(time.Duration(spread)):
	}
}

// crowd bounds how many clients are served at once. One too many ends the oldest: a client that wants an answer has it within
// milliseconds, so the oldest are those that hold on to their connection.
type crowd struct {
	most int

	mu      sync.Mutex
	members []io.Closer // oldest first
}

func (c *crowd) enter(member io.Closer) {
	c.mu.Lock()
	c.members = append(c.members, member)
	var over io.Closer
	if len(c.members) > c.most {
		over = c.members[0]
		c.members = slices.Delete(c.members, 0, 1)
	}
	c.mu.Unlock()
	if over != nil {
		over.Close()
	}
}

func (c *crowd) leave(member io.Closer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.members, member); i >= 0 {
		c.members = slices.Delete(c.members, i, i+1)
	}
}

func (c *crowd) disperse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.members {
		m.Close()
	}
	c.members = nil
}
