package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// ask sends a request through the handler and tells whether its answer closes the connection.
func (d *drain) ask(t *testing.T) (closes bool) {
	t.Helper()
	rec := httptest.NewRecorder()
	d.handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/", nil))
	return rec.Header().Get("Connection") == "close"
}

func TestDrain(t *testing.T) {
	for name, tt := range map[string]struct {
		limit, every, want time.Duration // a request every so often; 0: none
	}{
		"nobody asks":         {limit: 10 * time.Second, want: time.Second},
		"somebody still asks": {limit: 10 * time.Second, every: 900 * time.Millisecond, want: 10 * time.Second},
		"now and then":        {limit: 10 * time.Second, every: 1500 * time.Millisecond, want: time.Second},
		"not at all":          {limit: 0, every: time.Millisecond, want: 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDrain(tt.limit)
				if d.ask(t) || d.check(nil) != nil {
					t.Error("it drains before it is told to")
				}
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				if tt.every > 0 {
					go func() {
						tick := time.NewTicker(tt.every)
						defer tick.Stop()
						for {
							select {
							case <-ctx.Done():
								return
							case <-tick.C:
								if !d.ask(t) {
									t.Error("an answer keeps its connection")
								}
							}
						}
					}()
				}
				begin := time.Now()
				d.run(ctx)
				if took := time.Since(begin); took != tt.want {
					t.Errorf("it took %s, want %s", took, tt.want)
				}
				if d.check(nil) == nil {
					t.Error("ready while it drains")
				}
			})
		})
	}
}

func TestDrainEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		begin := time.Now()
		newDrain(time.Hour).run(ctx)
		if took := time.Since(begin); took != 10*time.Millisecond {
			t.Errorf("it took %s", took)
		}
	})
}

// A door that drains says so, answers on what connections there are and on new ones, and closes each with its answer.
func TestDoorDrains(t *testing.T) {
	drain := newDrain(time.Hour)
	drain.quiet = time.Hour
	d := openDoor(t, nil, drain)
	old := d.connect(t)
	if err := post(old, 1, 1); err != nil {
		t.Fatal(err)
	}
	if answer, err := readUntil(old, "a"); err != nil || strings.Contains(answer, "close") {
		t.Fatalf("before the end: %q, %v", answer, err)
	}
	d.end()
	d.until(t, "it drains", func() bool { return drain.check(nil) != nil })
	for name, conn := range map[string]net.Conn{"an old connection": old, "a new connection": d.connect(t)} {
		if err := post(conn, 2, 2); err != nil {
			t.Fatal(err)
		}
		if status, body := answerOn(t, conn); status != http.StatusOK || body != "aa" {
			t.Errorf("%s: %d %q", name, status, body)
		}
	}
	select {
	case err := <-d.served:
		t.Fatalf("it ended (%v) while it should still drain", err)
	default:
	}
	d.fail()
	d.awaitEnd(t)
}
