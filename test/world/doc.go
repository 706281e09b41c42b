// Package world turns one YAML file into a running emulated VPC: the cloud's state and its EC2 endpoint (package aws), worker
// nodes with their metadata services, network interfaces (ENIs) and pods, all as network namespaces of this process
// (package ns), and a router between them that does what a VPC does.
//
//	aws 10.255.255.1 ──────── vpc ──────── imds of node 1 ── 169.254.169.254
//	                         ╱ │ ╲              │
//	                ENI 0   ╱  │  ╲ ENI 1       │ one routed hop: an answer with TTL 1 gets this far
//	            node 1 eth0 ───┼───── pod net1  │
//	                │  └───────┼────────────────┘
//	            pod eth0       └─ node 1 eth1, other pods' net1, other nodes
//
// What the router does as a VPC does it:
//
//   - a packet is delivered to an ENI only if its destination is assigned to that ENI, alone or inside a delegated prefix;
//   - a packet is accepted from an ENI only if its source is assigned to it, unless the source/destination check is off;
//     both for IPv4 and IPv6, and what is not delivered vanishes without an answer;
//   - it delivers by the ENI's MAC without asking for it, so gratuitous ARP and neighbour advertisements change nothing;
//   - it answers ARP and neighbour solicitations for everything, but never for duplicate address detection, because a VPC does
//     not carry one node's multicast to another;
//   - a link whose MAC is no ENI's (macvlan) reaches nothing beyond its own ENI's node.
//
// EC2's endpoint is at 10.255.255.1, STS's at 10.255.255.2. A node may run the EKS Pod Identity agent at its link-local addresses.
//
// A pod's extra interface is a real ipvlan child of the node's link where the kernel has ipvlan. Elsewhere it is the end of a
// veth pair that carries the ENI's MAC, as many as there are pods; since equal MACs cannot share a bridge, each end is a port of
// the router, which hands a packet to the pod that really has the address, whoever put it there. Pods on one ENI reach each
// other in both cases without any assignment. The differences that remain with veth: one hop more between pods of one ENI, and
// on the way from such an interface to the metadata service (hop limit 2 instead of 1); the kernel does not refuse an address
// that another pod of the ENI has (the newest gets the packets).
//
// Security groups, Elastic IPs, bandwidth and the delay of the real mapping service (set aws.Delays.DataPlane for that) are not
// modelled.
package world
