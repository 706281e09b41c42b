// Package keepalived runs the real keepalived in a pod's network namespace, as an application's container that floats addresses between
// pods would: VRRP version 3 over unicast, because a VPC carries no multicast, and no writes to sysctls, because containers may not.
package keepalived

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"text/template"
	"time"

	"multus-ip-manager.io/test/ns"
)

// Instance is one virtual router: addresses of one family that move together.
type Instance struct {
	Name      string // appears in keepalived's log
	ID        int    // virtual router id, 1 to 255; the same on all peers
	Interface string // carries the advertisements and the addresses
	Priority  int    // 1 to 254, the highest one wins
	NoPreempt bool   // a peer that comes back does not take the addresses from one with a lower priority
	Source    netip.Addr
	Peers     []netip.Addr
	Addresses []netip.Prefix
	// Interval is the time between advertisements; default 100 ms, in steps of 10 ms. A peer takes over after three of them.
	Interval time.Duration
}

// Advert is the interval in seconds, as keepalived reads it.
func (i Instance) Advert() string {
	if i.Interval == 0 {
		return "0.1"
	}
	return fmt.Sprintf("%.2f", i.Interval.Seconds())
}

// Find returns the path of the program, also where only root's path has it.
func Find() (string, error) {
	for _, name := range []string{"keepalived", "/usr/sbin/keepalived"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("keepalived is not installed (Debian: apt-get install --no-install-recommends keepalived)")
}

const config = `global_defs {
    vrrp_version 3
    vrrp_garp_master_delay 0
    vrrp_garp_master_repeat 1
}
{{range .}}
vrrp_instance {{.Name}} {
    state BACKUP
    interface {{.Interface}}
    virtual_router_id {{.ID}}
    priority {{.Priority}}
    advert_int {{.Advert}}
{{- if .NoPreempt}}
    nopreempt
{{- end}}
    unicast_src_ip {{.Source}}
    unicast_peer {
{{- range .Peers}}
        {{.}}
{{- end}}
    }
    virtual_ipaddress {
{{- $interface := .Interface}}
{{- range .Addresses}}
        {{.}} dev {{$interface}}
{{- end}}
    }
}
{{end}}`

func render(instances []Instance) ([]byte, error) {
	t, err := template.New("keepalived.conf").Parse(config)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, instances)
	return b.Bytes(), err
}

// Process is a running keepalived: a parent that looks after one child, which speaks VRRP.
type Process struct {
	cmd  *ns.Cmd
	dir  string
	out  *buffer
	done chan struct{}
	err  error
}

// Start starts keepalived in a namespace. It is killed when ctx ends.
func Start(ctx context.Context, n *ns.Namespace, instances ...Instance) (*Process, error) {
	program, err := Find()
	if err != nil {
		return nil, err
	}
	text, err := render(instances)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "keepalived-")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "keepalived.conf")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	p := &Process{dir: dir, out: &buffer{}, done: make(chan struct{})}
	p.cmd = n.Command(ctx, ns.Opts{Dir: dir, Stdout: p.out, Stderr: p.out}, program, "--dont-fork", "--log-console", "--log-detail",
		"--vrrp", "--use-file", file, "--pid", filepath.Join(dir, "pid"), "--vrrp_pid", filepath.Join(dir, "vrrp-pid"))
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start keepalived: %w", err), os.RemoveAll(dir))
	}
	go func() {
		defer close(p.done)
		p.err = errors.Join(p.cmd.Wait(), os.RemoveAll(dir))
	}()
	return p, nil
}

// Output is what it has logged so far.
func (p *Process) Output() string { return p.out.String() }

// Done is closed when it has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop ends it in good order: it takes its addresses from the interface and tells its peers.
func (p *Process) Stop() error {
	_ = p.cmd.Signal(syscall.SIGTERM) // it may have ended
	<-p.done
	return p.err
}

// Kill ends it as kill -9 on all its processes does: the addresses stay on the interface and nobody is told. The parent is stopped
// first, or it would start another child; the child would tidy up if its parent died before it.
func (p *Process) Kill() error {
	parent := p.cmd.Pid()
	if err := syscall.Kill(parent, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("keepalived: stop the parent: %w", err)
	}
	children, err := childrenOf(parent)
	for _, child := range children {
		err = errors.Join(err, syscall.Kill(child, syscall.SIGKILL))
	}
	err = errors.Join(err, syscall.Kill(parent, syscall.SIGKILL))
	<-p.done
	return err
}

// childrenOf lists a process's children.
func childrenOf(parent int) ([]int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	if err != nil {
		return nil, err
	}
	var out []int
	for field := range strings.FieldsSeq(string(text)) {
		var pid int
		if _, err := fmt.Sscan(field, &pid); err != nil {
			return nil, err
		}
		out = append(out, pid)
	}
	return out, nil
}

// buffer can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
