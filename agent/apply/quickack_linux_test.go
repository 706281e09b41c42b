package apply

import (
	"crypto/tls"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"multus-ip-manager.io/agent/quickack"
)

// A server that writes the head and the body of an answer apart is not made to wait for the head's acknowledgement, on any way to AWS.
func TestConnectionsAcknowledgeAtOnce(t *testing.T) {
	cfg := certificate(t)
	server := httptest.NewUnstartedServer(nil)
	server.TLS = cfg
	server.StartTLS()
	defer server.Close()
	at := server.Listener.Addr().String()
	for _, scheme := range []string{"http", "https"} {
		podIdentity(t, scheme+"://example.com")
		c := newTestClient(t, &counted{to: at}, slog.New(slog.DiscardHandler))
		for way, dial := range map[string]quickack.DialFunc{
			"the spare connection": c.line.transport.DialContext, "a connection with TLS": c.line.transport.DialTLSContext, "the SDK's own": sdkClient(&counted{to: at}).GetTransport().DialContext,
		} {
			if strings.HasSuffix(way, "TLS") && scheme == "http" {
				continue
			}
			conn, err := dial(t.Context(), "tcp", "example.com:"+map[string]string{"http": "80", "https": "443"}[scheme])
			if err != nil {
				t.Fatal(err)
			}
			under := conn
			if wrapped, ok := conn.(*tls.Conn); ok {
				under = wrapped.NetConn()
			}
			if _, ok := under.(*quickack.Conn); !ok {
				t.Errorf("%s, %s: a %T", scheme, way, under)
			}
			_ = conn.Close()
		}
		c.Close()
	}
}
