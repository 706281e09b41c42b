package apply

import (
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"multus-ip-manager.io/agent/locate"
)

// silent is a network on which everything connects and nothing answers.
type silent struct{}

func (silent) DialContext(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, server) }()
	return client, nil
}

// An answer that never comes is waited for three seconds. Nobody knows then what the call did.
func TestClientHang(t *testing.T) {
	(&wire{status: 200}).client(t, true) // sets the environment of the tests
	t.Setenv("AWS_ENDPOINT_URL_EC2", "http://ec2.invalid")
	metadata, err := locate.New(silent{})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		c, err := New(t.Context(), metadata, silent{}, slog.New(slog.DiscardHandler), "multus-ip-manager-test")
		if err != nil {
			t.Fatal(err)
		}
		// The bound of the test itself, so that a call without one ends too.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		started := time.Now()
		_, err = c.AssignIPv4(ctx, "eni-1", addrs("10.0.17.5"), true)
		if class := classOf(t, err); class != Unanswered || class.Certain() {
			t.Errorf("class %s: %v", class, err)
		}
		if took := time.Since(started); took != 3*time.Second {
			t.Errorf("took %s, want three seconds", took)
		}
	})
}
