package tools

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// newStore makes a checkout with one tiny tool and an empty cache.
func newStore(t *testing.T, source string) *Store {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "hello")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"go.mod":  "module example.test/hello\n\ngo 1.26.0\n",
		"go.sum":  "",
		"main.go": source,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &Store{
		modules: root,
		bin:     filepath.Join(t.TempDir(), "bin"),
		recipes: []Recipe{{
			Name: "hello", Module: "example.test/hello", Version: "1.2.3", Package: ".",
			Stamps: []string{"main.version=1.2.3"},
		}},
		goTool: "go",
	}
}

const hello = `package main

var version = "unstamped"

func main() { print(version) }
`

func TestBuild(t *testing.T) {
	s := newStore(t, hello)
	if _, err := s.Path("hello"); !errors.Is(err, ErrNotBuilt) || !strings.Contains(err.Error(), "make tools") {
		t.Errorf("before the build: %v, want ErrNotBuilt that says what to do", err)
	}
	stale := filepath.Join(s.bin, tmpPrefix("hello")+"1")
	if err := os.MkdirAll(stale, 0o750); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	path, err := s.Build(t.Context(), "hello", &said)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), path).CombinedOutput()
	if err != nil || string(out) != "1.2.3" {
		t.Errorf("the tool says %q, %v; want its stamp", out, err)
	}
	if again, err := s.Path("hello"); again != path || err != nil {
		t.Errorf("Path says %s, %v", again, err)
	}
	if !strings.Contains(said.String(), "building 1.2.3") || strings.ContainsAny(said.String(), "\r\x1b") {
		t.Errorf("progress is %q, want plain lines", said.String())
	}
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Error("the folder of a killed build is still there")
	}

	s.goTool = "/nonexistent" // built: the Go command is not asked again
	said.Reset()
	if _, err := s.Build(t.Context(), "hello", &said); err != nil || said.Len() > 0 {
		t.Errorf("the second build: %v, said %q; want nothing done", err, said.String())
	}
	if err := s.Clean(); err != nil {
		t.Error(err)
	}
	if _, err := s.Path("hello"); !errors.Is(err, ErrNotBuilt) {
		t.Errorf("after Clean: %v", err)
	}
}

func TestAToolOfSeveralProgramsIsAFolder(t *testing.T) {
	s := newStore(t, hello)
	for _, name := range []string{"first", "second"} {
		dir := filepath.Join(s.modules, "hello", name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nfunc main() { print(\""+name+"\") }\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.recipes[0].Package, s.recipes[0].More = "./first", []string{"./second"}
	path, err := s.Build(t.Context(), "hello", &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"first", "second"} {
		out, err := exec.CommandContext(t.Context(), filepath.Join(path, name)).CombinedOutput()
		if err != nil || string(out) != name {
			t.Errorf("%s says %q, %v", name, out, err)
		}
	}
}

func TestConcurrentBuildsCompileOnce(t *testing.T) {
	s := newStore(t, hello)
	// A stand-in for the Go command that counts its runs.
	counter := filepath.Join(t.TempDir(), "runs")
	script := filepath.Join(t.TempDir(), "go")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho run >>"+counter+"\nexec go \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.goTool = script
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := s.Build(t.Context(), "hello", &bytes.Buffer{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if runs, err := os.ReadFile(counter); err != nil || string(runs) != "run\n" {
		t.Errorf("runs of the Go command: %q, %v; want one", runs, err)
	}
}

func TestWarmCompilesThePackagesAndTellsWhatFails(t *testing.T) {
	s := newStore(t, hello)
	args := filepath.Join(t.TempDir(), "args")
	script := filepath.Join(t.TempDir(), "go")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$CGO_ENABLED $GOFLAGS: $@\" >"+args+"\necho undefinedThing\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.goTool = script
	err := s.Warm(t.Context(), []string{"./agent", "./webhook"}, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "undefinedThing") {
		t.Errorf("got %v, want the compiler's words", err)
	}
	want := "0 -trimpath -buildvcs=false: build -v -o /dev/null ./agent ./webhook\n"
	if got, err := os.ReadFile(args); err != nil || string(got) != want {
		t.Errorf("go command: %q, %v; want %q", got, err, want)
	}
}

func TestFailedBuildTellsWhyAndLeavesNothing(t *testing.T) {
	s := newStore(t, "package main\n\nfunc main() { undefinedThing() }\n")
	_, err := s.Build(t.Context(), "hello", &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "undefinedThing") {
		t.Errorf("got %v, want the compiler's words", err)
	}
	wantOnlyLock(t, s)
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	s := newStore(t, hello)
	started := filepath.Join(t.TempDir(), "started") // the id of a process that the stand-in for the Go command starts
	script := filepath.Join(t.TempDir(), "go")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nsleep 600 &\necho $! >"+started+"\nwait\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.goTool = script
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for ctx.Err() == nil {
			if pid, err := os.ReadFile(started); err == nil && bytes.HasSuffix(pid, []byte("\n")) {
				cancel()
			}
			<-time.After(5 * time.Millisecond)
		}
	})
	if _, err := s.Build(ctx, "hello", &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the cancellation", err)
	}
	wantOnlyLock(t, s)
	pid, err := os.ReadFile(started)
	if err != nil {
		t.Fatal(err)
	}
	// Killed and not yet reaped, a process has no command line any more.
	if line, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "cmdline")); err == nil && len(line) > 0 {
		t.Errorf("a compiler still runs: %s", bytes.ReplaceAll(line, []byte{0}, []byte(" ")))
	}
}

func wantOnlyLock(t *testing.T, s *Store) {
	t.Helper()
	entries, err := os.ReadDir(s.bin)
	if err != nil || len(entries) != 1 || entries[0].Name() != ".hello.lock" {
		t.Errorf("in the cache: %v, %v; want the lock alone", entries, err)
	}
}

func TestWaitingForTheLockCanBeGivenUp(t *testing.T) {
	s := newStore(t, hello)
	if err := os.MkdirAll(s.bin, 0o750); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.bin, ".hello.lock")
	unlock, err := lock(t.Context(), file, newReporter(&bytes.Buffer{}, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var said bytes.Buffer
	if _, err := s.Build(ctx, "hello", &said); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	if !strings.Contains(said.String(), "waiting for another build") {
		t.Errorf("said %q", said.String())
	}
}

// Whatever changes what is built changes the folder.
func TestDirFollowsTheRecipe(t *testing.T) {
	s := newStore(t, hello)
	base, err := s.Dir("hello")
	if err != nil {
		t.Fatal(err)
	}
	if name := filepath.Base(base); !strings.HasPrefix(name, "hello-1.2.3-") {
		t.Errorf("the folder is called %s", name)
	}
	changes := map[string]func(){
		"stamp":   func() { s.recipes[0].Stamps = []string{"main.version=4"} },
		"version": func() { s.recipes[0].Version = "1.2.4" },
		"package": func() { s.recipes[0].Package = "./other" },
		"go.mod":  func() { appendTo(t, filepath.Join(s.modules, "hello", "go.mod"), "// changed\n") },
		"go.sum":  func() { appendTo(t, filepath.Join(s.modules, "hello", "go.sum"), "changed\n") },
	}
	seen := map[string]string{base: "nothing"}
	for name, change := range changes {
		change()
		dir, err := s.Dir("hello")
		if err != nil {
			t.Fatal(err)
		}
		if other, dup := seen[dir]; dup {
			t.Errorf("a change of %s gives the same folder as %s", name, other)
		}
		seen[dir] = name
	}
}

func appendTo(t *testing.T, file, text string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(data, text...), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestUnknownToolListsThose(t *testing.T) {
	s := newStore(t, hello)
	for name, call := range map[string]func() error{
		"Dir":   func() error { _, err := s.Dir("curl"); return err },
		"Path":  func() error { _, err := s.Path("curl"); return err },
		"Build": func() error { _, err := s.Build(t.Context(), "curl", &bytes.Buffer{}); return err },
	} {
		if err := call(); err == nil || !strings.Contains(err.Error(), "hello") {
			t.Errorf("%s: %v, want an error that lists the tools", name, err)
		}
	}
}

// Each recipe and its module speak of the same version and package.
func TestRecipesAgreeWithTheirModules(t *testing.T) {
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range s.Recipes() {
		data, err := os.ReadFile(filepath.Join(s.modules, r.Name, "go.mod"))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, want := range []string{
			"module multus-ip-manager.io/test/tools/" + r.Name + "\n",
			r.Module + " v" + r.Version + " ",
		} {
			if !strings.Contains(string(data), want) {
				t.Errorf("%s/go.mod does not hold %q", r.Name, strings.TrimSpace(want))
			}
		}
		for _, pkg := range append([]string{r.Package}, r.More...) {
			if !strings.Contains(string(data), "tool "+pkg+"\n") && !strings.Contains(string(data), "\n\t"+pkg+"\n") {
				t.Errorf("%s/go.mod has no tool %s", r.Name, pkg)
			}
		}
		for _, stamp := range r.Stamps {
			variable, value, ok := strings.Cut(stamp, "=")
			if !ok || value == "" || !strings.Contains(variable, ".") || strings.ContainsAny(stamp, " '\"") {
				t.Errorf("%s: stamp %q is not PACKAGE.VARIABLE=VALUE", r.Name, stamp)
			}
		}
	}
}

func TestCacheDir(t *testing.T) {
	t.Setenv("HOME", "/home/of")
	for name, c := range map[string]struct{ mim, xdg, want string }{
		"MIM_CACHE wins":      {"/a", "/b", "/a"},
		"XDG_CACHE_HOME":      {"", "/b", "/b/multus-ip-manager"},
		"neither: the home's": {"", "", "/home/of/.cache/multus-ip-manager"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("MIM_CACHE", c.mim)
			t.Setenv("XDG_CACHE_HOME", c.xdg)
			if got, err := CacheDir(); got != c.want || err != nil {
				t.Errorf("got %s, %v; want %s", got, err, c.want)
			}
		})
	}
}

func TestRoot(t *testing.T) {
	if root, err := Root(); err != nil || !strings.HasPrefix(mustGetwd(t), root) {
		t.Errorf("got %s, %v", root, err)
	}
	t.Chdir(t.TempDir())
	if root, err := Root(); err == nil {
		t.Errorf("outside a checkout: got %s", root)
	}
}

func mustGetwd(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestProgressIsToldWhileABuildRuns(t *testing.T) {
	out := &buildOutput{}
	for _, line := range []string{"internal/abi\n", "runtime\n", "example.test/hello\n"} {
		if _, err := out.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	lines := make(chan string, 100)
	p := newReporter(writerFunc(func(b []byte) (int, error) { lines <- string(b); return len(b), nil }), "hello")
	p.every = time.Millisecond
	stop := p.follow(out)
	got := <-lines
	stop()
	if !strings.Contains(got, "3 packages compiled, now example.test/hello") {
		t.Errorf("said %q", got)
	}
	if tail := out.tail(2); tail != "runtime\nexample.test/hello" {
		t.Errorf("the tail is %q", tail)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
