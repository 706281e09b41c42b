package certs

import (
	"net/http"
	"sync"
	"time"
)

// tolerance is how far clocks may be apart: the answer's time is told in whole seconds, and no certificate is made to fit its
// first or last minute.
const tolerance = time.Minute

// clock knows what time it is for the API server, which is the one that judges our certificate. It learns that from the date in
// each of its answers. The zero value knows nothing and takes this machine's time.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration // of this machine
}

// now returns the API server's time.
func (c *clock) now() time.Time { return time.Now().Add(-c.skew()) }

// skew returns by how much this machine's clock is ahead of the API server's, negative when it is behind; zero while that does not
// matter.
func (c *clock) skew() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ahead.Abs() <= tolerance {
		return 0
	}
	return c.ahead
}

// fault says that the clocks differ, when they do.
func (c *clock) fault() error {
	skew, direction := c.skew(), "ahead of"
	if skew == 0 {
		return nil
	}
	if skew < 0 {
		direction = "behind"
	}
	return faultf(ReasonClockSkew, "this machine's clock is %s %s the API server's: set it right, certificates are valid by the clock",
		skew.Abs().Round(time.Minute), direction)
}

// wrap has the clock learn from what passes through next.
func (c *clock) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(request)
		if err == nil {
			c.learn(response.Header.Get("Date"), time.Now())
		}
		return response, err
	})
}

func (c *clock) learn(date string, received time.Time) {
	sent, err := http.ParseTime(date)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead = received.Round(0).Sub(sent) // by the wall clock
}

// roundTripper is a function that is an http.RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(request *http.Request) (*http.Response, error) { return f(request) }
