package certs_test

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"

	"multus-ip-manager.io/certs"
)

// calendar makes the API server's clock differ by what it holds, for one client.
type calendar struct{ atomic.Int64 }

func (c *calendar) wrap(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return transport(func(request *http.Request) (*http.Response, error) {
			response, err := next.RoundTrip(request)
			if err == nil {
				response.Header.Set("Date", time.Now().Add(time.Duration(c.Load())).UTC().Format(http.TimeFormat))
			}
			return response, err
		})
	})
	return config
}

// A replica whose clock is a day off says so and which way. A day behind, it goes on: its certificates are valid for longer than
// that. A day ahead, it makes no CA, which for the API server would be valid from tomorrow on, until its clock is right again.
func TestClockADayOff(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		api  time.Duration // what the API server's clock is ahead of ours
		says string
		goes bool
	}{
		"behind": {api: 24 * time.Hour, says: "24h0m0s behind", goes: true},
		"ahead":  {api: -24 * time.Hour, says: "24h0m0s ahead of"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			var off calendar
			off.Store(int64(test.api))
			rs := c.replicas(1, func(_ int, o *certs.SelfOptions) { o.REST = off.wrap(o.REST) })
			eventually(t, "the clock is told", func() error {
				fault := rs[0].Fault()
				if diff := cmp.Diff([]string{certs.ReasonClockSkew}, certs.Reasons(fault)); diff != "" {
					return errors.New(diff)
				}
				if !strings.Contains(fault.Error(), test.says) {
					return fault
				}
				return nil
			})
			if test.goes {
				c.waitReady(rs...)
				c.admitSoon()
				return
			}
			c.waitSaid(1, "error ensuring CA") // by the library, when it has tried
			if n := c.writes.Load(); n > 0 {
				t.Errorf("%d writes while no CA can be made", n)
			}
			off.Store(0)
			c.waitReady(rs...) // the library tries every ten seconds
			c.admitSoon()
			eventually(t, "nothing is told any more", rs[0].Fault)
		})
	}
}
