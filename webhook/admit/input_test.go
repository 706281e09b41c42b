package admit_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"

	"multus-ip-manager.io/test/admission/cases"
	"multus-ip-manager.io/webhook/inject"
)

// send posts a body as it is and gives the answer, which is a review whatever was sent.
func (e *entry) send(t *testing.T, method, contentType string, body []byte) *admissionv1.AdmissionResponse {
	t.Helper()
	req := httptest.NewRequest(method, "/mutate", bytes.NewReader(body))
	req.Header.Set("Content-Type", contentType)
	rec := httptest.NewRecorder()
	e.http.ServeHTTP(rec, req)
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(rec.Body.Bytes(), &answer); err != nil || answer.Response == nil {
		t.Fatalf("answer %d %q: %v", rec.Code, rec.Body, err)
	}
	return answer.Response
}

// What is no admission request is refused: an API server that gets no answer it understands would apply its failure
// policy, and whoever sent it should hear why.
func TestWhatIsNoReview(t *testing.T) {
	good := review(t, pod(withNetwork), nil)
	for name, tt := range map[string]struct {
		contentType string
		body        []byte
	}{
		"no content type":      {"", good},
		"another content type": {"text/plain", good},
		"a form":               {"application/x-www-form-urlencoded", good},
		"nothing":              {"application/json", nil},
		"null":                 {"application/json", []byte("null")},
		"not JSON":             {"application/json", []byte("<review/>")},
		"another kind":         {"application/json", []byte(`{"apiVersion":"v1","kind":"Pod"}`)},
		"no request":           {"application/json", []byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`)},
		"beyond any pod":       {"application/json", review(t, pod(withNetwork+`,"a":"`+strings.Repeat("x", 8<<20)+`"`), nil)},
	} {
		t.Run(name, func(t *testing.T) {
			if resp := newEntry(t, inject.NamespaceNone).send(t, http.MethodPost, tt.contentType, tt.body); resp.Allowed || resp.Patch != nil {
				t.Errorf("%+v", resp)
			}
		})
	}
}

// A body that is cut off anywhere is refused, never admitted without what it would have said.
func TestCutOff(t *testing.T) {
	e := newEntry(t, inject.NamespaceNone)
	body := review(t, pod(withNetwork), nil)
	for n := range body {
		if resp := e.send(t, http.MethodPost, "application/json", body[:n]); resp.Allowed || resp.Patch != nil {
			t.Fatalf("%d of %d bytes: %+v", n, len(body), resp)
		}
	}
}

// Keys count as they are spelt: by the API server, by the patch and so by us. The patch of a pod with "initcontainers" must
// not be made for one with "initContainers".
func TestKeysAreExact(t *testing.T) {
	const meta = `"metadata":{"name":"x","annotations":{` + withNetwork + `}}`
	for name, tt := range map[string]struct {
		pod, reason string
		path        string // of the operation that adds the container
	}{
		"as they are": {`{` + meta + `,"spec":{"initContainers":[{"name":"a"}],"containers":[{"name":"app"}]}}`, "injected", "/spec/initContainers/0"},
		"a stranger in lower case": {`{` + meta + `,"spec":{"initcontainers":[{"name":"ip-manager"}],"containers":[{"name":"app"}]}}`,
			"injected", "/spec/initContainers"},
		"both": {`{` + meta + `,"spec":{"initContainers":[{"name":"a"}],"INITCONTAINERS":null,"hostnetwork":true,"containers":[{"name":"app"}]}}`,
			"injected", "/spec/initContainers/0"},
		"a spec in capitals":          {`{` + meta + `,"SPEC":{"containers":[{"name":"app"}]}}`, "bad-request", ""},
		"annotations in capitals":     {`{"metadata":{"Annotations":{` + withNetwork + `}},"spec":{"containers":[{"name":"app"}]}}`, "no-networks", ""},
		"a key twice":                 {`{` + meta + `,"spec":{"hostNetwork":true,"containers":[{"name":"app"}],"hostNetwork":false}}`, "bad-request", ""},
		"an annotation twice":         {`{"metadata":{"annotations":{` + withNetwork + `,` + withNetwork + `}},"spec":{"containers":[{"name":"app"}]}}`, "bad-request", ""},
		"twice where nothing is ours": {`{` + meta + `,"spec":{"containers":[{"name":"app","future":1,"future":2}]}}`, "injected", "/spec/initContainers"},
	} {
		t.Run(name, func(t *testing.T) {
			resp := newEntry(t, inject.NamespaceNone).post(t, review(t, []byte(tt.pod), nil))
			if got := resp.AuditAnnotations["reason"]; got != tt.reason {
				t.Fatalf("%s, want %s: %+v", got, tt.reason, resp.Result)
			}
			if tt.path == "" {
				return
			}
			if !bytes.Contains(resp.Patch, []byte(`"path":"`+tt.path+`"`)) {
				t.Errorf("want path %s in %s", tt.path, resp.Patch)
			}
			apply(t, []byte(tt.pod), resp.Patch)
		})
	}
}

// Other webhooks change the pod before and after us, and the API server asks again: the pod ends as if injected once, and
// no number says that there were two pods or that one went without.
func TestReinvocation(t *testing.T) {
	const (
		before = `[{"op":"add","path":"/metadata/annotations/k8s.v1.cni.cncf.io~1networks","value":"n3"},
			{"op":"add","path":"/spec/initContainers","value":[{"name":"policy"}]}]`
		after = `[{"op":"add","path":"/spec/initContainers/0","value":{"name":"mesh-init"}},
			{"op":"add","path":"/spec/initContainers/2","value":{"name":"mesh","restartPolicy":"Always"}},
			{"op":"add","path":"/spec/initContainers/1/env/-","value":{"name":"AWS_ROLE_ARN","value":"arn"}},
			{"op":"add","path":"/spec/containers/0/future","value":2}]`
	)
	e := newEntry(t, inject.NamespaceSidecar)
	raw := apply(t, pod(`"a":"b"`), []byte(before))
	first := e.post(t, review(t, raw, nil))
	if first.Patch == nil {
		t.Fatalf("%+v", first)
	}
	raw = apply(t, apply(t, raw, first.Patch), []byte(after))
	logged := e.log.Len()
	for range 2 {
		if again := e.post(t, review(t, raw, nil)); !again.Allowed || again.Patch != nil || again.Warnings != nil {
			t.Errorf("%+v", again)
		}
	}
	var got struct {
		Spec struct{ InitContainers []struct{ Name string } }
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range got.Spec.InitContainers {
		names = append(names, c.Name)
	}
	if strings.Join(names, " ") != "mesh-init ip-manager mesh policy" {
		t.Errorf("%q", names)
	}
	if d := e.decisions(t); d["sidecar/inject/injected"] != 1 || d["sidecar/keep/already-injected"] != 2 || len(d) != 2 {
		t.Errorf("%v", d)
	}
	if strings.Contains(e.log.String()[logged:], `"INFO"`) {
		t.Errorf("a second line for one injection: %s", e.log.String()[logged:])
	}
}

// The API server's annotator that sorts after us: asked first without the annotation, then with it.
func TestAnnotatedAfterwards(t *testing.T) {
	e := newEntry(t, inject.NamespaceNone)
	raw := pod(`"a":"b"`)
	if first := e.post(t, review(t, raw, nil)); first.Patch != nil || !first.Allowed {
		t.Fatalf("%+v", first)
	}
	raw = apply(t, raw, []byte(`[{"op":"add","path":"/metadata/annotations/k8s.v1.cni.cncf.io~1networks","value":"n3"}]`))
	if second := e.post(t, review(t, raw, nil)); second.Patch == nil {
		t.Errorf("%+v", second)
	}
}

// Every decision is logged once, with who, what and why, and never what the pod's containers are told.
func TestLogOfEveryCase(t *testing.T) {
	all, err := cases.All()
	if err != nil {
		t.Fatal(err)
	}
	levels := map[inject.Action]string{
		inject.ActionInject: "INFO", inject.ActionAdjust: "INFO", inject.ActionDeny: "WARN", inject.ActionSkip: "DEBUG", inject.ActionKeep: "DEBUG",
	}
	for _, c := range all {
		e := newEntryWith(t, cases.Config(), c.NamespaceMode)
		object := bytes.Replace(c.Object, []byte(`"name":"app"`), []byte(`"name":"app","env":[{"name":"PASSWORD","value":"hunter2"}],"args":["--token=hunter2"]`), 1)
		e.post(t, review(t, object, func(r *admissionv1.AdmissionRequest) {
			r.Operation, r.Resource.Resource, r.Name = admissionv1.Operation(c.Operation), c.Resource, "requested"
		}))
		var line struct{ Level, Namespace, Pod, Outcome, Reason, Mode, Message string }
		if err := json.Unmarshal(e.log.Bytes(), &line); err != nil {
			t.Errorf("%s: not one line: %q", c.Name, e.log)
			continue
		}
		if line.Level != levels[c.Want.Action] || line.Namespace != cases.Namespace || line.Pod == "" ||
			line.Outcome != string(c.Want.Action) || line.Reason != string(c.Want.Reason) || line.Mode != string(c.Want.Mode) {
			t.Errorf("%s: %+v", c.Name, line)
		}
		if strings.Contains(e.log.String(), "hunter2") {
			t.Errorf("%s: the log tells a secret: %s", c.Name, e.log)
		}
		if e.log.Len() > 4<<10 {
			t.Errorf("%s: a line of %d bytes", c.Name, e.log.Len())
		}
	}
}
