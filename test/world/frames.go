package world

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// This file reads and writes the few Ethernet frames of address resolution: ARP (RFC 826) and IPv6 neighbour discovery
// (RFC 4861).

const (
	etherHeader = 14
	etherARP    = 0x0806
	etherIPv6   = 0x86dd

	ipv6Header  = 40
	nextICMPv6  = 58
	solicit     = 135
	advertise   = 136
	targetMAC   = 2    // option: target link-layer address
	naFlags     = 0xe0 // from a router, solicited, overriding
	neighbourID = 24   // bytes of a solicitation before its options
)

type mac [6]byte

// question is someone asking for a hardware address.
type question struct {
	from   mac
	sender netip.Addr // unspecified in duplicate address detection
	target netip.Addr
}

// parseQuestion reads an ARP request or a neighbour solicitation; false for anything else.
func parseQuestion(frame []byte) (question, bool) {
	if len(frame) < etherHeader {
		return question{}, false
	}
	q := question{from: mac(frame[6:12])}
	body := frame[etherHeader:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherARP:
		if len(body) < 28 || !bytes.Equal(body[:8], []byte{0, 1, 8, 0, 6, 4, 0, 1}) {
			return question{}, false
		}
		q.sender, q.target = netip.AddrFrom4([4]byte(body[14:18])), netip.AddrFrom4([4]byte(body[24:28]))
	case etherIPv6:
		if len(body) < ipv6Header+neighbourID || body[6] != nextICMPv6 || body[ipv6Header] != solicit {
			return question{}, false
		}
		q.sender = netip.AddrFrom16([16]byte(body[8:24]))
		q.target = netip.AddrFrom16([16]byte(body[ipv6Header+8 : ipv6Header+24]))
	default:
		return question{}, false
	}
	return q, true
}

// answer is the frame that tells q's asker that its target is at own.
func (q question) answer(own mac) []byte {
	frame := make([]byte, 0, etherHeader+ipv6Header+32)
	frame = append(append(frame, q.from[:]...), own[:]...)
	if q.target.Is4() {
		sender, target := q.sender.As4(), q.target.As4()
		frame = append(frame, etherARP>>8, etherARP&0xff, 0, 1, 8, 0, 6, 4, 0, 2)
		frame = append(append(frame, own[:]...), target[:]...)
		return append(append(frame, q.from[:]...), sender[:]...)
	}
	sender, target := q.sender.As16(), q.target.As16()
	frame = append(frame, etherIPv6>>8, etherIPv6&0xff, 0x60, 0, 0, 0, 0, 32, nextICMPv6, 255)
	frame = append(append(frame, target[:]...), sender[:]...)
	frame = append(frame, advertise, 0, 0, 0, naFlags, 0, 0, 0)
	frame = append(append(frame, target[:]...), targetMAC, 1)
	frame = append(frame, own[:]...)
	binary.BigEndian.PutUint16(frame[etherHeader+ipv6Header+2:], icmp6Checksum(frame[etherHeader:]))
	return frame
}

// icmp6Checksum is the checksum of an IPv6 packet whose payload is one ICMPv6 message with a zero checksum (RFC 8200, 8.1).
func icmp6Checksum(packet []byte) uint16 {
	sum := uint32(binary.BigEndian.Uint16(packet[4:])) + nextICMPv6
	for i := 8; i+1 < len(packet); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(packet[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum) // folded to 16 bits above
}
