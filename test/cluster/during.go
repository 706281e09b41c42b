package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// TestsOn is the variable that switches the tests on that need a cluster.
const TestsOn = "MIM_E2E"

// During runs a command with the tests switched on, in the cluster of KUBECONFIG if that is set, else in the one of d. One that was not
// up is ended afterwards, also when ctx ends.
func During(ctx context.Context, d Dir, args []string) (err error) {
	if config := os.Getenv("KUBECONFIG"); config == "" || config == d.Kubeconfig() {
		if !d.Running() {
			defer func() { err = errors.Join(err, Down(d)) }()
			if err := Up(ctx, d, os.Stdout); err != nil {
				return err
			}
		}
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // the caller's
	cmd.Env = append(os.Environ(), TestsOn+"=on")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// A test that is interrupted still removes what it made.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return nil
}
