package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// good returns an image with nothing wrong in it, made of a program and of root certificates.
func good(program, certificates []byte) (*Image, Want) {
	const size = 1 << 30
	img := &Image{
		OS: "linux", Architecture: "amd64",
		Config: Config{
			User: "65532:65532", Entrypoint: []string{"/image"},
			Labels: map[string]string{"org.opencontainers.image.version": "v1"},
		},
		Compressed: 1, Unpacked: int64(len(program)),
		Files: map[string]File{
			"/image": {Mode: 0o755, Data: program},
			roots:    {Mode: 0o644, Data: certificates},
		},
	}
	return img, Want{
		Binary: "image", Module: "multus-ip-manager.io/test", Arch: "amd64", Version: "v1",
		MaxUnpacked: size, MaxCompressed: size, NoModules: []string{"k8s.io/", "github.com/spf13/cobra"},
	}
}

// build compiles this command as the images' programs are compiled; extra, if any, is one more source file of it.
func build(t *testing.T, extra string) []byte {
	t.Helper()
	dir := t.TempDir()
	args := []string{"build", "-o", filepath.Join(dir, "image")}
	if extra != "" {
		here, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "extra.go"), []byte(extra))
		overlay := map[string]any{"Replace": map[string]string{filepath.Join(here, "extra.go"): filepath.Join(dir, "extra.go")}}
		write(t, filepath.Join(dir, "overlay.json"), mustJSON(t, overlay))
		args = append(args, "-overlay", filepath.Join(dir, "overlay.json"))
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(dir, "image"))
	if err != nil {
		t.Fatal(err)
	}
	return program
}

func bundle(t *testing.T, n int) []byte {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for i := range n {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i) + 1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
		if err != nil {
			t.Fatal(err)
		}
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func TestCheck(t *testing.T) {
	program, certificates := build(t, ""), bundle(t, fewRoots)
	withCobra := build(t, "package main\n\nimport _ \"github.com/spf13/cobra\"\n")
	img, want := good(program, certificates)
	if p := Check(img, want); len(p) != 0 {
		t.Fatalf("the good image: %q", p)
	}
	file := func(name string, change func(*File)) func(*Image, *Want) {
		return func(img *Image, _ *Want) { f := img.Files[name]; change(&f); img.Files[name] = f }
	}
	for name, tt := range map[string]struct {
		spoil func(*Image, *Want)
		tells string
	}{
		"root user":          {func(i *Image, _ *Want) { i.Config.User = "" }, "USER is"},
		"user without group": {func(i *Image, _ *Want) { i.Config.User = "65532" }, "USER is"},
		"entrypoint":         {func(i *Image, _ *Want) { i.Config.Entrypoint = []string{"/bin/sh", "-c"} }, "ENTRYPOINT is"},
		"command":            {func(i *Image, _ *Want) { i.Config.Cmd = []string{"init"} }, "CMD is"},
		"platform":           {func(i *Image, _ *Want) { i.Architecture = "arm64" }, "image is for linux/arm64"},
		"version":            {func(_ *Image, w *Want) { w.Version = "v2" }, "version label"},
		"unpacked size":      {func(_ *Image, w *Want) { w.MaxUnpacked = 1000 }, "unpacked size"},
		"compressed size":    {func(i *Image, w *Want) { i.Compressed = w.MaxCompressed + 1 }, "compressed size"},
		"a shell":            {func(i *Image, _ *Want) { i.Files["/bin/sh"] = File{Mode: 0o755} }, "files are"},
		"a link":             {func(i *Image, _ *Want) { i.Others = []string{"/lib"} }, "no plain files"},
		"no program":         {func(i *Image, _ *Want) { delete(i.Files, "/image") }, "files are"},
		"not executable":     {file("/image", func(f *File) { f.Mode = 0o750 }), "cannot run it"},
		"writable":           {file("/image", func(f *File) { f.Mode = 0o757 }), "has mode"},
		"setuid":             {file("/image", func(f *File) { f.Mode |= os.ModeSetuid }), "has mode"},
		"owned by the user":  {file("/image", func(f *File) { f.UID = 65532 }), "belongs to 65532:0"},
		"no roots":           {file(roots, func(f *File) { f.Data = nil }), "0 root certificates"},
		"few roots":          {file(roots, func(f *File) { f.Data = bundle(t, 1) }), "1 root certificates"},
		"other architecture": {func(i *Image, w *Want) { i.Architecture, w.Arch = "arm64", "arm64" }, "want EM_AARCH64"},
		"a script":           {file("/image", func(f *File) { f.Data = []byte("#!/bin/sh\n") }), "no ELF program"},
		"dynamically linked": {file("/image", func(f *File) { f.Data = withInterpreter(f.Data) }), "dynamically linked"},
		"other package":      {func(_ *Image, w *Want) { w.Module = "multus-ip-manager.io" }, "was built from"},
		"module":             {file("/image", func(f *File) { f.Data = withCobra }), "has github.com/spf13/cobra linked in"},
		"module by prefix": {func(i *Image, w *Want) {
			i.Files["/image"] = File{Mode: 0o755, Data: withCobra}
			w.NoModules = []string{"github.com/"}
		}, "spf13/cobra linked in"},
	} {
		t.Run(name, func(t *testing.T) {
			img, want := good(program, certificates)
			tt.spoil(img, &want)
			got := strings.Join(Check(img, want), "\n")
			if !strings.Contains(got, tt.tells) {
				t.Errorf("problems are %q, want one with %q", got, tt.tells)
			}
		})
	}
}

// withInterpreter turns the first program header of a 64-bit little-endian ELF file into PT_INTERP.
func withInterpreter(program []byte) []byte {
	program = bytes.Clone(program)
	const headerSize, ptInterp = 64, 3
	program[headerSize] = ptInterp
	return program
}

func TestReadLayout(t *testing.T) {
	dir := t.TempDir()
	layers := []descriptor{
		writeLayer(t, dir, []tar.Header{
			{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "etc/a", Typeflag: tar.TypeReg, Mode: 0o644, Size: 10},
			{Name: "bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin"},
		}),
		writeLayer(t, dir, []tar.Header{{Name: "agent", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1, Gid: 2, Size: 1000}}),
	}
	config := writeBlob(t, dir, []byte(`{"architecture":"arm64","os":"linux","config":{"User":"1:2","Entrypoint":["/agent"],"Labels":{"a":"b"}}}`))
	manifest := writeBlob(t, dir, mustJSON(t, map[string]any{"config": config, "layers": layers}))
	write(t, filepath.Join(dir, "index.json"), mustJSON(t, map[string]any{"manifests": []descriptor{manifest}}))

	img, err := ReadLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	if img.Unpacked != 1010 {
		t.Errorf("unpacked is %d, want 1010", img.Unpacked)
	}
	if want := layers[0].Size + layers[1].Size; img.Compressed != want {
		t.Errorf("compressed is %d, want %d", img.Compressed, want)
	}
	if img.Architecture != "arm64" || img.Config.User != "1:2" || img.Config.Labels["a"] != "b" {
		t.Errorf("configuration is %+v for %s", img.Config, img.Architecture)
	}
	if f := img.Files["/agent"]; f.UID != 1 || f.GID != 2 || f.Mode != os.ModeSetuid|0o755 || len(f.Data) != 1000 {
		t.Errorf("/agent is %v %d:%d with %d bytes", f.Mode, f.UID, f.GID, len(f.Data))
	}
	if got := fmt.Sprint(img.Others); got != "[/bin]" {
		t.Errorf("other entries are %v, want [/bin]", got)
	}
}

func TestReadLayoutRefuses(t *testing.T) {
	for name, index := range map[string]string{
		"no layout":               "",
		"no image":                `{"manifests":[]}`,
		"two images":              `{"manifests":[{"digest":"sha256:a"},{"digest":"sha256:b"}]}`,
		"no blob":                 `{"manifests":[{"digest":"sha256:a"}]}`,
		"a digest that is a path": `{"manifests":[{"digest":"../../..:index.json"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if index != "" {
				write(t, filepath.Join(dir, "index.json"), []byte(index))
			}
			if img, err := ReadLayout(dir); err == nil {
				t.Errorf("ReadLayout gave %+v, want an error", img)
			}
		})
	}
}

func writeLayer(t *testing.T, dir string, headers []tar.Header) descriptor {
	t.Helper()
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	tw := tar.NewWriter(zw)
	for _, h := range headers {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(bytes.Repeat([]byte{'x'}, int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	d := writeBlob(t, dir, out.Bytes())
	d.MediaType = "application/vnd.oci.image.layer.v1.tar+gzip"
	return d
}

func writeBlob(t *testing.T, dir string, data []byte) descriptor {
	t.Helper()
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "blobs", "sha256", sum), data)
	return descriptor{Digest: "sha256:" + sum, Size: int64(len(data))}
}

func write(t *testing.T, file string, data []byte) {
	t.Helper()
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
