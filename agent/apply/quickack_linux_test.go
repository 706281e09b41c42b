package apply

import (
	"crypto/tls"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"multus-ip-manager.io/agent/quickack"
)

// Connections are the dialer's own, which acknowledge at once, on any way to AWS.
func TestConnectionsAcknowledgeAtOnce(t *testing.T) {
	cfg := certificate(t)
	server := httptest.NewUnstartedServer(nil)
	server.TLS = cfg
	server.StartTLS()
	defer server.Close()
	at := server.Listener.Addr().String()
	for _, scheme := range []string{"http", "https"} {
		podIdentity(t, scheme+"://example.com")
		dialer := quickack.Dial((&counted{to: at}).DialContext)
		c := newTestClient(t, dialer, slog.New(slog.DiscardHandler))
		for way, dial := range map[string]dialFunc{
			"the spare connection": c.line.transport.DialContext, "a connection with TLS": c.line.transport.DialTLSContext, "the SDK's own": sdkClient(dialer).GetTransport().DialContext,
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
