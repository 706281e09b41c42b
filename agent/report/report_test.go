package report

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// The numbers and names are a contract with alerts and runbooks.
func TestCodes(t *testing.T) {
	want := map[Code]struct {
		number int
		name   string
	}{
		Done: {0, "done"}, GaveUp: {1, "gave up"}, Usage: {2, "usage"}, Permission: {3, "permission"}, ENIFull: {4, "ENI full"},
		AddressRefused: {5, "address refused"}, InterfaceMissing: {6, "interface missing"}, NoMetadata: {7, "no metadata"}, NoRoute: {8, "no route to AWS"},
	}
	for code, w := range want {
		if int(code) != w.number || code.String() != w.name {
			t.Errorf("code %d %q, want %d %q", code, code, w.number, w.name)
		}
	}
}

func TestCodeOf(t *testing.T) {
	cause := errors.New("cause")
	tests := map[string]struct {
		err  error
		want Code
	}{
		"none":            {nil, Done},
		"a failure":       {Fail(ENIFull, "no room: %w", cause), ENIFull},
		"a wrapped one":   {fmt.Errorf("at last: %w", Fail(Permission, "no")), Permission},
		"any other error": {cause, GaveUp},
	}
	for name, tt := range tests {
		if got := CodeOf(tt.err); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
	err := Fail(ENIFull, "eni-1: %w", cause)
	if err.Error() != "ENI full: eni-1: cause" || !errors.Is(err, cause) {
		t.Errorf("failure is %q, wraps its cause: %t", err, errors.Is(err, cause))
	}
}

func TestWriteTermination(t *testing.T) {
	tests := map[string]struct{ message, want string }{
		"short":                {"usage: no", "usage: no\n"},
		"several lines":        {"a\n\tb\r\nc  d\n", "a b c d\n"},
		"empty":                {"", "\n"},
		"exactly what fits":    {strings.Repeat("x", 4095), strings.Repeat("x", 4095) + "\n"},
		"one too many":         {strings.Repeat("x", 4096), strings.Repeat("x", 4092) + "…\n"},
		"cut inside a rune":    {strings.Repeat("x", 4091) + "éé" + strings.Repeat("x", 99), strings.Repeat("x", 4091) + "…\n"},
		"many two-byte runes":  {strings.Repeat("é", 4000), strings.Repeat("é", 2046) + "…\n"},
		"many four-byte runes": {strings.Repeat("🦀", 2000), strings.Repeat("🦀", 1023) + "…\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "termination-log")
			if err := WriteTermination(path, tt.message); err != nil {
				t.Fatal(err)
			}
			got := read(t, path)
			if got != tt.want {
				t.Errorf("wrote %d bytes ending %q, want %d ending %q", len(got), tail(got), len(tt.want), tail(tt.want))
			}
			if len(got) > 4096 || !utf8.ValidString(got) || strings.Count(got, "\n") != 1 {
				t.Errorf("%d bytes, valid %t, %d lines: the kubelet shows 4096 bytes of one line", len(got), utf8.ValidString(got), strings.Count(got, "\n"))
			}
		})
	}
}

// The kubelet's file is a bind mount: a new file in its place would never be seen. An older, longer message leaves no rest.
func TestWriteTerminationOverwritesInPlace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "termination-log")
	if err := os.WriteFile(path, []byte(strings.Repeat("old", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteTermination(path, "new"); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("the file was replaced")
	}
	if got := read(t, path); got != "new\n" {
		t.Errorf("file holds %q", got)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestWriteTerminationWithoutAFile(t *testing.T) {
	if err := WriteTermination("", "x"); err != nil {
		t.Errorf("no path is no failure: %v", err)
	}
	if err := WriteTermination(filepath.Join(t.TempDir(), "no", "such"), "x"); err == nil || !strings.Contains(err.Error(), "termination message") {
		t.Errorf("an impossible path gives %v", err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path) //nolint:gosec // a file of this test
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func tail(s string) string { return s[max(0, len(s)-12):] }
