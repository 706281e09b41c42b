// Package bench measures the budgets of the product. Times stand beside those of a program that makes the sample's calls, taken in turn
// on the same machine, because a time alone says little about another machine.
package bench

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"multus-ip-manager.io/test/aws"
)

// Quantile is the smallest of the values that a share q (0 to 1) of them does not exceed; the median is the quantile 0.5. Without
// values it is zero.
func Quantile[T cmp.Ordered](values []T, q float64) T {
	var zero T
	if len(values) == 0 {
		return zero
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// CriticalPath is how long a program must wait for EC2 at least: calls on one ENI follow each other, ENIs are worked on side by side,
// and calls that name no ENI are made before the others.
func CriticalPath(calls []aws.Call) time.Duration {
	onENI := map[string]time.Duration{}
	for _, c := range calls {
		onENI[c.ENI] += c.End.Sub(c.Start)
	}
	alone := onENI[""]
	delete(onENI, "")
	var longest time.Duration
	for _, sum := range onENI {
		longest = max(longest, sum)
	}
	return alone + longest
}

// OverBudget lists the calls beyond one assignment per ENI and address family, which is all that the common case may cost.
func OverBudget(calls []aws.Call) []aws.Call {
	seen := map[string]bool{}
	var over []aws.Call
	for _, c := range calls {
		key := c.Action + " " + c.ENI
		if !strings.HasPrefix(c.Action, "Assign") || seen[key] {
			over = append(over, c)
		}
		seen[key] = true
	}
	return over
}
