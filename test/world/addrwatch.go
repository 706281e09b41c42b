package world

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"multus-ip-manager.io/test/ns"
)

// addrWatch tells that addresses in a namespace changed, whoever changed them. It does not say how: the list is the truth, and
// an overflow of the socket is then just one more change.
type addrWatch struct {
	file *os.File
	done sync.WaitGroup
}

// watchAddrs calls changed after each change of n's addresses, until close.
func watchAddrs(n *ns.Namespace, changed func()) (*addrWatch, error) {
	a := &addrWatch{}
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		a.file = os.NewFile(uintptr(fd), "addresses") // a descriptor
		groups := uint32(1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1))
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
	})
	if err != nil {
		return nil, errors.Join(err, a.file.Close())
	}
	a.done.Go(func() { a.run(changed) })
	return a, nil
}

// run calls changed once for everything that is there to read: a pod may change a thousand addresses a second.
func (a *addrWatch) run(changed func()) {
	raw, err := a.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1<<16)
	for {
		err := raw.Read(func(fd uintptr) bool {
			some := false
			for {
				if _, _, err := unix.Recvfrom(int(fd), buf, 0); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
					return some
				}
				some = true
			}
		})
		if err != nil {
			return // closed
		}
		changed()
	}
}

// close ends the watch; changed is not called any more when it returns.
func (a *addrWatch) close() {
	_ = a.file.Close()
	a.done.Wait()
}
