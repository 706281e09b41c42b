package cluster

import (
	"os/exec"
	"syscall"

	"multus-ip-manager.io/test/world"
)

const (
	apiPort      = "6443"
	serviceRange = "10.96.0.0/16"
	serviceIP    = "10.96.0.1" // of the API server
	issuer       = "https://kubernetes.default.svc.cluster.local"
	controlPlane = "control-plane" // name of its instance in the world file
)

// etcdCommand and the others are the control plane's processes; everything listens where only this cluster can reach it.
func etcdCommand(d Dir) []string {
	return []string{d.bin("etcd"), "--name=cluster", "--data-dir=" + d.path("etcd"),
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=cluster=http://127.0.0.1:2380",
		// Nothing is kept beyond the cluster's life, and a member alone need not wait for others.
		"--unsafe-no-fsync", "--heartbeat-interval=10", "--election-timeout=100", "--log-level=warn"}
}

func apiServerCommand(d Dir, address string) []string {
	return []string{d.bin("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--secure-port=" + apiPort,
		"--advertise-address=" + address,
		"--tls-cert-file=" + d.pki("apiserver.crt"), "--tls-private-key-file=" + d.pki("apiserver.key"), "--client-ca-file=" + d.pki("ca.crt"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--service-cluster-ip-range=" + serviceRange, "--service-account-issuer=" + issuer,
		"--service-account-key-file=" + d.pki("tokens.pub"), "--service-account-signing-key-file=" + d.pki("tokens.key"),
		"--kubelet-client-certificate=" + d.pki("admin.crt"), "--kubelet-client-key=" + d.pki("admin.key"),
		"--kubelet-certificate-authority=" + d.pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		// As on EKS, the API server calls webhooks at their pods' addresses: it is no node and has no kube-proxy.
		"--enable-aggregator-routing=true",
		"--requestheader-client-ca-file=" + d.pki("ca.crt"), "--requestheader-allowed-names=front-proxy",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + d.pki("front-proxy.crt"), "--proxy-client-key-file=" + d.pki("front-proxy.key"),
		"--profiling=false", "--v=1"}
}

func controllerManagerCommand(d Dir) []string {
	config := d.pki("controller-manager.conf")
	return []string{d.bin("kubernetes-node/kube-controller-manager"), "--kubeconfig=" + config, "--authentication-kubeconfig=" + config,
		"--authorization-kubeconfig=" + config, "--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials=true",
		"--service-account-private-key-file=" + d.pki("tokens.key"), "--root-ca-file=" + d.pki("ca.crt"),
		"--cluster-signing-cert-file=" + d.pki("ca.crt"), "--cluster-signing-key-file=" + d.pki("ca.key"), "--client-ca-file=" + d.pki("ca.crt"),
		"--tls-cert-file=" + d.pki("controller-manager.crt"), "--tls-private-key-file=" + d.pki("controller-manager.key"),
		"--allocate-node-cidrs=false", "--profiling=false",
		// A node that is gone is noticed in seconds rather than in forty.
		"--node-monitor-period=1s", "--node-monitor-grace-period=12s"}
}

func schedulerCommand(d Dir) []string {
	config := d.pki("scheduler.conf")
	return []string{d.bin("kubernetes-node/kube-scheduler"), "--kubeconfig=" + config, "--authentication-kubeconfig=" + config,
		"--authorization-kubeconfig=" + config, "--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false",
		"--tls-cert-file=" + d.pki("scheduler.crt"), "--tls-private-key-file=" + d.pki("scheduler.key")}
}

// daemon starts a process in a node's network namespace. Nobody restarts it; ended gets its name when it ends. It needs no parent to
// end it: the cluster's process namespace does.
func daemon(n *world.Node, d Dir, name string, args []string, ended chan<- string) error {
	log, err := appendTo(d.path("log", name+".log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(args[0], args[1:]...) //nolint:gosec,noctx // our own arguments; see above
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := n.NS().Do(cmd.Start); err != nil {
		return err
	}
	go func() {
		_ = cmd.Wait()
		ended <- name
	}()
	return nil
}
