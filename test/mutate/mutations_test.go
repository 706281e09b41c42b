package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	got, err := parse(strings.NewReader(`# a comment

rule: 1, said in words: with a colon
file: a/b.go
old: if x {
new: if !x {
package: ./a
test: TestX
occurrence: 2

rule: 2
file: c.go
old: y()
new:
package: .
test: TestY
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []mutation{
		{Rule: "1, said in words: with a colon", File: "a/b.go", Old: "if x {", New: "if !x {", Package: "./a", Test: "TestX", Occurrence: 2, Line: 3},
		{Rule: "2", File: "c.go", Old: "y()", Package: ".", Test: "TestY", Line: 11},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"nonsense":                 "line 1",
		"rule: 1\nwhat: ever":      `unknown key "what"`,
		"rule: 1\nfile: a.go":      "needs rule, file",
		"rule: 1\noccurrence: all": "a number",
	} {
		if _, err := parse(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestMutate(t *testing.T) {
	const source = "a\n\tb\n\t\tb\nc\n"
	for name, tt := range map[string]struct {
		m         mutation
		want, err string
	}{
		"one":            {m: mutation{Old: "c", New: "d"}, want: "a\n\tb\n\t\tb\nd\n"},
		"keeps indent":   {m: mutation{Old: "b", New: "x", Occurrence: 2}, want: "a\n\tb\n\t\tx\nc\n"},
		"first of two":   {m: mutation{Old: "b", New: "x", Occurrence: 1}, want: "a\n\tx\n\t\tb\nc\n"},
		"which?":         {m: mutation{Old: "b", New: "x"}, err: "more than once"},
		"not there":      {m: mutation{Old: "z"}, err: "does not hold"},
		"not that often": {m: mutation{Old: "b", Occurrence: 3}, err: "does not hold"},
	} {
		got, err := tt.m.mutate(source)
		if got != tt.want || (tt.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// The list is out of date as soon as a line it names has changed; that must not wait for somebody to run the mutations.
func TestTheListMatchesTheSource(t *testing.T) {
	t.Chdir("../..")
	if err := check("test/mutations.txt"); err != nil {
		t.Error(err)
	}
}
