// Command mutate breaks the product one line at a time, as test/mutations.txt says, and checks that the named test notices. The
// working tree is not touched: the broken file reaches the compiler as an overlay.
//
//	go run ./test/mutate [words of the rule ...]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

// limit bounds one mutated test run.
const limit = 10 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, "test/mutations.txt", os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

// read reads the list.
func read(list string) ([]mutation, error) {
	f, err := os.Open(list) //nolint:gosec // the list of mutations is part of the repository
	if err != nil {
		return nil, err
	}
	all, err := parse(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", list, err)
	}
	return all, nil
}

// check finds entries whose line is no longer in the source.
func check(list string) error {
	all, err := read(list)
	if err != nil {
		return err
	}
	var stale []error
	for _, m := range all {
		source, err := os.ReadFile(m.File)
		if err == nil {
			_, err = m.mutate(string(source))
		}
		if err != nil {
			stale = append(stale, fmt.Errorf("%s: %s: %w", list, m.Rule, err))
		}
	}
	return errors.Join(stale...)
}

func run(ctx context.Context, list string, words []string) error {
	all, err := read(list)
	if err != nil {
		return err
	}
	tried, survived := 0, 0
	for _, m := range all {
		if !m.named(words) {
			continue
		}
		tried++
		started := time.Now()
		killed, output, err := m.try(ctx)
		verdict := "noticed "
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			verdict = fmt.Sprintf("BROKEN (%v)\n%s\n", err, output)
			survived++
		case !killed:
			verdict = "SURVIVED"
			survived++
		}
		fmt.Printf("%s %5.1fs  %s  (%s %s)\n", verdict, time.Since(started).Seconds(), m.Rule, m.Package, m.Test)
	}
	fmt.Printf("%d passed, %d failed\n", tried-survived, survived)
	if survived > 0 {
		return fmt.Errorf("%d of %d mutations were not noticed", survived, tried)
	}
	return nil
}

func (m mutation) named(words []string) bool {
	for _, w := range words {
		if !strings.Contains(strings.ToLower(m.Rule), strings.ToLower(w)) {
			return false
		}
	}
	return true
}

// try runs the named test against the broken file. It must pass without the fault (that is what the test suite is for) and fail
// with it; a file that does not compile any more proves nothing and is an error.
func (m mutation) try(ctx context.Context) (killed bool, output string, err error) {
	source, err := os.ReadFile(m.File)
	if err != nil {
		return false, "", err
	}
	broken, err := m.mutate(string(source))
	if err != nil {
		return false, "", err
	}
	dir, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return false, "", err
	}
	defer os.RemoveAll(dir)
	overlay, err := writeOverlay(dir, m.File, broken)
	if err != nil {
		return false, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := goTool(ctx, overlay, "vet", "./"+filepath.ToSlash(filepath.Dir(m.File)))
	if err != nil {
		return false, out, fmt.Errorf("the broken file does not compile: %w", err)
	}
	out, err = goTool(ctx, overlay, "test", "-count=1", "-run", m.Test, m.Package)
	switch {
	case ctx.Err() != nil:
		return false, out, ctx.Err()
	case strings.Contains(out, "no tests to run"):
		return false, out, fmt.Errorf("no test matches %s in %s", m.Test, m.Package)
	case err == nil:
		return false, out, nil
	case !strings.Contains(out, "--- FAIL") && !strings.Contains(out, "panic:"):
		return false, out, fmt.Errorf("the test did not run: %w", err)
	}
	return true, out, nil
}

func writeOverlay(dir, file, broken string) (string, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	replaced := filepath.Join(dir, filepath.Base(file))
	if err := os.WriteFile(replaced, []byte(broken), 0o600); err != nil {
		return "", err
	}
	doc, err := json.Marshal(map[string]map[string]string{"Replace": {abs: replaced}})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, doc, 0o600)
}

// goTool runs the go command on the mutated tree. The overlay is in the environment, so that it also holds for programs which the
// tests build themselves.
func goTool(ctx context.Context, overlay string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // the list of mutations is part of the repository
	cmd.Env = append(os.Environ(), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -overlay="+overlay))
	// A go command that is interrupted waits for its children, a killed one does not.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}
