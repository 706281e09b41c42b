package cluster

// The configuration files of a node. What is in capitals is filled in.

// containerdConfig is for containerd 1.6 and newer (version 2 is understood by all). OOM scores stay what they are, because lowering
// them needs a capability that containers which run tests often lack.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + PauseImage + `"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "` + nodeBin + `"
    conf_dir = "` + nodeNet + `"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: CGROUP_ROOT
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: CLUSTER_CA}
authorization: {mode: Webhook}
tlsCertFile: NODE_CERT
tlsPrivateKeyFile: NODE_KEY
clusterDomain: cluster.local
clusterDNS: [10.96.0.10]
resolvConf: /opt/kubernetes/resolv.conf
oomScoreAdj: 0
failSwapOn: false
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: 1Gi, nodefs.inodesFree: 1%, imagefs.available: 1Gi}
registerNode: true
serializeImagePulls: false
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 8
syncFrequency: 10s
`

const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
oomScoreAdj: 0
clientConnection: {kubeconfig: /opt/kubernetes/proxy.conf}
detectLocalMode: InterfaceNamePrefix
detectLocal: {interfaceNamePrefix: eni}
hostnameOverride: NODE_NAME
metricsBindAddress: 127.0.0.1:10249
healthzBindAddress: 127.0.0.1:10256
conntrack: {maxPerCore: 0, min: 0}
nodePortAddresses: [NODE_IP/32]
`

// multusConfig is thin Multus with the emulated VPC CNI, which EKS calls aws-cni, as the cluster's network.
const multusConfig = `{
  "cniVersion": "1.0.0", "name": "multus-cni-network", "type": "multus",
  "kubeconfig": "/opt/kubernetes/multus.conf", "binDir": "` + nodeBin + `", "confDir": "` + nodeNet + `", "cniDir": "/var/lib/cni/multus",
  "logLevel": "error", "logToStderr": true, "namespaceIsolation": false,
  "delegates": [{"cniVersion": "1.0.0", "name": "aws-cni", "plugins": [{"type": "eni", "master": "eth0"}]}]
}
`

// whereaboutsConfig is what networks with whereabouts name as their "configuration_path".
const whereaboutsConfig = `{"datastore": "kubernetes", "kubernetes": {"kubeconfig": "/opt/kubernetes/multus.conf"}, "log_level": "error"}
`
