// Command webhookserver serves one of two admission handlers, on the same server, for the benchmark to compare: the product's, or one
// written in the common way, which decodes the pod into Kubernetes' types, changes it, marshals it and lets the difference of the two
// texts be the patch. Both insert the same container.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/admit"
	"multus-ip-manager.io/webhook/inject"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "webhookserver:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("webhookserver", flag.ContinueOnError)
	kind := f.String("handler", "product", "product or common")
	port := f.Int("port", 0, "port of the webhook, on 127.0.0.1")
	figures := f.Int("metrics-port", 0, "port of /metrics and /readyz")
	certs := f.String("cert-dir", "", "directory of tls.crt and tls.key")
	if err := f.Parse(args); err != nil {
		return err
	}
	ctrllog.SetLogger(logr.Discard())
	handler, err := handlerOf(*kind)
	if err != nil {
		return err
	}
	certificate, err := tls.LoadX509KeyPair(filepath.Join(*certs, "tls.crt"), filepath.Join(*certs, "tls.key"))
	if err != nil {
		return err
	}
	server := ctrlwebhook.NewServer(ctrlwebhook.Options{Host: "127.0.0.1", Port: *port, TLSOpts: []func(*tls.Config){func(c *tls.Config) {
		c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &certificate, nil }
		c.NextProtos = []string{"http/1.1"}
	}}})
	server.Register("/mutate", &admission.Webhook{Handler: handler})
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", mallocs)
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := server.StartedChecker()(r); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	plain := &http.Server{Addr: "127.0.0.1:" + strconv.Itoa(*figures), Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = plain.Close() })()
	failed := make(chan error, 1)
	go func() { failed <- plain.ListenAndServe() }()
	if err := server.Start(ctx); err != nil {
		return err
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// mallocs tells how many heap objects were allocated so far, as the product's metrics do.
func mallocs(w http.ResponseWriter, _ *http.Request) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	_, _ = fmt.Fprintf(w, "go_memstats_mallocs_total %d\n", m.Mallocs)
}

// handlerOf makes a handler. The product's logs each admission, as it does in a cluster; the common one does not.
func handlerOf(kind string) (admission.Handler, error) {
	injector, err := inject.New(inject.DefaultConfig())
	if err != nil {
		return nil, err
	}
	switch kind {
	case "product":
		return admit.New(injector, inject.NamespaceNone, slog.New(slog.NewJSONHandler(io.Discard, nil)), prometheus.NewRegistry())
	case "common":
		return newCommon(injector)
	}
	return nil, fmt.Errorf("-handler=%s: allowed: product, common", kind)
}

// common is the handler as most webhooks are written.
type common struct {
	decoder   admission.Decoder
	container corev1.Container
	status    string
}

// newCommon takes what is to be inserted from the product, so that both insert the same.
func newCommon(injector *inject.Injector) (*common, error) {
	pod, err := json.Marshal(&corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}})
	if err != nil {
		return nil, err
	}
	pod, err = jsonpatch.MergePatch(pod, []byte(`{"metadata":{"annotations":{"`+settings.Networks+`":"n3"}}}`))
	if err != nil {
		return nil, err
	}
	decision := injector.Decide(inject.Request{Namespace: "telco", Pod: pod})
	patch, err := jsonpatch.DecodePatch(decision.Patch)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", decision.Message, err)
	}
	if pod, err = patch.Apply(pod); err != nil {
		return nil, err
	}
	var injected corev1.Pod
	if err := json.Unmarshal(pod, &injected); err != nil {
		return nil, err
	}
	return &common{
		decoder:   admission.NewDecoder(kruntime.NewScheme()),
		container: injected.Spec.InitContainers[0],
		status:    injected.Annotations[settings.KeyStatus],
	}, nil
}

// Handle decodes, changes, marshals and compares.
func (c *common) Handle(_ context.Context, req admission.Request) admission.Response {
	pod := &corev1.Pod{}
	if err := c.decoder.Decode(req, pod); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	networks, err := settings.ParseNetworks(pod.Annotations[settings.Networks], req.Namespace)
	if err != nil || len(networks) == 0 {
		return admission.Allowed("no networks")
	}
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == settings.ContainerName {
			return admission.Allowed("injected already")
		}
	}
	pod.Spec.InitContainers = append([]corev1.Container{c.container}, pod.Spec.InitContainers...)
	pod.Annotations[settings.KeyStatus] = c.status
	changed, err := json.Marshal(pod)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(req.Object.Raw, changed)
}
