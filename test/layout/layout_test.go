package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// root is the checkout as seen from this package's folder, where go test runs its tests.
const root = "../.."

func load(t *testing.T) Graph {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Imports,Standard", "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	g := Graph{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p Package
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return g
		} else if err != nil {
			t.Fatal(err)
		}
		g[p.ImportPath] = p
	}
}

func TestImports(t *testing.T) {
	g := load(t)
	for _, folder := range []string{"agent", "agent/plan", "webhook", "webhook/inject"} {
		if _, ok := g[own(folder)]; !ok {
			t.Errorf("there is no package %s: a rule about it would hold for nothing", own(folder))
		}
	}
	for name, rule := range ImportRules() {
		t.Run(name, func(t *testing.T) {
			for _, broken := range rule(g) {
				t.Error(broken)
			}
		})
	}
}

func TestMakefile(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("make is not installed, so its help cannot be read")
	}
	help := runMake(t)
	if missing := UndocumentedTargets(string(makefile), help); len(missing) > 0 {
		t.Errorf("make help does not list %q", missing)
	}
	var targets []string
	for line := range strings.Lines(help) {
		targets = append(targets, strings.Fields(line)[0])
	}
	for _, target := range []string{
		"help", "demo", "test", "lint", "vuln", "bench", "mutate", "build", "image", "image-ci", "tools", "cache-clean",
	} {
		if !slices.Contains(targets, target) {
			t.Errorf("make help does not list %q:\n%s", target, help)
		}
	}
	for _, target := range targets {
		runMake(t, "--dry-run", target) // make reads a recipe only when it needs it
	}
}

func runMake(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "make", append([]string{"-C", root, "--no-print-directory"}, args...)...)
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=") // not those of a make that runs this test
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make %q: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestNothingUnwanted(t *testing.T) {
	const large = 1 << 20
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // a test beside this one removed its files
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "bin" || d.Name() == "node_modules"):
			return filepath.SkipDir
		case !d.Type().IsRegular() || d.Name() == "go.sum":
			return nil
		}
		if info, err := d.Info(); err == nil && info.Size() > large {
			return nil
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !utf8.Valid(data) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, line := range Unwanted(strings.TrimPrefix(path, root+"/"), string(data)) {
			t.Error(line)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
