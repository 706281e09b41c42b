package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"

	"multus-ip-manager.io/webhook/inject"
)

// client asks on one connection, as long as that is kept.
type client struct{ http *http.Client }

func newClient(t *testing.T) *client {
	t.Helper()
	transport := &http.Transport{MaxConnsPerHost: 1, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // the certificate is not what is tested
	t.Cleanup(transport.CloseIdleConnections)
	return &client{&http.Client{Transport: transport, Timeout: 30 * time.Second}}
}

// do sends a request to the webhook's first path.
func (c *client) do(t *testing.T, p *process, method, contentType string, body io.Reader) (status int, answer string, kept bool, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+p.at+inject.Paths()[0].Path+"?timeout=5s", body)
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, "", false, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), !resp.Close, err
}

// admit sends a review that must be answered with a patch, and tells whether the connection stays.
func (c *client) admit(t *testing.T, p *process) (kept bool, err error) {
	t.Helper()
	status, text, kept, err := c.do(t, p, http.MethodPost, "application/json", bytes.NewReader(review(t)))
	if err != nil {
		return false, err
	}
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal([]byte(text), &answer); err != nil || status != http.StatusOK || answer.Response == nil || len(answer.Response.Patch) == 0 {
		return false, fmt.Errorf("%d %s: %w", status, text, err)
	}
	return kept, nil
}

// answeredEarly reports whether sending failed because the answer came before everything was sent.
func answeredEarly(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// What is no review is answered with a status that says so, and in words, which are counted by status; the process goes on.
func TestWhatIsNoReview(t *testing.T) {
	p := startProcess(t, "--cert-source=secret", "--webhook-configuration=", "--cert-dir="+keyPair(t))
	p.waitReady()
	good := string(review(t))
	const media = "application/json"
	for name, tt := range map[string]struct {
		method, contentType string
		body                io.Reader
		status              int
		says                string
	}{
		"read, not posted":           {http.MethodGet, media, nil, 405, "posted"},
		"no content type":            {http.MethodPost, "", strings.NewReader(good), 415, "application/json"},
		"another content type":       {http.MethodPost, "application/vnd.kubernetes.protobuf", strings.NewReader(good), 415, "application/vnd.kubernetes.protobuf"},
		"no body":                    {http.MethodPost, media, nil, 400, "a JSON object"},
		"a body of nothing":          {http.MethodPost, media, io.MultiReader(), 411, "size"},
		"no request":                 {http.MethodPost, media, strings.NewReader(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`), 400, "not understood"},
		"no JSON":                    {http.MethodPost, media, strings.NewReader("<review/>"), 400, "a JSON object"},
		"half of one":                {http.MethodPost, media, strings.NewReader(good[:len(good)/2]), 400, "unexpected end"},
		"a list":                     {http.MethodPost, media, strings.NewReader("[]"), 400, ""},
		"another kind":               {http.MethodPost, media, strings.NewReader(`{"apiVersion":"v1","kind":"Pod"}`), 400, "Pod"},
		"a version that is to come":  {http.MethodPost, media, strings.NewReader(strings.Replace(good, "admission.k8s.io/v1", "admission.k8s.io/v9", 1)), 400, "v9"},
		"a field of another type":    {http.MethodPost, media, strings.NewReader(strings.Replace(good, `"uid":"1"`, `"uid":{}`, 1)), 400, "uid"},
		"too large, and it says so":  {http.MethodPost, media, bytes.NewReader(make([]byte, largestBody+1)), 413, fmt.Sprintf("at most %d bytes", largestBody)},
		"size not said":              {http.MethodPost, media, io.MultiReader(strings.NewReader(good)), 411, "size"},
		"nested deeper than any pod": {http.MethodPost, media, strings.NewReader(strings.Repeat(`{"a":`, 200_000)), 400, ""},
	} {
		t.Run(name, func(t *testing.T) {
			status, text, _, err := newClient(t).do(t, p, tt.method, tt.contentType, tt.body)
			if tt.status == 413 && answeredEarly(err) {
				return
			}
			if err != nil || status != tt.status || !strings.Contains(text, tt.says) || len(text) > 4096 {
				t.Errorf("%d %q, %v; want %d with %q", status, text, err, tt.status, tt.says)
			}
		})
	}
	t.Run("with a charset", func(t *testing.T) {
		status, text, _, err := newClient(t).do(t, p, http.MethodPost, "application/json; charset=utf-8", strings.NewReader(good))
		if err != nil || status != http.StatusOK || !strings.Contains(text, `"patch":`) {
			t.Errorf("%d %s, %v", status, text, err)
		}
	})
	body, err := get(p.scrape)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`controller_runtime_webhook_requests_total{code="413",webhook="/mutate"} `, `controller_runtime_webhook_requests_total{code="400",webhook="/mutate"} `,
		`controller_runtime_webhook_requests_total{code="200",webhook="/mutate"} 1`, `multus_ip_manager_admission_panics_total 0`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
}

// A review is one however its JSON is written, and nothing else is.
func TestReviewsInAnyForm(t *testing.T) {
	const response = `{"uid":"1","allowed":true,"patch":"W10=","patchType":"JSONPatch"}`
	for name, tt := range map[string]struct {
		answer string
		status int
	}{
		"as the handler writes it":   {`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":` + response + `}`, 0},
		"beta":                       {`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1","response":` + response + `}`, 0},
		"the version first":          {`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":` + response + `}`, 0},
		"the response first":         {`{"response":` + response + `,"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1"}`, 0},
		"allowed before the uid":     {`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{"allowed":true,"uid":"1"}}`, 0},
		"spaces":                     {`{ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": ` + response + `}`, 0},
		"a request without uid":      {`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"","allowed":true}}`, 400},
		"no response":                {`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, 400},
		"of another kind":            {`{"apiVersion":"admission.k8s.io/v1","kind":"Pod","response":` + response + `}`, 400},
		"of another version":         {`{"apiVersion":"admission.k8s.io/v9","kind":"AdmissionReview","response":` + response + `}`, 400},
		"of another group":           {`{"apiVersion":"v1","kind":"AdmissionReview","response":` + response + `}`, 400},
		"an error with its own code": {`{"response":{"uid":"","allowed":false,"status":{"message":"too large","code":413}}}`, 413},
	} {
		if status, message := noReview([]byte(tt.answer)); status != tt.status {
			t.Errorf("%s: %d %s, want %d", name, status, message, tt.status)
		}
	}
}

// A panic around the decision is an answer as well, and a log line without the value.
func TestPanicAroundTheDecision(t *testing.T) {
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		says    string // in the log
	}{
		"of the runtime": {func(http.ResponseWriter, *http.Request) { panic(fmt.Sprint([]int{}[len("x")-1:][1:])) }, "out of range"},
		"with a value":   {func(http.ResponseWriter, *http.Request) { panic("hunter2") }, `"type":"string"`},
	} {
		t.Run(name, func(t *testing.T) {
			log := new(bytes.Buffer)
			rec := httptest.NewRecorder()
			req := httptest.NewRequest(http.MethodPost, "/mutate", strings.NewReader("{}"))
			req.Header.Set("Content-Type", "application/json")
			front(tt.handler, slog.New(slog.NewJSONHandler(log, nil))).ServeHTTP(rec, req)
			if rec.Code != http.StatusInternalServerError || !strings.Contains(rec.Body.String(), "its log tells more") {
				t.Errorf("%d %s", rec.Code, rec.Body)
			}
			if !strings.Contains(log.String(), tt.says) || !strings.Contains(log.String(), "TestPanicAroundTheDecision") || strings.Contains(log.String(), "hunter2") {
				t.Errorf("%s", log)
			}
		})
	}
}

// postTo posts a body as JSON.
func postTo(t *testing.T, url, body string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	return http.DefaultClient.Do(req)
}

// An answer that has begun cannot become another one: the connection ends, so that nobody takes it for whole.
func TestPanicWithinTheAnswer(t *testing.T) {
	server := httptest.NewServer(front(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"kind":`))
		panic("x")
	}), slog.New(slog.DiscardHandler)))
	defer server.Close()
	resp, err := postTo(t, server.URL, "{}")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	if err == nil {
		t.Error("a whole answer")
	}
}

// A certificate error of a client and the like does not end up in an answer to another one: each connection is its own.
func TestPlainHTTPIsRefused(t *testing.T) {
	p := startProcess(t, "--cert-source=secret", "--webhook-configuration=", "--cert-dir="+keyPair(t))
	p.waitReady()
	if _, err := get("http://" + p.at + inject.Paths()[0].Path); err == nil {
		t.Error("answered without TLS")
	}
	if _, err := newClient(t).admit(t, p); err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(p.log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not a JSON log line: %s", line)
		}
	}
}
