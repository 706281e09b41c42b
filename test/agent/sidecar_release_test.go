package agent

import (
	"context"
	"encoding/binary"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multus-ip-manager.io/test/aws"
)

// Rule 2: at the end, and only then, an address is given back, if it came with the pod and no one can use it any more.
func TestSidecarRelease(t *testing.T) {
	const own4, own6 = "10.0.4.80", "fd50:0:0:4::80"
	both, none := []string{own4, own6}, []string(nil)
	for name, test := range map[string]struct {
		how      how
		before   func(*lab, *sidecar)
		kill     bool
		released []string
		kept     []string
	}{
		"the pod's end":                {released: both},
		"release is switched off":      {how: how{annotations: map[string]string{"multus-ip-manager.io/release": "false"}}, kept: both},
		"a crash":                      {kill: true, kept: both},
		"the addresses were removed":   {before: func(_ *lab, s *sidecar) { s.removes(dual().Addresses...) }, kept: both},
		"something listens everywhere": {before: func(l *lab, s *sidecar) { l.listens(s, "tcp", ":5060") }, kept: both},
		"something listens on IPv4":    {before: func(l *lab, s *sidecar) { l.listens(s, "tcp4", "0.0.0.0:5060") }, kept: []string{own4}, released: []string{own6}},
		"something listens on one":     {before: func(l *lab, s *sidecar) { l.listens(s, "tcp", "["+own6+"]:5060") }, kept: []string{own6}, released: []string{own4}},
		"something listens elsewhere":  {before: func(l *lab, s *sidecar) { l.listens(s, "tcp", "127.0.0.1:5060") }, released: both},
		"a datagram socket":            {before: func(l *lab, s *sidecar) { l.receives(s, own4+":2152") }, kept: []string{own4}, released: []string{own6}},
		"a connection":                 {before: func(l *lab, s *sidecar) { l.connected(s) }, kept: []string{own4}, released: []string{own6}},
		"a packet socket":              {before: func(l *lab, s *sidecar) { l.sniffs(s) }, kept: both},
		"the addresses went elsewhere": {before: func(l *lab, _ *sidecar) {
			l.assign(l.world.Node("two").ENI(1), own4, own6)
		}, released: none},
		"EC2 is away": {before: func(l *lab, _ *sidecar) {
			l.cloud.Faults().Add(aws.Fault{Kind: aws.FaultHang, Action: "Unassign*"})
		}, kept: both},
		"EC2 is short of breath": {before: func(l *lab, _ *sidecar) {
			l.cloud.Faults().Add(aws.Fault{Kind: aws.FaultThrottle, Action: "Unassign*"})
		}, kept: both},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, nil)
			s := l.sidecar(l.pod(dual()), test.how)
			s.ready()
			s.adds(vips()...)
			l.holds(s.eni("net1"), vip4, vip6)
			if test.before != nil {
				test.before(l, s)
			}
			began := time.Now()
			if test.kill {
				s.crash()
			} else {
				s.stop()
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("took %s to end", took)
			}
			l.nowhere(test.released...)
			l.on("one", 1, test.kept...)
			l.on("one", 1, vip4, vip6) // what floats is never released
			if name == "the addresses went elsewhere" {
				l.on("two", 1, own4, own6)
			}
		})
	}
}

// A restarted agent releases what came with the pod, which Multus's status tells, and nothing else.
func TestRestartedSidecarReleases(t *testing.T) {
	l := start(t, nil)
	s := l.sidecar(l.pod(dual()), how{})
	s.ready()
	s.adds(vips()...)
	l.holds(s.eni("net1"), vip4, vip6)
	s.crash()
	again := l.sidecar(s.pod, how{restarted: true})
	again.ready()
	again.stop()
	l.nowhere("10.0.4.80", "fd50:0:0:4::80")
	l.on("one", 1, vip4, vip6)
}

// It is told to stop while it waits for EC2: it ends soon and leaves nothing half done.
func TestSidecarStopsWhileItWaits(t *testing.T) {
	for name, fault := range map[string]aws.Fault{
		"throttled": {Kind: aws.FaultThrottle, Action: "Assign*"},
		"hanging":   {Kind: aws.FaultHang, Action: "Assign*"},
		"metadata":  {Kind: aws.FaultHang, Action: "IMDS:*"},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, nil)
			f := l.cloud.Faults().Add(fault)
			s := l.sidecar(l.pod(dual()), how{})
			l.until("no fault was met", func(context.Context) error {
				if f.Hits() == 0 {
					return syscall.EAGAIN
				}
				return nil
			})
			began := time.Now()
			s.stop()
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("took %s to end", took)
			}
			l.nowhere("10.0.4.80", "fd50:0:0:4::80")
		})
	}
}

// listens lets something in the pod listen.
func (l *lab) listens(s *sidecar, network, at string) net.Listener {
	l.Helper()
	socket, err := s.pod.NS().Listen(l.Context(), network, at)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = socket.Close() })
	return socket
}

func (l *lab) receives(s *sidecar, at string) {
	l.Helper()
	socket, err := s.pod.NS().ListenPacket(l.Context(), "udp", at)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = socket.Close() })
}

// connected leaves a connection from the pod's address to itself, and nobody who listens.
func (l *lab) connected(s *sidecar) {
	l.Helper()
	server := l.listens(s, "tcp", "10.0.4.80:5060")
	conn, err := s.pod.NS().Dial(l.Context(), "tcp", server.Addr().String())
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = conn.Close() })
	accepted, err := server.Accept()
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = accepted.Close() })
	if err := server.Close(); err != nil {
		l.Fatal(err)
	}
}

// sniffs opens a packet socket in the pod, as user-space protocol stacks do.
func (l *lab) sniffs(s *sidecar) {
	l.Helper()
	err := s.pod.NS().Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(networkOrder(unix.ETH_P_ALL)))
		if err == nil {
			l.Cleanup(func() { _ = unix.Close(fd) })
		}
		return err
	})
	if err != nil {
		l.Fatal(err)
	}
}

func networkOrder(v uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}
