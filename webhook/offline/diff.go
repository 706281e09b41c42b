package offline

import (
	"strings"

	"github.com/pmezard/go-difflib/difflib"
)

// Diff is the unified diff of a file, "" if nothing changed.
func Diff(name string, before, after []byte) (string, error) {
	if string(before) == string(after) {
		return "", nil
	}
	return difflib.GetUnifiedDiffString(difflib.UnifiedDiff{
		A: lines(before), B: lines(after), FromFile: name, ToFile: name, Context: 3,
	})
}

// lines splits a text; the last line gets an end if it has none.
func lines(text []byte) []string {
	all := strings.SplitAfter(string(text), "\n")
	if last := len(all) - 1; all[last] == "" {
		all = all[:last]
	} else {
		all[last] += "\n"
	}
	return all
}
