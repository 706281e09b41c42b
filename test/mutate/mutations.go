package main

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// mutation is one deliberate fault: a line of the product replaced by another, and the test that must then fail.
type mutation struct {
	// Rule says in words what the line keeps.
	Rule string
	// File is the path from the top of the repository.
	File string
	// Old is the line as it stands, without indentation; New replaces it.
	Old, New string
	// Occurrence says which of several such lines is meant, from 1; 0 means that there is one only.
	Occurrence int
	// Package and Test name the test that must fail.
	Package, Test string
	// Line is where the entry begins, for messages.
	Line int
}

// parse reads the list. An entry is a block of lines "key: value", blocks are separated by blank lines, lines that begin with
// "#" are comments. The error names the line.
func parse(r io.Reader) ([]mutation, error) {
	var all []mutation
	var m mutation
	flush := func() error {
		if m == (mutation{}) {
			return nil
		}
		if m.Rule == "" || m.File == "" || m.Old == "" || m.Package == "" || m.Test == "" {
			return fmt.Errorf("line %d: an entry needs rule, file, old, new, package and test", m.Line)
		}
		all, m = append(all, m), mutation{}
		return nil
	}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(text, "#") {
			continue
		}
		if text == "" {
			if err := flush(); err != nil {
				return nil, err
			}
			continue
		}
		key, value, ok := strings.Cut(text, ":")
		if !ok {
			return nil, fmt.Errorf("line %d: want \"key: value\"", n)
		}
		if m.Line == 0 {
			m.Line = n
		}
		value = strings.TrimSpace(value)
		switch key {
		case "rule":
			m.Rule = value
		case "file":
			m.File = value
		case "old":
			m.Old = value
		case "new":
			m.New = value
		case "package":
			m.Package = value
		case "test":
			m.Test = value
		case "occurrence":
			var err error
			if m.Occurrence, err = strconv.Atoi(value); err != nil || m.Occurrence < 1 {
				return nil, fmt.Errorf("line %d: occurrence: want a number from 1", n)
			}
		default:
			return nil, fmt.Errorf("line %d: unknown key %q", n, key)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return all, flush()
}

// mutate replaces the one line of source that equals Old, apart from indentation. No such line, or an unexpected number of them,
// is an error: the list is then out of date.
func (m mutation) mutate(source string) (string, error) {
	lines := strings.Split(source, "\n")
	var at []int
	for i, l := range lines {
		if strings.TrimSpace(l) == m.Old {
			at = append(at, i)
		}
	}
	switch {
	case len(at) == 0 || len(at) < m.Occurrence:
		return "", fmt.Errorf("line %d: %s does not hold %q", m.Line, m.File, m.Old)
	case len(at) > 1 && m.Occurrence == 0:
		return "", fmt.Errorf("line %d: %s holds %q more than once: say which occurrence", m.Line, m.File, m.Old)
	}
	found := at[max(0, m.Occurrence-1)]
	indent := lines[found][:len(lines[found])-len(strings.TrimLeft(lines[found], " \t"))]
	lines[found] = indent + m.New
	return strings.Join(lines, "\n"), nil
}
