package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"multus-ip-manager.io/test/world"
)

// Where a node keeps what: its own folders, at the usual places.
const (
	nodeBin    = "/opt/cni/bin"
	nodeNet    = "/opt/cni/net.d"
	nodeConfig = "/opt/kubernetes"
	runtimeAt  = "/run/containerd/containerd.sock"
	// SharedIPAM is a folder that all nodes share, for host-local's "dataDir": its ranges then hold for the cluster, as whereabouts' do.
	SharedIPAM = "/var/lib/cni/shared"
	// Whereabouts is the "configuration_path" of networks with whereabouts.
	Whereabouts = "/opt/kubernetes/whereabouts.conf"
	// PauseImage keeps the pods' sandboxes.
	PauseImage = "multus-ip-manager.test/pause:1"
)

// worker is a node that runs pods.
type worker struct {
	dir  Dir
	node *world.Node

	mu   sync.Mutex
	init *exec.Cmd
	gone chan struct{}
}

// files writes the node's configuration.
func (w *worker) files(a *authority, server string) error {
	name, ip := w.node.Name(), w.node.IP().String()
	config := w.dir.node(name, "opt/kubernetes")
	if err := mkdirs(config, w.dir.node(name, "opt/cni/bin"), w.dir.node(name, "opt/cni/net.d"), w.dir.node(name, "run"),
		w.dir.node(name, "log"), w.dir.node(name, "lib"), w.dir.path("ipam")); err != nil {
		return err
	}
	if err := w.plugins(); err != nil {
		return err
	}
	kubelet := identity{file: "kubelet-" + name, name: "system:node:" + name, groups: []string{"system:nodes"}, hosts: []string{name, ip}}
	errs := []error{
		a.kubeconfig(kubelet, filepath.Join(config, "kubelet.conf"), server),
		a.kubeconfig(identity{file: "proxy-" + name, name: "system:kube-proxy"}, filepath.Join(config, "proxy.conf"), server),
		a.kubeconfig(identity{file: "multus-" + name, name: "multus"}, filepath.Join(config, "multus.conf"), server),
	}
	for file, text := range map[string]string{
		"opt/kubernetes/containerd.toml":  containerdConfig,
		"opt/kubernetes/kubelet.yaml":     w.fill(kubeletConfig),
		"opt/kubernetes/proxy.yaml":       w.fill(proxyConfig),
		"opt/kubernetes/resolv.conf":      "nameserver 10.0.0.2\n",
		"opt/cni/net.d/00-multus.conf":    multusConfig,
		"opt/kubernetes/whereabouts.conf": whereaboutsConfig,
	} {
		errs = append(errs, os.WriteFile(w.dir.node(name, file), []byte(text), 0o600))
	}
	return errors.Join(errs...)
}

func (w *worker) fill(text string) string {
	return filler(w.dir, w.node.Name(), w.node.IP().String()).Replace(text)
}

// filler fills in what differs between nodes.
func filler(d Dir, name, ip string) *strings.Replacer {
	return strings.NewReplacer("CLUSTER_CA", d.pki("ca.crt"), "NODE_CERT", d.pki("kubelet-"+name+".crt"), "NODE_KEY", d.pki("kubelet-"+name+".key"),
		"CGROUP_ROOT", CgroupRoot+"/"+name, "NODE_NAME", name, "NODE_IP", ip)
}

// plugins fills the folder of CNI plugins. They are copied, not linked: what a node runs does not change under it.
func (w *worker) plugins() error {
	sources := map[string]string{"multus": w.dir.bin("multus"), "whereabouts": w.dir.bin("whereabouts"), "eni": w.dir.bin("cni")}
	for _, name := range []string{"loopback", "ipvlan", "host-local", "static"} {
		sources[name] = w.dir.bin("cni-plugins/" + name)
	}
	for name, from := range sources {
		if err := copyFile(from, w.dir.node(w.node.Name(), "opt/cni/bin", name), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// start boots the node: a machine whose /run is empty and whose disks are as they were.
func (w *worker) start() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.init != nil {
		return fmt.Errorf("node %s runs", w.node.Name())
	}
	name := w.node.Name()
	if err := makeCgroup(name); err != nil {
		return err
	}
	log := func(process string) string { return w.dir.path("log", name+"-"+process+".log") }
	spec := initSpec{
		Hostname: name,
		Binds: []bind{
			{w.dir.node(name, "run"), "/run"}, {w.dir.node(name, "opt"), "/opt"}, {w.dir.node(name, "lib"), "/var/lib"},
			{w.dir.node(name, "log"), "/var/log"}, {w.dir.path("ipam"), w.dir.node(name, "lib/cni/shared")},
		},
		Run: []process{
			{Name: "containerd", Log: log("containerd"), Args: []string{"/usr/bin/containerd", "--config=" + nodeConfig + "/containerd.toml"}},
			{Name: "kubelet", Log: log("kubelet"), Args: []string{w.dir.bin("kubernetes-node/kubelet"), "--config=" + nodeConfig + "/kubelet.yaml",
				"--kubeconfig=" + nodeConfig + "/kubelet.conf", "--hostname-override=" + name, "--node-ip=" + w.node.IP().String(), "--v=2"}},
			{Name: "kube-proxy", Log: log("kube-proxy"), Args: []string{w.dir.bin("kubernetes-node/kube-proxy"), "--config=" + nodeConfig + "/proxy.yaml", "--v=1"}},
		},
	}
	// The last bind lies below another: its place must be there before.
	if err := mkdirs(w.dir.node(name, "lib/cni/shared")); err != nil {
		return err
	}
	spec.Binds[4].To = "/var/lib/cni/shared"
	err := w.node.NS().Do(func() error {
		var err error
		w.init, err = startInit(spec, log("init"), false, 0)
		return err
	})
	if err != nil {
		return err
	}
	w.gone = make(chan struct{})
	go func(cmd *exec.Cmd, gone chan struct{}) {
		_ = cmd.Wait()
		close(gone)
	}(w.init, w.gone)
	return nil
}

// kill takes the node's power: all its processes end at once, and what was in its memory is gone.
func (w *worker) kill() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.init == nil {
		return fmt.Errorf("node %s does not run", w.node.Name())
	}
	if err := w.init.Process.Kill(); err != nil {
		return err
	}
	<-w.gone
	w.init = nil
	return emptyFolder(w.dir.node(w.node.Name(), "run"), "vpc.sock")
}

// SetMultus makes a node's cluster network Multus's, or the VPC's alone, as on a node where Multus is not installed. It holds for pods
// that start from then on; containerd sees it within moments.
func (d Dir) SetMultus(node string, on bool) error {
	file := d.node(node, "opt/cni/net.d/00-multus.conf")
	if on {
		return os.Rename(file+".off", file)
	}
	plain := []byte(`{"cniVersion": "1.0.0", "name": "aws-cni", "plugins": [{"type": "eni", "master": "eth0"}]}`)
	if err := os.WriteFile(d.node(node, "opt/cni/net.d/10-aws.conflist"), plain, 0o600); err != nil {
		return err
	}
	return os.Rename(file, file+".off")
}

// emptyFolder removes everything in a folder but keep.
func emptyFolder(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != keep {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

func copyFile(from, to string, mode os.FileMode) error {
	data, err := os.ReadFile(from) //nolint:gosec // our own files
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, data, mode); err != nil {
		return err
	}
	return os.Chmod(to, mode)
}
