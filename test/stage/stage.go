// Package stage puts the parts together for whole-product tests and the demo: a real API server, the emulated VPC with its nodes,
// the chart installed by Helm, the webhook running outside the cluster with the rights of its service account, and stand-ins for
// scheduler, kubelet and Multus.
package stage

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"multus-ip-manager.io/test/binaries"
	"multus-ip-manager.io/test/loopback"
	"multus-ip-manager.io/test/plane"
	"multus-ip-manager.io/test/world"
)

const (
	// release and namespace are what the README's install command uses.
	release   = "multus-ip-manager"
	namespace = "multus-ip-manager"
	// AgentImage is the image name that stands for the built agent.
	AgentImage = "multus-ip-agent"
)

// Options says what to start.
type Options struct {
	World *world.Spec
	// Step, when not nil, is told what is being done, one line each.
	Step func(string)
	// WebhookLog gets the webhook's output; nil discards it.
	WebhookLog io.Writer
}

// Stage is everything running.
type Stage struct {
	Plane *plane.Plane
	World *world.World
	Helm  *plane.Helm
	// Bin is the folder of the built programs.
	Bin string

	options Options
	webhook *exec.Cmd
	gone    chan struct{} // closed when the webhook has ended
	tail    *tail
	ipam    ipam
}

// Start starts the control plane and the VPC. The caller closes the stage, also after an error of a later call.
func Start(ctx context.Context, o Options) (*Stage, error) {
	if o.Step == nil {
		o.Step = func(string) {}
	}
	s := &Stage{options: o, tail: &tail{next: o.WebhookLog}}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Stage) start(ctx context.Context) (err error) {
	s.options.Step("building agent and webhook")
	if s.Bin, err = binaries.Build(ctx, "agent", "webhook"); err != nil {
		return err
	}
	s.options.Step(fmt.Sprintf("starting the VPC with %d worker nodes, their ENIs and metadata services", len(s.options.World.Nodes)))
	if s.World, err = world.Start(ctx, s.options.World, world.Options{}); err != nil {
		return err
	}
	s.options.Step("starting etcd and kube-apiserver")
	if s.Plane, err = plane.Start(ctx, plane.Options{}); err != nil {
		return err
	}
	s.Helm, err = s.Plane.Helm()
	return err
}

// Install installs the chart with these values beside those the stage needs, and starts the webhook as the chart's notes say.
func (s *Stage) Install(ctx context.Context, values map[string]any) error {
	s.options.Step("helm install " + release + " manifests/chart")
	chart, err := plane.ChartDir()
	if err != nil {
		return err
	}
	ports, err := loopback.Ports(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 3)
	if err != nil {
		return err
	}
	all := map[string]any{
		"webhook": map[string]any{"url": "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))},
		"ports":   map[string]any{"webhook": ports[0], "health": ports[1], "metrics": ports[2]},
		"agent": map[string]any{
			"image":     map[string]any{"repository": AgentImage},
			"logFormat": "text",
			"env":       []map[string]any{{"name": "AWS_ENDPOINT_URL_EC2", "value": s.World.EC2Endpoint()}},
		},
	}
	for k, v := range values {
		all[k] = v
	}
	notes, err := s.Helm.Install(ctx, plane.Release{Name: release, Namespace: namespace, Chart: chart, Values: all})
	if err != nil {
		return err
	}
	s.options.Step("starting the webhook with the rights of its service account; it makes its CA and publishes it")
	return s.startWebhook(ctx, notes, ports[1])
}

func (s *Stage) startWebhook(ctx context.Context, notes string, healthPort int) error {
	config, err := s.Plane.ServiceAccountConfig(ctx, namespace, release)
	if err != nil {
		return err
	}
	kubeconfig := filepath.Join(s.Bin, "webhook.kubeconfig")
	if err := plane.WriteKubeconfig(kubeconfig, config); err != nil {
		return err
	}
	args, err := argsOf(notes)
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(s.Bin, "webhook"), append(args, "--kubeconfig="+kubeconfig)...) //nolint:gosec,noctx // ended by Close
	cmd.Stdout, cmd.Stderr = s.tail, s.tail
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the webhook: %w", err)
	}
	s.webhook, s.gone = cmd, make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(s.gone)
	}()
	return s.awaitReady(ctx, fmt.Sprintf("http://127.0.0.1:%d/readyz", healthPort))
}

// argsOf reads the webhook's arguments out of the chart's notes, which print them for people to copy, one quoted argument a line.
func argsOf(notes string) ([]string, error) {
	var args []string
	lines := bufio.NewScanner(strings.NewReader(notes))
	for lines.Scan() {
		line := strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(lines.Text()), "\\"))
		if arg, ok := strings.CutPrefix(line, "'"); ok {
			args = append(args, strings.TrimSuffix(arg, "'"))
		}
	}
	if len(args) == 0 {
		return nil, fmt.Errorf("the chart's notes do not say how to run the webhook:\n%s", notes)
	}
	return args, nil
}

// awaitReady asks until the webhook says that the API server trusts it.
func (s *Stage) awaitReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	last := "no answer yet"
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-s.gone:
			return fmt.Errorf("the webhook ended: %s", s.tail)
		case <-ctx.Done():
			return fmt.Errorf("the webhook is not ready: %s\n%s", last, s.tail)
		case <-tick.C:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			continue
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return nil
		}
		last = strings.TrimSpace(string(body))
	}
}

// Images maps image names to programs, for [kubelet.Container].
func (s *Stage) Images(image string) map[string]string {
	return map[string]string{image: filepath.Join(s.Bin, "agent")}
}

// Close ends everything and removes every file.
func (s *Stage) Close() error {
	var errs []error
	if s.webhook != nil {
		_ = s.webhook.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.gone:
		case <-time.After(10 * time.Second):
			errs = append(errs, errors.New("the webhook did not end within 10 s of SIGTERM"), s.webhook.Process.Kill())
			<-s.gone
		}
	}
	if s.Plane != nil {
		errs = append(errs, s.Plane.Stop())
	}
	if s.World != nil {
		errs = append(errs, s.World.Close())
	}
	if s.Bin != "" {
		errs = append(errs, os.RemoveAll(s.Bin))
	}
	return errors.Join(errs...)
}

// tail keeps the end of what is written through it.
type tail struct {
	mu   sync.Mutex
	end  []byte
	next io.Writer
}

// maxTail is how much of the webhook's output an error shows.
const maxTail = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, p...)
	if len(t.end) > maxTail {
		t.end = bytes.Clone(t.end[len(t.end)-maxTail:])
	}
	if t.next != nil {
		return t.next.Write(p)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.end)
}
