package tools

import "time"

// A Recipe says how one tool is built: everything that changes its bytes, apart from the Go release. The module's
// go.mod and go.sum, which pin every dependency, are the other half and lie in the folder of the same name.
type Recipe struct {
	// Name is the tool's name, that of its folder beside this file and that of the binary.
	Name string
	// Module is the upstream module that carries the version.
	Module string
	// Version is the upstream version, without the leading "v".
	Version string
	// Package is the main package that is built.
	Package string
	// More are further main packages of the same module graph. A tool with them is a folder of binaries, each called as
	// the last element of its package's path.
	More []string
	// Stamps are the linker's -X settings (import path of the variable=value). Kubernetes and Helm learn their version
	// from these alone; without them a chart's kubeVersion check sees v0.0.0 or v1.20 and refuses.
	Stamps []string
	// FirstBuild is roughly how long the first build takes on two cores, for the message that announces it.
	FirstBuild time.Duration
	// Optional tools are built only when they are named.
	Optional bool
}

// The order is that of `make tools`: what the tests need first is built first.
func pinned() []Recipe {
	const (
		kubernetes  = "1.36.3"
		cniPlugins  = "github.com/containernetworking/plugins"
		whereabouts = "github.com/k8snetworkplumbingwg/whereabouts"
	)
	return []Recipe{
		{
			Name: "etcd", Module: "go.etcd.io/etcd/server/v3", Version: "3.6.16", Package: "go.etcd.io/etcd/server/v3",
			FirstBuild: time.Minute,
		},
		{
			Name: "kube-apiserver", Module: "k8s.io/kubernetes", Version: kubernetes, Package: "k8s.io/kubernetes/cmd/kube-apiserver",
			Stamps: kubernetesStamps(kubernetes, "1", "36"), FirstBuild: 5 * time.Minute,
		},
		{
			Name: "helm", Module: "helm.sh/helm/v3", Version: "3.22.0", Package: "helm.sh/helm/v3/cmd/helm",
			// Helm v3.22.0 is built on the Kubernetes 1.37 libraries; `helm template` and `helm lint` take the version
			// that they check kubeVersion against from these four.
			Stamps: []string{
				"helm.sh/helm/v3/internal/version.version=v3.22.0",
				"helm.sh/helm/v3/internal/version.gitTreeState=clean",
				"helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1",
				"helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=37",
				"helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1",
				"helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=37",
			},
			FirstBuild: 3 * time.Minute,
		},
		{
			Name: "golangci-lint", Module: "github.com/golangci/golangci-lint/v2", Version: "2.15.0",
			Package:    "github.com/golangci/golangci-lint/v2/cmd/golangci-lint",
			Stamps:     []string{"main.version=2.15.0"},
			FirstBuild: 3 * time.Minute,
		},
		{
			Name: "govulncheck", Module: "golang.org/x/vuln", Version: "1.8.0", Package: "golang.org/x/vuln/cmd/govulncheck",
			FirstBuild: 20 * time.Second,
		},
		{
			Name: "cert-manager", Module: "github.com/cert-manager/cert-manager", Version: "1.21.2",
			Package:    "multus-ip-manager.io/test/tools/cert-manager",
			FirstBuild: 2 * time.Minute,
		},
		{
			Name: "promcheck", Module: "github.com/prometheus/prometheus", Version: "0.315.0",
			Package:    "multus-ip-manager.io/test/tools/promcheck",
			FirstBuild: time.Minute,
		},
		{
			Name: "kubectl", Module: "k8s.io/kubernetes", Version: kubernetes, Package: "k8s.io/kubernetes/cmd/kubectl",
			Stamps: kubernetesStamps(kubernetes, "1", "36"), FirstBuild: 2 * time.Minute, Optional: true,
		},
		// What the test cluster has beside the control plane.
		{
			Name: "kubernetes-node", Module: "k8s.io/kubernetes", Version: kubernetes, Package: "k8s.io/kubernetes/cmd/kubelet",
			More: []string{
				"k8s.io/kubernetes/cmd/kube-controller-manager",
				"k8s.io/kubernetes/cmd/kube-scheduler",
				"k8s.io/kubernetes/cmd/kube-proxy",
			},
			Stamps: kubernetesStamps(kubernetes, "1", "36"), FirstBuild: 5 * time.Minute, Optional: true,
		},
		{
			Name: "cni-plugins", Module: cniPlugins, Version: "1.9.1", Package: cniPlugins + "/plugins/main/loopback",
			More: []string{
				cniPlugins + "/plugins/main/ipvlan",
				cniPlugins + "/plugins/ipam/host-local",
				cniPlugins + "/plugins/ipam/static",
			},
			FirstBuild: 30 * time.Second, Optional: true,
		},
		{
			Name: "multus", Module: "gopkg.in/k8snetworkplumbingwg/multus-cni.v4", Version: "4.1.4",
			Package:    "gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus",
			FirstBuild: 3 * time.Minute, Optional: true,
		},
		{
			Name: "whereabouts", Module: whereabouts, Version: "0.9.4", Package: whereabouts + "/cmd",
			FirstBuild: 3 * time.Minute, Optional: true,
		},
	}
}

// kubernetesStamps are the variables from which Kubernetes binaries tell their version, in both places that have them.
func kubernetesStamps(version, major, minor string) []string {
	var stamps []string
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		stamps = append(stamps,
			pkg+".gitVersion=v"+version,
			pkg+".gitMajor="+major,
			pkg+".gitMinor="+minor,
			pkg+".gitTreeState=archive")
	}
	return stamps
}
