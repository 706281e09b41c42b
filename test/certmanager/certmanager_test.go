package certmanager

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strconv"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// short are the chart's values for certificates that are replaced when they are about six seconds old.
func short(more map[string]any) map[string]any {
	values := map[string]any{"duration": "1h0m0s", "renewBefore": "59m54s"}
	for k, v := range more {
		values[k] = v
	}
	return values
}

// Issuer, Certificate, Secret, injection, admission; then leaf and CA are renewed under load, by cert-manager's own clock and on
// demand, also under another key, and nothing fails.
func TestFromIssuerToAdmission(t *testing.T) {
	// As before version 1.21: whoever injects a CA forgets the one before. The chart's own CA must do with that.
	r := newRig(t, short(nil), nil, "-feature-gates=CAInjectorMerging=false")
	r.waitInjected()
	r.waitReady()
	load := r.load()

	r.waitServed(r.secret(release+"-tls", corev1.TLSCertKey)) // renewed by itself
	r.waitFault("")
	due, err := strconv.ParseFloat(r.metric("multus_ip_manager_certificate_renewal_timestamp_seconds"), 64)
	if err != nil || time.Until(time.Unix(int64(due), 0)).Abs() > time.Minute {
		t.Errorf("the metric says that renewal is due at %v, %v", due, err)
	}

	ca := r.secret(release+"-issuer", corev1.TLSCertKey)
	r.renew(release + "-ca")
	renewed := r.waitChanged(release+"-issuer", corev1.TLSCertKey, ca)
	if !bytes.Equal(publicKey(t, renewed), publicKey(t, ca)) {
		t.Error("the renewed CA has another key: with cert-manager before 1.21 that is an outage")
	}
	r.renewUnder(renewed)

	r.stopControllers() // nothing depends on them meanwhile
	r.startControllers()
	if err := r.client.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: r.namespace, Name: release + "-issuer"}}); err != nil {
		t.Fatal(err)
	}
	another := r.waitChanged(release+"-issuer", corev1.TLSCertKey, renewed)
	if bytes.Equal(publicKey(t, another), publicKey(t, ca)) {
		t.Error("a CA that was made anew has the old key")
	}
	r.renewUnder(another)
	r.verifyLoad(load)
	r.waitFault("")
}

// renewUnder renews the leaf until it is one of this CA, and waits until it is served.
func (r *rig) renewUnder(ca []byte) {
	r.t.Helper()
	for !bytes.Equal(r.secret(release+"-tls", cmmeta.TLSCAKey), ca) {
		before := r.secret(release+"-tls", corev1.TLSCertKey)
		r.renew(release)
		r.waitChanged(release+"-tls", corev1.TLSCertKey, before)
	}
	r.waitInjected()
	r.waitServed(nil)
}

// A broken issuer is told in cert-manager's own words, by log and metric, while admission goes on with the certificate that is valid;
// when the issuer works again, so does renewal, and nothing is told any more.
func TestBrokenIssuerIsAnAlertAndNoOutage(t *testing.T) {
	const theirs = "theirs"
	issuer := &cmapi.Issuer{ObjectMeta: metav1.ObjectMeta{Name: theirs}}
	issuer.Spec.CA = &cmapi.CAIssuer{SecretName: theirs}
	r := newRig(t, short(map[string]any{"issuerRef": map[string]any{"name": theirs}}), func(r *rig) {
		cert, key := newCA(t)
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: r.namespace, Name: theirs}, Type: corev1.SecretTypeTLS,
			Data: map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key}}
		must(t, r.client.Create(t.Context(), secret))
		made := issuer.DeepCopy()
		made.Namespace = r.namespace
		must(t, r.client.Create(t.Context(), made))
	})
	r.waitReady()
	r.waitFault("")
	load := r.load()

	secret := &corev1.Secret{}
	r.get(secret, theirs)
	good := secret.Data[corev1.TLSPrivateKeyKey]
	secret.Data[corev1.TLSPrivateKeyKey] = []byte("garbage")
	must(t, r.client.Update(t.Context(), secret))
	r.waitFault("ErrGetKeyPair")
	r.waitLog("certificate upkeep fails", theirs, "ErrGetKeyPair")
	r.eventually("a renewal fails to begin or to end", func() error { return r.renewalIsStuck() })
	must(t, r.admit(t.Context()))
	if text, status := r.fetch(r.readyURL); status != 200 {
		t.Errorf("not ready with a valid certificate: %s", text)
	}

	before := r.secret(release+"-tls", corev1.TLSCertKey)
	r.get(secret, theirs)
	secret.Data[corev1.TLSPrivateKeyKey] = good
	must(t, r.client.Update(t.Context(), secret))
	r.waitFault("")
	r.waitServed(before)

	made := &cmapi.Issuer{}
	r.get(made, theirs)
	must(t, r.client.Delete(t.Context(), made))
	r.waitFault("IssuerNotFound")
	before = r.secret(release+"-tls", corev1.TLSCertKey)
	made = issuer.DeepCopy()
	made.Namespace = r.namespace
	must(t, r.client.Create(t.Context(), made))
	r.waitFault("")
	r.renew(release)
	r.waitServed(before)
	r.verifyLoad(load)
}

// renewalIsStuck returns nil when a renewal that is due was not done.
func (r *rig) renewalIsStuck() error {
	c := &cmapi.Certificate{}
	r.get(c, release)
	if c.Status.RenewalTime == nil || time.Since(c.Status.RenewalTime.Time) < time.Second {
		return errNotYet
	}
	return nil
}

func publicKey(t *testing.T, data []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatal("no certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return cert.RawSubjectPublicKeyInfo
}

// newCA makes a CA of somebody else's.
func newCA(t *testing.T) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "theirs"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	must(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}
