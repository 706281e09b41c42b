package world

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"
)

// Frames as Linux sends them.
var (
	arpRequest = mustHex("ffffffffffff 060000000101 0806 0001 0800 06 04 0001 060000000101 0a000164 000000000000 0a0001c8")
	arpReply   = mustHex("060000000101 020000000009 0806 0001 0800 06 04 0002 020000000009 0a0001c8 060000000101 0a000164")
	solicited  = mustHex("3333ff000200 060000000101 86dd 60000000 0020 3a ff 20010db8000b00000000000000000100 ff0200000000000000000001ff000200" +
		" 87 00 0000 00000000 20010db8000b00000000000000000200 01 01 060000000101")
)

func mustHex(s string) []byte {
	compact := make([]byte, 0, len(s))
	for i := range len(s) {
		if s[i] != ' ' {
			compact = append(compact, s[i])
		}
	}
	out, err := hex.DecodeString(string(compact))
	if err != nil {
		panic(err)
	}
	return out
}

func TestARP(t *testing.T) {
	q, ok := parseQuestion(arpRequest)
	want := question{from: mac{6, 0, 0, 0, 1, 1}, sender: netip.MustParseAddr("10.0.1.100"), target: netip.MustParseAddr("10.0.1.200")}
	if !ok || q != want {
		t.Fatalf("parsed %+v, %v; want %+v", q, ok, want)
	}
	if got := q.answer(mac{2, 0, 0, 0, 0, 9}); !bytes.Equal(got, arpReply) {
		t.Errorf("answer is %x\n     want %x", got, arpReply)
	}
	if _, ok := parseQuestion(arpReply); ok {
		t.Error("a reply was taken for a question")
	}
}

func TestNeighbourSolicitation(t *testing.T) {
	q, ok := parseQuestion(solicited)
	want := question{from: mac{6, 0, 0, 0, 1, 1}, sender: netip.MustParseAddr("2001:db8:b::100"), target: netip.MustParseAddr("2001:db8:b::200")}
	if !ok || q != want {
		t.Fatalf("parsed %+v, %v; want %+v", q, ok, want)
	}
	frame := q.answer(mac{2, 0, 0, 0, 0, 9})
	wantFrame := mustHex("060000000101 020000000009 86dd 60000000 0020 3a ff 20010db8000b00000000000000000200 20010db8000b00000000000000000100" +
		" 88 00 2ce9 e0000000 20010db8000b00000000000000000200 02 01 020000000009")
	wantFrame[etherHeader+ipv6Header+2], wantFrame[etherHeader+ipv6Header+3] = frame[etherHeader+ipv6Header+2], frame[etherHeader+ipv6Header+3]
	if !bytes.Equal(frame, wantFrame) {
		t.Errorf("answer is %x\n     want %x", frame, wantFrame)
	}
	if sum := icmp6Checksum(frame[etherHeader:]); sum != 0 {
		t.Errorf("the checksum over a message with its checksum is %#x, want 0", sum)
	}
}

func FuzzParseQuestion(f *testing.F) {
	f.Add(arpRequest)
	f.Add(arpReply)
	f.Add(solicited)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, frame []byte) {
		q, ok := parseQuestion(frame)
		if !ok {
			return
		}
		if !q.sender.IsValid() || !q.target.IsValid() || q.sender.Is4() != q.target.Is4() {
			t.Errorf("%x gave %+v", frame, q)
		}
		if _, again := parseQuestion(q.answer(mac{1})); again {
			t.Errorf("the answer to %x is a question", frame)
		}
	})
}
