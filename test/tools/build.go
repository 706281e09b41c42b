package tools

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Build makes sure that the tool is in the cache and returns the path of its binary. A tool that is there costs one
// stat. progress gets one line when a build starts and one every few seconds while it runs; what the Go command says
// about a failure is in the error.
func (s *Store) Build(ctx context.Context, tool string, progress io.Writer) (string, error) {
	if path, err := s.Path(tool); err == nil || !errors.Is(err, ErrNotBuilt) {
		return path, err
	}
	if err := os.MkdirAll(s.bin, 0o755); err != nil {
		return "", fmt.Errorf("make the tools cache: %w", err)
	}
	p := newReporter(progress, tool)
	unlock, err := lock(ctx, filepath.Join(s.bin, "."+tool+".lock"), p)
	if err != nil {
		return "", err
	}
	defer unlock()
	if path, err := s.Path(tool); err == nil { // somebody else built it while we waited for the lock
		return path, nil
	}
	r, err := s.Recipe(tool)
	if err != nil {
		return "", err
	}
	return s.build(ctx, r, p)
}

// build runs with the tool's lock held.
func (s *Store) build(ctx context.Context, r Recipe, p *reporter) (string, error) {
	final, err := s.Dir(r.Name)
	if err != nil {
		return "", err
	}
	if err := removeStale(s.bin, r.Name); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(s.bin, tmpPrefix(r.Name))
	if err != nil {
		return "", fmt.Errorf("make a folder to build %s in: %w", r.Name, err)
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // gone after a rename; else the next build removes it
	// MkdirTemp's folders are private, but other users' processes (an unprivileged agent in a test) may run tools.
	if err := os.Chmod(tmp, 0o755); err != nil { //nolint:gosec // see above
		return "", fmt.Errorf("open the folder of %s: %w", r.Name, err)
	}
	p.started(r)
	if err := s.compile(ctx, r, filepath.Join(tmp, r.Name), p); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, final); err != nil {
		return "", fmt.Errorf("put %s into the cache: %w", r.Name, err)
	}
	p.done(final)
	return filepath.Join(final, r.Name), nil
}

func (s *Store) compile(ctx context.Context, r Recipe, out string, p *reporter) error {
	return s.goBuild(ctx, filepath.Join(s.modules, r.Name), r.Name+" "+r.Version, p, buildArgs(r, out)...)
}

// Warm compiles packages of the product into the Go build cache, with the flags of every other build of the product, so that
// what runs or tests them later starts at once. It exists for its progress lines: the first time takes minutes.
func (s *Store) Warm(ctx context.Context, packages []string, progress io.Writer) error {
	p := newReporter(progress, "product")
	return s.goBuild(ctx, filepath.Join(s.modules, "..", ".."), "the product", p, append([]string{"build", "-v", "-o", os.DevNull}, packages...)...)
}

// goBuild runs one go command in dir and tells its progress.
func (s *Store) goBuild(ctx context.Context, dir, what string, p *reporter, args ...string) error {
	// The Go command leaves its temporary folder behind when it is stopped, so it gets one that is removed here.
	tmp, err := os.MkdirTemp("", "multus-ip-manager-build-")
	if err != nil {
		return fmt.Errorf("make a folder to build %s in: %w", what, err)
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // nothing can be done about it
	cmd := exec.CommandContext(ctx, s.goTool, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), buildEnv()...), "GOTMPDIR="+tmp)
	// Own process group: on cancellation the compilers that the Go command started end as well.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	output := &buildOutput{}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the build of %s: %w", what, err)
	}
	stop := p.follow(output)
	err = cmd.Wait()
	stop()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("build of %s stopped: %w", what, context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("build %s: %w\n%s", what, err, output.tail(30))
	}
	return nil
}

// buildArgs is the go command line. -v makes it name each package that it compiles, which is our progress.
func buildArgs(r Recipe, out string) []string {
	ldflags := "-s -w"
	for _, stamp := range r.Stamps {
		ldflags += " -X " + stamp
	}
	if len(r.More) > 0 {
		out += "/" // the go command then makes a folder
	}
	return append([]string{"build", "-v", "-mod=readonly", "-ldflags", ldflags, "-o", out, r.Package}, r.More...)
}

// buildEnv is added to the environment of a build. These settings are those of the product's own builds, so that the
// Go build cache is shared where packages are.
func buildEnv() []string {
	return []string{"CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false", "GOWORK=off", "GOOS=", "GOARCH="}
}

func tmpPrefix(tool string) string { return ".tmp-" + tool + "-build-" }

// removeStale removes what a killed build left; the lock says that none is running.
func removeStale(bin, tool string) error {
	stale, err := filepath.Glob(filepath.Join(bin, tmpPrefix(tool)+"*"))
	if err != nil {
		return fmt.Errorf("look for unfinished builds: %w", err)
	}
	for _, dir := range stale {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove an unfinished build: %w", err)
		}
	}
	return nil
}

// lock takes an exclusive lock on path, waiting for whoever holds it. The kernel drops it when its holder dies.
func lock(ctx context.Context, path string, p *reporter) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644) //nolint:gosec // a lock file in the user's own cache
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for waited := false; ; waited = true {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) //nolint:gosec // a descriptor fits an int
		if err == nil {
			return func() { _ = f.Close() }, nil // closing drops the lock
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("take the lock %s: %w", path, err)
		}
		if !waited {
			p.line("waiting for another build of it to end")
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("wait for the lock %s: %w", path, context.Cause(ctx))
		case <-tick.C:
		}
	}
}
