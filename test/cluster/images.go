package cluster

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"multus-ip-manager.io/test/keepalived"
)

// image is one that is made here: a single static program.
type image struct {
	Name       string   // with tag
	Program    string   // path on this machine; in the image it is /app
	Entrypoint []string // default /app
	User       string   // default 65532:65532
	Libraries  []string // paths on this machine and in the image
}

// writeImage writes the image as an archive that `docker load` and `ctr images import` read.
func writeImage(i image, path string) error {
	program, err := os.ReadFile(i.Program)
	if err != nil {
		return err
	}
	files := []file{{"app", program, 0o755}}
	for _, l := range i.Libraries {
		data, err := os.ReadFile(l) //nolint:gosec // what the dynamic linker named
		if err != nil {
			return err
		}
		files = append(files, file{strings.TrimPrefix(l, "/"), data, 0o755})
	}
	layer, err := tarball(append(files, file{"run/", nil, 0o755}, file{"tmp/", nil, 0o1777})...)
	if err != nil {
		return err
	}
	if i.User == "" {
		i.User = "65532:65532"
	}
	if len(i.Entrypoint) == 0 {
		i.Entrypoint = []string{"/app"}
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "1970-01-01T00:00:00Z",
		"config": map[string]any{"Entrypoint": i.Entrypoint, "User": i.User, "WorkingDir": "/"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
	})
	if err != nil {
		return err
	}
	name := digest(config) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": name, "RepoTags": []string{i.Name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	archive, err := tarball(file{name, config, 0o644}, file{"layer.tar", layer, 0o644}, file{"manifest.json", manifest, 0o644})
	if err != nil {
		return err
	}
	return os.WriteFile(path, archive, 0o644) //nolint:gosec // nothing secret
}

type file struct {
	name string
	data []byte
	mode int64
}

func tarball(files ...file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		kind := byte(tar.TypeReg)
		if strings.HasSuffix(f.name, "/") {
			kind = tar.TypeDir
		}
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: kind}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// keepalivedImage writes an image of this machine's keepalived with the libraries it is linked with. Without one there is none, and what
// needs it is skipped.
func keepalivedImage(ctx context.Context, path string) error {
	program, err := keepalived.Find()
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	out, err := exec.CommandContext(ctx, "ldd", program).Output() //nolint:gosec // found above
	if err != nil {
		return fmt.Errorf("ldd %s: %w", program, err)
	}
	i := image{Name: KeepalivedImage, Program: program, User: "0:0"}
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "/") {
			i.Libraries = append(i.Libraries, word)
		}
	}
	return writeImage(i, path)
}

// LoadImage puts an image archive into a node's containerd. The node must run.
func (d Dir) LoadImage(ctx context.Context, node, archive string) error {
	socket := d.node(node, runtimeAt)
	cmd := exec.CommandContext(ctx, "ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", archive) //nolint:gosec // ours
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load %s on %s: %w\n%s", filepath.Base(archive), node, err, out)
	}
	return nil
}

// TagImage gives an image of a node a second name.
func (d Dir) TagImage(ctx context.Context, node, name, as string) error {
	cmd := exec.CommandContext(ctx, "ctr", "--address", d.node(node, runtimeAt), "--namespace", "k8s.io", "images", "tag", "--force", name, as) //nolint:gosec // ours
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("name %s %s on %s: %w\n%s", name, as, node, err, out)
	}
	return nil
}

// productImages builds the images from the Dockerfiles into archives, as the script for machines without a registry does.
func productImages(ctx context.Context, d Dir, root string, out io.Writer) error {
	cmd := exec.CommandContext(ctx, "nice", "-n", "5", filepath.Join(root, "test/image/build.sh"), "agent", "webhook") //nolint:gosec // ours
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "KEEP="+d.path("images"), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	cmd.Stdout, cmd.Stderr = out, out
	// Interrupted, the builder and its children get the time to unmount what they mounted.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build the images: %w", err)
	}
	for _, name := range []string{"agent", "webhook"} {
		if _, err := os.Stat(d.Image("multus-ip-" + name)); err != nil {
			return errors.Join(errors.New("the image build kept no archive"), err)
		}
	}
	return nil
}
