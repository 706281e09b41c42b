package wire

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// serve answers one request with f.
func serve(t *testing.T, f func(Request, *os.File) Answer) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "vpc.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		r, file, err := Receive(c)
		if err != nil {
			_ = Reply(c, Answer{Error: err.Error()})
			return
		}
		_ = Reply(c, f(r, file))
		if file != nil {
			_ = file.Close()
		}
	}()
	return socket
}

func TestARequestArrivesWithItsFile(t *testing.T) {
	sandbox := filepath.Join(t.TempDir(), "sandbox")
	if err := os.WriteFile(sandbox, []byte("the namespace"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(sandbox)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	sent := Request{Command: "ADD", Container: "c0ffee", Interface: "net1", ENI: 1, Pod: "p", Namespace: "n"}
	want := Answer{MAC: "06:00:00:00:00:01", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}}
	got, err := Call(serve(t, func(r Request, f *os.File) Answer {
		if text, err := io.ReadAll(f); r != sent || err != nil || string(text) != "the namespace" {
			return Answer{Error: "something else arrived"}
		}
		return want
	}), sent, file)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

func TestARequestWithoutAFile(t *testing.T) {
	_, err := Call(serve(t, func(_ Request, f *os.File) Answer {
		if f != nil {
			return Answer{}
		}
		return Answer{Error: "no such ENI"}
	}), Request{Command: "DEL"}, nil)
	if err == nil || !strings.Contains(err.Error(), "no such ENI") {
		t.Errorf("%v, want the answer's error", err)
	}
}

func TestNobodyListens(t *testing.T) {
	if _, err := Call(filepath.Join(t.TempDir(), "none"), Request{}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
