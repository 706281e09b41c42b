// Package binaries builds the product's programs as they are shipped, for tests and the demo to run.
package binaries

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// module is the path of the product's Go module.
const module = "multus-ip-manager.io"

// Build builds programs ("agent", "webhook") into a new directory that every user may read, because containers run as another
// one. The caller removes the directory.
func Build(ctx context.Context, names ...string) (dir string, err error) {
	if dir, err = os.MkdirTemp("", "multus-ip-manager-bin-"); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // see above
		return "", err
	}
	for _, name := range names {
		cmd := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w -X main.version=test", //nolint:gosec // the names are ours
			"-o", filepath.Join(dir, name), module+"/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
}
