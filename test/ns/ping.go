package ns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoAnswer is wrapped by Ping's error when no echo reply came in time.
var ErrNoAnswer = errors.New("no answer")

// PingOption changes one Ping.
type PingOption func(*ping)

// From sends the echo requests from this address, which must be one of the namespace's.
func From(source netip.Addr) PingOption { return func(p *ping) { p.source = source } }

// Via sends and receives by this link only.
func Via(link string) PingOption { return func(p *ping) { p.link = link } }

// Every sets the pause between echo requests; default 100 ms.
func Every(d time.Duration) PingOption { return func(p *ping) { p.every = d } }

// TTL sets the time to live (hop limit) of the echo requests; default is the kernel's.
func TTL(hops int) PingOption { return func(p *ping) { p.ttl = hops } }

type ping struct {
	dst, source netip.Addr
	link        string
	every       time.Duration
	ttl         int
	token       uint64 // tells our answers from everyone else's
}

// Ping sends ICMP or ICMPv6 echo requests to dst until one is answered, timeout has passed or ctx is done. Its error wraps
// [ErrNoAnswer], and the last refusal of the kernel (no route, no such host) if there was one.
func (n *Namespace) Ping(ctx context.Context, dst netip.Addr, timeout time.Duration, opts ...PingOption) error {
	p := &ping{dst: dst.Unmap(), every: 100 * time.Millisecond, token: rand.Uint64()} //nolint:gosec // not a secret
	for _, o := range opts {
		o(p)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := p.open(ctx, n)
	if err != nil {
		return n.wrap(fmt.Sprintf("ping %s", dst), err)
	}
	defer func() { _ = conn.Close() }()
	started := time.Now()
	if err := p.run(ctx, conn); err != nil {
		return n.wrap(fmt.Sprintf("ping %s", dst), fmt.Errorf("%w after %s", err, time.Since(started).Round(time.Millisecond)))
	}
	return nil
}

// open makes the raw socket.
func (p *ping) open(ctx context.Context, n *Namespace) (net.PacketConn, error) {
	network, local := "ip4:icmp", "0.0.0.0"
	if p.dst.Is6() {
		network, local = "ip6:ipv6-icmp", "::"
	}
	if p.source.IsValid() {
		local = p.source.String()
	}
	lc := net.ListenConfig{Control: p.control}
	var conn net.PacketConn
	err := n.Do(func() error {
		var err error
		conn, err = lc.ListenPacket(ctx, network, local)
		return err
	})
	return conn, err
}

func (p *ping) control(_, _ string, raw syscall.RawConn) error {
	var err error
	ctrlErr := raw.Control(func(fd uintptr) {
		if p.link != "" {
			err = unix.BindToDevice(int(fd), p.link)
		}
		if err == nil && p.ttl > 0 {
			if p.dst.Is4() {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, p.ttl)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, p.ttl)
			}
		}
	})
	return errors.Join(ctrlErr, err)
}

func (p *ping) run(ctx context.Context, conn net.PacketConn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var refused error
	for seq := uint16(1); ctx.Err() == nil; seq++ {
		if _, err := conn.WriteTo(p.request(seq), &net.IPAddr{IP: p.dst.AsSlice()}); err != nil {
			refused = err
		}
		if err := p.await(ctx, conn); !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	if cause := context.Cause(ctx); errors.Is(cause, context.Canceled) {
		return cause
	}
	if refused != nil {
		return fmt.Errorf("%w: %w", ErrNoAnswer, refused)
	}
	return ErrNoAnswer
}

// await reads until our answer comes or it is time for the next request.
func (p *ping) await(ctx context.Context, conn net.PacketConn) error {
	if err := conn.SetReadDeadline(time.Now().Add(p.every)); err != nil {
		return err
	}
	if ctx.Err() != nil { // the AfterFunc's deadline may just have been overwritten
		return os.ErrDeadlineExceeded
	}
	buf := make([]byte, 1500)
	for {
		size, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		if ip, ok := from.(*net.IPAddr); ok && p.isReply(ip.IP, buf[:size]) {
			return nil
		}
	}
}

// ICMP message types (RFC 792, RFC 4443).
const (
	echoReply4, echoRequest4 = 0, 8
	echoRequest6, echoReply6 = 128, 129
	echoHeader               = 8
)

// request is one echo request: identifier and payload are the token.
func (p *ping) request(seq uint16) []byte {
	b := make([]byte, echoHeader, echoHeader+8)
	b[0] = echoRequest6                                // its checksum is the kernel's work
	binary.BigEndian.PutUint16(b[4:], uint16(p.token)) // the low bits are meant
	binary.BigEndian.PutUint16(b[6:], seq)
	b = binary.BigEndian.AppendUint64(b, p.token)
	if p.dst.Is4() {
		b[0] = echoRequest4
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

// isReply reports whether b, which came from from, answers one of our requests.
func (p *ping) isReply(from net.IP, b []byte) bool {
	want := byte(echoReply4)
	if p.dst.Is6() {
		want = echoReply6
	}
	addr, ok := netip.AddrFromSlice(from)
	return ok && addr.Unmap() == p.dst.WithZone("") && len(b) >= echoHeader+8 && b[0] == want &&
		binary.BigEndian.Uint64(b[echoHeader:]) == p.token
}

// checksum is the Internet checksum of b (RFC 1071); b's length is even.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum) // folded to 16 bits above
}
