package quickack

import (
	"context"
	"net"
	"syscall"
)

// DialFunc opens a connection, as [net.Dialer.DialContext] does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// DialContext calls the function, which so is a dialer.
func (f DialFunc) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return f(ctx, network, address)
}

// Dial gives a function that opens connections as dial does and makes each one a [Conn]. What is no TCP connection, or opened on a system
// without such an option, is left as it is.
func Dial(dial DialFunc) DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		tcp, ok := conn.(*net.TCPConn)
		if err != nil || !ok || !supported {
			return conn, err
		}
		raw, err := tcp.SyscallConn()
		if err != nil {
			return conn, nil //nolint:nilerr // the connection works without the option
		}
		return &Conn{TCPConn: tcp, raw: raw}, nil
	}
}

// Conn is a TCP connection whose every Read asks the kernel to acknowledge at once: what was delayed until then, and what comes next.
// Everything else is the connection's own, its deadlines, half-close and file descriptor among it.
type Conn struct {
	*net.TCPConn
	raw syscall.RawConn
}

// Read implements [net.Conn]. The kernel forgets the wish when data is sent, so it is told each time. That is one short system call beside
// one that waits for the network; that it fails is no failure of the connection.
func (c *Conn) Read(b []byte) (int, error) {
	_ = c.raw.Control(acknowledge)
	return c.TCPConn.Read(b)
}
