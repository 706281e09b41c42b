package main

import (
	"log/slog"
	"net"
	"testing"

	"multus-ip-manager.io/agent/quickack"
)

// Connections to AWS acknowledge at once: a server that writes header and body apart would cost 40 ms with each further request on a
// connection.
func TestConnectionsAcknowledgeAtOnce(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	p, err := newParts(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := p.dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, ok := conn.(*quickack.Conn); !ok {
		t.Errorf("the connection is a %T", conn)
	}
}
