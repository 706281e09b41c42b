package apply

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// A node whose clock is wrong is refused once, by whichever code, and then works: the SDK takes the time from the answer. That is no
// matter of permissions, which would end the agent.
func TestWrongClock(t *testing.T) {
	codes := map[string]int{"RequestExpired": 400, "AuthFailure": 401, "SignatureDoesNotMatch": 403}
	for code, status := range codes {
		for _, off := range []time.Duration{10 * time.Minute, -10 * time.Minute, 26 * time.Hour} {
			t.Run(fmt.Sprint(code, " ", off), func(t *testing.T) {
				requests := 0
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					requests++
					now := time.Now().Add(off)
					w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
					signed, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
					if err != nil || now.Sub(signed).Abs() > 5*time.Minute {
						w.WriteHeader(status)
						_, _ = io.WriteString(w, xmlError(code))
						return
					}
					_, _ = io.WriteString(w, assigned)
				}))
				t.Cleanup(server.Close)
				podIdentity(t, server.URL)
				t.Setenv("AWS_ACCESS_KEY_ID", "AKIA")
				t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
				c := newTestClient(t, &net.Dialer{}, slog.New(slog.DiscardHandler))
				if err := assign(t, c); classOf(t, err) != Expired || !Expired.Passing() || !Expired.Certain() {
					t.Errorf("the first attempt: %v", err)
				}
				for range 2 {
					if err := assign(t, c); err != nil {
						t.Errorf("a further attempt: %v", err)
					}
				}
				if requests != 3 {
					t.Errorf("%d requests for three attempts", requests)
				}
			})
		}
	}
	t.Run("a right clock and wrong keys", func(t *testing.T) {
		w := &wire{status: 401, body: xmlError("AuthFailure")}
		c := w.client(t, true)
		for range 2 {
			if err := assign(t, c); classOf(t, err) != Denied {
				t.Errorf("%v", err)
			}
		}
	})
}
