package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"multus-ip-manager.io/certs"
)

// certificateUpkeep tells when the certificate's renewal is due, and what will keep it from happening.
type certificateUpkeep struct {
	source         certs.Source
	renewal, fault *prometheus.Desc
}

func newCertificateUpkeep(source certs.Source) *certificateUpkeep {
	return &certificateUpkeep{
		source: source,
		renewal: prometheus.NewDesc("multus_ip_manager_certificate_renewal_timestamp_seconds",
			"When the renewal of the serving certificate is due, in seconds since 1970; 0 while nobody tells, as with the source secret.", nil, nil),
		fault: prometheus.NewDesc("multus_ip_manager_certificate_fault",
			"1 for each reason that keeps the certificate from being renewed or trusted, absent while there is none; the log says more. "+
				"With the source cert-manager, the reasons of its own conditions are among them.", []string{"reason"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (u *certificateUpkeep) Describe(descs chan<- *prometheus.Desc) {
	descs <- u.renewal
	descs <- u.fault
}

// Collect implements prometheus.Collector.
func (u *certificateUpkeep) Collect(metrics chan<- prometheus.Metric) {
	var renewal float64
	if at := u.source.Renewal(); !at.IsZero() {
		renewal = float64(at.Unix())
	}
	metrics <- prometheus.MustNewConstMetric(u.renewal, prometheus.GaugeValue, renewal)
	for _, reason := range certs.Reasons(u.source.Fault()) {
		metrics <- prometheus.MustNewConstMetric(u.fault, prometheus.GaugeValue, 1, reason)
	}
}
