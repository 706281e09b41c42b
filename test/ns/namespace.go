package ns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The main goroutine keeps the main thread. Go never ends that thread: given to a goroutine that changes namespaces, it would stay
// there for good, and /proc/self, which shows the main thread, would show the wrong namespaces.
func init() { runtime.LockOSThread() }

// Namespace is one network namespace. Its methods may be called from any goroutine. It exists until Close was called and
// every socket, process and link reference in it is gone; it has no name in the file system.
type Namespace struct {
	name string
	file *os.File
	nl   *netlink.Handle

	closeOnce sync.Once
	closeErr  error
}

// New makes an empty network namespace in which lo is up, reverse path filters are off and router advertisements are ignored.
// The name appears in errors only. The process must run inside [Main] or [Reexec], or be root.
func New(name string) (*Namespace, error) {
	n := &Namespace{name: name}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return forbidden(fmt.Errorf("make network namespace: %w", err))
		}
		var err error
		if n.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		return prepare(n.nl)
	})
	if err != nil {
		return nil, errors.Join(n.wrap("create", err), n.Close())
	}
	return n, nil
}

// prepare sets up the namespace of the calling thread.
func prepare(nl *netlink.Handle) error {
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := nl.LinkSetUp(lo); err != nil {
		return err
	}
	// Reverse path filters come from the machine's own setting, which differs between distributions.
	return writeSysctls([]Sysctl{
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv6/conf/all/accept_ra", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"},
	})
}

// Name is the name given to New.
func (n *Namespace) Name() string { return n.name }

// Fd is a descriptor of the namespace, for setns and netlink; it is valid until Close.
func (n *Namespace) Fd() int { return int(n.file.Fd()) }

// Netlink is a route netlink handle inside the namespace, for what this package has no method for. It works from any
// goroutine and is valid until Close.
func (n *Namespace) Netlink() *netlink.Handle { return n.nl }

// Close gives the namespace back. Sockets opened in it stay usable and keep it alive until they are closed.
func (n *Namespace) Close() error {
	n.closeOnce.Do(func() {
		if n.nl != nil {
			n.nl.Close()
		}
		if n.file != nil {
			n.closeErr = n.file.Close()
		}
	})
	return n.closeErr
}

// Do calls f on an operating system thread that is inside the namespace, and throws the thread away afterwards. Sockets that f
// opens itself belong to the namespace for good; goroutines that f starts run outside.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
			return n.wrap("enter", err)
		}
		return f()
	})
}

// wrap adds where and what to err.
func (n *Namespace) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("namespace %s: %s: %w", n.name, what, err)
}

// onThread calls f on a thread of its own. The thread is never given back: a goroutine that ends while it is locked takes its
// thread with it, so that whatever f changed about the thread (namespaces, identity, capabilities) cannot leak.
func onThread(f func() error) error {
	err := errors.New("the function ended its goroutine")
	var panicked any
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { panicked = recover() }()
		runtime.LockOSThread()
		err = f()
	}()
	<-done
	if panicked != nil {
		panic(panicked)
	}
	return err
}
