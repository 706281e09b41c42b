// Package cluster runs a real Kubernetes cluster on one machine: kube-apiserver and etcd, controller manager and scheduler, and
// worker nodes with kubelet, containerd, kube-proxy and Multus, in the emulated VPC of package world.
//
//	host ── supervisor ── init of the cluster (its own process, network and mount namespaces)
//	            │                └─ core: the VPC and EC2, a port for kubectl, the CNI plugin's other half
//	            │                     ├─ etcd, kube-apiserver, controllers   in the namespace of an instance "control-plane"
//	            │                     └─ init of node a, of node b           each in its instance's network namespace,
//	            └─ tidies up               └─ containerd, kubelet, kube-proxy     with process ids, mounts and /var/lib of its own
//
// What EKS does is done here: pods get their eth0 addresses from the first ENI of their node, the API server lives in the VPC and
// calls webhooks at their pods' addresses, and each node's metadata service is one routed hop behind the node.
//
// All that runs, is mounted or is a network lives in the cluster's process namespace, so it is gone when the init of the cluster
// is, however it ended. What remains then are control groups below [CgroupRoot] and one folder of files; the supervisor removes
// both, and after a crash [Down] does.
//
// It needs root, and containerd and runc from the distribution.
package cluster
