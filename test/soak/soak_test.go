package main

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"multus-ip-manager.io/test/ns"
)

func TestMain(m *testing.M) { ns.Main(m) }

// A short run, so that the long one works when it is asked for.
func TestSoak(t *testing.T) {
	var out bytes.Buffer
	err := command(t.Context(), []string{"-for", "8s", "-round", "4s", "-seed", "1"}, &out, io.Discard)
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "EC2 and the interfaces agree") {
		t.Error("it does not say how it ended")
	}
}

func TestBadArguments(t *testing.T) {
	for _, args := range [][]string{{"-pods", "1"}, {"-addresses", "0"}, {"-for", "soon"}, {"-round", "0s"}, {"now"}} {
		if err := command(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
}

func TestGrown(t *testing.T) {
	flat := usage{fds: 10, threads: 8, goroutines: 12, rss: 20000}
	row := func(change func(*usage)) []usage {
		out := []usage{flat, flat, flat, flat, flat, flat}
		for i := 3; i < len(out); i++ {
			change(&out[i])
		}
		return out
	}
	for name, test := range map[string]struct {
		samples []usage
		word    string
	}{
		"none":             {nil, ""},
		"too few":          {[]usage{flat, {fds: 99}}, ""},
		"flat":             {row(func(*usage) {}), ""},
		"a little":         {row(func(u *usage) { u.fds += 2; u.threads++; u.rss += 1000 }), ""},
		"a busy moment":    {[]usage{flat, flat, flat, flat, flat, flat, flat, {fds: 99, threads: 99, rss: 99999}, flat}, ""},
		"file descriptors": {row(func(u *usage) { u.fds += 10 }), "file descriptors"},
		"threads":          {row(func(u *usage) { u.threads += 10 }), "threads"},
		"goroutines":       {row(func(u *usage) { u.goroutines += 10 }), "goroutines"},
		"memory":           {row(func(u *usage) { u.rss += 10000 }), "memory"},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(grown(test.samples), "; ")
			if (got == "") != (test.word == "") || !strings.Contains(got, test.word) {
				t.Errorf("%q, want %q", got, test.word)
			}
		})
	}
}
