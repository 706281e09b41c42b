package world

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"multus-ip-manager.io/test/ns"
)

// newRouter makes a namespace that forwards, believes its addresses at once and sends no redirects.
func newRouter(name string) (*ns.Namespace, error) {
	n, err := ns.New(name)
	if err != nil {
		return nil, err
	}
	err = n.Set(
		ns.Sysctl{Key: "net/ipv4/ip_forward", Value: "1"},
		ns.Sysctl{Key: "net/ipv6/conf/all/forwarding", Value: "1"},
		ns.Sysctl{Key: "net/ipv4/conf/all/send_redirects", Value: "0"},
		ns.Sysctl{Key: "net/ipv4/conf/default/send_redirects", Value: "0"},
		ns.Sysctl{Key: "net/ipv6/conf/all/accept_dad", Value: "0"},
		ns.Sysctl{Key: "net/ipv6/conf/default/accept_dad", Value: "0"},
	)
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// newMAC is a locally administered address that nothing else in the world has.
func (w *World) newMAC() net.HardwareAddr {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.serial++
	s := w.serial
	return net.HardwareAddr{0x02, 0, byte(s >> 24), byte(s >> 16), byte(s >> 8), byte(s)} // its bytes
}

// connect joins two namespaces by a link on which each knows the other as its peer.
func (w *World) connect(a *ns.Namespace, nameA string, b *ns.Namespace, nameB string) error {
	macA, macB := w.newMAC(), w.newMAC()
	if err := ns.Veth(a, nameA, b, nameB, ns.VethOpts{MACA: macA, MACB: macB}); err != nil {
		return err
	}
	return errors.Join(knowPeer(a, nameA, macB), knowPeer(b, nameB, macA))
}

// knowPeer gives a link's other end its place in the neighbour table.
func knowPeer(n *ns.Namespace, link string, mac net.HardwareAddr) error {
	return errors.Join(n.AddNeigh(link, peer4, mac), n.AddNeigh(link, peer6, mac))
}

// addPort adds a link of the router whose other end, name in guest, has the given MAC. The guest's end is not made to know its
// peer: pods and nodes ask, as they do on a real ENI. The result is not in force before the next reconcile.
func (w *World) addPort(p port, guest *ns.Namespace, name string, guestMAC net.HardwareAddr) (*port, error) {
	own := w.newMAC()
	if err := ns.Veth(w.vpc, p.name, guest, name, ns.VethOpts{MACA: own, MACB: guestMAC}); err != nil {
		return nil, err
	}
	if err := knowPeer(w.vpc, p.name, guestMAC); err != nil {
		return nil, err
	}
	index, err := w.vpc.Index(p.name)
	if err != nil {
		return nil, err
	}
	p.index, p.mac = index, mac(own)
	p.guests = map[*guestLink]map[netip.Addr]uint64{}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ports = append(w.ports, &p)
	return &p, nil
}

// reconcile makes the router and the metadata services' ways back what the holdings and the pods' addresses want. The caller
// holds w.mu.
func (w *World) reconcile() error {
	if w.starting || w.closed {
		return nil
	}
	next := vpcTable(w.ports, w.now)
	errs := []error{apply(w.vpc, diff(w.applied, next))}
	w.applied = next
	for _, n := range w.nodes {
		next := imdsTable(n.number, "vpc", w.ports, w.now)
		errs = append(errs, apply(n.imds, diff(n.applied, next)))
		n.applied = next
	}
	return errors.Join(errs...)
}

// apply carries out d in n. What is already gone, for instance with its link, need not be removed.
func apply(n *ns.Namespace, d difference) error {
	var errs []error
	for _, r := range d.setRoutes {
		errs = append(errs, n.ReplaceRoute(r))
	}
	for _, r := range d.addRules {
		errs = append(errs, n.AddRule(r))
	}
	for _, r := range d.delRules {
		errs = append(errs, unlessGone(n.DelRule(r)))
	}
	for _, r := range d.delRoutes {
		errs = append(errs, unlessGone(n.DelRoute(r)))
	}
	return errors.Join(errs...)
}

func unlessGone(err error) error {
	for _, gone := range []error{unix.ESRCH, unix.ENOENT, unix.ENODEV} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	if isNoLink(err) {
		return nil
	}
	return err
}

// answer is called with each question for a hardware address that a guest asks on a link of the router.
func (w *World) answer(index int, q question) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.ports {
		if p.index == index {
			if !answers(p, w.ports, q.sender, q.target) {
				return nil
			}
			return q.answer(p.mac)
		}
	}
	return nil
}

// gateway is the subnet's router, whose address is the second of the block.
func gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

func (w *World) subnet(id string) (SubnetSpec, error) {
	for _, s := range w.spec.Subnets {
		if s.ID == id {
			return s, nil
		}
	}
	return SubnetSpec{}, fmt.Errorf("no subnet %q", id)
}
