package world

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/ns"
)

// Node is a worker node: its own network namespace, and behind it the one of its metadata service.
type Node struct {
	w       *World
	spec    NodeSpec
	number  int
	ns      *ns.Namespace
	imds    *ns.Namespace
	primary netip.Addr
	v6      netip.Addr // zero without IPv6 on device 0

	// Guarded by the world's mutex.
	enis    map[int]eniLink
	applied table // of imds
	pods    int
}

// eniLink is an ENI as the node has it.
type eniLink struct {
	spec  ENISpec
	group int
	port  *port // the node's own end, ethN
}

// Routing of packets that a node got by an ENI: to its pods, or nowhere; never out again.
const (
	tablePods   = 100
	prioPods    = 100
	prioNotOurs = 101
	linkIMDS    = "imds"
)

// Name is the node's name.
func (n *Node) Name() string { return n.spec.Name }

// Instance is the EC2 instance's id.
func (n *Node) Instance() string { return n.spec.Instance }

// NS is the node's network namespace: what hostNetwork pods and daemons run in.
func (n *Node) NS() *ns.Namespace { return n.ns }

// IP is the primary address of device 0 (status.hostIP).
func (n *Node) IP() netip.Addr { return n.primary }

// ENI is the id of the interface with a device index, "" if there is none.
func (n *Node) ENI(index int) string {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return n.enis[index].spec.ID
}

// MAC is the hardware address of the interface with a device index, "" if there is none.
func (n *Node) MAC(index int) string {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return n.enis[index].spec.MAC
}

// Env is the environment of a process on the node that talks to EC2; see Pod.AgentEnv.
func (n *Node) Env() []string { return n.w.env() }

// addNode makes a node whose instance and interfaces are in the cloud already.
func (w *World) addNode(spec NodeSpec) error {
	n := &Node{w: w, spec: spec, enis: map[int]eniLink{}, applied: newTable()}
	var err error
	if n.ns, err = newRouter(spec.Name); err != nil {
		return err
	}
	if n.imds, err = newRouter(spec.Name + "-imds"); err != nil {
		return errors.Join(err, n.ns.Close())
	}
	w.mu.Lock()
	n.number = len(w.nodes) + 1
	w.nodes = append(w.nodes, n)
	w.mu.Unlock()
	for _, six := range []bool{false, true} {
		if err := n.ns.AddRule(ns.Rule{Priority: prioPods, IPv6: six, Table: tablePods}); err != nil {
			return err
		}
	}
	enis := slices.Clone(spec.ENIs)
	slices.SortStableFunc(enis, func(a, b ENISpec) int { return a.Index - b.Index })
	for _, e := range enis {
		if err := n.addLink(e); err != nil {
			return fmt.Errorf("ENI %d: %w", e.Index, err)
		}
	}
	if spec.PodIdentity {
		if err := n.addPodIdentity(); err != nil {
			return fmt.Errorf("pod identity: %w", err)
		}
	}
	return n.addIMDS()
}

// addPodIdentity runs the EKS Pod Identity agent in the node's namespace.
func (n *Node) addPodIdentity() error {
	for _, text := range []string{aws.PodIdentityIPv4, aws.PodIdentityIPv6} {
		at := netip.MustParseAddr(text)
		if err := n.ns.AddAddr("lo", ns.Single(at), ns.NoDAD); err != nil {
			return err
		}
		l, err := n.ns.Listen(n.w.ctx, "tcp", netip.AddrPortFrom(at, 80).String())
		if err != nil {
			return err
		}
		n.w.serve("Pod Identity of "+n.spec.Name, func() error { return serveHTTP(n.w.ctx, l, n.w.cloud.PodIdentity()) })
	}
	return nil
}

// AddENI attaches a further interface to the running node (hot-plug), in the cloud and as a link.
func (n *Node) AddENI(e ENISpec) error {
	e.complete(n.number - 1)
	if err := n.w.cloud.AddENI(e.eni(n.spec.Instance)); err != nil {
		return err
	}
	if err := n.addLink(e); err != nil {
		return err
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return n.w.reconcile()
}

// DetachENI takes an interface from the running node, in the cloud and as a link. As with a real one, what pods have on it is gone
// with it. Its addresses stay assigned to it. Device 0 cannot be detached.
func (n *Node) DetachENI(index int) error {
	w := n.w
	w.mu.Lock()
	link, ok := n.enis[index]
	pods := slices.Clone(w.pods)
	w.mu.Unlock()
	if !ok || index == 0 {
		return fmt.Errorf("world: node %s: ENI %d cannot be detached", n.Name(), index)
	}
	var errs []error
	for _, p := range pods {
		for _, name := range p.linksOn(link.spec.ID) {
			errs = append(errs, p.Unplug(name))
		}
	}
	errs = append(errs, w.cloud.Detach(link.spec.ID), w.vpc.DelLink(link.port.name))
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(n.enis, index)
	w.ports = slices.DeleteFunc(w.ports, func(o *port) bool { return o == link.port })
	return errors.Join(append(errs, w.reconcile())...)
}

// AttachENI attaches an interface that the cloud has and that is free, such as one that DetachENI took away.
func (n *Node) AttachENI(id string, index int) error {
	eni, ok := n.w.cloud.ENI(id)
	if !ok {
		return fmt.Errorf("world: node %s: there is no interface %s", n.Name(), id)
	}
	if err := n.w.cloud.Attach(id, n.spec.Instance, index); err != nil {
		return err
	}
	err := n.addLink(ENISpec{Index: index, ID: id, MAC: eni.MAC, Subnet: eni.SubnetID, NoSourceDestCheck: eni.SourceDestCheckOff})
	if err != nil {
		return fmt.Errorf("world: node %s: attach %s: %w", n.Name(), id, err)
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return n.w.reconcile()
}

// addLink makes the node's ethN for an interface that the cloud knows.
func (n *Node) addLink(e ENISpec) error {
	guestMAC, err := net.ParseMAC(e.MAC)
	if err != nil {
		return err
	}
	n.w.mu.Lock()
	n.w.groups++
	group := n.w.groups
	n.w.now.noCheck[e.ID] = e.NoSourceDestCheck
	n.w.mu.Unlock()
	name := fmt.Sprintf("eth%d", e.Index)
	p, err := n.w.addPort(port{name: fmt.Sprintf("n%de%d", n.number, e.Index), eni: e.ID, node: n.number,
		device: e.Index, group: group, owner: true}, n.ns, name, guestMAC)
	if err != nil {
		return err
	}
	n.w.mu.Lock()
	n.enis[e.Index] = eniLink{spec: e, group: group, port: p}
	n.w.mu.Unlock()
	for _, six := range []bool{false, true} {
		err := n.ns.AddRule(ns.Rule{Priority: prioNotOurs, IPv6: six, IIf: name, Blackhole: true})
		if err != nil && !errors.Is(err, unix.EEXIST) { // left from before a detachment
			return err
		}
	}
	if e.Index == 0 {
		return n.configure(e, name, p)
	}
	if !e.AddressesOnNode {
		return nil
	}
	return n.addPrimary(e, name)
}

// configure gives the node its addresses and its way into the VPC.
func (n *Node) configure(e ENISpec, name string, p *port) error {
	if err := n.addPrimary(e, name); err != nil {
		return err
	}
	sub, err := n.w.subnet(e.Subnet)
	if err != nil {
		return err
	}
	if err := n.ns.AddNeigh(name, gateway(sub.IPv4), p.mac[:]); err != nil {
		return err
	}
	if err := n.ns.AddRoute(ns.Route{Dst: all4, Via: gateway(sub.IPv4), Link: name}); err != nil {
		return err
	}
	if len(sub.IPv6) == 0 {
		return nil
	}
	return errors.Join(n.ns.AddNeigh(name, router6, p.mac[:]), n.ns.AddRoute(ns.Route{Dst: all6, Via: router6, Link: name}))
}

// addPrimary puts an interface's primary address, and its first IPv6 address, on the node's link.
func (n *Node) addPrimary(e ENISpec, name string) error {
	eni, ok := n.w.cloud.ENI(e.ID)
	sub, err := n.w.subnet(e.Subnet)
	if !ok || err != nil {
		return errors.Join(fmt.Errorf("interface %s is not in the cloud", e.ID), err)
	}
	if err := n.ns.AddAddr(name, netip.PrefixFrom(eni.Primary, sub.IPv4.Bits())); err != nil {
		return err
	}
	if e.Index == 0 {
		n.primary = eni.Primary
	}
	if len(eni.IPv6) == 0 {
		return nil
	}
	if e.Index == 0 {
		n.v6 = eni.IPv6[0]
	}
	return n.ns.AddAddr(name, netip.PrefixFrom(eni.IPv6[0], 64), ns.NoDAD)
}

// addIMDS puts the metadata service one routed hop behind the node: an answer with TTL 1 reaches the node's own processes, and
// is not forwarded to its pods. A second link leads to the router, for pods that come by an extra interface.
func (n *Node) addIMDS() error {
	w := n.w
	if err := w.connect(n.ns, linkIMDS, n.imds, "node"); err != nil {
		return err
	}
	back := fmt.Sprintf("m%d", n.number)
	if err := w.connect(w.vpc, back, n.imds, "vpc"); err != nil {
		return err
	}
	for _, at := range []netip.Addr{imds4, imds6} {
		source := n.primary
		all := all4
		if at.Is6() {
			source, all = n.v6, all6
		}
		steps := []error{
			n.imds.AddAddr("lo", ns.Single(at), ns.NoDAD),
			n.imds.AddRoute(ns.Route{Dst: all, Via: peer(at), Link: "node"}),
			n.ns.AddRoute(ns.Route{Dst: ns.Single(at), Via: peer(at), Link: linkIMDS, Src: source}),
			w.vpc.AddRoute(ns.Route{Dst: ns.Single(at), Via: peer(at), Link: back, Table: tableIMDS + n.number}),
		}
		if err := errors.Join(steps...); err != nil {
			return err
		}
		l, err := n.imds.Listen(w.ctx, "tcp", netip.AddrPortFrom(at, 80).String())
		if err != nil {
			return err
		}
		w.serve("IMDS of "+n.spec.Name, func() error { return w.cloud.ServeIMDS(w.ctx, l, n.spec.Instance) })
	}
	return nil
}
