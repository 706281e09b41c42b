package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/plane"
	"multus-ip-manager.io/webhook/inject"
)

// asWebhook in the environment makes this test binary behave as the webhook, so that a test runs the real process.
const asWebhook = "TEST_RUN_AS_WEBHOOK"

func TestMain(m *testing.M) {
	if os.Getenv(asWebhook) != "" {
		main()
		return
	}
	os.Exit(plane.Main(m))
}

// process is a running webhook.
type process struct {
	t              *testing.T
	cmd            *exec.Cmd
	at             string // where it takes admissions
	health, scrape string
	log            *syncBuffer
	exited         chan error
}

// startProcess starts the webhook on free ports with these further arguments, and waits until it listens.
func startProcess(t *testing.T, args ...string) *process {
	t.Helper()
	p := launch(t, args...)
	p.eventually("it listens", func() error {
		at := map[any]any{}
		for line := range strings.Lines(p.log.String()) {
			var said map[string]any
			if json.Unmarshal([]byte(line), &said) == nil && said["msg"] == "listening" {
				at[said["for"]] = said["address"]
			}
		}
		if len(at) < 3 {
			return fmt.Errorf("the log tells of %v", at)
		}
		p.at, p.health, p.scrape = fmt.Sprint(at["admissions"]), fmt.Sprint("http://", at["health"]), fmt.Sprint("http://", at["metrics"], "/metrics")
		return nil
	})
	return p
}

// launch starts the webhook.
func launch(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{t: t, log: &syncBuffer{}, exited: make(chan error, 1)}
	p.cmd = exec.Command(os.Args[0], append([]string{"serve", "--host=127.0.0.1", "--port=0", "--health-port=0", "--metrics-port=0"}, args...)...)
	p.cmd.Env = append(os.Environ(), asWebhook+"=1")
	p.cmd.Stderr = p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.exited <- p.cmd.Wait() }()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		if t.Failed() {
			t.Logf("log of the webhook:\n%s", p.log)
		}
	})
	return p
}

// terminate sends SIGTERM and waits for a clean end.
func (p *process) terminate() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	p.waitExit()
}

func (p *process) waitExit() {
	p.t.Helper()
	select {
	case err := <-p.exited:
		if err != nil {
			p.t.Errorf("the webhook ended with %v", err)
		}
	case <-time.After(30 * time.Second):
		p.t.Fatal("the webhook does not end")
	}
}

// waitReady waits until /readyz says yes.
func (p *process) waitReady() {
	p.t.Helper()
	p.eventually("ready", func() error { _, err := get(p.health + "/readyz"); return err })
}

func (p *process) eventually(what string, f func() error) {
	p.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(40 * time.Second)
	defer limit.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-limit.C:
			p.t.Fatalf("%s: %v", what, err)
		case end := <-p.exited:
			p.t.Fatalf("%s: the webhook ended (%v): %v", what, end, err)
		case <-tick.C:
		}
	}
}

// The whole process beside a real API server: a CA, a certificate, trust, readiness, an injected pod, metrics, the end.
func TestServe(t *testing.T) {
	api := plane.Shared(t)
	ns := api.CreateNamespace(t, "webhook", nil)
	account := grant(t, api, ns)
	p := startProcess(t, "--kubeconfig="+account, "--namespace="+ns, "--dns-names=127.0.0.1",
		"--agent-image=example.com/agent:1", "--agent-arg=deadline=10m", "--agent-env=AWS_REGION=eu-central-1", "--log-level=debug")
	p.eventually("the missing configuration is told", func() error {
		body, err := get(p.health + "/readyz")
		if err == nil || !strings.Contains(body, "no serving certificate yet") {
			return fmt.Errorf("%q %w", body, err)
		}
		return nil
	})
	apply(t, api, ns, strings.NewReplacer("NAME", ns, "ADDRESS", p.at).Replace(configuration))
	p.waitReady()
	if body, err := get(p.health + "/healthz"); err != nil {
		t.Errorf("/healthz: %s %v", body, err)
	}

	var pod *corev1.Pod
	p.eventually("a pod is injected", func() error {
		pod = &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "upf-", Namespace: ns, Annotations: map[string]string{settings.Networks: "n3"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "example.com/app:1"}}},
		}
		return api.Client.Create(t.Context(), pod)
	})
	if len(pod.Spec.InitContainers) != 1 || pod.Spec.InitContainers[0].Name != settings.ContainerName || pod.Spec.InitContainers[0].Image != "example.com/agent:1" {
		t.Fatalf("init containers: %+v", pod.Spec.InitContainers)
	}
	if status := pod.Annotations[settings.KeyStatus]; !strings.Contains(status, `"init"`) {
		t.Errorf("status annotation %q", status)
	}

	p.eventually("the CA's Secret goes when the configuration does", func() error {
		secret := &corev1.Secret{}
		if err := api.Client.Get(t.Context(), ctrlclient.ObjectKey{Namespace: ns, Name: "multus-ip-manager-ca"}, secret); err != nil {
			return err
		}
		if len(secret.OwnerReferences) != 1 {
			return fmt.Errorf("it has the owners %v", secret.OwnerReferences)
		}
		return nil
	})
	var body string
	p.eventually("the upkeep is healthy", func() (err error) {
		if body, err = get(p.scrape); err == nil && !strings.Contains(body, "\nmultus_ip_manager_certificate_upkeep_healthy 1\n") {
			err = errors.New("it is not")
		}
		return err
	})
	for _, want := range []string{
		`multus_ip_manager_admission_decisions_total{mode="init",outcome="inject",reason=`,
		"multus_ip_manager_certificate_expiry_timestamp_seconds 1.",
		`multus_ip_manager_build_info{component="webhook",`,
		`controller_runtime_webhook_requests_total{code="200",webhook="/mutate"}`,
		"go_goroutines ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
	p.terminate()
	for line := range strings.Lines(p.log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not a JSON log line: %s", line)
		}
	}
}

// What an API server asks before SIGTERM is answered after it.
func TestAdmissionInFlightIsAnswered(t *testing.T) {
	p := startProcess(t, "--cert-source=secret", "--webhook-configuration=", "--cert-dir="+keyPair(t))
	p.waitReady()
	conn, err := tls.Dial("tcp", p.at, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}}) //nolint:gosec // the certificate is not what is tested
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if got := conn.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("protocol %q, want http/1.1 only", got)
	}

	body := review(t)
	half := len(body) / 2
	_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: webhook\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		inject.Paths()[0].Path, len(body), body[:half])
	if err != nil {
		t.Fatal(err)
	}
	p.eventually("the request is being handled", func() error {
		if body, err := get(p.scrape); err != nil || !strings.Contains(body, `requests_in_flight{webhook="`+inject.Paths()[0].Path+`"} 1`) {
			return errors.New("not yet")
		}
		return nil
	})
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.eventually("the webhook takes no new connections", func() error {
		if c, err := net.Dial("tcp", p.at); err == nil {
			return errors.Join(errors.New("it does"), c.Close())
		}
		return nil
	})
	if _, err := get(p.health + "/healthz"); err != nil {
		t.Errorf("a draining webhook looks dead: %v", err)
	}
	if said, err := get(p.health + "/readyz"); err == nil || !strings.Contains(said, "draining") {
		t.Errorf("a draining webhook says %q, %v", said, err)
	}
	if _, err := conn.Write(body[half:]); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var answer admissionv1.AdmissionReview
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	if answer.Response == nil || !answer.Response.Allowed || len(answer.Response.Patch) == 0 {
		t.Errorf("answer: %+v", answer.Response)
	}
	p.waitExit()
}

// A port that is taken ends the webhook with an error: a replica without health or metrics would be half a replica.
func TestTakenPortIsFatal(t *testing.T) {
	for _, flag := range []string{"--port", "--health-port", "--metrics-port"} {
		t.Run(flag, func(t *testing.T) {
			taken, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = taken.Close() }()
			_, port, _ := net.SplitHostPort(taken.Addr().String())
			p := launch(t, "--cert-source=secret", "--webhook-configuration=", "--cert-dir="+t.TempDir(), flag+"="+port)
			select {
			case err := <-p.exited:
				if err == nil || !strings.Contains(p.log.String(), "address already in use") {
					t.Errorf("ended with %v: %s", err, p.log)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("the webhook goes on")
			}
		})
	}
}

// grant makes a kubeconfig of the chart's service account, with its rights.
func grant(t *testing.T, api *plane.Plane, ns string) string {
	t.Helper()
	objects, err := renderChart(t, plane.Release{Name: "multus-ip-manager", Namespace: ns})
	if err != nil {
		t.Fatal(err)
	}
	var manifests strings.Builder
	account := ""
	for _, o := range objects {
		_, hook := o.GetAnnotations()["helm.sh/hook"] // of the chart's own tests
		if hook || o.GetKind() != "ServiceAccount" && o.GroupVersionKind().Group != "rbac.authorization.k8s.io" {
			continue
		}
		if o.GetKind() == "ServiceAccount" {
			account = o.GetName()
		}
		text, err := o.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&manifests, "---\n%s\n", text)
	}
	apply(t, api, ns, manifests.String())
	config, err := api.ServiceAccountConfig(t.Context(), ns, account)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := plane.WriteKubeconfig(path, config); err != nil {
		t.Fatal(err)
	}
	return path
}

func apply(t *testing.T, api *plane.Plane, ns, manifests string) {
	t.Helper()
	objects, err := api.Apply(t.Context(), []byte(manifests), ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, o := range objects {
			if o.GetNamespace() == "" {
				_ = api.Client.Delete(context.Background(), o)
			}
		}
	})
}

const configuration = `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: multus-ip-manager}
webhooks:
- name: default.multus-ip-manager.io
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  clientConfig: {url: "https://ADDRESS/mutate"}
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: NAME}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
`

// review is a request for a pod that is to be injected.
func review(t *testing.T) []byte {
	t.Helper()
	pod := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"upf","namespace":"telco","annotations":{"k8s.v1.cni.cncf.io/networks":"n3"}},` +
		`"spec":{"containers":[{"name":"app","image":"app"}]}}`
	body, err := json.Marshal(map[string]any{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": map[string]any{
		"uid": "1", "operation": "CREATE", "namespace": "telco", "resource": map[string]string{"version": "v1", "resource": "pods"},
		"kind": map[string]string{"version": "v1", "kind": "Pod"}, "object": json.RawMessage(pod)}})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func get(url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

// syncBuffer is a log that is written and read at the same time.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
