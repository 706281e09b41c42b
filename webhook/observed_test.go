package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/admit"
	"multus-ip-manager.io/webhook/inject"
)

// asker sends to one webhook what an API server sends, and what none would.
type asker struct {
	t      *testing.T
	client *http.Client
	url    string
}

func newAsker(t *testing.T, p *process) *asker {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // the certificate is not what is tested
	t.Cleanup(transport.CloseIdleConnections)
	return &asker{t: t, client: &http.Client{Transport: transport, Timeout: 20 * time.Second}, url: "https://" + p.at + inject.Paths()[0].Path}
}

// send posts a body and gives the status of the answer. What is too large may be refused before it was sent, so that its sender
// hears nothing: that is the same as 413.
func (a *asker) send(contentType string, body []byte) int {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), http.MethodPost, a.url, bytes.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := a.client.Do(req)
	if len(body) > largestBody && answeredEarly(err) {
		return http.StatusRequestEntityTooLarge
	}
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		a.t.Fatal(err)
	}
	return resp.StatusCode
}

// aReview wraps an object in an admission review.
func aReview(t *testing.T, object string) []byte {
	t.Helper()
	kind := map[string]string{"version": "v1", "kind": "Pod"}
	body, err := json.Marshal(map[string]any{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": map[string]any{
		"uid": "1", "operation": "CREATE", "namespace": "telco", "resource": map[string]string{"version": "v1", "resource": "pods"},
		"kind": kind, "requestKind": kind, "userInfo": map[string]any{"username": "someone"}, "object": json.RawMessage(object)}})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// aPod is a pod as a ReplicaSet makes it: it has no name yet.
func aPod(annotations, container string) string {
	return `{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"upf-5d4f8c-","annotations":{` + annotations + `},
		"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"upf-5d4f8c","uid":"u","controller":true}]},
		"spec":{"containers":[{"name":"app","image":"example.com/app"` + container + `}]}}`
}

const withNetworks = `"k8s.v1.cni.cncf.io/networks":"n3"`

// What /metrics tells is what dashboards and alerts are made of. Its size is bounded whatever is asked.
func TestMetricsOfTheServer(t *testing.T) {
	dir := keyPair(t)
	p := startProcess(t, "--cert-source=secret", "--webhook-configuration=", "--cert-dir="+dir)
	p.waitReady()
	ask := newAsker(t, p)
	for i := range 200 { // each of another name, and with a mode and settings of its own making
		for _, annotations := range []string{
			withNetworks,
			fmt.Sprintf(`%s,"multus-ip-manager.io/mode":"mode-%d"`, withNetworks, i),
			fmt.Sprintf(`%s,"multus-ip-manager.io/release":"maybe-%d"`, withNetworks, i),
		} {
			object := strings.Replace(aPod(annotations, ""), "upf-5d4f8c", fmt.Sprintf("unheard-of-%d", i), 1)
			if status := ask.send("application/json", aReview(t, object)); status != http.StatusOK {
				t.Fatalf("status %d", status)
			}
		}
	}
	for want, body := range map[int][]byte{
		http.StatusBadRequest:            []byte(`{"kind":"AdmissionReview"`),
		http.StatusRequestEntityTooLarge: bytes.Repeat([]byte(" "), largestBody+1),
	} {
		if status := ask.send("application/json", body); status != want {
			t.Errorf("status %d, want %d", status, want)
		}
	}

	text, err := get(p.scrape)
	if err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	lint(t, families)
	if strings.Contains(text, "unheard-of") || strings.Contains(text, "maybe-") {
		t.Error("the metrics tell of single pods")
	}
	reasons := map[string]bool{}
	for _, r := range inject.Reasons() {
		reasons[string(r.Reason)] = true
	}
	for _, m := range families[admit.DecisionsMetric].GetMetric() {
		l := labelsOf(m)
		if mode := l["mode"]; mode != "" && !slices.Contains(settings.Modes(), settings.Mode(mode)) || !reasons[l["reason"]] {
			t.Errorf("decisions are counted by %v", l)
		}
	}
	if n := families[admit.DurationMetric].GetMetric()[0].GetHistogram().GetSampleCount(); n != 600 {
		t.Errorf("the time of %d decisions is told, want 600", n)
	}

	cert, err := tls.LoadX509KeyPair(dir+"/tls.crt", dir+"/tls.key")
	if err != nil {
		t.Fatal(err)
	}
	const ours = "multus_ip_manager_"
	for _, tt := range []struct {
		family string
		labels map[string]string
		want   float64
	}{
		{admit.DecisionsMetric, map[string]string{"mode": "init", "outcome": "inject", "reason": "injected"}, 200},
		{admit.DecisionsMetric, map[string]string{"mode": "", "outcome": "deny", "reason": "unknown-mode"}, 200},
		{admit.DecisionsMetric, map[string]string{"mode": "init", "outcome": "deny", "reason": "invalid-setting"}, 200},
		{admit.PanicsMetric, nil, 0},
		{ours + "certificate_expiry_timestamp_seconds", nil, float64(cert.Leaf.NotAfter.Unix())},
		{ours + "certificate_trusted", nil, 1},
		{ours + "certificate_upkeep_healthy", nil, 1},
		{ours + "build_info", map[string]string{"component": "webhook", "version": version, "go_version": runtime.Version()}, 1},
		{"controller_runtime_webhook_requests_total", map[string]string{"webhook": "/mutate", "code": "200"}, 600},
		{"controller_runtime_webhook_requests_total", map[string]string{"webhook": "/mutate", "code": "400"}, 1},
		{"controller_runtime_webhook_requests_total", map[string]string{"webhook": "/mutate", "code": "413"}, 1},
	} {
		if got, ok := valueOf(families[tt.family], tt.labels); !ok || got != tt.want {
			t.Errorf("%s%v is %v (there: %v), want %v", tt.family, tt.labels, got, ok, tt.want)
		}
	}
}

// A certificate that is not there yet is told as such, by the numbers that alerts look at.
func TestMetricsWithoutACertificate(t *testing.T) {
	p := startProcess(t, "--cert-source=secret", "--webhook-configuration=", "--cert-dir="+t.TempDir())
	p.eventually("the source tells its fault", func() error {
		text, err := get(p.scrape)
		if err != nil {
			return err
		}
		for _, want := range []string{"certificate_expiry_timestamp_seconds 0", "certificate_trusted 0", "certificate_upkeep_healthy 0"} {
			if !strings.Contains(text, "\nmultus_ip_manager_"+want+"\n") {
				return fmt.Errorf("no %s", want)
			}
		}
		return nil
	})
}

// lint checks our own families as Prometheus' maintainers do.
func lint(t *testing.T, families map[string]*dto.MetricFamily) {
	t.Helper()
	var own []*dto.MetricFamily
	for name, f := range families {
		if strings.HasPrefix(name, "multus_ip_manager_") {
			own = append(own, f)
		}
	}
	problems, err := promlint.NewWithMetricFamilies(own).Lint()
	if err != nil || len(problems) > 0 || len(own) < 7 {
		t.Errorf("%d families: %v, %v", len(own), problems, err)
	}
}

func labelsOf(m *dto.Metric) map[string]string {
	labels := map[string]string{}
	for _, l := range m.GetLabel() {
		labels[l.GetName()] = l.GetValue()
	}
	return labels
}

// valueOf gives the value of the one series with exactly these labels.
func valueOf(f *dto.MetricFamily, labels map[string]string) (float64, bool) {
	for _, m := range f.GetMetric() {
		if got := labelsOf(m); len(got) == len(labels) && (len(got) == 0 || cmp.Equal(got, labels)) {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue(), true
		}
	}
	return 0, false
}

// The log has what is needed to find a pod, and nothing that is the pod's own business: what its containers are told, and
// the annotations of others, may be secrets. Nor is it told when the webhook is asked in a way it does not understand.
func TestTheLogKeepsSecrets(t *testing.T) {
	const secret = "hunter2"
	p := startProcess(t, "--cert-source=secret", "--webhook-configuration=", "--cert-dir="+keyPair(t), "--log-level=debug")
	p.waitReady()
	ask := newAsker(t, p)
	const container = `,"env":[{"name":"PASSWORD","value":"` + secret + `"}],"args":["--token=` + secret + `"],"command":["` + secret + `"],
		"lifecycle":{"postStart":{"exec":{"command":["` + secret + `"]}}}`
	const foreign = `"example.com/token":"` + secret + `"`
	good := aReview(t, aPod(withNetworks+","+foreign, container))
	reviews := map[string][]byte{
		"injected":             good,
		"skipped":              aReview(t, aPod(foreign, container)),
		"denied":               aReview(t, aPod(withNetworks+","+foreign+`,"multus-ip-manager.io/release":"perhaps"`, container)),
		"unknown mode":         aReview(t, aPod(withNetworks+","+foreign+`,"multus-ip-manager.io/mode":"neither"`, container)),
		"networks, not JSON":   aReview(t, aPod(`"k8s.v1.cni.cncf.io/networks":"[{\"name\":\"n3\",\"cni-args\":{\"token\":\"`+secret+`\"]",`+foreign, container)),
		"networks, odd":        aReview(t, aPod(`"k8s.v1.cni.cncf.io/networks":"[{\"name\":\"n3\",\"ips\":\"`+secret+`\",\"default-route\":[\"`+secret+`\"]}]"`, container)),
		"networks, a word":     aReview(t, aPod(`"k8s.v1.cni.cncf.io/networks":"a/b/`+secret+`"`, container)),
		"networks too long":    aReview(t, aPod(`"k8s.v1.cni.cncf.io/networks":"`+secret+strings.Repeat("x", 140<<10)+`"`, container)),
		"an env of text":       aReview(t, aPod(withNetworks, `,"env":"`+secret+`"`)),
		"resources of text":    aReview(t, aPod(withNetworks, container+`,"resources":{"limits":"`+secret+`"}`)),
		"a limit of text":      aReview(t, aPod(withNetworks, container+`,"resources":{"limits":{"cpu":"`+secret+`"}}`)),
		"a name of text":       aReview(t, `{"metadata":{"annotations":"`+secret+`"},"spec":{"containers":[{"name":"a"}]}}`),
		"a key twice":          aReview(t, aPod(foreign+","+foreign+","+withNetworks, container)),
		"an annotation object": aReview(t, aPod(`"example.com/token":{"`+secret+`":"`+secret+`"}`, container)),
		"not a pod":            aReview(t, `["`+secret+`"]`),
		"text":                 aReview(t, `"`+secret+`"`),
		"cut off":              good[:len(good)-20],
		"cut off inside":       good[:bytes.LastIndex(good, []byte(secret))+len(secret)],
		"text before":          append([]byte(secret), good...),
		"text behind":          append(bytes.Clone(good), secret...),
		"YAML":                 []byte("kind: " + secret + "\napiVersion: " + secret + "\nrequest: " + secret + "\n"),
		"YAML, wrong type":     []byte("apiVersion: admission.k8s.io/v1\nkind: AdmissionReview\nrequest: " + secret + "\n"),
		"another kind":         []byte(`{"apiVersion":"v1","kind":"` + secret + `","password":"` + secret + `"}`),
		"another version":      []byte(`{"apiVersion":"` + secret + `/v1","kind":"AdmissionReview","password":"` + secret + `"}`),
		"a request of text":    []byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":"` + secret + `"}`),
		"a field of text":      []byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"dryRun":"` + secret + `"}}`),
	}
	for name, body := range reviews {
		before := len(p.log.String())
		ask.send("application/json", body)
		ask.send("text/plain", body)
		if told := p.log.String()[before:]; strings.Contains(told, secret) {
			t.Errorf("%s: the log tells a secret:\n%s", name, told)
		}
	}

	line := lineAbout(t, p.log.String(), `"outcome":"inject"`)
	for key, want := range map[string]any{
		"namespace": "telco", "pod": "upf-5d4f8c-*", "owner": "ReplicaSet/upf-5d4f8c", "mode": "init", "outcome": "inject", "reason": "injected",
	} {
		if line[key] != want {
			t.Errorf("%s is %v, want %v", key, line[key], want)
		}
	}
	if line = lineAbout(t, p.log.String(), `"reason":"invalid-setting"`); line["level"] != "WARN" || !strings.Contains(fmt.Sprint(line["message"]), `multus-ip-manager.io/release="perhaps"`) {
		t.Errorf("of a denial the log tells %v, want our own setting with its value", line)
	}
	p.terminate()
	if strings.Contains(p.log.String(), secret) {
		t.Error("the log tells a secret at the end")
	}
}

// lineAbout gives the first line of a JSON log that holds a text.
func lineAbout(t *testing.T, log, text string) map[string]any {
	t.Helper()
	for line := range strings.Lines(log) {
		if strings.Contains(line, text) {
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Fatal(err)
			}
			return fields
		}
	}
	t.Fatalf("no line holds %s", text)
	return nil
}
