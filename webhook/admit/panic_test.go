package admit_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"multus-ip-manager.io/webhook/admit"
	"multus-ip-manager.io/webhook/inject"
)

// A fault of ours refuses the pod with words, is counted and logged with its place, and tells nothing of the pod.
func TestPanic(t *testing.T) {
	e := &entry{log: new(bytes.Buffer), registry: prometheus.NewRegistry()}
	// An injector that nobody made has no configuration: the fault of this test.
	h, err := admit.New(new(inject.Injector), inject.NamespaceNone, slog.New(slog.NewJSONHandler(e.log, nil)), e.registry)
	if err != nil {
		t.Fatal(err)
	}
	e.http = &admission.Webhook{Handler: h}
	for range 2 { // it goes on
		resp := e.post(t, review(t, pod(withNetwork), nil))
		if resp.Allowed || resp.UID != "req-1" || resp.Result.Code != http.StatusInternalServerError || !strings.Contains(resp.Result.Message, "req-1") {
			t.Errorf("%+v", resp)
		}
	}
	families, err := e.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	count := 0.0
	for _, f := range families {
		if f.GetName() == admit.PanicsMetric {
			count = f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	if count != 2 {
		t.Errorf("%s is %v, want 2", admit.PanicsMetric, count)
	}
	line, _, _ := bytes.Cut(e.log.Bytes(), []byte("\n"))
	var got struct{ Level, Msg, Request, Stack, Error string }
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	if got.Level != "ERROR" || got.Request != "req-1" || !strings.Contains(got.Stack, "inject.(*Injector)") || !strings.Contains(got.Error, "nil pointer") {
		t.Errorf("%+v", got)
	}
	if strings.Contains(e.log.String(), "hunter2") {
		t.Errorf("the log tells a secret: %s", e.log)
	}
}
