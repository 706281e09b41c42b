package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// NewTestCA makes a self-signed CA that is valid between the two times.
func NewTestCA(t testing.TB, notBefore, notAfter time.Time) *TestCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "multus-ip-manager-ca"},
		NotBefore: notBefore, NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return &TestCA{keyPair{cert: create(t, template, template, key.Public(), key), key: key}}
}

// TestCA is a CA for the tests of both packages of this folder.
type TestCA struct{ pair keyPair }

// Cert is the CA's certificate.
func (c *TestCA) Cert() *x509.Certificate { return c.pair.cert }

// PEM returns the CA's certificate and private key.
func (c *TestCA) PEM(t testing.TB) (cert, key []byte) {
	t.Helper()
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.pair.cert.Raw}), keyPEM(t, c.pair.key)
}

// Leaf returns a serving certificate for name that ends at notAfter, and its key, as PEM.
func (c *TestCA) Leaf(t testing.TB, name string, notAfter time.Time) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(notAfter.UnixNano()), NotBefore: c.pair.cert.NotBefore, NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	template.DNSNames, template.IPAddresses = splitNames([]string{name})
	leaf := create(t, template, c.pair.cert, k.Public(), c.pair.key)
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: leaf.Raw}), keyPEM(t, k)
}

func (c *TestCA) chain(t testing.TB, name string, notAfter time.Time) *tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(c.Leaf(t, name, notAfter))
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}

func create(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func keyPEM(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
