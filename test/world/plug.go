package world

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// This file is what can happen to a running pod's interfaces. All of it is done by netlink, so that whoever watches the pod sees what
// it would see in a cluster.

// Plug gives the running pod a further interface (hot-plug), as dynamic networks do; the default name is the next free netN.
func (p *Pod) Plug(n Network) error {
	had := p.Networks()
	spec := p.spec
	spec.Networks = slices.Concat(had, []Network{n})
	spec.complete()
	if err := spec.check(p.w.spec); err != nil {
		return fmt.Errorf("world: %w", err)
	}
	if err := p.attach(spec.Networks[len(had)]); err != nil {
		return fmt.Errorf("world: pod %s/%s: %w", p.spec.Namespace, p.spec.Name, err)
	}
	return p.refresh()
}

// Unplug takes an interface from the running pod.
func (p *Pod) Unplug(name string) error {
	w := p.w
	w.mu.Lock()
	l := p.link(name)
	if l == nil {
		w.mu.Unlock()
		return p.noLink(name)
	}
	p.forget(l)
	err := w.reconcile()
	w.mu.Unlock()
	return errors.Join(err, unlessGone(p.ns.DelLink(name)))
}

// Rename changes the name of one of the pod's interfaces while it is up, as the kernel allows since Linux 6.2. Before that the interface
// goes down and up for it, and gets back what that took from it: IPv6 addresses and routes.
func (p *Pod) Rename(name, to string) error {
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	l := p.link(name)
	if l == nil {
		return p.noLink(name)
	}
	err := p.ns.Rename(name, to)
	if errors.Is(err, unix.EBUSY) {
		err = p.renameDown(name, to)
	}
	if err != nil {
		return err
	}
	for i := range p.networks {
		if p.networks[i].Interface == name {
			p.networks[i].Interface = to
		}
	}
	l.name = to
	return nil
}

// renameDown renames an interface that is up where the kernel allows it only for one that is down.
func (p *Pod) renameDown(name, to string) error {
	l, err := p.ns.Netlink().LinkByName(name)
	if err != nil {
		return err
	}
	addrs, err := p.ns.Addrs(name)
	if err != nil {
		return err
	}
	routes, err := p.ns.Netlink().RouteList(l, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	if err := errors.Join(p.ns.Down(name), p.ns.Rename(name, to), p.ns.Up(to)); err != nil {
		return err
	}
	for _, a := range addrs {
		if a.Addr().Is6() && !a.Addr().IsLinkLocalUnicast() {
			if err := p.ns.AddAddr(to, a, p.flags()...); err != nil {
				return err
			}
		}
	}
	for _, r := range routes {
		if r.Gw == nil {
			continue // the kernel's own came back with the link and the addresses
		}
		if err := p.ns.Netlink().RouteReplace(&r); err != nil {
			return fmt.Errorf("world: put the route %s back: %w", r, err)
		}
	}
	return nil
}

// Move puts one of the pod's interfaces into another pod, which must not have one of that name. The kernel takes all addresses from it.
func (p *Pod) Move(name string, to *Pod) error {
	w := p.w
	w.mu.Lock()
	l := p.link(name)
	if l == nil {
		w.mu.Unlock()
		return p.noLink(name)
	}
	n := p.networks[slices.IndexFunc(p.networks, func(n Network) bool { return n.Interface == name })]
	err := p.ns.MoveLink(name, to.ns)
	if err == nil {
		p.links = slices.DeleteFunc(p.links, func(o *guestLink) bool { return o == l })
		p.networks = slices.DeleteFunc(p.networks, func(o Network) bool { return o.Interface == name })
		l.pod, n.Addresses = to, nil
		to.links, to.networks = append(to.links, l), append(to.networks, n)
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	return errors.Join(to.ns.Up(name), to.refresh())
}

// AddAddrs puts addresses on one of the pod's links one right after the other, which AddAddr does not: the world follows at the end.
func (p *Pod) AddAddrs(link string, addrs ...netip.Prefix) error {
	return p.each(link, addrs, func(l netlink.Link, a netip.Prefix) error { return p.ns.AddAddrTo(l, a, p.flags()...) })
}

// DelAddrs takes addresses from one of the pod's links one right after the other.
func (p *Pod) DelAddrs(link string, addrs ...netip.Prefix) error {
	return p.each(link, addrs, p.ns.DelAddrFrom)
}

// Flap takes an address from one of the pod's links and puts it back, as often as told, as fast as the kernel allows. The address is on
// the link before and after.
func (p *Pod) Flap(link string, a netip.Prefix, times int) error {
	return p.each(link, slices.Repeat([]netip.Prefix{a}, times), func(l netlink.Link, a netip.Prefix) error {
		if err := p.ns.DelAddrFrom(l, a); err != nil {
			return err
		}
		return p.ns.AddAddrTo(l, a, p.flags()...)
	})
}

func (p *Pod) each(name string, addrs []netip.Prefix, do func(netlink.Link, netip.Prefix) error) error {
	l, err := p.ns.Netlink().LinkByName(name)
	if err != nil {
		return fmt.Errorf("%w: %w", p.noLink(name), err)
	}
	for _, a := range addrs {
		if err := do(l, a); err != nil {
			return err
		}
	}
	return p.refresh()
}

// link finds an interface of the pod; the caller holds the world's mutex.
func (p *Pod) link(name string) *guestLink {
	i := slices.IndexFunc(p.links, func(l *guestLink) bool { return l.name == name })
	if i < 0 {
		return nil
	}
	return p.links[i]
}

// linksOn names the pod's interfaces on an ENI.
func (p *Pod) linksOn(eni string) []string {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	var names []string
	for _, l := range p.links {
		if l.port.eni == eni {
			names = append(names, l.name)
		}
	}
	return names
}

func (p *Pod) noLink(name string) error {
	return fmt.Errorf("world: pod %s/%s has no interface %s", p.spec.Namespace, p.spec.Name, name)
}
