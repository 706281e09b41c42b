package certs

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestClockLearnsFromAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		ahead time.Duration // of this machine
		date  string        // in place of one that is ahead
		skew  time.Duration
	}{
		"equal":       {},
		"within":      {ahead: tolerance},
		"ahead":       {ahead: 24 * time.Hour, skew: 24 * time.Hour},
		"behind":      {ahead: -24 * time.Hour, skew: -24 * time.Hour},
		"no date":     {date: "-"},
		"not a date":  {date: "yesterday"},
		"just beyond": {ahead: tolerance + time.Second, skew: tolerance + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &clock{}
				date := test.date
				if date == "" {
					date = time.Now().Add(-test.ahead).UTC().Format(http.TimeFormat)
				}
				c.learn(date, time.Now())
				if got := c.skew(); got != test.skew {
					t.Errorf("skew %s, want %s", got, test.skew)
				}
				if got := c.now(); !got.Equal(time.Now().Add(-test.skew)) {
					t.Errorf("it is %s there, want %s", got, time.Now().Add(-test.skew))
				}
				if (c.fault() != nil) != (test.skew != 0) {
					t.Errorf("fault: %v", c.fault())
				}
				c.learn(time.Now().UTC().Format(http.TimeFormat), time.Now())
				if err := c.fault(); err != nil {
					t.Errorf("it was set right: %v", err)
				}
			})
		})
	}
}
