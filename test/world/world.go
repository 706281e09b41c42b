package world

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/ns"
)

// LinkMode says what a pod's interfaces are made of.
type LinkMode int

const (
	// LinksAuto is ipvlan where the kernel has it, else veth; the default.
	LinksAuto LinkMode = iota
	// LinksVeth is veth ends that carry the ENI's MAC.
	LinksVeth
	// LinksIPVlan is real ipvlan children; Start fails where the kernel has none.
	LinksIPVlan
)

// Options changes how a world is run. The zero value is good.
type Options struct {
	Links  LinkMode
	Logger *slog.Logger // default slog.Default(); what goes wrong behind the scenes
	Cloud  []aws.Option // further options of the cloud
}

// World is a running emulated VPC. Its methods may be called from any goroutine.
type World struct {
	cloud  *aws.Cloud
	ipvlan bool
	log    *slog.Logger
	vpc    *ns.Namespace
	aws    *ns.Namespace
	spec   *Spec
	asker  *asker

	cancel  context.CancelFunc
	ctx     context.Context //nolint:containedctx // the lifetime of the world's servers
	servers sync.WaitGroup
	unwatch func()

	mu       sync.Mutex // guards everything below
	starting bool       // Start reconciles once, at its end
	closed   bool
	nodes    []*Node
	pods     []*Pod
	ports    []*port
	now      holdings
	applied  table
	serial   uint64 // of ports, MACs and addresses seen
	groups   int
}

// Start builds a world. It runs until Close is called or ctx ends. The process must run inside ns.Main or ns.Reexec, or be root.
func Start(ctx context.Context, spec *Spec, o Options) (*World, error) {
	full := spec.clone()
	full.complete()
	if err := full.check(); err != nil {
		return nil, fmt.Errorf("world: %w", err)
	}
	w := &World{spec: &full, log: o.Logger, starting: true, applied: newTable(),
		now: holdings{blocks: map[netip.Prefix]string{}, noCheck: map[string]bool{}}}
	if w.log == nil {
		w.log = slog.Default()
	}
	w.ctx, w.cancel = context.WithCancel(ctx)
	if err := w.start(o); err != nil {
		return nil, errors.Join(fmt.Errorf("world: %w", err), w.Close())
	}
	return w, nil
}

func (w *World) start(o Options) error {
	w.ipvlan = o.Links != LinksVeth && ns.IPVlanAvailable()
	if o.Links == LinksIPVlan && !w.ipvlan {
		return errors.New("this kernel has no ipvlan driver (CONFIG_IPVLAN)")
	}
	if err := w.buildCloud(o.Cloud); err != nil {
		return err
	}
	if err := w.buildVPC(); err != nil {
		return err
	}
	for _, n := range w.spec.Nodes {
		if err := w.addNode(n); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	w.unwatch = w.cloud.WatchState(w.changed)
	for _, p := range w.spec.Pods {
		if _, err := w.AddPod(p); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starting = false
	return w.reconcile()
}

// buildCloud makes the state that AWS would have.
func (w *World) buildCloud(opts []aws.Option) error {
	if w.spec.Region != "" {
		opts = append([]aws.Option{aws.WithRegion(w.spec.Region)}, opts...)
	}
	w.cloud = aws.New(opts...)
	if v := w.spec.VPC; v.ID != "" && len(v.IPv4) > 0 {
		if err := w.cloud.AddVPC(aws.VPC{ID: v.ID, IPv4: v.IPv4, IPv6: v.IPv6}); err != nil {
			return err
		}
	}
	for _, s := range w.spec.Subnets {
		if err := w.cloud.AddSubnet(aws.Subnet{ID: s.ID, VPCID: w.spec.VPC.ID, AZ: s.AZ, IPv4: s.IPv4, IPv6: s.IPv6, Tags: s.Tags}); err != nil {
			return err
		}
	}
	for _, n := range w.spec.Nodes {
		if err := w.cloud.AddInstance(n.instance()); err != nil {
			return err
		}
		for _, e := range n.ENIs {
			if err := w.cloud.AddENI(e.eni(n.Instance)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n NodeSpec) instance() aws.Instance {
	return aws.Instance{ID: n.Instance, Type: n.Type, Role: n.Role, HopLimit: n.HopLimit, Tags: n.Tags,
		TokensRequired: n.IMDS == IMDSRequired, IMDSDisabled: n.IMDS == IMDSDisabled}
}

func (e ENISpec) eni(instance string) aws.ENI {
	return aws.ENI{ID: e.ID, MAC: e.MAC, SubnetID: e.Subnet, InstanceID: instance, DeviceIndex: e.Index, Primary: e.Primary,
		Secondary: e.Secondary, IPv6: e.IPv6, Prefixes: e.Prefixes, Tags: e.Tags, Description: e.Description,
		SourceDestCheckOff: e.NoSourceDestCheck}
}

// buildVPC makes the router and the endpoints of EC2 and STS behind it.
func (w *World) buildVPC() error {
	var err error
	if w.vpc, err = newRouter("vpc"); err != nil {
		return err
	}
	for _, all := range []netip.Prefix{all4, all6} {
		// What is assigned to nobody vanishes, as it does in a VPC: no ICMP error, no answer.
		if err := w.vpc.AddRoute(ns.Route{Dst: all, Blackhole: true}); err != nil {
			return err
		}
		if err := w.vpc.AddRule(ns.Rule{Priority: prioAllowed, IPv6: all.Addr().Is6(), Table: tableNothing}); err != nil {
			return err
		}
	}
	if w.asker, err = newAsker(w.vpc, w.answer); err != nil {
		return err
	}
	if w.aws, err = newRouter("aws"); err != nil {
		return err
	}
	if err := w.connect(w.vpc, "aws", w.aws, "vpc"); err != nil {
		return err
	}
	if err := w.aws.AddRoute(ns.Route{Dst: all4, Via: peer4, Link: "vpc"}); err != nil {
		return err
	}
	return errors.Join(w.addEndpoint("EC2", ec2At, w.cloud.EC2()), w.addEndpoint("STS", stsAt, w.cloud.STS()))
}

// addEndpoint serves a part of AWS, reachable from nodes and, by their eth0, from pods.
func (w *World) addEndpoint(name string, at netip.Addr, h http.Handler) error {
	if err := w.aws.AddAddr("lo", ns.Single(at)); err != nil {
		return err
	}
	if err := w.vpc.AddRoute(ns.Route{Dst: ns.Single(at), Via: peer4, Link: "aws"}); err != nil {
		return err
	}
	l, err := w.aws.Listen(w.ctx, "tcp", netip.AddrPortFrom(at, 80).String())
	if err != nil {
		return err
	}
	w.serve(name, func() error { return serveHTTP(w.ctx, l, h) })
	return nil
}

// serve runs a server for as long as the world lives.
func (w *World) serve(name string, f func() error) {
	w.servers.Go(func() {
		if err := f(); err != nil && w.ctx.Err() == nil {
			w.log.Error("world: server ended", "server", name, "error", err)
		}
	})
}

func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	return srv.Serve(l)
}

// Close ends the world: its servers are stopped and all its namespaces given back. Commands that still run in a pod keep the
// pod's namespace until they end.
func (w *World) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	pods, nodes := w.pods, w.nodes
	w.mu.Unlock()

	if w.unwatch != nil {
		w.unwatch()
	}
	w.cancel()
	w.servers.Wait()
	var errs []error
	for _, p := range pods {
		errs = append(errs, p.close())
	}
	for _, n := range nodes {
		errs = append(errs, n.ns.Close(), n.imds.Close())
	}
	if w.asker != nil {
		w.asker.close()
	}
	for _, n := range []*ns.Namespace{w.aws, w.vpc} {
		if n != nil {
			errs = append(errs, n.Close())
		}
	}
	return errors.Join(errs...)
}

// Cloud is the emulated AWS account.
func (w *World) Cloud() *aws.Cloud { return w.cloud }

// Spec is the world's description, completed; it does not change with the world.
func (w *World) Spec() *Spec { return w.spec }

// EC2Endpoint is the URL of the EC2 API, reachable from nodes and, by their eth0, from pods.
func (w *World) EC2Endpoint() string { return "http://" + ec2At.String() }

// STSEndpoint is the URL of the STS API, reachable as EC2 is. Only what is told of it (AWS_ENDPOINT_URL_STS) uses it.
func (w *World) STSEndpoint() string { return "http://" + stsAt.String() }

// IPVlan reports whether the pods' interfaces are real ipvlan links.
func (w *World) IPVlan() bool { return w.ipvlan }

// Node returns a node by name, nil if there is none.
func (w *World) Node(name string) *Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.nodes {
		if n.spec.Name == name {
			return n
		}
	}
	return nil
}

// Nodes are all nodes, in the order of the file.
func (w *World) Nodes() []*Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.nodes)
}

// Pod returns a pod by namespace and name, nil if there is none.
func (w *World) Pod(namespace, name string) *Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.pods {
		if p.spec.Namespace == namespace && p.spec.Name == name {
			return p
		}
	}
	return nil
}

// Pods are all pods, in the order in which they were added.
func (w *World) Pods() []*Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.pods)
}

// SetSourceDestCheck switches the source/destination check of an ENI, in the cloud and in the router.
func (w *World) SetSourceDestCheck(eni string, on bool) error {
	if err := w.cloud.ChangeENI(eni, func(e *aws.ENI) { e.SourceDestCheckOff = !on }); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now.noCheck[eni] = !on
	return w.reconcile()
}

// changed follows the cloud's data plane; EC2's answer leaves only after it returned.
func (w *World) changed(c aws.Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.To == "" {
		delete(w.now.blocks, c.Block)
	} else {
		w.now.blocks[c.Block] = c.To
	}
	if err := w.reconcile(); err != nil {
		w.log.Error("world: the router did not follow", "change", c.String(), "error", err)
	}
}
