package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// configure puts the IPAM plugin's addresses and routes on the link and waits until all can be used, as the reference plugins do.
// The calling thread is in the pod's network namespace.
func configure(name string, r *result) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	for _, a := range r.IPs {
		if a.Address.Addr().Is6() {
			// Docker's and other runtimes' sandboxes start with IPv6 off.
			_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("0"), 0o600)
		}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(a.Address)}); err != nil {
			return fmt.Errorf("add %s to %s: %w", a.Address, name, err)
		}
	}
	if err := settle(link); err != nil {
		return err
	}
	for _, want := range r.Routes {
		out := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(want.Dst), Scope: netlink.SCOPE_UNIVERSE}
		if gw := gateway(want, r.IPs); gw.IsValid() {
			out.Gw = gw.AsSlice()
		} else {
			out.Scope = netlink.SCOPE_LINK
		}
		// The pod has a default route by eth0: one that leads elsewhere takes its place, as ipvlan's plugin refuses and
		// Multus's default-route does.
		if err := netlink.RouteAdd(out); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add route to %s on %s: %w", want.Dst, name, err)
		}
	}
	return nil
}

// gateway is the route's own, or that of the first address of its family; none where neither has one.
func gateway(r route, ips []address) netip.Addr {
	if r.GW != nil {
		return *r.GW
	}
	for _, a := range ips {
		if a.Gateway != nil && a.Gateway.Is6() == r.Dst.Addr().Is6() {
			return *a.Gateway
		}
	}
	return netip.Addr{}
}

// settle waits for duplicate address detection.
func settle(link netlink.Link) error {
	deadline := time.Now().Add(settled)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		waiting := false
		for _, a := range list {
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				return fmt.Errorf("%s is used by somebody else on the link", a.IPNet)
			}
			waiting = waiting || a.Flags&unix.IFA_F_TENTATIVE != 0
		}
		if !waiting {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: addresses are still tentative after %s", link.Attrs().Name, settled)
		}
		<-tick.C
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
