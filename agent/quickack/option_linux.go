package quickack

import "golang.org/x/sys/unix"

// supported tells whether this system has the option.
const supported = true

// acknowledge sets the option on a socket.
func acknowledge(fd uintptr) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
}
