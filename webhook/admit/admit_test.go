package admit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"multus-ip-manager.io/test/admission/cases"
	"multus-ip-manager.io/webhook/admit"
	"multus-ip-manager.io/webhook/inject"
)

// entry is one webhook entry with what it logs and counts.
type entry struct {
	http     http.Handler
	log      *bytes.Buffer
	registry *prometheus.Registry
}

func newEntry(t testing.TB, mode inject.NamespaceMode) *entry {
	t.Helper()
	return newEntryWith(t, inject.DefaultConfig(), mode)
}

func newEntryWith(t testing.TB, config inject.Config, mode inject.NamespaceMode) *entry {
	t.Helper()
	injector, err := inject.New(config)
	if err != nil {
		t.Fatal(err)
	}
	e := &entry{log: new(bytes.Buffer), registry: prometheus.NewRegistry()}
	log := slog.New(slog.NewJSONHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h, err := admit.New(injector, mode, log, e.registry)
	if err != nil {
		t.Fatal(err)
	}
	e.http = &admission.Webhook{Handler: h}
	return e
}

// review wraps a pod in an AdmissionReview.
func review(t testing.TB, pod []byte, change func(*admissionv1.AdmissionRequest)) []byte {
	t.Helper()
	r := &admissionv1.AdmissionRequest{
		UID:       "req-1",
		Operation: admissionv1.Create,
		Namespace: "telco",
		Resource:  metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
		Kind:      metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
		Object:    runtime.RawExtension{Raw: pod},
	}
	if change != nil {
		change(r)
	}
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: r,
	})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func (e *entry) post(t testing.TB, body []byte) *admissionv1.AdmissionResponse {
	t.Helper()
	req := httptest.NewRequest(http.MethodPost, "/mutate", bytes.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	rec := httptest.NewRecorder()
	e.http.ServeHTTP(rec, req)
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(rec.Body.Bytes(), &answer); err != nil || answer.Response == nil {
		t.Fatalf("answer %q: %v", rec.Body, err)
	}
	return answer.Response
}

func pod(annotations string) []byte {
	return []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"upf-","namespace":"telco","annotations":{` + annotations + `},
		"ownerReferences":[{"kind":"ReplicaSet","name":"upf","controller":true}]},
		"spec":{"containers":[{"name":"app","image":"x","env":[{"name":"PASSWORD","value":"hunter2"}],"future":1}]}}`)
}

const withNetwork = `"k8s.v1.cni.cncf.io/networks":"n3"`

func TestInjected(t *testing.T) {
	e := newEntry(t, inject.NamespaceNone)
	raw := pod(withNetwork)
	resp := e.post(t, review(t, raw, nil))
	if !resp.Allowed || resp.UID != "req-1" || resp.PatchType == nil || *resp.PatchType != admissionv1.PatchTypeJSONPatch {
		t.Fatalf("%+v", resp)
	}
	after := apply(t, raw, resp.Patch)
	if !bytes.Contains(after, []byte(`"future":1`)) || !bytes.Contains(after, []byte("ip-manager")) {
		t.Errorf("%s", after)
	}
	if resp.AuditAnnotations["reason"] != "injected" || resp.AuditAnnotations["mode"] != "init" {
		t.Errorf("audit annotations %v", resp.AuditAnnotations)
	}
	second := e.post(t, review(t, after, nil))
	if !second.Allowed || second.Patch != nil || second.PatchType != nil || second.Warnings != nil {
		t.Errorf("second time: %+v", second)
	}
}

func TestLogLine(t *testing.T) {
	e := newEntry(t, inject.NamespaceNone)
	dry := true
	e.post(t, review(t, pod(withNetwork), func(r *admissionv1.AdmissionRequest) { r.DryRun = &dry }))
	var line map[string]any
	if err := json.Unmarshal(e.log.Bytes(), &line); err != nil {
		t.Fatalf("not one line: %q", e.log)
	}
	for key, want := range map[string]any{
		"namespace": "telco", "pod": "upf-*", "owner": "ReplicaSet/upf", "mode": "init",
		"outcome": "inject", "reason": "injected", "request": "req-1", "dryRun": true, "level": "INFO",
	} {
		if line[key] != want {
			t.Errorf("%s is %v, want %v", key, line[key], want)
		}
	}
	if strings.Contains(e.log.String(), "hunter2") || strings.Contains(e.log.String(), "PASSWORD") {
		t.Errorf("the log tells the pod's environment: %s", e.log)
	}
}

// A dry run gets the same answer as the real thing.
func TestDryRun(t *testing.T) {
	e := newEntry(t, inject.NamespaceNone)
	dry := true
	want := e.post(t, review(t, pod(withNetwork), nil))
	got := e.post(t, review(t, pod(withNetwork), func(r *admissionv1.AdmissionRequest) { r.DryRun = &dry }))
	if !bytes.Equal(got.Patch, want.Patch) || !got.Allowed {
		t.Errorf("%+v", got)
	}
}

func TestAnswers(t *testing.T) {
	for name, tt := range map[string]struct {
		mode    inject.NamespaceMode
		pod     []byte
		change  func(*admissionv1.AdmissionRequest)
		code    int32
		message string
		warning string
		metric  string
	}{
		"injected": {pod: pod(withNetwork), code: 200, metric: "init/inject/injected"},
		"denied setting": {pod: pod(withNetwork + `,"multus-ip-manager.io/release":"yes"`), code: 403,
			message: `multus-ip-manager.io/release="yes"`, metric: "init/deny/invalid-setting"},
		"denied by namespace":   {mode: inject.NamespaceOther, pod: pod(withNetwork), code: 403, message: "of namespace", metric: "/deny/unknown-mode"},
		"denied, not available": {mode: inject.NamespaceNode, pod: pod(withNetwork), code: 403, message: "not available yet", metric: "node/deny/mode-not-available"},
		"warned": {pod: pod(`"k8s.v1.cni.cncf.io/networks":"[null]"`), code: 200,
			warning: "null is not a network", metric: "init/inject/injected"},
		"skipped": {pod: pod(""), code: 200, metric: "/skip/no-networks"},
		"an update": {pod: pod(withNetwork), change: func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Update },
			code: 200, metric: "/skip/not-created"},
		"another kind": {pod: pod(withNetwork), change: func(r *admissionv1.AdmissionRequest) { r.Resource.Resource = "services" },
			code: 200, metric: "/skip/not-a-pod"},
		"a subresource": {pod: pod(withNetwork), change: func(r *admissionv1.AdmissionRequest) { r.SubResource = "eviction" },
			code: 200, metric: "/skip/not-a-pod"},
		"not a pod at all": {pod: []byte(`[1]`), code: 400, message: "cannot be decoded", metric: "/deny/bad-request"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.mode == "" {
				tt.mode = inject.NamespaceNone
			}
			e := newEntry(t, tt.mode)
			resp := e.post(t, review(t, tt.pod, tt.change))
			if resp.Allowed != (tt.code == 200) || resp.Result.Code != tt.code || !strings.Contains(resp.Result.Message, tt.message) {
				t.Errorf("allowed %v, %+v", resp.Allowed, resp.Result)
			}
			if !strings.Contains(strings.Join(resp.Warnings, "\n"), tt.warning) || tt.warning == "" && resp.Warnings != nil {
				t.Errorf("warnings %q", resp.Warnings)
			}
			if got := e.decisions(t); got[tt.metric] != 1 || len(got) != 1 {
				t.Errorf("decisions %v, want one %s", got, tt.metric)
			}
		})
	}
}

// decisions reads the counter as mode/outcome/reason → count.
func (e *entry) decisions(t testing.TB) map[string]float64 {
	t.Helper()
	families, err := e.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if f.GetName() != admit.DecisionsMetric {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() { // sorted by name: mode, outcome, reason
				labels = append(labels, l.GetValue())
			}
			out[strings.Join(labels, "/")] = m.GetCounter().GetValue()
		}
	}
	return out
}

// All entries of a server share one registry.
func TestEntriesShareMetrics(t *testing.T) {
	injector, err := inject.New(inject.DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	for _, p := range inject.Paths() {
		h, err := admit.New(injector, p.NamespaceMode, slog.New(slog.DiscardHandler), registry)
		if err != nil {
			t.Fatal(err)
		}
		h.Handle(t.Context(), admission.Request{})
	}
	e := &entry{registry: registry}
	if got := e.decisions(t)["/deny/bad-request"]; got != float64(len(inject.Paths())) {
		t.Errorf("%v decisions", got)
	}
}

func TestNewNeedsEverything(t *testing.T) {
	if _, err := admit.New(nil, inject.NamespaceNone, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil {
		t.Error("no injector, no error")
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: admit.DecisionsMetric, Help: "something else"}))
	injector, err := inject.New(inject.DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admit.New(injector, inject.NamespaceNone, slog.New(slog.DiscardHandler), registry); err == nil {
		t.Error("a metric of the same name, no error")
	}
}

// Every case of the table through the whole protocol: the expected decision, and once injected no other.
func TestCasesOverHTTP(t *testing.T) {
	all, err := cases.All()
	if err != nil || len(all) == 0 {
		t.Fatal("no cases:", err)
	}
	for _, c := range all {
		t.Run(c.Name, func(t *testing.T) {
			e := newEntryWith(t, cases.Config(), c.NamespaceMode)
			change := func(r *admissionv1.AdmissionRequest) {
				r.Operation, r.Resource.Resource = admissionv1.Operation(c.Operation), c.Resource
			}
			got := e.post(t, review(t, c.Object, change))
			if got.Allowed != (c.Want.Action != inject.ActionDeny) || !sameJSON(t, got.Patch, c.Want.Patch) ||
				!maps.Equal(got.AuditAnnotations, c.Want.Audit) || !slices.Equal(got.Warnings, c.Want.Warnings) {
				t.Errorf("%+v, want %+v", got, c.Want)
			}
			if !got.Allowed && got.Result.Message != c.Want.Message {
				t.Errorf("message %q, want %q", got.Result.Message, c.Want.Message)
			}
			if got.Patch == nil {
				return
			}
			again := e.post(t, review(t, apply(t, c.Object, got.Patch), change))
			if !again.Allowed || again.Patch != nil || again.AuditAnnotations["reason"] != string(inject.AlreadyInjected) || again.Warnings != nil {
				t.Errorf("a second time: %+v", again)
			}
		})
	}
}

func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	var x, y any
	if err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		t.Fatal(err)
	}
	return cmp.Equal(x, y)
}

func apply(t *testing.T, object, patch []byte) []byte {
	t.Helper()
	p, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		t.Fatal(err)
	}
	after, err := p.Apply(object)
	if err != nil {
		t.Fatal(err)
	}
	return after
}

// FuzzReview feeds any bytes as the body of a call: the answer is always a
// well-formed review, never a panic.
func FuzzReview(f *testing.F) {
	f.Add(review(f, pod(withNetwork), nil))
	f.Add(review(f, pod(`"k8s.v1.cni.cncf.io/networks":"[null]"`), nil))
	f.Add(review(f, []byte(`null`), nil))
	for _, s := range []string{``, `{}`, `null`, `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}`,
		`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"1","object":{}}}`,
		`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"object":{"spec":{"containers":[null]}}}}`} {
		f.Add([]byte(s))
	}
	injector, err := inject.New(inject.DefaultConfig())
	if err != nil {
		f.Fatal(err)
	}
	h, err := admit.New(injector, inject.NamespaceNone, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		f.Fatal(err)
	}
	no := false
	e := &entry{http: &admission.Webhook{Handler: h, RecoverPanic: &no}}
	f.Fuzz(func(t *testing.T, body []byte) {
		resp := e.post(t, body)
		if resp.Result != nil && resp.Result.Code == http.StatusInternalServerError {
			t.Fatalf("a panic: %+v", resp)
		}
		if (resp.Patch != nil) != (resp.PatchType != nil) || resp.Patch != nil && !resp.Allowed {
			t.Fatalf("%+v", resp)
		}
	})
}

func BenchmarkAdmission(b *testing.B) {
	injector, err := inject.New(inject.DefaultConfig())
	if err != nil {
		b.Fatal(err)
	}
	h, err := admit.New(injector, inject.NamespaceNone, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	e := &entry{http: &admission.Webhook{Handler: h}}
	body := review(b, pod(withNetwork), nil)
	b.ReportAllocs()
	for b.Loop() {
		e.post(b, body)
	}
}
