package admission

import (
	"bufio"
	"context"
	"encoding/json"
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
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/admission/cases"
	"multus-ip-manager.io/test/binaries"
	"multus-ip-manager.io/test/loopback"
	"multus-ip-manager.io/test/plane"
)

const (
	release          = "multus-ip-manager"
	releaseNamespace = "multus-ip-manager"
)

// shared is the one cluster of this package's tests. Tests keep apart by namespaces of their own. Those that stop the webhook or
// upgrade the chart do not run in parallel, so Go runs them before all that do.
var shared *rig

// rig is a control plane with the chart and the webhook.
type rig struct {
	plane   *plane.Plane
	helm    *plane.Helm
	client  kubernetes.Interface
	bin     string
	ports   []int // webhook, health, metrics
	args    []string
	webhook *exec.Cmd
	gone    chan struct{} // closed when the webhook has ended
	log     *calls
	audit   *auditLog
}

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	shared = &rig{log: newCalls()}
	defer func() { err = errors.Join(err, shared.close()) }()
	if err := shared.start(context.Background()); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// start starts everything.
func (r *rig) start(ctx context.Context) (err error) {
	if r.bin, err = binaries.Build(ctx, "webhook"); err != nil {
		return err
	}
	r.audit = &auditLog{path: filepath.Join(r.bin, "audit.log")}
	policy := filepath.Join(r.bin, "audit-policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	r.plane, err = plane.Start(ctx, plane.Options{APIServerArgs: map[string][]string{
		"audit-policy-file": {policy}, "audit-log-path": {r.audit.path}, "audit-log-mode": {"blocking"},
	}})
	if err != nil {
		return fmt.Errorf("these tests need a real API server: %w", err)
	}
	if r.client, err = kubernetes.NewForConfig(r.plane.Config); err != nil {
		return err
	}
	if r.helm, err = r.plane.Helm(); err != nil {
		return err
	}
	if r.ports, err = loopback.Ports(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 3); err != nil {
		return err
	}
	chart, err := r.release(nil)
	if err != nil {
		return err
	}
	notes, err := r.helm.Install(ctx, chart)
	if err != nil {
		return err
	}
	if r.args = argsOf(notes); len(r.args) == 0 {
		return fmt.Errorf("the chart's notes do not say how to run the webhook:\n%s", notes)
	}
	if err := r.startWebhook(ctx); err != nil {
		return err
	}
	return r.makeBarrier(ctx)
}

// release is the chart with the values under which the expectations of package cases hold, and more values for the section "webhook".
func (r *rig) release(webhook map[string]any) (plane.Release, error) {
	dir, err := plane.ChartDir()
	if err != nil {
		return plane.Release{}, err
	}
	want := cases.Config()
	// The version is that of the program otherwise.
	config := filepath.Join(r.bin, "config.json")
	if err := os.WriteFile(config, fmt.Appendf(nil, `{"version": %q}`, want.Version), 0o600); err != nil {
		return plane.Release{}, err
	}
	repository, tag, _ := strings.Cut(want.Image, ":")
	var env []map[string]any
	for _, v := range want.Env {
		env = append(env, map[string]any{"name": v.Name, "value": v.Value})
	}
	section := map[string]any{"url": "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(r.ports[0]))}
	for key, value := range webhook {
		section[key] = value
	}
	return plane.Release{Name: release, Namespace: releaseNamespace, Chart: dir, Values: map[string]any{
		"webhook": section,
		"ports":   map[string]any{"webhook": r.ports[0], "health": r.ports[1], "metrics": r.ports[2]},
		"log":     map[string]any{"level": "debug"}, // with the pods that are left alone
		"agent": map[string]any{
			"image":         map[string]any{"repository": repository, "tag": tag, "pullPolicy": want.ImagePullPolicy},
			"logFormat":     want.Agent["log-format"],
			"vpcCNISubnets": strings.Split(want.Agent["vpc-cni-subnets"], ","),
			"env":           env,
		},
		"extraArgs": []string{"--config=" + config},
	}}, nil
}

// upgrade changes the chart's section "webhook" until the test ends.
func (r *rig) upgrade(t *testing.T, webhook map[string]any) {
	t.Helper()
	to := func(ctx context.Context, webhook map[string]any) {
		chart, err := r.release(webhook)
		if err == nil {
			_, err = r.helm.Upgrade(ctx, chart)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	to(t.Context(), webhook)
	t.Cleanup(func() { to(context.WithoutCancel(t.Context()), nil) })
}

// startWebhook runs the webhook as the chart's notes say, with the rights of its service account, until it is ready.
func (r *rig) startWebhook(ctx context.Context) error {
	config, err := r.plane.ServiceAccountConfig(ctx, releaseNamespace, release)
	if err != nil {
		return err
	}
	kubeconfig := filepath.Join(r.bin, "webhook.kubeconfig")
	if err := plane.WriteKubeconfig(kubeconfig, config); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(r.bin, "webhook"), append(r.args, "--kubeconfig="+kubeconfig)...) //nolint:gosec,noctx // ended by stopWebhook
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	output, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the webhook: %w", err)
	}
	r.webhook, r.gone = cmd, make(chan struct{})
	go func() {
		defer close(r.gone)
		r.log.read(output)
		_ = cmd.Wait()
	}()
	return r.awaitReady(ctx)
}

func (r *rig) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-r.gone:
			return fmt.Errorf("the webhook ended: %s", r.log.tail())
		case <-ctx.Done():
			return fmt.Errorf("the webhook is not ready: %s", r.log.tail())
		case <-tick.C:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/readyz", r.ports[1]), nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
	}
}

// metric is the value of a line of the webhook's metrics, by its beginning; 0 where there is none.
func (r *rig) metric(t *testing.T, line string) float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/metrics", r.ports[2]), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for one := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(one, line); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// stopWebhook ends the webhook.
func (r *rig) stopWebhook() error {
	if r.webhook == nil {
		return nil
	}
	cmd := r.webhook
	r.webhook = nil
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-r.gone:
		return nil
	case <-time.After(20 * time.Second):
		return errors.Join(errors.New("the webhook did not end within 20 s of SIGTERM"), cmd.Process.Kill())
	}
}

func (r *rig) close() error {
	errs := []error{r.stopWebhook()}
	if r.plane != nil {
		errs = append(errs, r.plane.Stop())
	}
	if r.bin != "" {
		errs = append(errs, os.RemoveAll(r.bin))
	}
	return errors.Join(errs...)
}

// argsOf reads the webhook's arguments out of the chart's notes, which print them for people to copy, one quoted argument a line.
func argsOf(notes string) []string {
	var args []string
	lines := bufio.NewScanner(strings.NewReader(notes))
	for lines.Scan() {
		line := strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(lines.Text()), "\\"))
		if arg, ok := strings.CutPrefix(line, "'"); ok {
			args = append(args, strings.TrimSuffix(arg, "'"))
		}
	}
	return args
}

type pairs = map[string]string

// optedIn are the labels of a namespace whose pods are injected, and more.
func optedIn(more pairs) pairs {
	labels := pairs{settings.LabelInject: settings.InjectEnabled}
	for key, value := range more {
		labels[key] = value
	}
	return labels
}

// namespace makes a namespace for one test. Its service account mounts no token, for the name of that volume is random.
func (r *rig) namespace(t *testing.T, labels pairs) string {
	t.Helper()
	name := r.plane.CreateNamespace(t, "admission", labels)
	account := &corev1.ServiceAccount{}
	account.Namespace, account.Name = name, "default"
	patch := client.RawPatch(types.MergePatchType, []byte(`{"automountServiceAccountToken": false}`))
	if err := r.plane.Client.Patch(t.Context(), account, patch); err != nil {
		t.Fatal(err)
	}
	// As long as the API server remembers the account as it was made, it mounts a token, into what we inject too: and then it asks us twice.
	eventually(t, "the API server to mount no token", func() bool {
		a := r.post(t.Context(), name, "pods", podWith(name, nil), true)
		return a.err == nil && len(a.pod.Spec.Volumes) == 0
	})
	return name
}

// answer is what the API server said about a new object.
type answer struct {
	pod      *corev1.Pod    // as Kubernetes' types have it
	object   map[string]any // with every field
	warnings []string
	err      error
}

// HandleWarningHeader collects a warning.
func (a *answer) HandleWarningHeader(_ int, _ string, text string) {
	a.warnings = append(a.warnings, text)
}

// post creates an object of a namespaced kind of the core group, as it is.
func (r *rig) post(ctx context.Context, namespace, resource string, object any, dryRun bool) answer {
	body, err := json.Marshal(object)
	if err != nil {
		return answer{err: err}
	}
	a := answer{}
	request := r.client.CoreV1().RESTClient().Post().Namespace(namespace).Resource(resource).
		SetHeader("Content-Type", "application/json").Body(body).WarningHandler(&a)
	if dryRun {
		request = request.Param("dryRun", "All")
	}
	data, err := request.Do(ctx).Raw()
	if err != nil {
		// Raw leaves the server's words out of the error.
		a.err = statusOf(data, err)
		return a
	}
	a.err = errors.Join(json.Unmarshal(data, &a.object), json.Unmarshal(data, &a.pod))
	return a
}

// create makes a pod that must be admitted.
func (r *rig) create(t *testing.T, pod *corev1.Pod) answer {
	t.Helper()
	a := r.post(t.Context(), pod.Namespace, "pods", pod, false)
	if a.err != nil {
		t.Fatalf("create pod %s: %v", pod.Name, a.err)
	}
	return a
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-limit:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}
