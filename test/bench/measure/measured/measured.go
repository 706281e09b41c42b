// Package measured is what the program measure and the benchmarks tell each other.
package measured

import "time"

// Variable names the program to measure: a JSON list of its path and its first arguments.
const Variable = "MEASURED"

// Result is what a program took, the children it waited for included.
type Result struct {
	// Wall is the time from its start to its exit.
	Wall time.Duration `json:"wall"`
	// CPU is user and system time together.
	CPU time.Duration `json:"cpu"`
	// MaxRSS is the largest resident set of any one of its processes, in KiB.
	MaxRSS int64 `json:"maxRSS"`
}
