package check_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/admit"
	"multus-ip-manager.io/webhook/check"
	"multus-ip-manager.io/webhook/inject"
)

const name = "multus-ip-manager"

// product answers as the webhook does: with its own handlers.
func product(t *testing.T) (http.Handler, *prometheus.Registry) {
	t.Helper()
	config := inject.DefaultConfig()
	config.Image = "agent:1"
	injector, err := inject.New(config)
	if err != nil {
		t.Fatal(err)
	}
	mux, registry := http.NewServeMux(), prometheus.NewRegistry()
	for _, path := range inject.Paths() {
		handler, err := admit.New(injector, path.NamespaceMode, slog.New(slog.DiscardHandler), registry)
		if err != nil {
			t.Fatal(err)
		}
		mux.Handle(path.Path, &admission.Webhook{Handler: handler})
	}
	return mux, registry
}

// serve returns a server and a webhook configuration that leads to it.
func serve(t *testing.T, handler http.Handler) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(server.Close)
	config := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, path := range inject.Paths() {
		url := server.URL + path.Path
		config.Webhooks = append(config.Webhooks, admissionregistrationv1.MutatingWebhook{
			Name: string(path.NamespaceMode) + "." + name + ".io",
			ClientConfig: admissionregistrationv1.WebhookClientConfig{
				URL: &url, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
			},
		})
	}
	return config
}

// run checks once, unless what is found needs a second look.
func run(t *testing.T, o check.Options) (string, error) {
	t.Helper()
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Configuration, o.Every = name, time.Hour // the first finding ends the pause
	o.Out = writer(func(p []byte) {
		out.Write(p)
		if bytes.Contains(p, []byte("not yet")) {
			cancel()
		}
	})
	err := check.Run(ctx, o)
	return out.String(), err
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

func TestAllIsWell(t *testing.T) {
	handler, registry := product(t)
	out, err := run(t, check.Options{Client: fake.NewClientset(serve(t, handler))})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ok: none.multus-ip-manager.io: https://", "/mutate injects", "/mutate/init injects", "/mutate/sidecar injects", "/mutate/node answers", "/mutate/other answers",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("does not say %q:\n%s", want, out)
		}
	}
	// A check must not look like somebody's pod that was refused.
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "outcome" && label.GetValue() == string(inject.ActionDeny) {
					t.Errorf("the check counts as a denial: %v", metric)
				}
			}
		}
	}
}

func TestWhatIsWrong(t *testing.T) {
	answer := func(status int, body string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		})
	}
	own, _ := product(t)
	type configuration = *admissionregistrationv1.MutatingWebhookConfiguration
	for title, test := range map[string]struct {
		handler http.Handler
		change  func(configuration)
		says    string
	}{
		"no configuration":     {own, func(c configuration) { c.Name = "another" }, `"multus-ip-manager" not found`},
		"no entries":           {own, func(c configuration) { c.Webhooks = nil }, "has no webhooks"},
		"no bundle":            {own, func(c configuration) { c.Webhooks[0].ClientConfig.CABundle = nil }, "caBundle is empty"},
		"a broken bundle":      {own, func(c configuration) { c.Webhooks[0].ClientConfig.CABundle = []byte("x") }, "holds no certificate"},
		"another CA":           {own, func(c configuration) { c.Webhooks[3].ClientConfig.CABundle = otherCA(t) }, "certificate signed by unknown authority"},
		"nowhere":              {own, func(c configuration) { c.Webhooks[0].ClientConfig.URL = nil }, "neither a Service nor a URL"},
		"nothing listens":      {own, func(c configuration) { *c.Webhooks[1].ClientConfig.URL = "https://127.0.0.1:1/mutate/init" }, "connection refused"},
		"no such Service":      {own, toService, "no-such-service.nowhere.svc/mutate"},
		"an error":             {answer(500, "out of order\n"), nil, "500 Internal Server Error: out of order"},
		"something else":       {answer(200, "<html>"), nil, "something else listens there"},
		"somebody else's uid":  {answer(200, `{"response":{"uid":"1","allowed":true}}`), nil, "no response to this request"},
		"refuses":              {answer(200, `{"response":{"uid":"multus-ip-manager-check","allowed":false,"status":{"message":"not today"}}}`), nil, "not today"},
		"refuses and is mute":  {answer(200, `{"response":{"uid":"multus-ip-manager-check","allowed":false}}`), nil, "no reason given"},
		"admits, injects none": {answer(200, `{"response":{"uid":"multus-ip-manager-check","allowed":true}}`), nil, "does not add the container ip-manager"},
	} {
		t.Run(title, func(t *testing.T) {
			config := serve(t, test.handler)
			if test.change != nil {
				test.change(config)
			}
			out, err := run(t, check.Options{Client: fake.NewClientset(config)})
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %q", err, test.says)
			}
			if !strings.Contains(out, test.says) {
				t.Errorf("said %q, want %q", out, test.says)
			}
		})
	}
}

func toService(c *admissionregistrationv1.MutatingWebhookConfiguration) {
	path := "/mutate"
	c.Webhooks[0].ClientConfig.URL = nil
	c.Webhooks[0].ClientConfig.Service = &admissionregistrationv1.ServiceReference{Namespace: "nowhere", Name: "no-such-service", Path: &path}
}

// otherCA is a CA that signed nothing here. (All of httptest's servers have the same certificate.)
func otherCA(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestThroughTheAPIServer(t *testing.T) {
	own, _ := product(t)
	injected := func(pod *corev1.Pod) {
		pod.Spec.InitContainers = []corev1.Container{{Name: settings.ContainerName}}
	}
	for title, test := range map[string]struct {
		answer func(*corev1.Pod)
		err    error
		says   string // of the error; "" for none
	}{
		"injected":     {injected, nil, ""},
		"not injected": {func(*corev1.Pod) {}, nil, "is the namespace labelled multus-ip-manager.io/inject=enabled"},
		"not reached": {nil, apierrors.NewInternalError(errors.New(`failed calling webhook "none.multus-ip-manager.io": context deadline exceeded`)),
			"pods reach the webhook and the API server does not"},
		"another webhook's fault": {nil, apierrors.NewInternalError(errors.New(`failed calling webhook "other.example.com"`)), "create a pod in namespace telco as a dry run"},
		"no right":                {nil, apierrors.NewForbidden(corev1.Resource("pods"), "x", errors.New("no")), "forbidden"},
	} {
		t.Run(title, func(t *testing.T) {
			client := fake.NewClientset(serve(t, own))
			client.PrependReactor("create", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
				create := action.(clienttesting.CreateActionImpl)
				if create.Namespace != "telco" || len(create.CreateOptions.DryRun) != 1 {
					t.Errorf("not a dry run in the namespace: %v", create)
				}
				if test.err != nil {
					return true, nil, test.err
				}
				pod := create.Object.(*corev1.Pod).DeepCopy()
				test.answer(pod)
				return true, pod, nil
			})
			out, err := run(t, check.Options{Client: client, Namespace: "telco"})
			switch {
			case test.says == "" && (err != nil || !strings.Contains(out, "ok: namespace telco")):
				t.Errorf("%v\n%s", err, out)
			case test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)):
				t.Errorf("got %v, want %q", err, test.says)
			}
		})
	}
}

// After an installation it takes a moment until all is well; each new finding is told once.
func TestWaits(t *testing.T) {
	own, _ := product(t)
	config := serve(t, own)
	bundle := config.Webhooks[2].ClientConfig.CABundle
	config.Webhooks[2].ClientConfig.CABundle = nil
	client := fake.NewClientset(config)
	rounds := 0
	client.PrependReactor("get", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		if rounds++; rounds == 3 {
			config.Webhooks[2].ClientConfig.CABundle = bundle
		}
		return true, config.DeepCopy(), nil
	})
	var out bytes.Buffer
	if err := check.Run(t.Context(), check.Options{Client: client, Configuration: name, Every: time.Millisecond, Out: &out}); err != nil {
		t.Fatal(err)
	}
	if rounds != 3 || strings.Count(out.String(), "not yet:") != 1 {
		t.Errorf("%d rounds:\n%s", rounds, out.String())
	}
}

func TestEndsWithWhatItFound(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client := fake.NewClientset()
	client.PrependReactor("get", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		cancel()
		return true, nil, context.Canceled
	})
	err := check.Run(ctx, check.Options{Client: client, Configuration: name, Out: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "no attempt came to an end") {
		t.Errorf("got %v", err)
	}
}

// The API server asks no resolver for a Service, and neither does the check.
func TestServiceIsReachedByItsAddress(t *testing.T) {
	handler, _ := product(t)
	config := serve(t, handler)
	for i, entry := range config.Webhooks {
		at, err := url.Parse(*entry.ClientConfig.URL)
		if err != nil {
			t.Fatal(err)
		}
		port, err := strconv.ParseInt(at.Port(), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		config.Webhooks[i].ClientConfig.URL = nil
		config.Webhooks[i].ClientConfig.Service = &admissionregistrationv1.ServiceReference{
			Namespace: "net", Name: "webhook", Path: &at.Path, Port: new(int32(port)),
		}
	}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "net", Name: "webhook"}, Spec: corev1.ServiceSpec{ClusterIP: "127.0.0.1"}}
	_, err := run(t, check.Options{Client: fake.NewClientset(config, service)})
	// It got there: the certificate is for another name.
	if err == nil || !strings.Contains(err.Error(), "not webhook.net.svc") {
		t.Error(err)
	}
}
