package world

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"multus-ip-manager.io/test/ns"
)

// Pod is a running pod: a network namespace with eth0 from the VPC CNI and further interfaces from Multus.
type Pod struct {
	w     *World
	spec  PodSpec
	node  *Node
	ns    *ns.Namespace
	watch *addrWatch
	host  string // the node's end of eth0

	// Guarded by the world's mutex.
	networks []Network
	links    []*guestLink
	removed  bool

	once sync.Once
	err  error
}

// guestLink is one extra interface of a pod, and the router's port it is behind. All but port is guarded by the world's mutex: an
// interface may be renamed, and moved to another pod.
type guestLink struct {
	pod  *Pod
	name string
	port *port
	own  bool // the port serves this interface alone
}

// Name is the pod's name.
func (p *Pod) Name() string { return p.spec.Name }

// Namespace is the pod's Kubernetes namespace.
func (p *Pod) Namespace() string { return p.spec.Namespace }

// Node is the node the pod runs on.
func (p *Pod) Node() *Node { return p.node }

// NS is the pod's network namespace. A container of the pod runs there as
// p.NS().Command(ctx, ns.Opts{Unprivileged: true, Env: p.AgentEnv(), Mounts: …}, program).
func (p *Pod) NS() *ns.Namespace { return p.ns }

// IPs are the pod's own addresses (status.podIPs), those of eth0.
func (p *Pod) IPs() []netip.Addr { return slices.Clone(p.spec.Eth0) }

// Networks are the pod's extra interfaces as they were asked for, those plugged later included.
func (p *Pod) Networks() []Network {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return slices.Clone(p.networks)
}

// ENI is the id of the interface that a link of the pod hangs on, "" if there is no such link.
func (p *Pod) ENI(link string) string {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	for _, l := range p.links {
		if l.name == link {
			return l.port.eni
		}
	}
	return ""
}

// AgentEnv is the environment that a process in the pod needs to find this world's EC2: one variable. The metadata service is at
// its usual address and tells the region. Add the downward API's variables for an agent.
func (p *Pod) AgentEnv() []string { return p.w.env() }

func (w *World) env() []string { return []string{"AWS_ENDPOINT_URL_EC2=" + w.EC2Endpoint()} }

// AddPod starts a pod. Its eth0 addresses are assigned to the node's device 0 as the VPC CNI would have done; the addresses of
// its networks are put on the links and assigned to nothing.
func (w *World) AddPod(spec PodSpec) (*Pod, error) { return w.addPod(spec, nil) }

// Adopt is AddPod for a pod whose network namespace exists already, made by a container runtime: it gets its eth0 and the world
// follows its addresses. Networks without addresses are just plugged; whoever configures the pod adds them. The world closes the
// handle when the pod is removed.
func (w *World) Adopt(sandbox *ns.Namespace, spec PodSpec) (*Pod, error) {
	return w.addPod(spec, sandbox)
}

func (w *World) addPod(spec PodSpec, sandbox *ns.Namespace) (*Pod, error) {
	spec.Eth0, spec.Networks = slices.Clone(spec.Eth0), slices.Clone(spec.Networks)
	spec.complete()
	if err := spec.check(w.spec); err != nil {
		return nil, fmt.Errorf("world: %w", err)
	}
	if w.Pod(spec.Namespace, spec.Name) != nil {
		return nil, fmt.Errorf("world: pod %s/%s exists", spec.Namespace, spec.Name)
	}
	p := &Pod{w: w, spec: spec, node: w.Node(spec.Node), ns: sandbox}
	if err := p.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("world: pod %s/%s: %w", spec.Namespace, spec.Name, err), p.Remove())
	}
	return p, nil
}

func (p *Pod) start() error {
	var err error
	if p.ns == nil {
		if p.ns, err = ns.New(p.spec.Name); err != nil {
			return err
		}
	}
	if !p.spec.DAD {
		if err := p.ns.Set(ns.Sysctl{Key: "net/ipv6/conf/all/accept_dad", Value: "0"},
			ns.Sysctl{Key: "net/ipv6/conf/default/accept_dad", Value: "0"}); err != nil {
			return err
		}
	}
	if err := p.chooseEth0(); err != nil {
		return err
	}
	if err := p.addEth0(); err != nil {
		return fmt.Errorf("eth0: %w", err)
	}
	for _, n := range p.spec.Networks {
		if err := p.attach(n); err != nil {
			return err
		}
	}
	if p.watch, err = watchAddrs(p.ns, p.follow); err != nil {
		return err
	}
	return p.refresh()
}

// chooseEth0 takes an address from device 0's pool, or gives device 0 the addresses asked for, and enters the pod in the
// world's list in the same breath, so that no other pod takes them.
func (p *Pod) chooseEth0() error {
	w := p.w
	pool, ok := w.cloud.ENI(p.node.ENI(0))
	if !ok {
		return fmt.Errorf("node %s lost its device 0", p.node.Name())
	}
	w.mu.Lock()
	taken := map[netip.Addr]bool{}
	for _, other := range w.pods {
		for _, a := range other.spec.Eth0 {
			taken[a] = true
		}
	}
	for _, a := range pool.Secondary {
		if len(p.spec.Eth0) == 0 && !taken[a] {
			p.spec.Eth0 = []netip.Addr{a}
		}
	}
	w.pods = append(w.pods, p)
	w.mu.Unlock()
	if len(p.spec.Eth0) == 0 {
		return fmt.Errorf("no free secondary address on device 0 of %s: give it more, or the pod an eth0 address", p.node.Name())
	}
	for _, a := range p.spec.Eth0 {
		if taken[a] {
			return fmt.Errorf("eth0 address %s belongs to another pod", a)
		}
		if h, held := w.cloud.Holder(a); held && h.ENI == pool.ID {
			continue
		}
		if err := w.cloud.Assign(pool.ID, a); err != nil {
			return err
		}
	}
	return nil
}

// addEth0 is what the VPC CNI does: a veth to the node, a /32 address, and a default route by a gateway that is known without
// asking.
func (p *Pod) addEth0() error {
	w := p.w
	w.mu.Lock()
	p.node.pods++
	p.host = fmt.Sprintf("eni%d", p.node.pods)
	w.mu.Unlock()
	if err := w.connect(p.node.ns, p.host, p.ns, "eth0"); err != nil {
		return err
	}
	for _, a := range p.spec.Eth0 {
		all := all4
		if a.Is6() {
			all = all6
		}
		if err := p.ns.AddAddr("eth0", ns.Single(a), ns.NoDAD); err != nil {
			return err
		}
		if err := p.node.ns.AddRoute(ns.Route{Dst: ns.Single(a), Via: peer(a), Link: p.host, Table: tablePods}); err != nil {
			return err
		}
		if p.leaves(all) {
			continue
		}
		if err := p.ns.AddRoute(ns.Route{Dst: all, Via: peer(a), Link: "eth0"}); err != nil {
			return err
		}
	}
	return nil
}

// leaves reports whether the pod's default route of this family goes by an extra interface.
func (p *Pod) leaves(all netip.Prefix) bool {
	return slices.ContainsFunc(p.spec.Networks, func(n Network) bool { return n.DefaultRoute && n.has(all.Addr().Is6()) })
}

// has reports whether the network has an address of the family.
func (n Network) has(six bool) bool {
	return slices.ContainsFunc(n.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() == six })
}

// attach makes one extra interface with its addresses and routes.
func (p *Pod) attach(n Network) error {
	link, e, err := p.plug(n)
	if err == nil {
		p.w.mu.Lock()
		p.links, p.networks = append(p.links, link), append(p.networks, n)
		p.w.mu.Unlock()
		err = p.configure(n, e)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", n.Interface, err)
	}
	return nil
}

// plug makes the interface alone.
func (p *Pod) plug(n Network) (*guestLink, ENISpec, error) {
	w := p.w
	w.mu.Lock()
	eni, ok := p.node.enis[n.ENI]
	w.serial++
	name := fmt.Sprintf("p%d", w.serial)
	w.mu.Unlock()
	if !ok {
		return nil, ENISpec{}, fmt.Errorf("node %s has no ENI with index %d", p.node.Name(), n.ENI)
	}
	link := &guestLink{pod: p, name: n.Interface, port: eni.port}
	if w.ipvlan && n.Kind == IPVlan {
		return link, eni.spec, p.ns.IPVlan(n.Interface, p.node.ns, fmt.Sprintf("eth%d", n.ENI))
	}
	guestMAC, err := net.ParseMAC(eni.spec.MAC)
	if n.Kind == Macvlan {
		guestMAC = w.newMAC()
	}
	if err != nil {
		return nil, ENISpec{}, err
	}
	link.own = true
	link.port, err = w.addPort(port{name: name, eni: eni.spec.ID, node: p.node.number, device: n.ENI, group: eni.group,
		foreign: n.Kind == Macvlan}, p.ns, n.Interface, guestMAC)
	return link, eni.spec, err
}

func (p *Pod) configure(n Network, e ENISpec) error {
	for _, a := range n.Addresses {
		if err := p.ns.AddAddr(n.Interface, a, p.flags()...); err != nil {
			return err
		}
	}
	sub, err := p.w.subnet(e.Subnet)
	if err != nil {
		return err
	}
	routes := slices.Clone(n.Routes)
	for _, all := range []netip.Prefix{all4, all6} {
		if n.DefaultRoute && n.has(all.Addr().Is6()) {
			routes = append(routes, all)
		}
	}
	for _, dst := range routes {
		via := gateway(sub.IPv4)
		if dst.Addr().Is6() {
			via = router6
		}
		if err := p.ns.AddRoute(ns.Route{Dst: dst, Via: via, Link: n.Interface}); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pod) flags() []ns.AddrFlag {
	if p.spec.DAD {
		return nil
	}
	return []ns.AddrFlag{ns.NoDAD}
}

// AddAddr puts an address on one of the pod's links, as an application or keepalived does. When it returns the world has
// followed; an address that somebody else adds in the namespace is noticed within a few milliseconds.
func (p *Pod) AddAddr(link string, a netip.Prefix) error {
	if err := p.ns.AddAddr(link, a, p.flags()...); err != nil {
		return err
	}
	return p.refresh()
}

// DelAddr takes an address from one of the pod's links.
func (p *Pod) DelAddr(link string, a netip.Prefix) error {
	if err := p.ns.DelAddr(link, a); err != nil {
		return err
	}
	return p.refresh()
}

// follow is called when addresses in the pod's namespace may have changed.
func (p *Pod) follow() {
	if err := p.refresh(); err != nil {
		p.w.log.Error("world: the router did not follow a pod's addresses", "pod", p.spec.Namespace+"/"+p.spec.Name, "error", err)
	}
}

// refresh reads the addresses of the pod's links and tells the router.
func (p *Pod) refresh() error {
	w := p.w
	w.mu.Lock() // before the list, so that an older list never comes after a newer one
	defer w.mu.Unlock()
	if p.removed || w.closed {
		return nil
	}
	changed := false
	for _, l := range p.links {
		list, err := p.ns.Addrs(l.name)
		if err != nil && !isNoLink(err) {
			return err
		}
		changed = l.port.update(l, list, &w.serial) || changed
	}
	if !changed {
		return nil
	}
	return w.reconcile()
}

// update replaces the addresses of one guest behind the port and reports whether that changed anything. An address that stays
// keeps its number.
func (p *port) update(g *guestLink, list []netip.Prefix, serial *uint64) bool {
	before, after := p.guests[g], map[netip.Addr]uint64{}
	changed := false
	for _, a := range list {
		if !a.Addr().IsGlobalUnicast() {
			continue
		}
		seen, was := before[a.Addr()]
		if !was {
			*serial++
			seen, changed = *serial, true
		}
		after[a.Addr()] = seen
	}
	if !changed && len(after) == len(before) {
		return false
	}
	p.guests[g] = after
	p.addrs = map[netip.Addr]uint64{}
	for _, guest := range p.guests {
		for a, seen := range guest {
			p.addrs[a] = max(p.addrs[a], seen)
		}
	}
	return true
}

// Remove ends the pod as its deletion does: its links are gone, its addresses stay assigned.
func (p *Pod) Remove() error {
	gone, names, err := p.leave()
	errs := []error{err}
	for _, o := range gone {
		errs = append(errs, unlessGone(p.w.vpc.DelLink(o.name)))
	}
	if p.host != "" {
		errs = append(errs, unlessGone(p.node.ns.DelLink(p.host)))
	}
	if p.ns != nil {
		// The kernel tidies a namespace up some time after it is closed; an ipvlan child would keep its addresses until then, and a
		// pod that comes after this one could not have them.
		for _, name := range names {
			errs = append(errs, unlessGone(p.ns.DelLink(name)))
		}
	}
	return errors.Join(append(errs, p.close())...)
}

// leave takes the pod out of the world's books and returns the ports that served it alone, and the names of its interfaces.
func (p *Pod) leave() (gone []*port, names []string, err error) {
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	p.removed = true
	w.pods = slices.DeleteFunc(w.pods, func(other *Pod) bool { return other == p })
	for _, l := range slices.Clone(p.links) {
		names = append(names, l.name)
		if p.forget(l) {
			gone = append(gone, l.port)
		}
	}
	return gone, names, w.reconcile()
}

// forget takes one interface out of the world's books and reports whether its port served it alone. The caller holds the world's
// mutex.
func (p *Pod) forget(l *guestLink) bool {
	w := p.w
	l.port.update(l, nil, &w.serial)
	delete(l.port.guests, l)
	p.links = slices.DeleteFunc(p.links, func(o *guestLink) bool { return o == l })
	p.networks = slices.DeleteFunc(p.networks, func(n Network) bool { return n.Interface == l.name })
	if l.own {
		w.ports = slices.DeleteFunc(w.ports, func(o *port) bool { return o == l.port })
	}
	return l.own
}

// close gives the pod's namespace back.
func (p *Pod) close() error {
	p.once.Do(func() {
		if p.watch != nil {
			p.watch.close()
		}
		if p.ns != nil {
			p.err = p.ns.Close()
		}
	})
	return p.err
}
