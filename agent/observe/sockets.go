package observe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"
)

// socketTables is where the kernel lists the sockets of the calling thread's network namespace. (/proc/net shows those of the main
// thread's.) Reading needs no capability.
const socketTables = "/proc/thread-self/net"

// tables are the files with sockets that can use an address, with what reads them. Those that every kernel has are always there: where
// they are not, /proc is not what it should be.
var tables = []struct {
	file   string
	read   tableReader
	always bool
}{
	{file: "packet", read: readPackets},
	{file: "raw", read: readInet("raw")}, {file: "raw6", read: readInet("raw6")},
	{file: "tcp", read: readInet("tcp"), always: true}, {file: "tcp6", read: readInet("tcp6")},
	{file: "udp", read: readInet("udp"), always: true}, {file: "udp6", read: readInet("udp6")},
	{file: "udplite", read: readInet("udplite")}, {file: "udplite6", read: readInet("udplite6")},
	{file: "icmp", read: readInet("icmp")}, {file: "icmp6", read: readInet("icmp6")},
	{file: "sctp/eps", read: readSCTP("sctp")}, {file: "sctp/assocs", read: readSCTP("sctp association")},
	{file: "protocols", read: readProtocols},
}

// InUse tells which of the addresses a socket of the network namespace can use, and names one such socket: bound to the address or to
// the wildcard, connected from it, or seeing all packets (raw, packet and others that have no table). A connection that lives on without
// a process (TIME_WAIT, or closed and not yet acknowledged) is none. A socket that was made and never bound is not seen: it has not
// used any address yet.
//
// A protocol that the kernel does not have has no sockets. Any other failure to read is an error, and then nothing is known. The answer is
// true of the moment: the caller looks when everything that could open sockets has had its time to end.
func (Namespace) InUse(ctx context.Context, addrs []netip.Addr) (map[netip.Addr]string, error) {
	return inUse(ctx, os.DirFS(socketTables), addrs)
}

func inUse(ctx context.Context, dir fs.FS, addrs []netip.Addr) (map[netip.Addr]string, error) {
	u := newUsers(addrs)
	for _, t := range tables {
		err := readTable(ctx, dir, t.file, t.read, u)
		if errors.Is(err, fs.ErrNotExist) && !t.always {
			continue // the kernel does not have the protocol
		}
		if err != nil {
			return nil, fmt.Errorf("look for sockets in %s/%s: %w", socketTables, t.file, err)
		}
	}
	return u.used, nil
}

func readTable(ctx context.Context, dir fs.FS, name string, read tableReader, u *users) error {
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	return readLines(ctx, f, read, u)
}

// A tableReader understands a table by its first line. It gives a reader of one further line, split at spaces, which adds the socket to
// u.
type tableReader func(head []string) (line func(fields []string, u *users) error, err error)

// readLines reads a table until its end, or until a user is known for every address.
func readLines(ctx context.Context, r io.Reader, read tableReader, u *users) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), 1<<20) // an SCTP association lists many addresses
	if !lines.Scan() {
		return errors.Join(errors.New("no head line"), lines.Err())
	}
	line, err := read(strings.Fields(lines.Text()))
	if err != nil {
		return err
	}
	for n := 2; u.left() && lines.Scan(); n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			break
		}
		if fields := strings.Fields(lines.Text()); len(fields) > 0 {
			if err := line(fields, u); err != nil {
				return fmt.Errorf("line %d: %w", n, err)
			}
		}
	}
	return errors.Join(ctx.Err(), lines.Err())
}

// users collects who uses the addresses asked for.
type users struct {
	asked map[netip.Addr][]netip.Addr // the address as sockets show it -> as it was asked for
	used  map[netip.Addr]string
}

func newUsers(addrs []netip.Addr) *users {
	u := &users{asked: map[netip.Addr][]netip.Addr{}, used: map[netip.Addr]string{}}
	for _, a := range addrs {
		plain := a.Unmap().WithZone("")
		u.asked[plain] = append(u.asked[plain], a)
	}
	return u
}

// left tells whether there are addresses that nobody is known to use.
func (u *users) left() bool { return len(u.asked) > 0 }

// every notes a socket that can use all addresses.
func (u *users) every(what string) {
	for a := range u.asked {
		u.take(a, what)
	}
}

// local notes a socket with a local address. The IPv6 wildcard stands for IPv4 as well: whether the socket is for IPv6 only is not shown.
func (u *users) local(a netip.Addr, what string) {
	a = a.Unmap().WithZone("")
	switch {
	case a.IsUnspecified() && a.Is6():
		u.every(what)
	case a.IsUnspecified():
		for asked := range u.asked {
			if asked.Is4() {
				u.take(asked, what)
			}
		}
	default:
		u.take(a, what)
	}
}

func (u *users) take(a netip.Addr, what string) {
	for _, as := range u.asked[a] {
		u.used[as] = what
	}
	delete(u.asked, a)
}
