// Package stayup has the webhook meet what happens to it in a cluster, under load: rolling updates, renewed certificates, a lost
// replica, a restarted API server.
//
// A real API server calls the webhook, with the chart's own configuration, Service, role and arguments. Played are the controllers
// and the nodes: the replicas run as processes on addresses of their own, their readiness is asked as the kubelet asks it, they end
// as the kubelet ends them (endpoint gone, preStop, SIGTERM, SIGKILL), and the Service's EndpointSlice says which of them are ready.
// The API server picks one for each new connection and keeps its connections, as it does in a cluster: by itself
// (--enable-aggregator-routing, as where no kube-proxy runs beside it), or through a stand-in for kube-proxy on the Service's address.
//
// The replicas' addresses lie on lo, so a process that uses this package runs in a network namespace of its own; see package ns.
package stayup
