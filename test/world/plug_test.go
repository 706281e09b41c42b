package world

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// everywhere routes the whole VPC by a pod's extra interface.
func everywhere() []netip.Prefix { return []netip.Prefix{prefix("10.0.0.0/16")} }

func TestPlugAndUnplug(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	far := addPod(t, w, "node-2", "far", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.200/24")}, Routes: everywhere()})
	must(t, w.Cloud().Assign(far.ENI("net1"), addr("10.0.1.200")))
	one := addPod(t, w, "node-1", "one")
	must(t, one.Plug(Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}, Routes: everywhere()}))
	if mac, err := one.NS().MAC("net1"); err != nil || mac.String() != w.Node("node-1").MAC(1) {
		t.Errorf("net1 has MAC %s, %v; want the ENI's", mac, err)
	}
	if got := len(one.Networks()); got != 1 {
		t.Errorf("%d networks, want 1", got)
	}
	must(t, w.Cloud().Assign(one.ENI("net1"), addr("10.0.1.100")))
	reaches(t, one, "10.0.1.200")
	must(t, one.Unplug("net1"))
	if len(one.Networks()) != 0 || one.ENI("net1") != "" {
		t.Error("the world still has net1")
	}
	doesNotReach(t, far, "10.0.1.100")
	// A pod that comes after it can have the address.
	must(t, one.Plug(Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}, Routes: everywhere()}))
	reaches(t, far, "10.0.1.100")
	if err := one.Unplug("net7"); err == nil {
		t.Error("unplugged what is not there")
	}
}

func TestRenameAndMove(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	far := addPod(t, w, "node-2", "far", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.200/24")}, Routes: everywhere()})
	must(t, w.Cloud().Assign(far.ENI("net1"), addr("10.0.1.200")))
	one := addPod(t, w, "node-1", "one", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}, Routes: everywhere()})
	must(t, w.Cloud().Assign(one.ENI("net1"), addr("10.0.1.100"), addr("10.0.1.101")))
	must(t, one.Rename("net1", "sig0"))
	reaches(t, one, "10.0.1.200")
	must(t, one.AddAddr("sig0", prefix("10.0.1.101/32")))
	reaches(t, far, "10.0.1.101")
	two := addPod(t, w, "node-1", "two")
	must(t, one.Move("sig0", two))
	if list, err := two.NS().Addrs("sig0"); err != nil || slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Addr().Is4() }) {
		t.Errorf("the moved link has %v, %v; want no IPv4 address", list, err)
	}
	must(t, two.AddAddr("sig0", prefix("10.0.1.101/24")))
	reaches(t, far, "10.0.1.101")
	if len(one.Networks()) != 0 || len(two.Networks()) != 1 {
		t.Errorf("networks: %v and %v", one.Networks(), two.Networks())
	}
}

func TestManyAddressesAtOnce(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	one := addPod(t, w, "node-1", "one", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}})
	var many []netip.Prefix
	for i := range 200 {
		many = append(many, prefix(fmt.Sprintf("fd00:1::%x/128", i+1)))
	}
	count := func() int {
		list, err := one.NS().Addrs("net1")
		must(t, err)
		return len(list)
	}
	before := count()
	must(t, one.AddAddrs("net1", many...))
	if got := count() - before; got != len(many) {
		t.Errorf("%d addresses more, want %d", got, len(many))
	}
	must(t, one.DelAddrs("net1", many...))
	if count() != before {
		t.Error("some addresses stayed")
	}
	must(t, one.Flap("net1", prefix("10.0.1.100/24"), 100))
	if count() != before {
		t.Error("the address did not come back")
	}
	if err := one.AddAddrs("net7", many...); err == nil {
		t.Error("added to a link that is not there")
	}
}

func TestDetachAndAttachENI(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	far := addPod(t, w, "node-2", "far", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.200/24")}, Routes: everywhere()})
	must(t, w.Cloud().Assign(far.ENI("net1"), addr("10.0.1.200")))
	one := addPod(t, w, "node-1", "one", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}, Routes: everywhere()})
	node := w.Node("node-1")
	eni := node.ENI(1)
	must(t, w.Cloud().Assign(eni, addr("10.0.1.100")))
	reaches(t, far, "10.0.1.100")
	must(t, node.DetachENI(1))
	if _, err := one.NS().MAC("net1"); err == nil {
		t.Error("the pod kept its interface")
	}
	if node.ENI(1) != "" {
		t.Error("the node kept the ENI")
	}
	doesNotReach(t, far, "10.0.1.100")
	must(t, node.AttachENI(eni, 1))
	must(t, one.Plug(Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}, Routes: everywhere()}))
	reaches(t, far, "10.0.1.100")
	if err := node.DetachENI(0); err == nil {
		t.Error("device 0 was detached")
	}
}
