package observe

import (
	"fmt"
	"testing"
)

// counted is what times(2) shows after a machine was up for some hundredths of a second, by the kernel's arithmetic.
func counted(up, rate int64) int64 {
	counter := 1<<32 - 300*rate + up*rate/100
	return counter * ((1e9 + rate/2) / rate) / 1e7
}

func TestStampAt(t *testing.T) {
	const hour = 360000
	for _, rate := range tickRates {
		for _, up := range []int64{0, 1, 31, hour, 40 * 24 * hour, 496 * 24 * hour, 498 * 24 * hour, 5 * 365 * 24 * hour} {
			for _, behind := range []int64{0, 25, -25, hour, 10 * 24 * hour, -10 * 24 * hour} {
				t.Run(fmt.Sprintf("%d Hz, up %d, clock off by %d", rate, up, behind), func(t *testing.T) {
					got := stampAt(counted(up, rate), up+behind)
					if d := int32(got - uint32(up)); d < -2 || d > 2 { //nolint:gosec // wraps as stamps do
						t.Errorf("stamp %d, want %d", got, uint32(up)) //nolint:gosec // wraps as stamps do
					}
				})
			}
		}
	}
	if got := stampAt(0, 4711); got != 4711 {
		t.Errorf("without ticks the stamp is %d, want that of the monotonic clock, 4711", got)
	}
}
