package observe

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// groups are the kernel's announcements that a [Namespace.Watch] listens to. Listening needs no capability.
	groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR
	// eventBuffer is what the kernel is asked to keep for us, in bytes. It grants at most net.core.rmem_max to a process without
	// capabilities; what does not fit is told as ENOBUFS.
	eventBuffer = 1 << 20
	// datagram is longer than any announcement, in bytes.
	datagram = 32 << 10
)

// events is where a watch hears of changes. It is an interface so that tests can speak through it.
type events interface {
	// receive waits for announcements. They are valid until the next call. None without an error means that something was said
	// which could not be understood. An error means that something may have been missed.
	receive() ([]syscall.NetlinkMessage, error)
	// close ends receive with an error and gives the socket back.
	close()
}

// socket hears the kernel's announcements about one network namespace, for good that of the thread that opened it.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
}

// subscribe opens a socket in the calling thread's network namespace. It announces from now on what changes, not what there is:
// asking a socket that listens for a list needs CAP_NET_ADMIN, so that is asked separately, and afterwards.
func subscribe() (events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// A descriptor that does not block is served by Go's poller: waiting takes no thread, and Close ends it.
	file := os.NewFile(uintptr(fd), "netlink")
	raw, err := file.SyscallConn()
	if err == nil {
		// A smaller buffer than asked for works too, it overflows sooner.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer)
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("subscribe to links and addresses by netlink: %w", err)
	}
	return &socket{file: file, raw: raw, buf: make([]byte, datagram)}, nil
}

func (s *socket) receive() ([]syscall.NetlinkMessage, error) {
	for {
		n, from, err := s.read()
		if err != nil {
			return nil, fmt.Errorf("receive from netlink: %w", err)
		}
		if k, ok := from.(*unix.SockaddrNetlink); !ok || k.Pid != 0 {
			continue // not the kernel's word
		}
		// What cannot be parsed is a change too, and the look that follows tells which.
		msgs, err := syscall.ParseNetlinkMessage(s.buf[:n])
		if err != nil {
			return nil, nil //nolint:nilerr // as the comment says
		}
		return msgs, nil
	}
}

// read waits for one datagram. One that is too long for the buffer counts as empty.
func (s *socket) read() (n int, from unix.Sockaddr, err error) {
	var flags int
	waitErr := s.raw.Read(func(fd uintptr) bool {
		n, _, flags, from, err = unix.Recvmsg(int(fd), s.buf, nil, 0)
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	if waitErr != nil {
		return 0, nil, waitErr
	}
	if flags&unix.MSG_TRUNC != 0 {
		n = 0
	}
	return n, from, err
}

func (s *socket) close() { _ = s.file.Close() }
