package dashboards

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/binaries"
	"multus-ip-manager.io/test/plane"
)

func TestMain(m *testing.M) { os.Exit(plane.Main(m)) }

// families are metrics by name.
type families map[string]*dto.MetricFamily

// add parses an exposition as Prometheus does, and adds what is not there yet: series of known families are joined.
func (f families) add(t *testing.T, text string) {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	parsed, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	for name, family := range parsed {
		if f[name] == nil {
			f[name] = family
			continue
		}
		f[name].Metric = append(f[name].Metric, family.Metric...)
	}
}

// agentExposition is what a sidecar tells after all that can happen to it.
func agentExposition(t *testing.T) string {
	t.Helper()
	m := report.NewMetrics("v1")
	m.Publish(func(context.Context) (report.Status, error) {
		return report.Status{Ready: true, Addresses: []report.AddressStatus{
			{Address: "10.0.4.80", ENI: "eni-1", State: report.StateAssigned},
			{Address: "2001:db8::9", ENI: "eni-2", State: report.StateWaiting, Fault: apply.Full.String()},
		}}, nil
	})
	m.EC2Call("AssignPrivateIpAddresses", "OK", time.Second)
	m.ThrottleWait("AssignPrivateIpAddresses", time.Second)
	m.Takeover("ipv4", time.Second)
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	return w.Body.String()
}

// webhookProcess is a running webhook.
type webhookProcess struct{ address, metrics string }

// startWebhook runs the real program with its certificate from a directory, and waits until it listens.
func startWebhook(t *testing.T, program, certs string) webhookProcess {
	t.Helper()
	//nolint:gosec // a program that was built here
	cmd := exec.Command(program, "serve", "--host=127.0.0.1", "--port=0", "--health-port=0", "--metrics-port=0",
		"--cert-source=secret", "--cert-dir="+certs, "--webhook-configuration=", "--drain-timeout=0s")
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	told := make(chan struct{})
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-told
		_ = cmd.Wait()
	})
	listening := make(chan [2]string, 3)
	go func() {
		defer close(told)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			t.Log(lines.Text())
			var said struct{ Msg, For, Address string }
			if json.Unmarshal(lines.Bytes(), &said) == nil && said.Msg == "listening" {
				listening <- [2]string{said.For, said.Address}
			}
		}
	}()
	at := map[string]string{}
	for len(at) < cap(listening) {
		select {
		case one := <-listening:
			at[one[0]] = one[1]
		case <-told:
			t.Fatal("the webhook ended")
		case <-time.After(30 * time.Second):
			t.Fatalf("the webhook tells only of %v", at)
		}
	}
	return webhookProcess{address: at["admissions"], metrics: "http://" + at["metrics"] + "/metrics"}
}

// eventually repeats a check until it is content.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-limit.C:
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

func get(ctx context.Context, url string) (string, error) {
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
	return string(body), err
}

// exposed gathers what the webhook, an agent and the API server tell once all has happened of which alerts tell: pods that are
// injected, skipped and denied; a webhook that cannot be reached, and one that is passed by; a certificate that is missing.
func exposed(t *testing.T) families {
	t.Helper()
	dir, err := binaries.Build(t.Context(), "webhook")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	api := plane.Shared(t)
	certs, ca := serverCertificate(t)
	healthy := startWebhook(t, filepath.Join(dir, "webhook"), certs)
	faulty := startWebhook(t, filepath.Join(dir, "webhook"), t.TempDir())
	const nobody = "127.0.0.1:1"

	for policy, address := range map[string]string{"ask": healthy.address, "refused": nobody, "ignored": nobody} {
		ns := api.CreateNamespace(t, policy, nil)
		failure := "Fail"
		if policy == "ignored" {
			failure = "Ignore"
		}
		manifest := strings.NewReplacer("NAME", ns, "POLICY", failure, "ADDRESS", address, "BUNDLE", ca).Replace(configuration)
		objects, err := api.Apply(t.Context(), []byte(manifest), ns)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for _, o := range objects {
				_ = api.Client.Delete(context.WithoutCancel(t.Context()), o)
			}
		})
		ask(t, api, ns, policy)
	}
	all := families{}
	eventually(t, "the faulty webhook tells its fault", func() error {
		text, err := get(t.Context(), faulty.metrics)
		if err == nil && !strings.Contains(text, "certificate_upkeep_healthy 0") {
			err = errors.New("it does not")
		}
		if err == nil {
			all.add(t, text)
		}
		return err
	})
	text, err := get(t.Context(), healthy.metrics)
	if err != nil {
		t.Fatal(err)
	}
	all.add(t, text)
	all.add(t, agentExposition(t))
	all.add(t, apiServerExposition(t, api))
	return all
}

// ask makes pods until the webhook configuration has its effect.
func ask(t *testing.T, api *plane.Plane, ns, policy string) {
	t.Helper()
	create := func(annotations map[string]string) (*corev1.Pod, error) {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "upf-", Namespace: ns, Annotations: annotations},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "example.com/app"}}},
		}
		return pod, api.Client.Create(t.Context(), pod)
	}
	networks := map[string]string{settings.Networks: "n3"}
	switch policy {
	case "ask":
		eventually(t, "a pod is injected", func() error {
			pod, err := create(networks)
			if err == nil && len(pod.Spec.InitContainers) == 0 {
				err = errors.New("it is not")
			}
			return err
		})
		if _, err := create(map[string]string{settings.Networks: "n3", settings.KeyRelease: "perhaps"}); err == nil {
			t.Error("a pod with an invalid setting is admitted")
		}
	case "refused":
		eventually(t, "a pod is refused", func() error {
			if _, err := create(networks); err == nil {
				return errors.New("it is admitted")
			}
			return nil
		})
	case "ignored":
		eventually(t, "the API server passes a webhook by", func() error {
			if _, err := create(networks); err != nil {
				return err
			}
			if !strings.Contains(apiServerExposition(t, api), "apiserver_admission_webhook_fail_open_count{") {
				return errors.New("it does not")
			}
			return nil
		})
	}
}

func apiServerExposition(t *testing.T, api *plane.Plane) string {
	t.Helper()
	client, err := rest.HTTPClientFor(api.Config)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Get(strings.TrimSuffix(api.Config.Host, "/") + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %v", resp.Status, err)
	}
	// Only what is about admission: the rest is thousands of lines.
	var text strings.Builder
	for line := range strings.Lines(string(body)) {
		if strings.Contains(line, "apiserver_admission_") {
			text.WriteString(line)
		}
	}
	return text.String()
}

// The entries' names end as the chart's do: the alerts know them by that.
const configuration = `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: NAME}
webhooks:
- name: NAME.multus-ip-manager.io
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: POLICY
  clientConfig: {url: "https://ADDRESS/mutate", caBundle: BUNDLE}
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: NAME}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
`

// serverCertificate makes a certificate for 127.0.0.1, and gives its directory and itself as a CA bundle.
func serverCertificate(t *testing.T) (dir, bundle string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	for name, data := range map[string][]byte{"tls.crt": public, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, base64.StdEncoding.EncodeToString(public)
}

// decode reads JSON from a text or fails.
func decode(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(fmt.Errorf("%w in %.2000s", err, text))
	}
}
