package settings

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Problem is one setting that cannot be used.
type Problem struct {
	// Key is the annotation, or the flag with its dashes.
	Key string
	// Value is what was given, in full.
	Value string
	// Allowed says in words what would be accepted.
	Allowed string
	// Err says what is wrong with the value, when that is more than "not allowed".
	Err error
}

// String is one line for people: key, value and cure.
func (p Problem) String() string {
	if long := (*TooLongError)(nil); errors.As(p.Err, &long) {
		return fmt.Sprintf("%s has %v: shorten it", p.Key, long)
	}
	return fmt.Sprintf("%s=%q is not valid: allowed: %s", p.Key, Shorten(p.Value), p.Allowed)
}

// TooLongError says that a value does not fit an environment variable.
type TooLongError struct {
	// Bytes is the value's length, Most the longest that fits.
	Bytes, Most int
}

func (e *TooLongError) Error() string {
	return fmt.Sprintf("%d bytes, and at most %d fit an environment variable", e.Bytes, e.Most)
}

// UsageError lists every problem of a set of settings at once, so that nobody
// has to find them one by one.
type UsageError struct{ Problems []Problem }

func (e *UsageError) Error() string { return Join(e.Problems) }

// Join renders problems as one line.
func Join(problems []Problem) string {
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "; ")
}

// CheckAnnotations validates a pod's own annotations, in the table's order. The
// webhook denies a pod with problems; the agent would refuse to start in it.
func CheckAnnotations(annotations map[string]string) []Problem {
	if !hasOwn(annotations) { // most pods: this is on the admission path
		return nil
	}
	var problems []Problem
	for _, r := range podRows() {
		value := annotations[r.Annotation]
		if err := r.Check(value); err != nil {
			problems = append(problems, Problem{Key: r.Annotation, Value: value, Allowed: r.Allowed, Err: err})
		}
	}
	return problems
}

// UnknownAnnotations lists annotations under our prefix that mean nothing: most
// likely a typing mistake, which would otherwise have no effect and no trace.
func UnknownAnnotations(annotations map[string]string) []string {
	if !hasOwn(annotations) {
		return nil
	}
	var unknown []string
	for _, key := range sortedKeys(annotations) {
		if strings.HasPrefix(key, Prefix) && !slices.Contains(Annotations(), key) {
			unknown = append(unknown, key)
		}
	}
	return unknown
}

// Annotations lists every annotation of a pod that has a meaning to us.
func Annotations() []string {
	keys := []string{KeyStatus}
	for _, r := range podRows() {
		keys = append(keys, r.Annotation)
	}
	return keys
}

func hasOwn(annotations map[string]string) bool {
	for key := range annotations {
		if strings.HasPrefix(key, Prefix) {
			return true
		}
	}
	return false
}

func flagNames() string {
	var names []string
	for _, r := range Table() {
		if r.Flag != "" {
			names = append(names, r.Flag)
		}
	}
	return strings.Join(names, ", ")
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
