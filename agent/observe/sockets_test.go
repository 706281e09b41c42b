package observe

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// Head lines as the kernel writes them.
const (
	headInet      = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     \n"
	headInet6     = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	headUDP       = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops             \n"
	headPacket    = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n"
	headEndpoints = " ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS\n"
	headAssocs    = " ASSOC     SOCK   STY SST ST HBKT ASSOC-ID TX_QUEUE RX_QUEUE UID INODE LPORT RPORT LADDRS <-> RADDRS HBINT INS OUTS MAXRT T1X T2X RTXC wmema wmemq sndbuf rcvbuf\n"
	headProtocols = "protocol  size sockets  memory press maxhdr  slab module     cl co di ac io in de sh ss gs se re bi br ha uh gp em\n"
)

// inet gives a table with one socket in a state, with or without a process, bound to a hexadecimal address and port.
func inet(head, local, state, inode string) string {
	return head + "   0: " + local + " 00000000:0000 " + state + " 00000000:00000000 00:00000000 00000000     0        0 " + inode + " 1 0000000000000000 100 0 0 10 0\n"
}

// quiet is a namespace without a socket, in a kernel without SCTP and UDP-Lite.
func quiet() fstest.MapFS {
	dir := fstest.MapFS{}
	for name, head := range map[string]string{
		"tcp": headInet, "tcp6": headInet6, "udp": headUDP, "udp6": headUDP, "raw": headUDP, "raw6": headUDP, "icmp": headUDP, "icmp6": headUDP,
		"packet": headPacket, "protocols": headProtocols + "TCPv6     2432      0     207   no     192   yes  kernel      y  y\n",
	} {
		dir[name] = &fstest.MapFile{Data: []byte(head)}
	}
	return dir
}

func with(tables map[string]string) fstest.MapFS {
	dir := quiet()
	for name, text := range tables {
		dir[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return dir
}

func TestInUse(t *testing.T) {
	littleEndian(t)
	const (
		four = "10.0.4.80"
		six  = "2001:db8::5"
	)
	const (
		hexFour   = "5004000A"
		hexOther  = "5104000A"
		hexSix    = "B80D0120000000000000000005000000"
		hexMapped = "0000000000000000FFFF00005004000A"
		hexAny6   = "00000000000000000000000000000000"
	)
	tests := map[string]struct {
		tables   map[string]string
		four     string
		six      string
		leaveOut string
	}{
		"nothing":                        {},
		"listens on the address":         {tables: map[string]string{"tcp": inet(headInet, hexFour+":13C4", "0A", "4711")}, four: "tcp 10.0.4.80:5060"},
		"connected from the address":     {tables: map[string]string{"tcp": inet(headInet, hexFour+":13C4", "01", "4711")}, four: "tcp 10.0.4.80:5060"},
		"waits to be accepted":           {tables: map[string]string{"tcp": inet(headInet, hexFour+":13C4", "01", "0")}, four: "tcp 10.0.4.80:5060"},
		"half open":                      {tables: map[string]string{"tcp": inet(headInet, hexFour+":13C4", "03", "0")}, four: "tcp 10.0.4.80:5060"},
		"waits to be accepted, peer end": {tables: map[string]string{"tcp": inet(headInet, hexFour+":13C4", "08", "0")}, four: "tcp 10.0.4.80:5060"},
		"closing, held by a process":     {tables: map[string]string{"tcp": inet(headInet, hexFour+":13C4", "05", "4711")}, four: "tcp 10.0.4.80:5060"},
		"closing, nobody's":              {tables: map[string]string{"tcp": inet(headInet, hexFour+":13C4", "05", "0")}},
		"last acknowledgement, nobody's": {tables: map[string]string{"tcp": inet(headInet, hexFour+":13C4", "09", "0")}},
		"time wait":                      {tables: map[string]string{"tcp": inet(headInet, hexFour+":13C4", "06", "0")}},
		"another address":                {tables: map[string]string{"tcp": inet(headInet, hexOther+":13C4", "0A", "4711")}},
		"wildcard is IPv4's only":        {tables: map[string]string{"tcp": inet(headInet, "00000000:0050", "0A", "4711")}, four: "tcp 0.0.0.0:80"},
		"IPv6 wildcard is for both":      {tables: map[string]string{"tcp6": inet(headInet6, hexAny6+":0050", "0A", "4711")}, four: "tcp6 [::]:80", six: "tcp6 [::]:80"},
		"IPv6 address":                   {tables: map[string]string{"tcp6": inet(headInet6, hexSix+":0050", "0A", "4711")}, six: "tcp6 [2001:db8::5]:80"},
		"IPv6 time wait":                 {tables: map[string]string{"tcp6": inet(headInet6, hexSix+":0050", "06", "0")}},
		"IPv4 by an IPv6 socket":         {tables: map[string]string{"tcp6": inet(headInet6, hexMapped+":0050", "01", "4711")}, four: "tcp6 10.0.4.80:80"},
		"UDP":                            {tables: map[string]string{"udp": inet(headUDP, hexFour+":0868", "07", "4711")}, four: "udp 10.0.4.80:2152"},
		"UDP of the kernel":              {tables: map[string]string{"udp": inet(headUDP, hexFour+":0868", "07", "0")}, four: "udp 10.0.4.80:2152"},
		"UDP wildcard of IPv6":           {tables: map[string]string{"udp6": inet(headUDP, hexAny6+":0868", "07", "4711")}, four: "udp6 [::]:2152", six: "udp6 [::]:2152"},
		"UDP-Lite":                       {tables: map[string]string{"udplite": inet(headUDP, hexFour+":0868", "07", "4711")}, four: "udplite 10.0.4.80:2152"},
		"UDP-Lite of IPv6":               {tables: map[string]string{"udplite6": inet(headUDP, hexSix+":0868", "07", "4711")}, six: "udplite6 [2001:db8::5]:2152"},
		"ping":                           {tables: map[string]string{"icmp": inet(headUDP, hexFour+":0001", "07", "4711")}, four: "icmp 10.0.4.80:1"},
		"ping of IPv6":                   {tables: map[string]string{"icmp6": inet(headUDP, hexSix+":0001", "07", "4711")}, six: "icmp6 [2001:db8::5]:1"},
		"raw, bound to another address":  {tables: map[string]string{"raw": inet(headUDP, hexOther+":0070", "07", "4711")}, four: "raw socket 10.0.4.81, protocol 112", six: "raw socket 10.0.4.81, protocol 112"},
		"raw of IPv6":                    {tables: map[string]string{"raw6": inet(headUDP, hexSix+":003A", "07", "4711")}, four: "raw socket 2001:db8::5, protocol 58", six: "raw socket 2001:db8::5, protocol 58"},
		"packet":                         {tables: map[string]string{"packet": headPacket + "00000000d73c6bd1 3      3    0003   2     1 0      0      18391\n"}, four: "packet socket", six: "packet socket"},
		"SCTP endpoint": {
			tables: map[string]string{"sctp/eps": headEndpoints + "0000000000000000 0000000000000000 2   10  9    36412     0 4711 10.0.4.81 *10.0.4.80 \n"},
			four:   "sctp 10.0.4.80:36412",
		},
		"SCTP endpoint of IPv6": {
			tables: map[string]string{"sctp/eps": headEndpoints + "       0        0 2   10  9    36412     0 4711 2001:0db8:0000:0000:0000:0000:0000:0005 \n"},
			six:    "sctp [2001:db8::5]:36412",
		},
		"SCTP wildcard": {
			tables: map[string]string{"sctp/eps": headEndpoints + "       0        0 2   10  9    36412     0 4711 0.0.0.0 \n"},
			four:   "sctp 0.0.0.0:36412",
		},
		"SCTP endpoint that tells no address": {
			tables: map[string]string{"sctp/eps": headEndpoints + "       0        0 2   10  9    36412     0 4711 \n"},
			four:   "sctp port 36412", six: "sctp port 36412",
		},
		"SCTP association": {
			tables: map[string]string{"sctp/assocs": headAssocs + "       0        0 2   1   3  0       5        0        0       0 4711 2905  30000  10.0.4.81 10.0.4.80 <-> *10.0.9.1 10.0.9.2 \t    7500    17    17   10    0    0        0        1        0   212992   212992\n"},
			four:   "sctp association 10.0.4.80:2905",
		},
		"SCTP association with the address at its other end": {
			tables: map[string]string{"sctp/assocs": headAssocs + "       0        0 2   1   3  0       5        0        0       0 4711 2905  30000  10.0.4.81 <-> *10.0.4.80 \t    7500    17    17   10    0    0        0        1        0   212992   212992\n"},
		},
		"AF_XDP": {
			tables: map[string]string{"protocols": headProtocols + "XDP       1088      1      -1   NI       0   no   kernel      n  n\n"},
			four:   "XDP socket", six: "XDP socket",
		},
		"protocols that are judged by their tables": {
			tables: map[string]string{"protocols": headProtocols + "PACKET    1600      0      -1   NI       0   no   kernel      n  n\nTCP       2304      5     207   no     192   yes  kernel      y  y\nNETLINK   1096      7      -1   NI       0   no   kernel      n  n\n"},
		},
		"kernel without IPv6": {leaveOut: "tcp6"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := with(tt.tables)
			delete(dir, tt.leaveOut)
			want := map[netip.Addr]string{}
			if tt.four != "" {
				want[netip.MustParseAddr(four)] = tt.four
			}
			if tt.six != "" {
				want[netip.MustParseAddr(six)] = tt.six
			}
			got, err := inUse(t.Context(), dir, []netip.Addr{netip.MustParseAddr(four), netip.MustParseAddr(six)})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, addrs); diff != "" {
				t.Errorf("in use (-want +got):\n%s", diff)
			}
		})
	}
}

var addrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// littleEndian skips where the tables' examples, which are of a machine with the low byte first, mean something else.
func littleEndian(t *testing.T) {
	t.Helper()
	if a, err := parseHexAddrPort("5004000A:13C4"); err == nil && a.Addr() == netip.MustParseAddr("80.4.0.10") {
		t.Skip("the examples are tables of a machine with the low byte first")
	}
}

// The answer names an address as it was asked for, and is complete also when several sockets use one.
func TestInUseManyAddresses(t *testing.T) {
	littleEndian(t)
	dir := with(map[string]string{
		"tcp": inet(headInet, "5004000A:13C4", "0A", "1") + strings.TrimPrefix(inet("", "5104000A:13C4", "0A", "2"), "\n") + inet("", "5004000A:13C5", "0A", "3"),
	})
	mapped, four, free := netip.MustParseAddr("::ffff:10.0.4.80"), netip.MustParseAddr("10.0.4.81"), netip.MustParseAddr("10.0.4.82")
	got, err := inUse(t.Context(), dir, []netip.Addr{free, four, mapped, four})
	if err != nil {
		t.Fatal(err)
	}
	want := map[netip.Addr]string{mapped: "tcp 10.0.4.80:5060", four: "tcp 10.0.4.81:5060"}
	if !maps.Equal(want, got) {
		t.Errorf("in use: %v, want %v", got, want)
	}
}

// What cannot be read or understood is an error: on it nothing is released.
func TestInUseInDoubt(t *testing.T) {
	good := inet(headInet, "0100007F:13C4", "0A", "4711")
	tests := map[string]fs.FS{
		"no /proc":                       fstest.MapFS{},
		"no TCP":                         without("tcp"),
		"no UDP":                         without("udp"),
		"empty":                          with(map[string]string{"tcp": ""}),
		"another head":                   with(map[string]string{"tcp6": strings.Replace(good, "local_address", "sl", 1)}),
		"another head, packets":          with(map[string]string{"packet": "Iface\n"}),
		"another head, SCTP":             with(map[string]string{"sctp/eps": headPacket}),
		"another head, protocols":        with(map[string]string{"protocols": headPacket}),
		"line cut off":                   with(map[string]string{"tcp": good[:len(good)-60]}),
		"address too short":              with(map[string]string{"udp": inet(headUDP, "00007F:13C4", "07", "1")}),
		"address of six bytes":           with(map[string]string{"udp": inet(headUDP, "00007F000001:13C4", "07", "1")}),
		"address of other digits":        with(map[string]string{"udp": inet(headUDP, "0000007G:13C4", "07", "1")}),
		"no port":                        with(map[string]string{"raw": inet(headUDP, "0000007F", "07", "1")}),
		"port too long":                  with(map[string]string{"icmp": inet(headUDP, "0000007F:10000", "07", "1")}),
		"SCTP line cut off":              with(map[string]string{"sctp/eps": headEndpoints + "0 0 2 10 9\n"}),
		"SCTP port":                      with(map[string]string{"sctp/eps": headEndpoints + "0 0 2 10 9 x 0 4711 10.0.4.80\n"}),
		"SCTP address":                   with(map[string]string{"sctp/assocs": headAssocs + "0 0 2 1 3 0 5 0 0 0 4711 2905 30000 net1 <-> *10.0.9.1\n"}),
		"protocol without a number":      with(map[string]string{"protocols": headProtocols + "XDP 1088\n"}),
		"protocol with another number":   with(map[string]string{"protocols": headProtocols + "XDP 1088 one\n"}),
		"line longer than any":           with(map[string]string{"tcp": headInet + strings.Repeat("x", 2<<20)}),
		"a directory in place of a file": with(map[string]string{"packet/x": ""}),
	}
	for name, dir := range tests {
		t.Run(name, func(t *testing.T) {
			if m, ok := dir.(fstest.MapFS); ok && m["packet/x"] != nil {
				delete(m, "packet")
			}
			if got, err := inUse(t.Context(), dir, []netip.Addr{netip.MustParseAddr("10.0.4.80")}); err == nil {
				t.Errorf("in use: %v, want an error", got)
			}
		})
	}
}

func without(name string) fstest.MapFS {
	dir := quiet()
	delete(dir, name)
	return dir
}

func TestInUseEndsWithItsContext(t *testing.T) {
	dir := with(map[string]string{"tcp": headInet + strings.Repeat(inet("", "0100007F:13C4", "0A", "4711"), 5000)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := inUse(ctx, dir, []netip.Addr{netip.MustParseAddr("10.0.4.80")}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
}

// Whatever a table holds, reading it ends, and a line that is understood names a socket only for addresses asked for.
func FuzzSocketTables(f *testing.F) {
	f.Add(inet(headInet, "5004000A:13C4", "0A", "4711"))
	f.Add(inet(headInet6, "0000000000000000FFFF00005004000A:13C4", "06", "0"))
	f.Add(headPacket + "00000000d73c6bd1 3      3    0003   2     1 0      0      18391\n")
	f.Add(headEndpoints + "0000000000000000 0000000000000000 2   10  9    36412     0 4711 10.0.4.81 *10.0.4.80 \n")
	f.Add(headAssocs + "0 0 2 1 3 0 5 0 0 0 4711 2905 30000 10.0.4.80 <-> *10.0.9.1\n")
	f.Add(headProtocols + "XDP       1088      1      -1   NI       0   no   kernel      n  n\n")
	four := netip.MustParseAddr("10.0.4.80")
	f.Fuzz(func(t *testing.T, text string) {
		for _, table := range tables {
			u := newUsers([]netip.Addr{four})
			err := readLines(t.Context(), strings.NewReader(text), table.read, u)
			if what, used := u.used[four]; len(u.used) > 1 || used && what == "" || used == u.left() {
				t.Errorf("%s: %q gives %v (%v)", table.file, text, u.used, err)
			}
		}
	})
}

// An address is read as the kernel writes it, whatever the machine's byte order.
func FuzzParseHexAddrPort(f *testing.F) {
	f.Add("5004000A:13C4")
	f.Add("0000000000000000FFFF00005004000A:13C4")
	f.Fuzz(func(t *testing.T, s string) {
		if a, err := parseHexAddrPort(s); err == nil && (!a.IsValid() || a.Addr().Is4In6()) {
			t.Errorf("%q gives %v", s, a)
		}
	})
}
