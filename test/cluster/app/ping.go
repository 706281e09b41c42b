package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var errNoAnswer = errors.New("no answer")

// echo is a socket for echo requests to one address. It is the kernel's unprivileged kind (net.ipv4.ping_group_range), so a container
// needs no capability.
type echo struct {
	fd      int
	request byte
}

func dial(to netip.Addr) (*echo, error) {
	domain, protocol, request := unix.AF_INET6, unix.IPPROTO_ICMPV6, byte(128)
	var at unix.Sockaddr = &unix.SockaddrInet6{Addr: to.As16()}
	if to.Is4() {
		domain, protocol, request = unix.AF_INET, unix.IPPROTO_ICMP, 8
		at = &unix.SockaddrInet4{Addr: to.As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("echo socket: %w (net.ipv4.ping_group_range must include this process's group)", err)
	}
	wait := unix.NsecToTimeval(int64(100 * time.Millisecond))
	err = errors.Join(unix.Connect(fd, at), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait))
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &echo{fd: fd, request: request}, nil
}

// send is a refusal of the kernel (no route, no neighbour) or nil.
func (e *echo) send(seq uint16) error {
	message := []byte{e.request, 0, 0, 0, 0, 0, 0, 0, 'e', 'c', 'h', 'o'}
	binary.BigEndian.PutUint16(message[6:], seq)
	_, err := unix.Write(e.fd, message)
	return err
}

// receive waits for at most 100 ms.
func (e *echo) receive() (seq uint16, ok bool) {
	buf := make([]byte, 64)
	n, err := unix.Read(e.fd, buf)
	if err != nil || n < 8 {
		return 0, false
	}
	return binary.BigEndian.Uint16(buf[6:]), true
}

func (e *echo) close() { _ = unix.Close(e.fd) }

// ping sends until one request is answered.
func ping(ctx context.Context, to netip.Addr, timeout time.Duration) error {
	e, err := dial(to)
	if err != nil {
		return err
	}
	defer e.close()
	deadline := time.Now().Add(timeout)
	for seq := uint16(1); time.Now().Before(deadline) && ctx.Err() == nil; seq++ {
		if err := e.send(seq); err != nil {
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		if _, ok := e.receive(); ok {
			return nil
		}
	}
	return errNoAnswer
}

// streamed is what became of a stream of echo requests.
type streamed struct {
	Sent     int           `json:"sent"`
	Answered int           `json:"answered"`
	Gap      time.Duration `json:"gap"` // the longest time without a request that was answered
}

// stream sends one request at each interval and waits a second for the last answers.
func stream(ctx context.Context, to netip.Addr, during, every time.Duration) (streamed, error) {
	e, err := dial(to)
	if err != nil {
		return streamed{}, err
	}
	answered := map[uint16]bool{}
	var listener sync.WaitGroup
	done := make(chan struct{})
	listener.Go(func() {
		for {
			if seq, ok := e.receive(); ok {
				answered[seq] = true
				continue
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	var out streamed
	tick := time.NewTicker(every)
	defer tick.Stop()
	for end := time.Now().Add(during); time.Now().Before(end) && ctx.Err() == nil; out.Sent++ {
		_ = e.send(uint16(out.Sent)) //nolint:gosec // wraps after ten minutes at 100 a second
		<-tick.C
	}
	<-time.After(time.Second)
	close(done)
	listener.Wait()
	e.close()
	missing := 0
	for seq := range out.Sent {
		if answered[uint16(seq)] { //nolint:gosec // as above
			out.Answered++
			missing = 0
			continue
		}
		missing++
		out.Gap = max(out.Gap, time.Duration(missing)*every)
	}
	return out, nil
}
