// Package kubelet plays the kubelet's part for single containers: it takes a container exactly as the API server gives it, resolves
// its environment from the pod (downward API), and runs its program in the pod's network namespace as the container's security
// context demands, to its end or for as long as the pod lives. Images are programs on disk.
package kubelet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
	// ExitCode is the program's, or 128 plus the signal that ended it.
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
	r, err := c.Start(ctx)
	if err != nil {
		return Result{}, err
	}
	go func() {
		select {
		case <-c.Stop:
			_ = r.Signal(syscall.SIGTERM)
		case <-r.Done():
		}
	}()
	return r.Wait()
}

// prepared is a container as its security context, its pod and its image say it is to be run.
type prepared struct {
	name, program string
	args          []string
	opts          ns.Opts // without what it prints
	ns            *ns.Namespace
	message       string // the file of the termination message
}

// prepare reads the container. The file of the termination message lies in dir.
func (c Container) prepare(dir string) (prepared, error) {
	spec, err := c.spec()
	if err != nil {
		return prepared{}, err
	}
	program, ok := c.Images[spec.Image]
	if !ok {
		return prepared{}, fmt.Errorf("container %s: no program for image %q", c.Name, spec.Image)
	}
	if len(spec.Command) > 0 {
		return prepared{}, fmt.Errorf("container %s: a command in place of the image's entry point is not played", c.Name)
	}
	env, err := Environment(c.Pod, spec)
	if err != nil {
		return prepared{}, err
	}
	unprivileged, err := restricted(spec)
	if err != nil {
		return prepared{}, fmt.Errorf("container %s: %w", c.Name, err)
	}
	message := filepath.Join(dir, "termination-log")
	if err := publicFile(message); err != nil {
		return prepared{}, err
	}
	return prepared{name: c.Name, program: program, args: spec.Args, ns: c.NS, message: message, opts: ns.Opts{
		Unprivileged: unprivileged,
		Env:          append(env, c.Env...),
		Dir:          "/",
		Mounts:       append([]ns.Mount{{Source: message, Target: cmp.Or(spec.TerminationMessagePath, terminationLog)}}, c.Mounts...),
	}}, nil
}

// command is the container's program with these arguments.
func (p prepared) command(ctx context.Context, out io.Writer, args []string) *ns.Cmd {
	o := p.opts
	o.Stdout, o.Stderr = out, out
	return p.ns.Command(ctx, o, p.program, args...)
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
