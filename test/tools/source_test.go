package tools

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A tool with source of its own is another tool when that changes.
func TestOwnSourceIsPartOfTheRecipe(t *testing.T) {
	s := newStore(t, hello)
	before, err := s.Dir("hello")
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(hello, "print(version)", "println(version)", 1)
	if err := os.WriteFile(filepath.Join(s.modules, "hello", "main.go"), []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	if after, err := s.Dir("hello"); err != nil || after == before {
		t.Errorf("%s, %v: the folder of the tool before", after, err)
	}
}
