package apply

import (
	"context"
	"errors"
	"net/netip"
)

// Unassign takes addresses off the ENI, in one call for each family; where EC2 refuses a batch because one of its addresses is not there
// (any more), it is taken apart. It gives the addresses for which EC2 did not answer so, and why: those may still be on the ENI.
func (a *Applier) Unassign(ctx context.Context, eni string, addrs []netip.Addr) (left []netip.Addr, err error) {
	for _, family := range []struct {
		is   func(netip.Addr) bool
		call func(context.Context, string, []netip.Addr) error
	}{{netip.Addr.Is4, a.EC2.UnassignIPv4}, {netip.Addr.Is6, a.EC2.UnassignIPv6}} {
		var some []netip.Addr
		for _, addr := range addrs {
			if family.is(addr) {
				some = append(some, addr)
			}
		}
		l, e := unassign(ctx, eni, some, family.call)
		left, err = append(left, l...), errors.Join(err, e)
	}
	return left, err
}

func unassign(ctx context.Context, eni string, addrs []netip.Addr, call func(context.Context, string, []netip.Addr) error) (left []netip.Addr, err error) {
	if len(addrs) == 0 {
		return nil, nil
	}
	err = call(ctx, eni, addrs)
	switch class := ClassOf(err); {
	case err == nil, class == Refused && len(addrs) == 1:
		return nil, nil // a single address is refused because it is not there, or can never be taken off
	case class != Refused:
		return addrs, err
	}
	half := len(addrs) / 2
	left, err = unassign(ctx, eni, addrs[:half], call)
	rest, e := unassign(ctx, eni, addrs[half:], call)
	return append(left, rest...), errors.Join(err, e)
}

// Undo takes back what unanswered calls for a claim may have done, when its address has left the interface meanwhile: it is taken off the
// claim's own ENI, and off no other. What the claim took off another ENI, and nobody holds now, goes back there. An error means that it is
// worth another try.
func (a *Applier) Undo(ctx context.Context, c Claim) error {
	if _, err := a.Unassign(ctx, c.ENI, []netip.Addr{c.Addr}); err != nil {
		return err
	}
	if !c.Owed() {
		return nil
	}
	held, err := a.EC2.Holders(ctx, c.Subnet, []netip.Addr{c.Addr})
	if err != nil {
		return err
	}
	if _, somewhere := held[c.Addr]; somewhere {
		return nil
	}
	a.Log.InfoContext(ctx, "giving back an address that was taken off another ENI and has left the pod", "address", c.Addr, "to", c.takenFrom)
	err = a.EC2.AssignIPv6(ctx, c.takenFrom, []netip.Addr{c.Addr})
	if err != nil && !ClassOf(err).Passing() {
		a.Log.WarnContext(ctx, "an address cannot be given back", "address", c.Addr, "to", c.takenFrom, "error", err)
		return nil
	}
	return err
}
