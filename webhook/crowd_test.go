package main

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// crowd opens a door for two connections.
func crowd(t *testing.T, goOn chan struct{}) *door {
	t.Helper()
	d := openDoor(t, goOn, newDrain(0))
	d.until(t, "nobody is there", func() bool { // the look whether it listens has gone
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.open == 0
	})
	d.mu.Lock()
	d.most, d.linger = 2, 50*time.Millisecond
	d.mu.Unlock()
	return d
}

// Where there are too many connections, the one that nothing was asked on for longest goes, and is told so.
func TestCrowd(t *testing.T) {
	d := crowd(t, nil)
	first, second := d.connect(t), d.connect(t)
	for _, conn := range []net.Conn{first, second} {
		if err := post(conn, 2, 2); err != nil {
			t.Fatal(err)
		}
		if answer, err := readUntil(conn, "aa"); err != nil {
			t.Fatalf("%q, %v", answer, err)
		}
		// The client has the answer a moment before the server holds the connection for idle.
		d.until(t, "it is idle", func() bool { return d.isIdle(conn) })
	}
	third := d.connect(t)
	if status, _ := answerOn(t, first); status != http.StatusServiceUnavailable {
		t.Errorf("%d", status)
	}
	for name, conn := range map[string]net.Conn{"the second": second, "the third": third} {
		if err := post(conn, 3, 3); err != nil {
			t.Fatal(err)
		}
		if answer, err := readUntil(conn, "aaa"); err != nil {
			t.Errorf("%s: %q, %v", name, answer, err)
		}
	}
}

// Where all others are being answered, it is the newcomer.
func TestCrowdAtWork(t *testing.T) {
	goOn := make(chan struct{})
	d := crowd(t, goOn)
	busy := []net.Conn{d.connect(t), d.connect(t)}
	for _, conn := range busy {
		if err := post(conn, 2, 2); err != nil {
			t.Fatal(err)
		}
	}
	d.until(t, "both are asked on", func() bool { return !d.waiting() })
	if conn, err := tls.Dial("tcp", *d.address.Load(), &tls.Config{InsecureSkipVerify: true}); err == nil { //nolint:gosec // the certificate is not what is tested
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the newcomer stays: %v", err)
		}
		_ = conn.Close()
	}
	close(goOn)
	for _, conn := range busy {
		if answer, err := readUntil(conn, "aa"); err != nil {
			t.Errorf("%q, %v", answer, err)
		}
	}
}
