package observe

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multus-ip-manager.io/agent/plan"
)

func TestAdditions(t *testing.T) {
	const (
		add = unix.RTM_NEWADDR
		del = unix.RTM_DELADDR
	)
	type step struct {
		kind  uint16
		index uint32
		addr  string
		stamp uint32
	}
	ours := func(kind uint16) step { return step{kind, 7, "10.0.4.80", 4711} }
	tests := map[string]struct {
		steps []step
		want  uint64 // the epoch of 10.0.4.80 on interface 7, stamped 4711
	}{
		"nothing heard":                        {nil, 0},
		"added":                                {[]step{ours(add)}, 0},
		"added, and its flags changed":         {[]step{ours(add), ours(add)}, 0},
		"removed":                              {[]step{ours(del)}, 0},
		"removed and added":                    {[]step{ours(del), ours(add)}, 1},
		"then its flags changed":               {[]step{ours(del), ours(add), ours(add)}, 1},
		"twice":                                {[]step{ours(del), ours(add), ours(del), ours(add)}, 2},
		"the second return is on its way":      {[]step{ours(del), ours(add), ours(del)}, 1},
		"the stamp tells":                      {[]step{{del, 7, "10.0.4.80", 4710}, ours(add)}, 0},
		"another interface":                    {[]step{{del, 8, "10.0.4.80", 4711}, ours(add)}, 0},
		"another address":                      {[]step{{del, 7, "10.0.4.81", 4711}, ours(add)}, 0},
		"other addresses were told apart":      {[]step{{del, 7, "10.0.4.81", 4711}, {add, 7, "10.0.4.81", 4711}, ours(del), ours(add)}, 2},
		"a link's event with the same content": {[]step{ours(del), {unix.RTM_NEWLINK, 7, "10.0.4.80", 4711}}, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var l additions
			now := time.Now()
			for _, s := range tt.steps {
				l.hear(event(s.kind, s.index, s.addr, s.stamp), now)
			}
			l.hear(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: del}, Data: []byte{1}}, now) // cut off
			addrs := []plan.Address{vip(4711)}
			l.mark(addrs, now)
			if addrs[0].Epoch != tt.want {
				t.Errorf("epoch %d, want %d", addrs[0].Epoch, tt.want)
			}
		})
	}
}

// Where the return was not heard but is seen, it counts; only not at once, because the kernel announces a removal before it is done.
func TestAdditionsSeenButNotHeard(t *testing.T) {
	var l additions
	now := time.Now()
	l.hear(event(unix.RTM_DELADDR, 7, "10.0.4.80", 4711), now)
	for _, tt := range []struct {
		after time.Duration
		want  uint64
	}{{0, 0}, {50 * time.Millisecond, 0}, {time.Second, 1}, {time.Hour, 1}} {
		addrs := []plan.Address{vip(4711)}
		l.mark(addrs, now.Add(tt.after))
		if addrs[0].Epoch != tt.want {
			t.Errorf("epoch %d after %v, want %d", addrs[0].Epoch, tt.after, tt.want)
		}
	}
}

func TestAdditionsAreForgotten(t *testing.T) {
	var l additions
	now := time.Now()
	for i := range 1000 {
		addr := fmt.Sprintf("10.0.%d.%d", i/256, i%256)
		l.hear(event(unix.RTM_DELADDR, 7, addr, 1), now)
		if i%2 == 0 {
			l.hear(event(unix.RTM_NEWADDR, 7, addr, 1), now)
		}
	}
	kept := plan.Address{Addr: netip.MustParseAddr("10.0.0.0"), Link: plan.Link{Index: 7}, CStamp: 1}
	for _, tt := range []struct {
		after time.Duration
		want  int
	}{{time.Second, 1000}, {3 * time.Second, 1}, {time.Hour, 1}} {
		addrs := []plan.Address{kept}
		l.mark(addrs, now.Add(tt.after))
		if len(l.heard) != tt.want {
			t.Errorf("%d additions remembered after %v, want %d", len(l.heard), tt.after, tt.want)
		}
		if addrs[0].Epoch != 1 {
			t.Errorf("the epoch of an address that is there became %d after %v", addrs[0].Epoch, tt.after)
		}
	}
}
