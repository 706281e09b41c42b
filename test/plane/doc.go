// Package plane starts a real Kubernetes control plane for tests and the demo: kube-apiserver and etcd, no kubelet, no
// scheduler and no controllers. What a controller would do and admission depends on is done here (the "default" service
// account of every namespace); namespaces that are deleted stay "Terminating", because nobody finalises them.
//
// It needs no rights: it runs as any user, on loopback, also inside a user and network namespace whose only interface
// is lo.
//
// A plane never outlives the process that started it: a small watcher holds a pipe to this process and, when it breaks,
// kills both servers and removes their files. So a test that panics, times out or is killed leaves nothing behind.
package plane
