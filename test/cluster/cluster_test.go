package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/test/world"
)

// Unit tests of what needs no cluster. The cluster itself is tested by running in it: package e2e.

func TestWorldFile(t *testing.T) {
	spec, err := world.Parse(worldYAML)
	if err != nil {
		t.Fatal(err)
	}
	workers := 0
	for _, n := range spec.Nodes {
		if n.Name == controlPlane {
			continue
		}
		workers++
		if got := len(n.ENIs[0].Secondary); got < 20 {
			t.Errorf("%s has %d addresses for pods", n.Name, got)
		}
		if len(n.ENIs) < 2 {
			t.Errorf("%s has no ENI for Multus", n.Name)
		}
	}
	if workers != 2 || len(spec.Nodes) != 3 {
		t.Errorf("%d workers of %d instances, want two and the control plane", workers, len(spec.Nodes))
	}
}

func TestNodeConfigurationIsComplete(t *testing.T) {
	spec, err := world.Parse(worldYAML)
	if err != nil {
		t.Fatal(err)
	}
	fill := filler("/dir", spec.Nodes[1].Name, "10.0.1.10")
	for name, text := range map[string]string{"kubelet": fill.Replace(kubeletConfig), "kube-proxy": fill.Replace(proxyConfig), "multus": multusConfig} {
		var any map[string]any
		if err := yaml.Unmarshal([]byte(text), &any); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if left := regexp.MustCompile(`\b[A-Z]{3,}_[A-Z]+\b`).FindAllString(text, -1); len(left) > 0 {
			t.Errorf("%s: %q is not filled in", name, left)
		}
	}
}

func TestImageArchive(t *testing.T) {
	dir := t.TempDir()
	program, library := filepath.Join(dir, "program"), filepath.Join(dir, "lib.so")
	for _, f := range []string{program, library} {
		if err := os.WriteFile(f, []byte("text of "+filepath.Base(f)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	archive := filepath.Join(dir, "image.tar")
	if err := writeImage(image{Name: "a/b:1", Program: program, Entrypoint: []string{"/app", "pause"}, Libraries: []string{library}}, archive); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	files := untar(t, data)
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil || len(manifest) != 1 || manifest[0].RepoTags[0] != "a/b:1" {
		t.Fatalf("%s: %v", files["manifest.json"], err)
	}
	var config struct {
		Config struct {
			User       string
			Entrypoint []string
		}
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(files[manifest[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	layer := files[manifest[0].Layers[0]]
	if config.Rootfs.DiffIDs[0] != "sha256:"+digest(layer) {
		t.Errorf("the layer is %s, the configuration says %v", digest(layer), config.Rootfs.DiffIDs)
	}
	if config.Config.User != "65532:65532" || strings.Join(config.Config.Entrypoint, " ") != "/app pause" {
		t.Errorf("%+v", config.Config)
	}
	root := untar(t, layer)
	if string(root["app"]) != "text of program" || string(root[strings.TrimPrefix(library, "/")]) != "text of lib.so" {
		t.Errorf("the image holds %q", root)
	}
}

func untar(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if out[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCertificates(t *testing.T) {
	d := Dir(t.TempDir())
	a, err := newAuthority(d)
	if err != nil {
		t.Fatal(err)
	}
	file := d.path("kubeconfig")
	id := identity{file: "kubelet-a", name: "system:node:a", groups: []string{"system:nodes"}, hosts: []string{"a", "10.0.1.10"}}
	if err := a.kubeconfig(id, file, "https://10.0.1.5:6443"); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil || config.Host != "https://10.0.1.5:6443" {
		t.Fatal(config, err)
	}
	block, _ := pem.Decode(config.CertData)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.CAData)
	for _, host := range []string{"a", "10.0.1.10"} {
		if _, err := cert.Verify(x509.VerifyOptions{DNSName: host, Roots: roots}); err != nil {
			t.Error(err)
		}
	}
	if cert.Subject.CommonName != id.name || cert.Subject.Organization[0] != "system:nodes" {
		t.Errorf("subject %s", cert.Subject)
	}
	if info, err := os.Stat(d.pki("ca.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the CA's key: %v, %v", info.Mode(), err)
	}
}

func TestRemoveTree(t *testing.T) {
	root := filepath.Join(t.TempDir(), "groups")
	if err := os.MkdirAll(filepath.Join(root, "a", "kubepods", "burstable"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "b"), 0o750); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing
		if err := removeTree(root); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", root, err)
		}
	}
}

func TestThereIsNoCluster(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "cluster"))
	if d.Running() {
		t.Error("it runs")
	}
	if err := Down(d); err != nil {
		t.Errorf("down without a cluster: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(string(d))); err != nil || len(entries) > 0 {
		t.Errorf("asking left %v, %v", entries, err)
	}
}

func TestDefaultDirRefusesWhatNodesHide(t *testing.T) {
	for cache, want := range map[string]string{"/var/lib/x": "set MIM_CACHE", "/run": "set MIM_CACHE", "/" + strings.Repeat("long/", 20): "too long", "/srv/c": ""} {
		t.Setenv("MIM_CACHE", cache)
		_, err := DefaultDir()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", cache, err, want)
		}
	}
}

func TestDuringAUsersCluster(t *testing.T) {
	t.Setenv("KUBECONFIG", "/somebody/elses")
	d := Dir(filepath.Join(t.TempDir(), "cluster"))
	if err := During(t.Context(), d, []string{"sh", "-c", `test "$` + TestsOn + `" = on`}); err != nil {
		t.Errorf("the tests are not switched on: %v", err)
	}
	if err := During(t.Context(), d, []string{"sh", "-c", "exit 3"}); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("%v, want the command's exit", err)
	}
	if _, err := os.Stat(string(d)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a cluster of our own was made beside the user's")
	}
}
