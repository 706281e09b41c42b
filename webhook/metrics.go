package main

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"multus-ip-manager.io/certs"
)

// metricSet is what /metrics tells: our own series and those of controller-runtime's webhook server.
type metricSet struct {
	own      *prometheus.Registry
	gatherer prometheus.Gatherer
}

func newMetrics(source certs.Source) *metricSet {
	own := prometheus.NewRegistry()
	own.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "multus_ip_manager_certificate_expiry_timestamp_seconds",
			Help: "When the serving certificate expires, in seconds since 1970; 0 while there is none.",
		}, func() float64 {
			if at := source.Expiry(); !at.IsZero() {
				return float64(at.Unix())
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "multus_ip_manager_certificate_trusted",
			Help: "1 while the serving certificate is unexpired and the webhook configuration, as last seen, trusts it; 0: /readyz says why not.",
		}, func() float64 { return oneIf(source.Ready() == nil) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "multus_ip_manager_certificate_upkeep_healthy",
			Help: "1 while the certificate's source can renew and publish, 0 while something keeps it from that; the log says what.",
		}, func() float64 { return oneIf(source.Fault() == nil) }),
		newCertificateUpkeep(source),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "multus_ip_manager_build_info",
			Help:        "Always 1; the labels tell what runs.",
			ConstLabels: prometheus.Labels{"component": "webhook", "version": version, "go_version": runtime.Version()},
		}, func() float64 { return 1 }),
	)
	return &metricSet{own: own, gatherer: prometheus.Gatherers{own, ctrlmetrics.Registry}}
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
