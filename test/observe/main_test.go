// Package observe tests the agent's view of links, addresses and sockets against the kernel, in network namespaces of its own.
package observe

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"multus-ip-manager.io/agent/observe"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/test/ns"
)

// patience bounds the wait for what must come. Nothing is decided by how long it took.
const patience = 20 * time.Second

// These environment variables make this test binary a process that watches its namespace, or one that tells who uses the addresses
// named.
const (
	watchCommand = "OBSERVE_TEST_WATCH"
	inUseCommand = "OBSERVE_TEST_IN_USE"
)

func TestMain(m *testing.M) {
	if os.Getenv(watchCommand) != "" {
		os.Exit(watchAndTell())
	}
	if address := os.Getenv(inUseCommand); address != "" {
		os.Exit(tellUsers(netip.MustParseAddr(address)))
	}
	ns.Main(m)
}

func tellUsers(address netip.Addr) int {
	used, err := observe.Namespace{}.InUse(context.Background(), []netip.Addr{address})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Print(used[address])
	return 0
}

// told is one line of a process that watches.
type told struct {
	Resync   string
	Snapshot plan.Snapshot
}

// watchAndTell watches until SIGTERM and writes each snapshot and loss as a line of JSON. As a last line it tells what is left of it.
func watchAndTell() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	out := json.NewEncoder(os.Stdout)
	err := observe.Namespace{}.Watch(ctx,
		func(s plan.Snapshot) { _ = out.Encode(told{Snapshot: s}) },
		func(reason string, _ error) { _ = out.Encode(told{Resync: reason}) })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func newNS(t *testing.T, name string) *ns.Namespace {
	t.Helper()
	n, err := ns.New(name)
	must(t, err)
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// pod is a namespace with net1, whose other end is in the fabric.
func pod(t *testing.T) (p, fabric *ns.Namespace) {
	t.Helper()
	p, fabric = newNS(t, "pod"), newNS(t, "fabric")
	must(t, ns.Veth(p, "net1", fabric, "eni1", ns.VethOpts{}))
	return p, fabric
}

// follower collects what a watch delivers.
type follower struct {
	t      *testing.T
	end    func() // the watch
	mu     sync.Mutex
	seen   []plan.Snapshot
	losses []string
	news   chan struct{} // closed and replaced with each delivery
}

func newFollower(t *testing.T) *follower { return &follower{t: t, news: make(chan struct{})} }

func (f *follower) deliver(s plan.Snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, s)
	close(f.news)
	f.news = make(chan struct{})
}

func (f *follower) resync(reason string, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.losses = append(f.losses, reason)
}

// follow watches a namespace from inside this process until the test ends.
func follow(t *testing.T, n *ns.Namespace) *follower {
	t.Helper()
	f := newFollower(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- n.Do(func() error { return observe.Namespace{}.Watch(ctx, f.deliver, f.resync) })
	}()
	f.end = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the watch ended with %v", err)
			}
		case <-time.After(patience):
			t.Error("the watch does not end")
		}
	})
	t.Cleanup(f.end)
	f.wait("first snapshot", func(plan.Snapshot) bool { return true })
	return f
}

// followAsProcess watches a namespace in a process of its own, without any privilege.
func followAsProcess(t *testing.T, n *ns.Namespace) (*follower, *ns.Cmd) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	f := newFollower(t)
	c := n.Command(context.Background(), ns.Opts{Unprivileged: true, Env: append(os.Environ(), watchCommand+"=1"), Stderr: os.Stderr}, self)
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	read := make(chan error, 1)
	go func() { read <- f.read(out) }()
	f.end = sync.OnceFunc(func() {
		_ = c.Signal(syscall.SIGTERM)
		if err := errors.Join(<-read, c.Wait()); err != nil {
			t.Errorf("the process that watches ended with %v", err)
		}
	})
	t.Cleanup(f.end)
	f.wait("first snapshot", func(plan.Snapshot) bool { return true })
	return f, c
}

func (f *follower) read(out io.Reader) error {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var line told
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return err
		}
		if line.Resync != "" {
			f.resync(line.Resync, nil)
		} else {
			f.deliver(line.Snapshot)
		}
	}
	return lines.Err()
}

// wait waits for a snapshot that satisfies a condition, among the last one and those to come.
func (f *follower) wait(what string, condition func(plan.Snapshot) bool) plan.Snapshot {
	f.t.Helper()
	deadline := time.After(patience)
	checked := -1
	for {
		f.mu.Lock()
		if checked < 0 {
			checked = max(0, len(f.seen)-1)
		}
		fresh, news := f.seen[checked:], f.news
		f.mu.Unlock()
		for _, s := range fresh {
			if condition(s) {
				return s
			}
		}
		checked += len(fresh)
		select {
		case <-news:
		case <-deadline:
			f.t.Fatalf("no snapshot with: %s; the last one is\n%s", what, describe(f.last()))
		}
	}
}

func (f *follower) last() plan.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.seen) == 0 {
		return plan.Snapshot{}
	}
	return f.seen[len(f.seen)-1]
}

func (f *follower) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.seen)
}

func (f *follower) lossesTold() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.losses)
}

func describe(s plan.Snapshot) string {
	var b strings.Builder
	for _, l := range s.Links {
		fmt.Fprintf(&b, "%d %s\n", l.Index, l)
	}
	for _, a := range s.Addresses {
		fmt.Fprintf(&b, "%s/%d stamped %d epoch %d\n", a, a.Bits, a.CStamp, a.Epoch)
	}
	return b.String()
}

// find gives the address on the interface, and whether it is there.
func find(s plan.Snapshot, link, address string) (plan.Address, bool) {
	for _, a := range s.Addresses {
		if a.Link.Name == link && a.Addr == netip.MustParseAddr(address) {
			return a, true
		}
	}
	return plan.Address{}, false
}

func has(link, address string) func(plan.Snapshot) bool {
	return func(s plan.Snapshot) bool {
		_, ok := find(s, link, address)
		return ok
	}
}

func not(condition func(plan.Snapshot) bool) func(plan.Snapshot) bool {
	return func(s plan.Snapshot) bool { return !condition(s) }
}

func hasLink(name string) func(plan.Snapshot) bool {
	return func(s plan.Snapshot) bool {
		return slices.ContainsFunc(s.Links, func(l plan.Link) bool { return l.Name == name })
	}
}

// openFiles counts this process's descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

// goroutines names the functions of the package under test that are running.
func goroutines() []string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var found []string
	for _, g := range strings.Split(string(buf), "\n\n") {
		if strings.Contains(g, "agent/observe.") {
			found = append(found, g)
		}
	}
	return found
}

func ipNet(s string) *net.IPNet {
	p := prefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// stopped waits until a process is stopped and gives a function that tells whether the kernel dropped events for it since.
func stopped(t *testing.T, n *ns.Namespace, pid int) (dropped func() bool) {
	t.Helper()
	waitFor(t, "the process to stop", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err == nil && strings.Contains(string(stat), ") T ")
	})
	return func() bool {
		total := 0
		must(t, n.Do(func() error {
			raw, err := os.ReadFile("/proc/thread-self/net/netlink")
			for line := range strings.Lines(string(raw)) {
				// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
				if fields := strings.Fields(line); len(fields) > 8 && fields[3] == "00000111" {
					drops, _ := strconv.Atoi(fields[8])
					total += drops
				}
			}
			return err
		}))
		return total > 0
	}
}
