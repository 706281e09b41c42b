package plane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"multus-ip-manager.io/test/tools"
)

// theShared is the one plane of a test binary. It is package state on purpose: tests of one package have nothing else
// in common through which they could share a server that takes seconds to start.
var theShared struct {
	sync.Mutex
	plane *Plane
	err   error
}

// Shared returns the control plane that all tests of a package share; the first call starts it. Tests keep apart by
// namespaces of their own (see CreateNamespace) and must remove cluster-wide objects that would reach other tests.
//
// It is stopped by Main where the package's TestMain uses that, else by the watcher as soon as the test binary ends.
func Shared(tb testing.TB) *Plane {
	tb.Helper()
	theShared.Lock()
	defer theShared.Unlock()
	if theShared.plane == nil && theShared.err == nil {
		theShared.plane, theShared.err = Start(context.Background(), Options{})
	}
	if errors.Is(theShared.err, tools.ErrNotBuilt) {
		tb.Fatalf("this test needs a real API server: %v", theShared.err)
	}
	if theShared.err != nil {
		tb.Fatal(theShared.err)
	}
	return theShared.plane
}

// Main runs the tests of a package and stops the shared plane after them; it returns the exit code for os.Exit.
func Main(m *testing.M) int {
	code := m.Run()
	if err := StopShared(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		if code == 0 {
			code = 1
		}
	}
	return code
}

// StopShared stops the shared plane if one runs. The next Shared starts a new one.
func StopShared() error {
	theShared.Lock()
	defer theShared.Unlock()
	p := theShared.plane
	theShared.plane, theShared.err = nil, nil
	if p == nil {
		return nil
	}
	return p.Stop()
}
