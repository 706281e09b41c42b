package apply

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"multus-ip-manager.io/agent/locate"
)

// Every request to EC2 is told, with EC2's code and with how long it took.
func TestOnRequest(t *testing.T) {
	tests := map[string]struct {
		status int
		body   string
		want   string
	}{
		"success":          {200, assigned, "AssignPrivateIpAddresses OK"},
		"throttled":        {503, xmlError("RequestLimitExceeded"), "AssignPrivateIpAddresses RequestLimitExceeded"},
		"a code with dots": {400, xmlError("InvalidNetworkInterfaceID.NotFound"), "AssignPrivateIpAddresses InvalidNetworkInterfaceID.NotFound"},
		"a proxy's page":   {502, "<html>Bad Gateway</html>", "AssignPrivateIpAddresses unanswered"},
		"no code":          {400, xmlError("four hundred"), "AssignPrivateIpAddresses unanswered"},
		"a very long code": {400, xmlError(strings.Repeat("A", 65)), "AssignPrivateIpAddresses unanswered"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var told []string
			w := &wire{status: tt.status, body: tt.body}
			w.client(t, true)
			c := newTestClient(t, &net.Dialer{}, slog.New(slog.DiscardHandler), OnRequest(func(op, code string, took time.Duration) {
				told = append(told, op+" "+code)
				if took <= 0 {
					t.Errorf("took %s", took)
				}
			}))
			_ = assign(t, c)
			if !slices.Equal(told, []string{tt.want}) {
				t.Errorf("told %q, want %q", told, tt.want)
			}
		})
	}
	t.Run("no answer", func(t *testing.T) {
		(&wire{status: 200}).client(t, true)
		t.Setenv("AWS_ENDPOINT_URL_EC2", "http://ec2.invalid")
		synctest.Test(t, func(t *testing.T) {
			var told []string
			c := newTestClient(t, silent{}, slog.New(slog.DiscardHandler), OnRequest(func(_, code string, took time.Duration) {
				told = append(told, code+" "+took.String())
			}))
			_ = assign(t, c)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			_, _ = c.AssignIPv4(ctx, "eni-1", addrs("10.0.17.5"), true)
			if want := []string{"timeout 3s", "unanswered 1s"}; !slices.Equal(told, want) {
				t.Errorf("told %q, want %q", told, want)
			}
		})
	})
	t.Run("no credentials, no request", func(t *testing.T) {
		w := &wire{status: 200, credentials: 404}
		w.client(t, false)
		metadata, err := locate.New(&net.Dialer{})
		if err != nil {
			t.Fatal(err)
		}
		c, err := New(t.Context(), metadata, &net.Dialer{}, slog.New(slog.DiscardHandler), "test", OnRequest(func(op, code string, _ time.Duration) {
			t.Errorf("told %s %s", op, code)
		}))
		if err != nil {
			t.Fatal(err)
		}
		if err := assign(t, c); err == nil {
			t.Error("succeeds")
		}
	})
}
