package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"multus-ip-manager.io/certs"
	"multus-ip-manager.io/webhook/admit"
	"multus-ip-manager.io/webhook/inject"
)

// serve answers admission requests until ctx ends and those in flight are answered.
//
// There is no manager around the server: its caches, leader election and clients have nothing to do here, and an
// admission must not wait for any of them. At the end the order counts: the webhook drains (see drain), then stops
// listening and finishes what is in flight, while the certificate's upkeep, health and metrics go on, so that a pod that
// is draining looks like one.
func serve(ctx context.Context, o *options, log *slog.Logger) error {
	source, err := o.source(log)
	if err != nil {
		return err
	}
	m := newMetrics(source)
	drain := newDrain(o.drainTimeout)
	handler, err := newHandler(o, m, log)
	if err != nil {
		return err
	}
	door := newFrontDoor(handler, tlsConfig(source), drain, log)
	health := http.NewServeMux()
	health.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	health.Handle("/readyz", readyz(drain.check, func(*http.Request) error { return source.Ready() }, door.check))
	metrics := http.NewServeMux()
	metrics.Handle("/metrics", promhttp.HandlerFor(m.gatherer, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))

	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, failed := errgroup.WithContext(background)
	group.Go(func() error { return source.Run(failed) })
	group.Go(func() error { return listenAndServe(failed, o.host, o.healthPort, health, log.With("for", "health")) })
	group.Go(func() error {
		return listenAndServe(failed, o.host, o.metricsPort, metrics, log.With("for", "metrics"))
	})

	log.Info("serving", "version", version, "port", o.port, "certSource", o.certSource)
	err = door.serve(ctx, failed, o.host, o.port) // nothing of the above may be missing while we serve
	stop()
	log.Info("stopped")
	return errors.Join(err, group.Wait())
}

// newHandler returns the handlers for the entries of the webhook configuration, each measured by controller-runtime.
func newHandler(o *options, m *metricSet, log *slog.Logger) (http.Handler, error) {
	config, err := o.injection()
	if err != nil {
		return nil, err
	}
	injector, err := inject.New(config)
	if err != nil {
		return nil, err
	}
	server := ctrlwebhook.NewServer(ctrlwebhook.Options{})
	load := newLoad()
	for _, path := range inject.Paths() {
		handler, err := admit.New(injector, path.NamespaceMode, log, m.own)
		if err != nil {
			return nil, err
		}
		server.Register(path.Path, front(load.limit(&admission.Webhook{Handler: handler}), log))
	}
	return server.WebhookMux(), nil
}

// tlsConfig serves the source's certificate over HTTP/1.1 only: HTTP/2 gains nothing between an API server and its
// webhook, spreads its requests worse over the replicas, and has been a way to exhaust servers.
func tlsConfig(source certs.Source) *tls.Config {
	return &tls.Config{GetCertificate: source.GetCertificate, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}
}

// readyz answers 200 when nothing is wrong (the replica is to end, its certificate is not one that the API server accepts,
// it does not listen), else says what.
func readyz(checks ...func(*http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, check := range checks {
			if err := check(r); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
		_, _ = w.Write([]byte("ok\n"))
	})
}

// listenAndServe serves plain HTTP until ctx ends.
func listenAndServe(ctx context.Context, host string, port int, handler http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler: handler, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 90 * time.Second, MaxHeaderBytes: 64 << 10,
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	log.Info("listening", "address", listener.Addr().String())
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
