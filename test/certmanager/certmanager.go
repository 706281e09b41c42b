package certmanager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"multus-ip-manager.io/test/plane"
	"multus-ip-manager.io/test/tools"
)

// module is where the definitions of cert-manager's kinds come from, in the version that the product uses.
const module = "github.com/cert-manager/cert-manager"

// Controllers are cert-manager's, running as one process.
type Controllers struct {
	cmd  *exec.Cmd
	pipe io.Closer
	log  *log
	gone chan struct{}
	err  error // why it ended; to be read when gone is closed
}

// Install makes the API server serve cert-manager's kinds.
func Install(ctx context.Context, p *plane.Plane) error {
	root, err := tools.Root()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = root
	dir, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("find the module %s: %w", module, err)
	}
	var crds []*apiextensionsv1.CustomResourceDefinition
	for _, name := range []string{"certificates", "certificaterequests", "issuers", "clusterissuers"} {
		data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "deploy", "crds", "cert-manager.io_"+name+".yaml"))
		if err != nil {
			return fmt.Errorf("read cert-manager's definitions: %w", err)
		}
		objects, err := plane.Decode(data)
		if err != nil {
			return err
		}
		if _, err := p.Apply(ctx, data, ""); err != nil {
			return err
		}
		for _, object := range objects {
			crd := &apiextensionsv1.CustomResourceDefinition{}
			if err := p.Client.Get(ctx, client.ObjectKeyFromObject(object), crd); err != nil {
				return err
			}
			crds = append(crds, crd)
		}
	}
	return envtest.WaitForCRDs(p.Config, crds, envtest.CRDInstallOptions{MaxTime: time.Minute, PollInterval: 20 * time.Millisecond})
}

// Start starts the controllers as the plane's administrator, with these arguments. They end with Stop, and with this process however
// that ends.
func Start(p *plane.Plane, args ...string) (*Controllers, error) {
	path, err := plane.Binary("cert-manager")
	if err != nil {
		return nil, err
	}
	c := &Controllers{log: &log{}, gone: make(chan struct{})}
	c.cmd = exec.Command(path, append([]string{"-kubeconfig=" + p.Kubeconfig}, args...)...) //nolint:gosec,noctx // our own tool, ended by Stop
	c.cmd.Stdout, c.cmd.Stderr = c.log, c.log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.pipe, err = c.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start cert-manager: %w", err)
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start cert-manager: %w", err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.gone)
	}()
	return c, nil
}

// Stop ends the controllers; it says so when they had ended before, or do not end.
func (c *Controllers) Stop() error {
	select {
	case <-c.gone:
		return fmt.Errorf("cert-manager ended by itself: %w\n%s", errors.Join(c.err, errors.New("too early")), c.Log())
	default:
	}
	if err := c.pipe.Close(); err != nil {
		return fmt.Errorf("stop cert-manager: %w", err)
	}
	select {
	case <-c.gone:
		return c.err
	case <-time.After(10 * time.Second):
		err := c.cmd.Process.Kill()
		<-c.gone
		return errors.Join(errors.New("cert-manager does not stop"), err)
	}
}

// Log is the end of what the controllers have logged.
func (c *Controllers) Log() string { return c.log.String() }

// log keeps the end of what is written.
type log struct {
	mu   sync.Mutex
	data []byte
}

// maxLog is how much a log keeps.
const maxLog = 1 << 20

// Write implements io.Writer.
func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.data = append(l.data, p...)
	if len(l.data) > maxLog {
		l.data = bytes.Clone(l.data[len(l.data)-maxLog/2:])
	}
	return len(p), nil
}

// String returns what was kept.
func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.data)
}
