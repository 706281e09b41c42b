package observe

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// hundredth is the unit of the kernel's stamps and of times(2).
	hundredth = int64(10 * time.Millisecond)
	// fortnight is how far the monotonic clock may be off: less than half of what tells two tick rates apart.
	fortnight = int64(14*24*time.Hour) / hundredth
)

// tickRates are the tick rates a kernel can be built with on amd64 and arm64, per second.
var tickRates = []int64{100, 250, 300, 1000}

// stampNow is the creation stamp that the kernel would give an address now; 0 when no clock can be read.
func stampNow() uint32 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0
	}
	ticks, err := unix.Times(&unix.Tms{})
	if err != nil {
		ticks = 0
	}
	return stampAt(int64(ticks), now.Nano()/hundredth) //nolint:gosec // a count of hundredths since boot
}

// stampAt gives the stamp for what times(2) counts and for the monotonic clock, both in hundredths of a second.
//
// The kernel stamps addresses by its tick counter, which starts 300 s before an overflow of 32 bits. The monotonic clock runs as fast, but
// started elsewhere: parts of a second on machines that boot slowly, anything inside a time namespace. times(2) shows the very counter,
// without a privilege, but not the tick rate. That follows from the monotonic clock: for the wrong rate the machine would have been up
// for a month more or less. Where no rate fits, the monotonic clock must do.
func stampAt(ticks, monotonic int64) uint32 {
	stamp, off := monotonic, fortnight
	for _, rate := range tickRates {
		nanos := (int64(time.Second) + rate/2) / rate // of a tick, as the kernel rounds it
		counter := ticks * hundredth / nanos
		s := (counter - (1<<32 - 300*rate)) * 100 / rate
		if d := max(s-monotonic, monotonic-s); d < off {
			stamp, off = s, d
		}
	}
	return uint32(stamp) //nolint:gosec // wraps after 497 days, as the kernel's does
}
