package main

import (
	"crypto/tls"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"multus-ip-manager.io/certs"
)

// keptSource is a source of which only the state of its upkeep counts.
type keptSource struct {
	certs.Source
	renewal time.Time
	fault   error
}

func (s keptSource) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return nil, certs.ErrNoCertificate
}
func (s keptSource) Renewal() time.Time { return s.renewal }
func (s keptSource) Fault() error       { return s.fault }

// Each thing that keeps the certificate from being renewed is a series with its reason, and there is none when nothing does.
func TestCertificateUpkeepMetrics(t *testing.T) {
	const renewal, fault = "multus_ip_manager_certificate_renewal_timestamp_seconds", "multus_ip_manager_certificate_fault"
	for name, test := range map[string]struct {
		source keptSource
		want   map[string]float64
	}{
		"all is well":  {source: keptSource{renewal: time.Unix(1_800_000_000, 0)}, want: map[string]float64{renewal: 1_800_000_000}},
		"nobody tells": {want: map[string]float64{renewal: 0}},
		"two faults": {
			source: keptSource{fault: errors.Join(
				&certs.FaultError{Reason: "ErrGetKeyPair", Err: errors.New("no such secret")},
				&certs.FaultError{Reason: certs.ReasonClockSkew, Err: errors.New("a day")})},
			want: map[string]float64{renewal: 0, fault + "/ErrGetKeyPair": 1, fault + "/" + certs.ReasonClockSkew: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			registry := prometheus.NewPedanticRegistry()
			registry.MustRegister(newCertificateUpkeep(test.source))
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]float64{}
			for _, family := range families {
				for _, metric := range family.GetMetric() {
					series := family.GetName()
					for _, label := range metric.GetLabel() {
						series += "/" + label.GetValue()
					}
					got[series] = metric.GetGauge().GetValue()
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
