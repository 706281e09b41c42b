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
// admission must not wait for any of them. At the end the order counts: the webhook drains while the certificate's
// upkeep, health and metrics go on, so that a pod that is draining looks like one.
func serve(ctx context.Context, o *options, log *slog.Logger) error {
	source, err := o.source(log)
	if err != nil {
		return err
	}
	m := newMetrics(source)
	server, err := newServer(o, source, m, log)
	if err != nil {
		return err
	}
	health := http.NewServeMux()
	health.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	health.Handle("/readyz", readyz(source.Ready, server.StartedChecker()))
	metrics := http.NewServeMux()
	metrics.Handle("/metrics", promhttp.HandlerFor(m.gatherer, promhttp.HandlerOpts{}))

	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, failed := errgroup.WithContext(background)
	group.Go(func() error { return source.Run(failed) })
	group.Go(func() error { return listenAndServe(failed, o.host, o.healthPort, health) })
	group.Go(func() error { return listenAndServe(failed, o.host, o.metricsPort, metrics) })

	serving, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(failed, end)() // nothing of it may be missing while we serve
	log.Info("serving", "version", version, "port", o.port, "certSource", o.certSource)
	err = server.Start(serving)
	stop()
	log.Info("stopped")
	return errors.Join(err, group.Wait())
}

// newServer returns the webhook's server with a handler for each entry of the webhook configuration.
func newServer(o *options, source certs.Source, m *metricSet, log *slog.Logger) (ctrlwebhook.Server, error) {
	config, err := o.injection()
	if err != nil {
		return nil, err
	}
	injector, err := inject.New(config)
	if err != nil {
		return nil, err
	}
	server := ctrlwebhook.NewServer(ctrlwebhook.Options{Host: o.host, Port: o.port, TLSOpts: []func(*tls.Config){useSource(source)}})
	load := newLoad()
	for _, path := range inject.Paths() {
		handler, err := admit.New(injector, path.NamespaceMode, log, m.own)
		if err != nil {
			return nil, err
		}
		server.Register(path.Path, load.limit(&admission.Webhook{Handler: handler}))
	}
	return server, nil
}

// useSource serves the source's certificate over HTTP/1.1 only: HTTP/2 gains nothing between an API server and its
// webhook, spreads its requests worse over the replicas, and has been a way to exhaust servers.
func useSource(source certs.Source) func(*tls.Config) {
	return func(c *tls.Config) {
		c.GetCertificate = source.GetCertificate
		c.NextProtos = []string{"http/1.1"}
		c.MinVersion = tls.VersionTLS12
	}
}

// readyz answers 200 when the certificate is one that the API server accepts and the webhook listens, else says why not.
func readyz(certificate func() error, listening func(*http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := certificate()
		if err == nil {
			err = listening(r)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
}

// listenAndServe serves plain HTTP until ctx ends.
func listenAndServe(ctx context.Context, host string, port int, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 90 * time.Second}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
