package bench

import (
	"testing"
	"time"

	"multus-ip-manager.io/test/aws"
)

func TestQuantile(t *testing.T) {
	for name, test := range map[string]struct {
		values []int
		q      float64
		want   int
	}{
		"nothing":                {nil, 0.5, 0},
		"one value":              {[]int{7}, 0.9, 7},
		"median, odd":            {[]int{9, 1, 5}, 0.5, 5},
		"median, even: the less": {[]int{4, 1, 3, 2}, 0.5, 2},
		"p90 of ten":             {[]int{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 0.9, 9},
		"p90 of eleven":          {[]int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, 0.9, 10},
		"the largest":            {[]int{2, 3, 1}, 1, 3},
		"the smallest":           {[]int{2, 3, 1}, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Quantile(test.values, test.q); got != test.want {
				t.Errorf("Quantile(%v, %v) = %d, want %d", test.values, test.q, got, test.want)
			}
		})
	}
}

// call is a call on an ENI that lasted from one moment to another, in milliseconds.
func call(action, eni string, from, to int) aws.Call {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	return aws.Call{Action: action, ENI: eni, Start: at(from), End: at(to)}
}

func TestCriticalPath(t *testing.T) {
	for name, test := range map[string]struct {
		calls []aws.Call
		want  int
	}{
		"no call": {nil, 0},
		"one after the other on an ENI": {[]aws.Call{
			call("AssignPrivateIpAddresses", "eni-1", 0, 100), call("AssignIpv6Addresses", "eni-1", 120, 250),
		}, 230},
		"ENIs side by side: the slower counts": {[]aws.Call{
			call("AssignPrivateIpAddresses", "eni-1", 0, 100), call("AssignPrivateIpAddresses", "eni-2", 0, 90),
			call("AssignIpv6Addresses", "eni-2", 100, 150),
		}, 140},
		"calls without an ENI come before": {[]aws.Call{
			call("DescribeInstances", "", 0, 30), call("DescribeSubnets", "", 40, 60), call("AssignPrivateIpAddresses", "eni-1", 70, 80),
		}, 60},
	} {
		t.Run(name, func(t *testing.T) {
			if got := CriticalPath(test.calls); got != time.Duration(test.want)*time.Millisecond {
				t.Errorf("CriticalPath = %v, want %d ms", got, test.want)
			}
		})
	}
}

func TestOverBudget(t *testing.T) {
	within := []aws.Call{
		call("AssignPrivateIpAddresses", "eni-1", 0, 1), call("AssignIpv6Addresses", "eni-1", 1, 2), call("AssignPrivateIpAddresses", "eni-2", 0, 1),
	}
	if over := OverBudget(within); len(over) != 0 {
		t.Errorf("one call per ENI and family is over the budget: %v", over)
	}
	for name, extra := range map[string]aws.Call{
		"the same again": call("AssignPrivateIpAddresses", "eni-1", 5, 6),
		"a description":  call("DescribeNetworkInterfaces", "eni-1", 5, 6),
		"a release":      call("UnassignIpv6Addresses", "eni-1", 5, 6),
	} {
		t.Run(name, func(t *testing.T) {
			if over := OverBudget(append(within[:len(within):len(within)], extra)); len(over) != 1 {
				t.Errorf("over the budget are %v, want just %v", over, extra)
			}
		})
	}
}
