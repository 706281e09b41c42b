package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// usage is what a process holds.
type usage struct {
	fds, threads, goroutines int
	rss                      int // KiB
}

// usageOf reads a process's usage from /proc.
func usageOf(pid int) (usage, error) {
	var u usage
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return u, err
	}
	u.fds = len(fds)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "VmRSS":
			_, err = fmt.Sscan(value, &u.rss)
		case "Threads":
			_, err = fmt.Sscan(value, &u.threads)
		}
		if err != nil {
			return u, fmt.Errorf("/proc/%d/status: %s: %w", pid, key, err)
		}
	}
	return u, nil
}

// Bounds of what an agent may grow between the first and the last third of a run. A few descriptors and threads come and go with
// connections; memory is what the collector happens to have left.
const (
	moreFDs     = 4
	moreThreads = 4
	moreGos     = 6
	moreRSS     = 6 * 1024 // KiB
)

// grown says in what a process has grown from the first to the last third of its samples, nil if in nothing. Medians, because a single
// look may fall into a busy moment.
func grown(samples []usage) []string {
	third := len(samples) / 3
	if third == 0 {
		return nil
	}
	first, last := samples[:third], samples[len(samples)-third:]
	var out []string
	for _, m := range []struct {
		what string
		of   func(usage) int
		more int
	}{
		{"file descriptors", func(u usage) int { return u.fds }, moreFDs},
		{"threads", func(u usage) int { return u.threads }, moreThreads},
		{"goroutines", func(u usage) int { return u.goroutines }, moreGos},
		{"KiB of memory", func(u usage) int { return u.rss }, moreRSS},
	} {
		if before, after := median(first, m.of), median(last, m.of); after > before+m.more {
			out = append(out, fmt.Sprintf("%d %s, %d before", after, m.what, before))
		}
	}
	return out
}

func median(samples []usage, of func(usage) int) int {
	values := make([]int, len(samples))
	for i, s := range samples {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[len(values)/2]
}
