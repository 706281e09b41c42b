package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"multus-ip-manager.io/test/ns"
)

// Running is a container that was started. Its methods may be called from any goroutine.
type Running struct {
	p       prepared
	cmd     *ns.Cmd
	out     *output
	dir     string
	started time.Time

	done   chan struct{} // closed once result and err are final
	result Result
	err    error
}

// Start starts the container. It is killed when ctx ends. Starting the same value again is what the kubelet does when it restarts a
// container: the environment is read from the pod anew.
func (c Container) Start(ctx context.Context) (*Running, error) {
	dir, err := os.MkdirTemp("", "container-")
	if err != nil {
		return nil, err
	}
	r, err := c.startIn(ctx, dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return r, nil
}

func (c Container) startIn(ctx context.Context, dir string) (*Running, error) {
	p, err := c.prepare(dir)
	if err != nil {
		return nil, err
	}
	r := &Running{p: p, out: newOutput(c.Log), dir: dir, done: make(chan struct{})}
	r.cmd = p.command(ctx, r.out, p.args)
	r.started = time.Now()
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start container %s: %w", c.Name, err)
	}
	go r.reap()
	return r, nil
}

// reap waits for the program's end.
func (r *Running) reap() {
	defer close(r.done)
	err := r.cmd.Wait()
	r.result = resultOf(r.cmd, r.started, r.out)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.err = fmt.Errorf("run container %s: %w", r.p.name, err)
	}
	text, err := os.ReadFile(r.p.message)
	r.result.Message = strings.TrimSpace(string(text))
	r.err = errors.Join(r.err, err, os.RemoveAll(r.dir))
}

func resultOf(cmd *ns.Cmd, started time.Time, out *output) Result {
	r := Result{Duration: time.Since(started), Output: out.String()}
	if state := cmd.State(); state != nil {
		r.ExitCode = state.ExitCode()
		r.CPU = state.UserTime() + state.SystemTime()
		if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			r.ExitCode = 128 + int(status.Signal())
		}
	}
	return r
}

// Done is closed when the container has ended.
func (r *Running) Done() <-chan struct{} { return r.done }

// Wait waits for the container's end. An error means that it could not be run; how it ended is in the result.
func (r *Running) Wait() (Result, error) {
	<-r.done
	return r.result, r.err
}

// Signal sends a signal to the container's program: SIGTERM is what the kubelet begins with, SIGKILL a crash, SIGSTOP and SIGCONT a
// machine that has no time for it.
func (r *Running) Signal(s os.Signal) error { return r.cmd.Signal(s) }

// Stop ends the container as the kubelet does: SIGTERM, and SIGKILL when the grace period is over.
func (r *Running) Stop(grace time.Duration) (Result, error) {
	kill := time.AfterFunc(grace, func() { _ = r.Signal(syscall.SIGKILL) })
	defer kill.Stop()
	_ = r.Signal(syscall.SIGTERM) // it may have ended already
	return r.Wait()
}

// Kill ends the container as a crash does.
func (r *Running) Kill() (Result, error) {
	_ = r.Signal(syscall.SIGKILL) // it may have ended already
	return r.Wait()
}

// Pid is the process id of the container's program.
func (r *Running) Pid() int { return r.cmd.Pid() }

// Output is everything the container has printed so far.
func (r *Running) Output() string { return r.out.String() }

// WaitOutput waits until what the container has printed satisfies met. It fails when the container ends or ctx does.
func (r *Running) WaitOutput(ctx context.Context, met func(string) bool) error {
	for {
		text, more := r.out.snapshot()
		if met(text) {
			return nil
		}
		select {
		case <-more:
		case <-r.done:
			if met(r.out.String()) {
				return nil
			}
			return fmt.Errorf("container %s ended without printing what was waited for", r.p.name)
		case <-ctx.Done():
			return fmt.Errorf("container %s has not printed what was waited for: %w", r.p.name, context.Cause(ctx))
		}
	}
}

// Exec runs the image's program once more with other arguments, in the running container: same environment, same namespaces, same
// privileges. An error means that it could not be run.
func (r *Running) Exec(ctx context.Context, args ...string) (Result, error) {
	out := newOutput(nil)
	cmd := r.p.command(ctx, out, args)
	started := time.Now()
	if err := cmd.Start(); err != nil {
		return Result{}, fmt.Errorf("exec in container %s: %w", r.p.name, err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return Result{}, fmt.Errorf("exec in container %s: %w", r.p.name, err)
	}
	return resultOf(cmd, started, out), nil
}

// output collects what a program prints and tells when there is more.
type output struct {
	also io.Writer

	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{} // closed and replaced with each write
}

func newOutput(also io.Writer) *output { return &output{also: also, more: make(chan struct{})} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf.Write(b)
	close(o.more)
	o.more = make(chan struct{})
	if o.also != nil {
		return o.also.Write(b)
	}
	return len(b), nil
}

func (o *output) String() string {
	text, _ := o.snapshot()
	return text
}

func (o *output) snapshot() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String(), o.more
}
