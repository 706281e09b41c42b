// Package kubelet plays the kubelet's part for single containers: it takes a container exactly as the API server gives it, resolves
// its environment from the pod (downward API), and runs its program in the pod's network namespace as the container's security
// context demands. Images are programs on disk.
package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"multus-ip-manager.io/test/ns"
)

// terminationLog is where the kubelet mounts the file for the termination message unless the container says otherwise.
const terminationLog = "/dev/termination-log"

// Container is what to run and where.
type Container struct {
	// Pod is the pod as the API server has it; its status.podIPs are what the container sees.
	Pod *corev1.Pod
	// Name is the container's name, an init container's or an ordinary one's.
	Name string
	// Images maps an image name to the program that is its entry point.
	Images map[string]string
	// NS is the pod's network namespace.
	NS *ns.Namespace
	// Env is added to the container's own environment: what the machine gives every container.
	Env []string
	// Mounts are files only this container sees, such as a resolv.conf.
	Mounts []ns.Mount
	// Stop, when not nil, sends SIGTERM to the container once it is closed.
	Stop <-chan struct{}
	// Log, when not nil, gets the container's output while it runs.
	Log io.Writer
}

// Result is how a container ended.
type Result struct {
	ExitCode int
	// Message is the termination message.
	Message string
	// Output is everything the container printed.
	Output   string
	Duration time.Duration
	// CPU is user and system time together.
	CPU time.Duration
}

// Run runs the container to its end. An error means that it could not be run; how it ended is in the result.
func (c Container) Run(ctx context.Context) (Result, error) {
	spec, err := c.spec()
	if err != nil {
		return Result{}, err
	}
	program, ok := c.Images[spec.Image]
	if !ok {
		return Result{}, fmt.Errorf("container %s: no program for image %q", c.Name, spec.Image)
	}
	if len(spec.Command) > 0 {
		return Result{}, fmt.Errorf("container %s: a command in place of the image's entry point is not played", c.Name)
	}
	env, err := Environment(c.Pod, spec)
	if err != nil {
		return Result{}, err
	}
	unprivileged, err := restricted(spec)
	if err != nil {
		return Result{}, fmt.Errorf("container %s: %w", c.Name, err)
	}
	dir, err := os.MkdirTemp("", "container-")
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(dir)
	message := filepath.Join(dir, "termination-log")
	if err := publicFile(message); err != nil {
		return Result{}, err
	}
	target := spec.TerminationMessagePath
	if target == "" {
		target = terminationLog
	}
	var out bytes.Buffer
	var sink io.Writer = &out
	if c.Log != nil {
		sink = io.MultiWriter(&out, c.Log)
	}
	cmd := c.NS.Command(ctx, ns.Opts{
		Unprivileged: unprivileged,
		Env:          append(env, c.Env...),
		Dir:          "/",
		Stdout:       sink,
		Stderr:       sink,
		Mounts:       append([]ns.Mount{{Source: message, Target: target}}, c.Mounts...),
	}, program, spec.Args...)
	started := time.Now()
	if err := cmd.Start(); err != nil {
		return Result{}, fmt.Errorf("start container %s: %w", c.Name, err)
	}
	ended := make(chan struct{})
	go func() {
		select {
		case <-c.Stop:
			_ = cmd.Signal(syscall.SIGTERM)
		case <-ended:
		}
	}()
	err = cmd.Wait()
	close(ended)
	r := Result{Duration: time.Since(started), Output: out.String()}
	if state := cmd.State(); state != nil {
		r.ExitCode = state.ExitCode()
		r.CPU = state.UserTime() + state.SystemTime()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return r, fmt.Errorf("run container %s: %w", c.Name, err)
	}
	text, err := os.ReadFile(message)
	r.Message = strings.TrimSpace(string(text))
	return r, err
}

func (c Container) spec() (*corev1.Container, error) {
	for _, list := range [][]corev1.Container{c.Pod.Spec.InitContainers, c.Pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == c.Name {
				return &list[i], nil
			}
		}
	}
	return nil, fmt.Errorf("pod %s has no container %s", c.Pod.Name, c.Name)
}

// publicFile makes the file as the kubelet does: anybody may write it.
func publicFile(path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // the container runs as another user
		return err
	}
	return os.Chmod(path, 0o666) //nolint:gosec // as the kubelet's
}

// restricted tells whether the container is to run without any privilege. A security context that is only half of the restricted
// Pod Security Standard cannot be played here and is an error.
func restricted(c *corev1.Container) (bool, error) {
	sc := c.SecurityContext
	if sc == nil || sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot {
		return false, nil
	}
	switch {
	case sc.RunAsUser == nil || *sc.RunAsUser != ns.UnprivilegedID:
		return false, fmt.Errorf("runAsUser is not %d", ns.UnprivilegedID)
	case sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation:
		return false, errors.New("allowPrivilegeEscalation is not false")
	case sc.Capabilities == nil || len(sc.Capabilities.Drop) != 1 || sc.Capabilities.Drop[0] != "ALL" || len(sc.Capabilities.Add) > 0:
		return false, errors.New("capabilities are not dropped")
	}
	return true, nil
}
