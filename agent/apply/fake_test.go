package apply

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	smithy "github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// apiError is an EC2 answer as the SDK hands it over.
func apiError(code string, status int, message string) error {
	return &smithy.OperationError{ServiceID: "EC2", OperationName: "Assign", Err: &awshttp.ResponseError{
		ResponseError: &smithyhttp.ResponseError{
			Response: &smithyhttp.Response{Response: &http.Response{StatusCode: status, Header: http.Header{}}},
			Err:      &smithy.GenericAPIError{Code: code, Message: message},
		},
		RequestID: "req-1",
	}}
}

// noAnswer is a connection that broke.
func noAnswer() error {
	return &smithy.OperationError{ServiceID: "EC2", OperationName: "Assign", Err: &smithyhttp.RequestSendError{Err: errors.New("connection reset by peer")}}
}

// fakeENI is one network interface of a fake EC2.
type fakeENI struct {
	subnet    string
	unmanaged bool
	device    int
	limit     int // addresses of one family, the primary included; 0 = no limit
	primary   []netip.Addr
	held      map[netip.Addr]bool
}

// fault is one scripted failure of one action.
type fault struct {
	op string
	// err is what the caller gets.
	err error
	// applied: the call took effect, only its answer was lost.
	applied bool
}

// fakeEC2 is an EC2 as small as the applier's view of it: every call takes effect as a whole or not at all.
type fakeEC2 struct {
	t       testing.TB
	enis    map[string]*fakeENI
	journal []string
	faults  []fault
	// bad addresses are refused whatever happens.
	bad map[netip.Addr]bool
	// v6Again is the answer to assigning an IPv6 address where it is already; nil is success.
	v6Again error
	// v4Again refuses an IPv4 address where it is already, unless it may be moved.
	v4Again bool
	// mute leaves the addresses out of the answer of AssignIPv4.
	mute bool
	// stale overrides what a search shows, for the given number of searches.
	stale    map[netip.Addr]string
	staleFor int
	// before runs before each call takes effect, so that others can act in between.
	before func(call string)
}

func newFake(t testing.TB) *fakeEC2 {
	return &fakeEC2{t: t, enis: map[string]*fakeENI{}, bad: map[netip.Addr]bool{}, stale: map[netip.Addr]string{}}
}

// eni adds a network interface of subnet-b with its addresses, the primary one first.
func (f *fakeEC2) eni(id string, primary string, others ...string) *fakeENI {
	e := &fakeENI{subnet: "subnet-b", device: 1, held: map[netip.Addr]bool{}}
	if primary != "" {
		e.primary = addrs(primary)
		e.held[e.primary[0]] = true
	}
	for _, o := range others {
		e.held[netip.MustParseAddr(o)] = true
	}
	f.enis[id] = e
	return e
}

func addrs(texts ...string) []netip.Addr {
	as := make([]netip.Addr, len(texts))
	for i, t := range texts {
		as[i] = netip.MustParseAddr(t)
	}
	return as
}

// holder gives the ENI that truly holds an address.
func (f *fakeEC2) holder(addr netip.Addr) string {
	for _, id := range slices.Sorted(maps.Keys(f.enis)) {
		if f.enis[id].held[addr] {
			return id
		}
	}
	return ""
}

func (f *fakeEC2) begin(op, eni string, as []netip.Addr, more string) (applied bool, err error) {
	call := strings.TrimSpace(fmt.Sprintf("%s %s %s %s", op, eni, strings.ReplaceAll(joinAddrs(as), ", ", ","), more))
	call = strings.Join(strings.Fields(call), " ")
	f.journal = append(f.journal, call)
	if len(as) == 0 && op != "unmanaged" && op != "slots" {
		f.t.Errorf("call without addresses: %s", call)
	}
	if f.before != nil {
		f.before(call)
	}
	for i, x := range f.faults {
		if x.op == op {
			f.faults = slices.Delete(f.faults, i, i+1)
			var made *OpError
			if errors.As(x.err, &made) {
				return x.applied, made // with a class that comes from elsewhere
			}
			return x.applied, newOpError(op, eni, as, x.err)
		}
	}
	return true, nil
}

func (f *fakeEC2) refuse(op, eni string, as []netip.Addr, code, message string) error {
	return newOpError(op, eni, as, apiError(code, http.StatusBadRequest, message))
}

func (f *fakeEC2) assign(op, eni string, as []netip.Addr, reassign bool) error {
	e := f.enis[eni]
	if e == nil {
		return f.refuse(op, eni, as, "InvalidNetworkInterfaceID.NotFound", "does not exist")
	}
	after := 0
	for h := range e.held {
		if h.Is4() == as[0].Is4() {
			after++
		}
	}
	for _, a := range as {
		holder := f.holder(a)
		switch {
		case f.bad[a]:
			return f.refuse(op, eni, as, "InvalidParameterValue", "Address does not fall within the subnet's address range")
		case holder == eni && a.Is4() && f.v4Again && !reassign:
			return f.refuse(op, eni, as, "InvalidParameterValue", "already assigned")
		case holder == eni:
			if a.Is6() && f.v6Again != nil {
				return newOpError(op, eni, as, f.v6Again)
			}
			continue
		case holder != "" && slices.Contains(f.enis[holder].primary, a):
			return f.refuse(op, eni, as, "InvalidParameterValue", "primary addresses cannot be moved")
		case holder != "" && !reassign:
			return f.refuse(op, eni, as, "InvalidParameterValue", "assigned, but move is not allowed.")
		}
		after++
	}
	if e.limit > 0 && after > e.limit {
		return f.refuse(op, eni, as, "PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit.")
	}
	for _, a := range as {
		if h := f.holder(a); h != "" {
			delete(f.enis[h].held, a)
		}
		e.held[a] = true
	}
	return nil
}

func (f *fakeEC2) AssignIPv4(_ context.Context, eni string, as []netip.Addr, reassign bool) ([]netip.Addr, error) {
	more := ""
	if reassign {
		more = "reassign"
	}
	apply, fail := f.begin("assign4", eni, as, more)
	if apply {
		if err := f.assign("assign4", eni, as, reassign); err != nil && fail == nil {
			fail = err
		}
	}
	if fail != nil {
		return nil, fail
	}
	if f.mute {
		return nil, nil
	}
	return slices.Clone(as), nil
}

func (f *fakeEC2) AssignIPv6(_ context.Context, eni string, as []netip.Addr) error {
	apply, fail := f.begin("assign6", eni, as, "")
	if apply {
		if err := f.assign("assign6", eni, as, false); err != nil && fail == nil {
			fail = err
		}
	}
	return fail
}

// UnassignIPv4 is as strict as EC2 is.
func (f *fakeEC2) UnassignIPv4(_ context.Context, eni string, as []netip.Addr) error {
	return f.unassign("unassign4", eni, as)
}

func (f *fakeEC2) UnassignIPv6(_ context.Context, eni string, as []netip.Addr) error {
	return f.unassign("unassign6", eni, as)
}

func (f *fakeEC2) unassign(op, eni string, as []netip.Addr) error {
	for _, a := range as {
		for id, e := range f.enis {
			if slices.Contains(e.primary, a) {
				f.t.Errorf("unassign of %s, a primary address of %s", a, id)
			}
		}
	}
	apply, fail := f.begin(op, eni, as, "")
	if apply {
		e := f.enis[eni]
		for _, a := range as {
			if e == nil || !e.held[a] {
				if fail == nil {
					fail = f.refuse(op, eni, as, "InvalidParameterValue", "is not mapped to interface ID")
				}
				return fail
			}
		}
		for _, a := range as {
			delete(e.held, a)
		}
	}
	return fail
}

func (f *fakeEC2) Holders(_ context.Context, subnet string, as []netip.Addr) (map[netip.Addr]Holder, error) {
	for _, a := range as {
		if a.Is4() != as[0].Is4() {
			f.t.Errorf("a search for both families: %v", as)
		}
	}
	if _, err := f.begin("holders", subnet, as, ""); err != nil {
		return nil, err
	}
	held := map[netip.Addr]Holder{}
	for _, a := range as {
		id := f.holder(a)
		if s, ok := f.stale[a]; ok && f.staleFor > 0 {
			id = s
		}
		if e := f.enis[id]; e != nil && e.subnet == subnet {
			held[a] = Holder{ENI: id, Primary: slices.Contains(e.primary, a), Unmanaged: e.unmanaged, DeviceIndex: e.device}
		}
	}
	f.staleFor--
	return held, nil
}

func (f *fakeEC2) IPv6Slots(_ context.Context, eni string) (int, error) {
	if _, err := f.begin("slots", eni, nil, ""); err != nil {
		return 0, err
	}
	n := 0
	for a := range f.enis[eni].held {
		if a.Is6() {
			n++
		}
	}
	return n, nil
}

func (f *fakeEC2) Unmanaged(_ context.Context, eni string) (bool, error) {
	if _, err := f.begin("unmanaged", eni, nil, ""); err != nil {
		return false, err
	}
	e := f.enis[eni]
	if e == nil {
		return false, f.refuse("unmanaged", eni, nil, "InvalidNetworkInterfaceID.NotFound", "does not exist")
	}
	return e.unmanaged, nil
}

// others tells what is held besides by whom, for a comparison.
func (f *fakeEC2) table() map[string]string {
	t := map[string]string{}
	for id, e := range f.enis {
		for a := range e.held {
			t[a.String()] = id
		}
	}
	return t
}
