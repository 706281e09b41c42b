// Package binaries builds the product's programs as they are shipped, for tests and the demo to run.
package binaries

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// module is the path of the product's Go module.
const module = "multus-ip-manager.io"

// Build builds programs, named by their folders ("agent", "webhook"), into a new directory that every user may read, because
// containers run as another one. Each gets its folder's last name. The caller removes the directory.
func Build(ctx context.Context, names ...string) (string, error) {
	dir, err := os.MkdirTemp("", "multus-ip-manager-bin-")
	if err != nil {
		return "", err
	}
	if err := build(ctx, dir, names); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

func build(ctx context.Context, dir string, names []string) error {
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // see above
		return err
	}
	for _, name := range names {
		cmd := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w -X main.version=test", //nolint:gosec // the names are ours
			"-o", filepath.Join(dir, path.Base(name)), module+"/"+name)
		// What an interrupted build leaves lies in dir, too. An interrupted go command waits for its compilers, a killed one
		// does not.
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false"+overlay(), "GOTMPDIR="+dir)
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		cmd.WaitDelay = 10 * time.Second
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return nil
}

// overlay passes on the one flag of the go command that this process was run with and that the programs must have, too: the fault
// that test/mutate tries is in it.
func overlay() string {
	for flag := range strings.FieldsSeq(os.Getenv("GOFLAGS")) {
		if strings.HasPrefix(flag, "-overlay=") {
			return " " + flag
		}
	}
	return ""
}
