package aws

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// Bucket is a token bucket: Size requests at once, then Refill requests a second.
type Bucket struct {
	Size   float64
	Refill float64 // tokens per second
}

// PublishedBuckets is EC2's documented throttling per account, region and action. "<action>/unfiltered" is a describe
// call with neither filter, ids nor pagination.
func PublishedBuckets() map[string]Bucket {
	return map[string]Bucket{
		"AssignPrivateIpAddresses":             {100, 5},
		"AssignIpv6Addresses":                  {100, 5},
		"UnassignPrivateIpAddresses":           {100, 5},
		"UnassignIpv6Addresses":                {50, 5}, // not listed by name: the default of mutating actions
		"DescribeNetworkInterfaces":            {100, 20},
		"DescribeNetworkInterfaces/unfiltered": {50, 10},
		"DescribeInstances":                    {100, 20},
		"DescribeInstances/unfiltered":         {50, 10},
		"DescribeSubnets":                      {100, 20},
		"DescribeInstanceTypes":                {100, 20},
	}
}

// defaultBucket is the documented default: mutating actions, and describe actions.
func defaultBucket(name string) Bucket {
	if strings.HasPrefix(name, "Describe") {
		return Bucket{100, 20}
	}
	return Bucket{50, 5}
}

// Level is how full a bucket is.
type Level struct {
	rule   Bucket
	tokens float64
	at     time.Time
}

// Full gives the level of a bucket that is full.
func (b Bucket) Full(now time.Time) *Level { return &Level{rule: b, tokens: b.Size, at: now} }

// Take takes a token and says whether there was one.
func (l *Level) Take(now time.Time) bool {
	l.tokens = min(l.rule.Size, l.tokens+l.rule.Refill*now.Sub(l.at).Seconds())
	l.at = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}

type buckets map[string]*Level

// take takes a token and says whether there was one.
func (b buckets) take(name string, cfg map[string]Bucket, now time.Time) bool {
	rule, ok := cfg[name]
	if !ok {
		rule, ok = PublishedBuckets()[name]
	}
	if !ok {
		rule = defaultBucket(name)
	}
	l := b[name]
	if l == nil {
		l = rule.Full(now)
		b[name] = l
	}
	l.rule = rule // it may be tuned at any time
	return l.Take(now)
}

// These stand for wildcards in a pattern that has been read; no text holds them.
const (
	anyRun  rune = -1
	anyRune rune = -2
)

// pattern reads a pattern: * and ? are wildcards, and a backslash before one of them or before itself takes it
// literally.
func pattern(text string) []rune {
	var out []rune
	literal := false
	for _, r := range text {
		switch {
		case !literal && r == '\\':
			literal = true
			continue
		case !literal && r == '*':
			r = anyRun
		case !literal && r == '?':
			r = anyRune
		case literal && r != '*' && r != '?' && r != '\\':
			out = append(out, '\\') // it was no escape
		}
		literal = false
		out = append(out, r)
	}
	if literal {
		out = append(out, '\\')
	}
	return out
}

// wildcard matches * and ? as EC2's filters and IAM do; ? is one character, however many bytes it takes.
func wildcard(text, value string) bool {
	want, s := pattern(text), []rune(value)
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(want) && want[p] == anyRun:
			star, mark = p, i
			p++
		case p < len(want) && (want[p] == anyRune || want[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return !slices.ContainsFunc(want[p:], func(r rune) bool { return r != anyRun })
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
