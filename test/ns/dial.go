package ns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Listen listens in the namespace; network is tcp, tcp4 or tcp6 (or a unix network), addr a literal address and port.
func (n *Namespace) Listen(ctx context.Context, network, addr string) (net.Listener, error) {
	var out net.Listener
	err := n.Do(func() error {
		var lc net.ListenConfig
		var err error
		out, err = lc.Listen(ctx, network, addr)
		return n.wrap("listen", err)
	})
	return out, err
}

// ListenPacket is Listen for datagram networks.
func (n *Namespace) ListenPacket(ctx context.Context, network, addr string) (net.PacketConn, error) {
	var out net.PacketConn
	err := n.Do(func() error {
		var lc net.ListenConfig
		var err error
		out, err = lc.ListenPacket(ctx, network, addr)
		return n.wrap("listen", err)
	})
	return out, err
}

// Dial connects from the namespace. The address must be a literal address and port: name servers are asked on other threads,
// that is outside. It can be given to an http.Transport as its DialContext.
func (n *Namespace) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(addr); err != nil && network != "unix" {
		return nil, fmt.Errorf("namespace %s: dial %s: want a literal address and port: %w", n.name, addr, err)
	}
	var out net.Conn
	err := n.Do(func() error {
		var d net.Dialer
		var err error
		out, err = d.DialContext(ctx, network, addr)
		return n.wrap("dial", err)
	})
	return out, err
}
