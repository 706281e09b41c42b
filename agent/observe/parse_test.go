package observe

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"multus-ip-manager.io/agent/plan"
)

// attr encodes one route attribute with its padding.
func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value))) //nolint:gosec // test values are short
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func ip(text string) []byte { return netip.MustParseAddr(text).AsSlice() }

func u32(values ...uint32) []byte {
	var b []byte
	for _, v := range values {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

// message encodes one RTM_NEWADDR payload.
func message(family, bits, flags, scope byte, index uint32, attrs ...[]byte) []byte {
	b := append([]byte{family, bits, flags, scope}, u32(index)...)
	for _, a := range attrs {
		b = append(b, a...)
	}
	return b
}

func TestParseAddress(t *testing.T) {
	label := attr(unix.IFA_LABEL, []byte("net1\x00"))
	stamp := attr(unix.IFA_CACHEINFO, u32(0xffffffff, 0xffffffff, 4711, 4712))
	tests := map[string]struct {
		msg   []byte
		want  plan.Address
		index int
	}{
		"IPv4": {
			msg:  message(unix.AF_INET, 24, unix.IFA_F_PERMANENT, 0, 7, attr(unix.IFA_ADDRESS, ip("10.0.4.80")), attr(unix.IFA_LOCAL, ip("10.0.4.80")), label, stamp),
			want: plan.Address{Addr: netip.MustParseAddr("10.0.4.80"), Bits: 24, CStamp: 4711}, index: 7,
		},
		"IPv4 with a peer: the local end is ours": {
			msg:  message(unix.AF_INET, 32, 0, 0, 7, attr(unix.IFA_ADDRESS, ip("10.0.4.1")), attr(unix.IFA_LOCAL, ip("10.0.4.80"))),
			want: plan.Address{Addr: netip.MustParseAddr("10.0.4.80"), Bits: 32}, index: 7,
		},
		"the order of attributes does not matter": {
			msg:  message(unix.AF_INET, 32, 0, 0, 7, stamp, attr(unix.IFA_LOCAL, ip("10.0.4.80")), attr(unix.IFA_ADDRESS, ip("10.0.4.1"))),
			want: plan.Address{Addr: netip.MustParseAddr("10.0.4.80"), Bits: 32, CStamp: 4711}, index: 7,
		},
		"IPv4 secondary is no IPv6 privacy address": {
			msg:  message(unix.AF_INET, 24, unix.IFA_F_SECONDARY|unix.IFA_F_DADFAILED, 0, 7, attr(unix.IFA_LOCAL, ip("10.0.4.81")), attr(unix.IFA_FLAGS, u32(unix.IFA_F_SECONDARY))),
			want: plan.Address{Addr: netip.MustParseAddr("10.0.4.81"), Bits: 24}, index: 7,
		},
		"IPv4 link scope": {
			msg:  message(unix.AF_INET, 24, 0, unix.RT_SCOPE_LINK, 7, attr(unix.IFA_LOCAL, ip("10.0.4.81"))),
			want: plan.Address{Addr: netip.MustParseAddr("10.0.4.81"), Bits: 24, LinkScope: true}, index: 7,
		},
		"IPv4 host scope": {
			msg:  message(unix.AF_INET, 24, 0, unix.RT_SCOPE_HOST, 7, attr(unix.IFA_LOCAL, ip("10.0.4.81"))),
			want: plan.Address{Addr: netip.MustParseAddr("10.0.4.81"), Bits: 24, LinkScope: true}, index: 7,
		},
		"site scope is wide enough": {
			msg:  message(unix.AF_INET, 24, 0, unix.RT_SCOPE_SITE, 7, attr(unix.IFA_LOCAL, ip("10.0.4.81"))),
			want: plan.Address{Addr: netip.MustParseAddr("10.0.4.81"), Bits: 24}, index: 7,
		},
		"IPv6": {
			msg:  message(unix.AF_INET6, 64, unix.IFA_F_PERMANENT, 0, 0x10001, attr(unix.IFA_ADDRESS, ip("2001:db8::5")), stamp, attr(unix.IFA_FLAGS, u32(unix.IFA_F_PERMANENT))),
			want: plan.Address{Addr: netip.MustParseAddr("2001:db8::5"), Bits: 64, CStamp: 4711}, index: 0x10001,
		},
		"IPv6 tentative is wanted": {
			msg:  message(unix.AF_INET6, 64, unix.IFA_F_TENTATIVE, 0, 7, attr(unix.IFA_ADDRESS, ip("2001:db8::5"))),
			want: plan.Address{Addr: netip.MustParseAddr("2001:db8::5"), Bits: 64}, index: 7,
		},
		"IPv6 privacy address": {
			msg:  message(unix.AF_INET6, 64, unix.IFA_F_TEMPORARY, 0, 7, attr(unix.IFA_ADDRESS, ip("2001:db8::5"))),
			want: plan.Address{Addr: netip.MustParseAddr("2001:db8::5"), Bits: 64, Temporary: true}, index: 7,
		},
		"the base of privacy addresses is none itself": {
			msg:  message(unix.AF_INET6, 64, 0, 0, 7, attr(unix.IFA_ADDRESS, ip("2001:db8::5")), attr(unix.IFA_FLAGS, u32(unix.IFA_F_MANAGETEMPADDR))),
			want: plan.Address{Addr: netip.MustParseAddr("2001:db8::5"), Bits: 64}, index: 7,
		},
		"IPv6 duplicate, told by the long flags": {
			msg:  message(unix.AF_INET6, 64, 0, 0, 7, attr(unix.IFA_ADDRESS, ip("2001:db8::5")), attr(unix.IFA_FLAGS, u32(unix.IFA_F_DADFAILED|unix.IFA_F_NOPREFIXROUTE))),
			want: plan.Address{Addr: netip.MustParseAddr("2001:db8::5"), Bits: 64, DADFailed: true}, index: 7,
		},
		"IPv6 duplicate, told by the short flags": {
			msg:  message(unix.AF_INET6, 64, unix.IFA_F_DADFAILED, 0, 7, attr(unix.IFA_ADDRESS, ip("2001:db8::5"))),
			want: plan.Address{Addr: netip.MustParseAddr("2001:db8::5"), Bits: 64, DADFailed: true}, index: 7,
		},
		"IPv6 with a peer": {
			msg:  message(unix.AF_INET6, 128, 0, 0, 7, attr(unix.IFA_LOCAL, ip("2001:db8::5")), attr(unix.IFA_ADDRESS, ip("2001:db8::1"))),
			want: plan.Address{Addr: netip.MustParseAddr("2001:db8::5"), Bits: 128}, index: 7,
		},
		"IPv6 link-local": {
			msg:  message(unix.AF_INET6, 64, 0, unix.RT_SCOPE_LINK, 7, attr(unix.IFA_ADDRESS, ip("fe80::5"))),
			want: plan.Address{Addr: netip.MustParseAddr("fe80::5"), Bits: 64, LinkScope: true}, index: 7,
		},
		"attributes too short for their meaning are left out": {
			msg:  message(unix.AF_INET6, 64, unix.IFA_F_TEMPORARY, 0, 7, attr(unix.IFA_ADDRESS, ip("2001:db8::5")), attr(unix.IFA_FLAGS, []byte{1}), attr(unix.IFA_CACHEINFO, u32(1, 2, 3))),
			want: plan.Address{Addr: netip.MustParseAddr("2001:db8::5"), Bits: 64, Temporary: true}, index: 7,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, index, err := parseAddress(tt.msg)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("address (-want +got):\n%s", diff)
			}
			if index != tt.index {
				t.Errorf("interface %d, want %d", index, tt.index)
			}
		})
	}
}

func TestParseAddressRefusesBrokenMessages(t *testing.T) {
	good := message(unix.AF_INET, 24, 0, 0, 7, attr(unix.IFA_LOCAL, ip("10.0.4.80")))
	tests := map[string][]byte{
		"empty":                       nil,
		"half a header":               good[:5],
		"no attribute":                good[:8],
		"attribute longer than rest":  good[:12],
		"attribute shorter than head": append(append([]byte{}, good[:8]...), 2, 0, 2, 0),
		"address of three bytes":      message(unix.AF_INET, 24, 0, 0, 7, attr(unix.IFA_LOCAL, []byte{10, 0, 4})),
		"no address among attributes": message(unix.AF_INET, 24, 0, 0, 7, attr(unix.IFA_LABEL, []byte("net1\x00"))),
		"last attribute not padded":   append(append([]byte{}, good[:8]...), attr(unix.IFA_LABEL, []byte("x"))[:5]...),
	}
	for name, msg := range tests {
		t.Run(name, func(t *testing.T) {
			if a, index, err := parseAddress(clip(msg)); err == nil {
				t.Errorf("gives %v on %d, want an error", a, index)
			}
		})
	}
}

// clip gives the bytes without spare room behind them, so that reading beyond the end shows.
func clip(b []byte) []byte {
	c := make([]byte, len(b))
	copy(c, b)
	return c[:len(b):len(b)]
}

// The kernel is trusted to send whole messages, but a parser in the start path of every pod must never panic.
func FuzzParseAddress(f *testing.F) {
	f.Add([]byte{})
	f.Add(message(unix.AF_INET, 24, 0, 0, 7, attr(unix.IFA_LOCAL, ip("10.0.4.80")), attr(unix.IFA_LABEL, []byte("net1\x00"))))
	f.Add(message(unix.AF_INET6, 64, 1, 0, 7, attr(unix.IFA_ADDRESS, ip("2001:db8::5")), attr(unix.IFA_FLAGS, u32(0x80)), attr(unix.IFA_CACHEINFO, u32(1, 2, 3, 4))))
	f.Add(message(unix.AF_INET, 24, 0, 0, 7)[:7])
	f.Add(append(message(unix.AF_INET, 24, 0, 0, 7), 5, 0, 3, 0, 'x'))
	f.Fuzz(func(t *testing.T, msg []byte) {
		a, _, err := parseAddress(clip(msg))
		if err == nil && !a.Addr.IsValid() {
			t.Errorf("%x gives an invalid address without an error", msg)
		}
	})
}
