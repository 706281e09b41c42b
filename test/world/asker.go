package world

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multus-ip-manager.io/test/ns"
)

// asker hears what guests ask on any link of the router and sends the answers. The kernel's own proxies will not do: they need
// an entry per address and also answer duplicate address detection, which would take a floating address from the pod that is
// just claiming it.
type asker struct {
	file *os.File
	done sync.WaitGroup
}

// newAsker listens in n until close. answer gets the index of the link and says what to send back on it, nil for nothing.
func newAsker(n *ns.Namespace, answer func(index int, q question) []byte) (*asker, error) {
	a := &asker{}
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		a.file = os.NewFile(uintptr(fd), "asker") // a descriptor
		program := questionsOnly()
		filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]} // nine
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &filter); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL)})
	})
	if err != nil {
		return nil, errors.Join(err, a.file.Close())
	}
	a.done.Go(func() { a.run(answer) })
	return a, nil
}

// questionsOnly keeps the world's traffic from waking us: ARP, and ICMPv6 neighbour solicitations.
func questionsOnly() []unix.SockFilter {
	const load2, load1, equal, ret = 0x28, 0x30, 0x15, 0x06 // linux/bpf_common.h
	return []unix.SockFilter{
		{Code: load2, K: 12},
		{Code: equal, K: etherARP, Jt: 5},
		{Code: equal, K: etherIPv6, Jf: 5},
		{Code: load1, K: etherHeader + 6},
		{Code: equal, K: nextICMPv6, Jf: 3},
		{Code: load1, K: etherHeader + ipv6Header},
		{Code: equal, K: solicit, Jf: 1},
		{Code: ret, K: 1500},
		{Code: ret, K: 0},
	}
}

func (a *asker) run(answer func(int, question) []byte) {
	raw, err := a.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1500)
	for {
		var size int
		var from unix.Sockaddr
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			size, from, failed = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(failed, unix.EAGAIN)
		})
		if err != nil {
			return // closed
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if failed != nil || !ok || link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		q, ok := parseQuestion(buf[:size])
		if !ok {
			continue
		}
		if frame := answer(link.Ifindex, q); frame != nil {
			// A lost answer is asked for again.
			_ = raw.Control(func(fd uintptr) {
				_ = unix.Sendto(int(fd), frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Ifindex})
			})
		}
	}
}

func (a *asker) close() {
	_ = a.file.Close()
	a.done.Wait()
}

func networkOrder(v uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}

func isNoLink(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none)
}
