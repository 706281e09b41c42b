package aws

import (
	"fmt"
	"net"
	"syscall"
)

// defaultTTL tells the kernel to use the system's default.
const defaultTTL = -1

// setTTL sets the TTL and IPv6 hop limit of what a TCP connection sends from now on.
func setTTL(conn syscall.Conn, ttl int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	v6 := false
	if c, ok := conn.(net.Conn); ok {
		if a, ok := c.LocalAddr().(*net.TCPAddr); ok {
			v6 = a.IP.To4() == nil
		}
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if v6 {
			failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_UNICAST_HOPS, ttl)
			return
		}
		// Works on an IPv6 socket with an IPv4-mapped peer, too.
		failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_TTL, ttl)
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("set TTL %d: %w", ttl, err)
	}
	return nil
}
