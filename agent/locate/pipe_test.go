package locate

import (
	"net/http"
	"sync"
	"testing"
	"testing/synctest"

	"multus-ip-manager.io/test/pipes"
)

// inBubble runs a test in virtual time against the server. The test must not read side by side while a token is waited for: in the
// SDK one read then waits for the other's lock, which virtual time cannot see.
func (s *imdsServer) inBubble(t *testing.T, run func(t *testing.T, m *Metadata)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := pipes.New()
		s.stop = make(chan struct{})
		server := &http.Server{Handler: s} //nolint:gosec // timeouts would be virtual
		var wg sync.WaitGroup
		wg.Go(func() { _ = server.Serve(l) })
		m, err := New(l)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			close(s.stop)
			_ = server.Close()
			wg.Wait()
		}()
		run(t, m)
	})
}
