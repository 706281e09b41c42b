package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"multus-ip-manager.io/test/tools"
)

// Dir is the folder of everything a cluster writes.
type Dir string

// AppImage is the application of the tests.
const AppImage = "multus-ip-manager.test/app:1"

// KeepalivedImage is this machine's keepalived, where it has one.
const KeepalivedImage = "multus-ip-manager.test/keepalived:1"

// hidden are the folders that each node has for itself: the cluster's own files must not lie below them.
var hidden = [...]string{"/run", "/opt", "/var/lib", "/var/log"}

// DefaultDir is the folder of this user's cluster, in the cache that the tools are in.
func DefaultDir() (Dir, error) {
	cache, err := tools.CacheDir()
	if err != nil {
		return "", err
	}
	dir := Dir(filepath.Join(cache, "cluster"))
	for _, h := range hidden {
		if strings.HasPrefix(cache+"/", h+"/") {
			return "", fmt.Errorf("the cache is in %s, which nodes have for themselves: set MIM_CACHE to a folder elsewhere", h)
		}
	}
	if len(dir.node("control-plane", "run/containerd/containerd.sock")) > 100 {
		return "", errors.New("the cache's path is too long for sockets below it: set MIM_CACHE to a shorter one")
	}
	return dir, nil
}

func (d Dir) path(elements ...string) string {
	return filepath.Join(append([]string{string(d)}, elements...)...)
}

// Kubeconfig is the administrator's access, for use on this machine.
func (d Dir) Kubeconfig() string { return d.path("kubeconfig") }

// Log is the folder of the logs: one of each process of the cluster and of its nodes.
func (d Dir) Log() string { return d.path("log") }

// Image is the archive of one of the images that the nodes have.
func (d Dir) Image(name string) string { return d.path("images", name+".tar") }

func (d Dir) pki(name string) string { return d.path("pki", name) }

func (d Dir) bin(name string) string { return d.path("bin", name) }

func (d Dir) node(name string, elements ...string) string {
	return d.path(append([]string{"nodes", name}, elements...)...)
}

func (d Dir) lock() string { return string(d) + ".lock" }

func (d Dir) control() string { return d.path("control.sock") }

func (d Dir) ready() string { return d.path("ready") }

// mkdirs makes folders that everybody may pass: containers run as other users.
func mkdirs(paths ...string) error {
	for _, p := range paths {
		if err := os.MkdirAll(p, 0o755); err != nil { //nolint:gosec // see above
			return err
		}
	}
	return nil
}
