package stayup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// firstLook is how often a replica is asked whether it is ready until it is the first time: more often than the kubelet asks, so that
// it gets requests as soon as it says so.
const firstLook = 20 * time.Millisecond

// firstAnswer is how long a replica may take to answer.
const firstAnswer = 5 * time.Second

// noticed is how long it takes until the kubelet has noticed a process that is gone.
const noticed = time.Second

// Replica is a running webhook, as a pod of the Deployment.
type Replica struct {
	// Addr is its address.
	Addr netip.Addr
	// Began is when the process was started, and Ready how long it took to say that it is ready (once AwaitReady has returned).
	Began time.Time
	Ready time.Duration

	rig   *Rig
	cmd   *exec.Cmd
	log   *tail
	gone  chan struct{} // closed when the process has ended
	up    chan struct{} // closed when it was ready for the first time
	err   error         // of the process; read after gone
	probe context.CancelFunc

	ports struct{ webhook, health, metrics int }
}

// StartReplica starts one more replica, with the arguments and the environment of the Deployment's container.
func (r *Rig) StartReplica(ctx context.Context) (*Replica, error) {
	addr, err := r.newAddress()
	if err != nil {
		return nil, err
	}
	p := &Replica{Addr: addr, rig: r, log: &tail{next: r.options.Log, name: addr.String()}, gone: make(chan struct{}), up: make(chan struct{})}
	container := r.container()
	for _, port := range container.Ports {
		switch port.Name {
		case "webhook":
			p.ports.webhook = int(port.ContainerPort)
		case "health":
			p.ports.health = int(port.ContainerPort)
		case "metrics":
			p.ports.metrics = int(port.ContainerPort)
		}
	}
	args := append(append([]string{}, container.Args...), "--host="+addr.String(), "--kubeconfig="+r.kubeconfig())
	p.cmd = exec.Command(filepath.Join(r.bin, "webhook"), append(args, r.options.Args...)...) //nolint:gosec,noctx // ended by End or kill
	for _, env := range container.Env {
		if env.ValueFrom == nil {
			p.cmd.Env = append(p.cmd.Env, env.Name+"="+env.Value)
		}
	}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	p.Began = time.Now()
	if err := p.start(); err != nil {
		return nil, err
	}
	probing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.probe = cancel
	r.add(p)
	go p.follow(probing, container.ReadinessProbe)
	return p, nil
}

// start starts the process, on a thread that is kept as long as it runs: the kernel ties Pdeathsig to the thread.
func (p *Replica) start() error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := p.cmd.Start()
		if err != nil {
			started <- fmt.Errorf("start a replica: %w", err)
			return
		}
		started <- nil
		p.err = p.cmd.Wait()
		close(p.gone)
	}()
	return <-started
}

func (r *Rig) container() *corev1.Container { return &r.deployment.Spec.Template.Spec.Containers[0] }

// follow plays the kubelet's probe: it asks until the replica is told to end, and tells the endpoints.
func (p *Replica) follow(ctx context.Context, probe *corev1.Probe) {
	period := time.Duration(probe.PeriodSeconds) * time.Second
	tick := time.NewTicker(firstLook)
	defer tick.Stop()
	failures := 0
	for was := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-p.gone:
			return
		case <-tick.C:
		}
		_, err := p.get(ctx, p.ports.health, probe.HTTPGet.Path, time.Duration(probe.TimeoutSeconds)*time.Second)
		if err == nil {
			failures = 0
			if !was {
				was = true
				select {
				case <-p.up:
				default:
					p.Ready = time.Since(p.Began)
					close(p.up)
				}
				tick.Reset(period)
				p.rig.endpoints.set(p, true)
			}
			continue
		}
		if failures++; was && failures >= int(probe.FailureThreshold) && ctx.Err() == nil {
			was = false
			p.rig.endpoints.set(p, false)
		}
	}
}

// AwaitReady waits until the replica has been ready once, and new connections may come to it.
func (p *Replica) AwaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	select {
	case <-p.up:
		return p.rig.endpoints.flush(ctx)
	case <-p.gone:
		return fmt.Errorf("replica %s ended: %w: %s", p.Addr, p.err, p.log)
	case <-ctx.Done():
		_, err := p.get(context.WithoutCancel(ctx), p.ports.health, "/readyz", time.Second)
		return fmt.Errorf("replica %s is not ready: %w: %s", p.Addr, err, p.log)
	}
}

// End ends the replica as the kubelet does when its pod is deleted: the endpoint goes, beside that preStop, then SIGTERM; SIGKILL at
// the end of the grace period is an error.
func (p *Replica) End(ctx context.Context) error {
	p.probe()
	p.rig.remove(p)
	p.rig.endpoints.set(p, false)
	grace := time.NewTimer(time.Duration(*p.rig.deployment.Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second)
	defer grace.Stop()
	if l := p.rig.container().Lifecycle; l != nil && l.PreStop != nil && l.PreStop.Sleep != nil {
		if err := Wait(ctx, time.Duration(l.PreStop.Sleep.Seconds)*time.Second); err != nil {
			return err
		}
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("end replica %s: %w", p.Addr, err)
	}
	select {
	case <-p.gone:
	case <-grace.C:
		p.kill()
		return fmt.Errorf("replica %s did not end within its grace period: %s", p.Addr, p.log)
	}
	if p.err != nil {
		return fmt.Errorf("replica %s ended with %w: %s", p.Addr, p.err, p.log)
	}
	return nil
}

// Crash ends the process at once, as the kernel does when memory is short. The kubelet notices a moment later.
func (p *Replica) Crash(ctx context.Context) error {
	p.probe()
	p.rig.remove(p)
	p.kill()
	if err := Wait(ctx, noticed); err != nil {
		return err
	}
	p.rig.endpoints.set(p, false)
	return nil
}

func (p *Replica) kill() {
	p.probe()
	_ = p.cmd.Process.Kill()
	<-p.gone
}

// Metrics is the text of the replica's metrics.
func (p *Replica) Metrics(ctx context.Context) (string, error) {
	return p.get(ctx, p.ports.metrics, "/metrics", 10*time.Second)
}

// Metric is the value of a line of the metrics, by its beginning.
func (p *Replica) Metric(ctx context.Context, line string) (float64, error) {
	text, err := p.Metrics(ctx)
	if err != nil {
		return 0, err
	}
	for one := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(one, line); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("replica %s has no metric %s", p.Addr, line)
}

// RSS is the process's largest resident set so far, in MiB.
func (p *Replica) RSS() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			return kb / 1024, err
		}
	}
	return 0, errors.New("no VmHWM")
}

// Log is the end of the replica's log.
func (p *Replica) Log() string { return p.log.String() }

func (p *Replica) get(ctx context.Context, port int, path string, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return Get(ctx, "http://"+netip.AddrPortFrom(p.Addr, uint16(port)).String()+path) //nolint:gosec // a port
}

// Get reads a page. Another status than 200 is an error, beside the page.
func Get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	return string(text), err
}

// Wait lets time pass, unless ctx ends before.
func Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tail keeps the end of a log and passes it on.
type tail struct {
	next io.Writer
	name string

	mu   sync.Mutex
	text []byte
}

func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next != nil {
		_, _ = fmt.Fprintf(l.next, "%s %s", l.name, p)
	}
	const keep = 8 << 10
	l.text = append(l.text, p...)
	l.text = l.text[max(0, len(l.text)-keep):]
	return len(p), nil
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
