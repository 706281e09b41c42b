package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"

	"multus-ip-manager.io/test/cluster/wire"
	"multus-ip-manager.io/test/ns"
	"multus-ip-manager.io/test/world"
)

// vpcCNI is the CNI plugin's other half: it makes the links in the VPC.
type vpcCNI struct {
	world *world.World

	mu        sync.Mutex
	sandboxes map[string]*world.Pod // by container id
}

// serve answers the plugin of one node until ctx ends.
func (v *vpcCNI) serve(ctx context.Context, node string, l *net.UnixListener) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			v.answer(node, c)
		}()
	}
}

func (v *vpcCNI) answer(node string, c *net.UnixConn) {
	r, sandbox, err := wire.Receive(c)
	if err != nil {
		slog.Error("CNI request", "node", node, "error", err)
		return
	}
	a, err := v.do(node, r, sandbox)
	if err != nil {
		slog.Error("CNI", "node", node, "command", r.Command, "pod", r.Namespace+"/"+r.Pod, "interface", r.Interface, "error", err)
		a.Error = err.Error()
	}
	if err := wire.Reply(c, a); err != nil {
		slog.Warn("CNI answer", "node", node, "error", err)
	}
}

// do owns the file.
func (v *vpcCNI) do(node string, r wire.Request, file *os.File) (wire.Answer, error) {
	switch {
	case r.Command == "ADD" && file == nil:
		return wire.Answer{}, errors.New("the request brings no network namespace")
	case r.Command == "ADD" && r.ENI == 0:
		return v.primary(node, r, file)
	}
	if file != nil {
		_ = file.Close()
	}
	if r.Command == "ADD" {
		return v.extra(r)
	}
	return wire.Answer{}, v.remove(r)
}

// primary gives the pod its eth0.
func (v *vpcCNI) primary(node string, r wire.Request, file *os.File) (wire.Answer, error) {
	sandbox, err := ns.FromFile(r.Pod, file)
	if err != nil {
		return wire.Answer{}, err
	}
	// A pod may have two sandboxes for a moment.
	name := fmt.Sprintf("%s-%.12s", r.Pod, r.Container)
	p, err := v.world.Adopt(sandbox, world.PodSpec{Name: name, Namespace: r.Namespace, Node: node, DAD: true})
	if err != nil {
		return wire.Answer{}, err
	}
	v.mu.Lock()
	v.sandboxes[r.Container] = p
	v.mu.Unlock()
	mac, err := sandbox.MAC(r.Interface)
	if err != nil {
		return wire.Answer{}, err
	}
	a := wire.Answer{MAC: mac.String()}
	for _, ip := range p.IPs() {
		a.Addresses = append(a.Addresses, netip.PrefixFrom(ip, ip.BitLen()))
	}
	return a, nil
}

// extra gives the pod a further interface without addresses.
func (v *vpcCNI) extra(r wire.Request) (wire.Answer, error) {
	p := v.sandbox(r.Container)
	if p == nil {
		return wire.Answer{}, fmt.Errorf("the VPC knows no sandbox %s: its eth0 comes first", r.Container)
	}
	n := world.Network{Interface: r.Interface, ENI: r.ENI}
	if r.Foreign {
		n.Kind = world.Macvlan
	}
	if err := p.Plug(n); err != nil {
		return wire.Answer{}, err
	}
	mac, err := p.NS().MAC(r.Interface)
	if err != nil {
		return wire.Answer{}, err
	}
	return wire.Answer{MAC: mac.String()}, nil
}

// remove may be called for what is gone.
func (v *vpcCNI) remove(r wire.Request) error {
	p := v.sandbox(r.Container)
	if p == nil {
		return nil
	}
	if r.ENI == 0 {
		v.mu.Lock()
		delete(v.sandboxes, r.Container)
		v.mu.Unlock()
		return p.Remove()
	}
	for _, n := range p.Networks() {
		if n.Interface == r.Interface {
			return p.Unplug(r.Interface)
		}
	}
	return nil
}

// forget removes all pods of a node that lost its power.
func (v *vpcCNI) forget(node string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var errs []error
	for id, p := range v.sandboxes {
		if p.Node().Name() == node {
			errs = append(errs, p.Remove())
			delete(v.sandboxes, id)
		}
	}
	return errors.Join(errs...)
}

func (v *vpcCNI) sandbox(container string) *world.Pod {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.sandboxes[container]
}
