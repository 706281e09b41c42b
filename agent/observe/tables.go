package observe

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// States of TCP connections in which no process need hold them (include/net/tcp_states.h), as the tables write them. Without an inode
// they are left to the kernel. In the other states a connection without an inode waits to be accepted.
var orphaned = map[string]bool{
	"04": true, // FIN_WAIT1
	"05": true, // FIN_WAIT2
	"06": true, // TIME_WAIT
	"07": true, // CLOSE
	"09": true, // LAST_ACK
	"0B": true, // CLOSING
}

// inetFields is how many fields of a line in the table of an Internet protocol are known here: up to the inode.
const inetFields = 10

// readInet reads the tables of TCP, UDP, UDP-Lite, raw and ping sockets, which have one form.
func readInet(protocol string) tableReader {
	return func(head []string) (func([]string, *users) error, error) {
		if len(head) < 2 || head[0] != "sl" || head[1] != "local_address" {
			return nil, fmt.Errorf("the head line is %q, not that of a list of sockets", strings.Join(head, " "))
		}
		return func(fields []string, u *users) error {
			if len(fields) < inetFields {
				return fmt.Errorf("%d fields, want at least %d", len(fields), inetFields)
			}
			local, err := parseHexAddrPort(fields[1])
			if err != nil {
				return err
			}
			state, inode := fields[3], fields[9]
			if strings.HasPrefix(protocol, "tcp") && inode == "0" && orphaned[state] {
				return nil
			}
			if strings.HasPrefix(protocol, "raw") {
				// Whatever it is bound to, it can be given other packets, and in IPv4 write any source address.
				u.every(fmt.Sprintf("raw socket %s, protocol %d", local.Addr(), local.Port()))
				return nil
			}
			u.local(local.Addr(), protocol+" "+local.String())
			return nil
		}, nil
	}
}

// readPackets reads the table of packet sockets, which see and send whatever passes the interfaces.
func readPackets(head []string) (func([]string, *users) error, error) {
	if len(head) == 0 || head[0] != "sk" {
		return nil, fmt.Errorf("the head line is %q, not that of a list of packet sockets", strings.Join(head, " "))
	}
	return func(_ []string, u *users) error {
		u.every("packet socket")
		return nil
	}, nil
}

// readSCTP reads the tables of SCTP endpoints and associations. Each line names all local addresses in the column LADDRS; in that of
// associations the peer's follow after an arrow.
func readSCTP(what string) tableReader {
	return func(head []string) (func([]string, *users) error, error) {
		addrs, port := slices.Index(head, "LADDRS"), slices.Index(head, "LPORT")
		if addrs < 0 || port < 0 || port > addrs {
			return nil, fmt.Errorf("the head line is %q, not that of a list of SCTP sockets", strings.Join(head, " "))
		}
		return func(fields []string, u *users) error {
			if len(fields) < addrs {
				return fmt.Errorf("%d fields, want at least %d", len(fields), addrs)
			}
			number, err := strconv.ParseUint(fields[port], 10, 16)
			if err != nil {
				return fmt.Errorf("port: %w", err)
			}
			locals := fields[addrs:]
			if i := slices.Index(locals, "<->"); i >= 0 {
				locals = locals[:i]
			}
			if len(locals) == 0 {
				u.every(fmt.Sprintf("%s port %d", what, number)) // its addresses are not told
			}
			for _, l := range locals {
				a, err := netip.ParseAddr(strings.TrimPrefix(l, "*")) // a star marks the primary one
				if err != nil {
					return err
				}
				u.local(a, what+" "+netip.AddrPortFrom(a, uint16(number)).String())
			}
			return nil
		}, nil
	}
}

// judged are the protocols whose sockets have a table of their own or cannot use an address, by the kernel's names.
var judged = []string{
	"TCP", "TCPv6", "MPTCP", "MPTCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "RAW", "RAWv6", "PING", "PINGv6", "PACKET", "SCTP", "SCTPv6",
	"UNIX", "UNIX-STREAM", "NETLINK", "KEY", "ALG", "AF_VSOCK", "VSOCK", "CAN_RAW", "CAN_BCM", "CAN_ISOTP", "CAN_J1939",
	"HCI", "L2CAP", "RFCOMM", "SCO", "BNEP", "HIDP", "CMTP", "ISO", "NFC", "NFC_LLCP", "QIPCRTR", "PPPOE",
}

// readProtocols reads the numbers of sockets by protocol. Those of a protocol that has no table here (AF_XDP, DCCP, SMC and what may
// come) count as users of every address.
func readProtocols(head []string) (func([]string, *users) error, error) {
	name, number := slices.Index(head, "protocol"), slices.Index(head, "sockets")
	if name != 0 || number < 0 {
		return nil, fmt.Errorf("the head line is %q, not that of a list of protocols", strings.Join(head, " "))
	}
	return func(fields []string, u *users) error {
		if len(fields) <= number {
			return fmt.Errorf("%d fields, want more than %d", len(fields), number)
		}
		sockets, err := strconv.ParseInt(fields[number], 10, 64)
		if err != nil {
			return fmt.Errorf("number of sockets: %w", err)
		}
		if sockets > 0 && !slices.Contains(judged, fields[name]) {
			u.every(fields[name] + " socket")
		}
		return nil
	}, nil
}

// parseHexAddrPort reads "5004000A:13C4": the address is one word of 32 bits or four, each in the machine's byte order, the port is
// a number.
func parseHexAddrPort(s string) (netip.AddrPort, error) {
	text, port, ok := strings.Cut(s, ":")
	if !ok || len(text) != 8 && len(text) != 32 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address and port", s)
	}
	var b []byte
	for ; text != ""; text = text[8:] {
		word, err := strconv.ParseUint(text[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("%q is no address and port: %w", s, err)
		}
		b = binary.NativeEndian.AppendUint32(b, uint32(word))
	}
	number, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is no address and port: %w", s, err)
	}
	addr, _ := netip.AddrFromSlice(b) // 4 or 16 bytes
	return netip.AddrPortFrom(addr.Unmap(), uint16(number)), nil
}
