package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"time"
)

// maxBundle bounds the CAs in one bundle. A CA normally stays until it expires, which makes two at a time; only
// something that keeps destroying the Secret makes more, and that must not grow the webhook configuration until
// the API server refuses it (and with it the CA that is needed next).
const maxBundle = 16

const pemCertificate = "CERTIFICATE"

// bundle is a set of CA certificates, oldest first. The order depends only on the content, so that replicas which
// compute the same set write the same bytes and do not overwrite each other for ever.
type bundle []*x509.Certificate

// parseBundle reads every certificate of data and skips what is none: a bundle that somebody has damaged must
// still yield what is left of it.
func parseBundle(data []byte) bundle {
	var b bundle
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return b
		}
		if block.Type != pemCertificate {
			continue
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			b = b.with(cert)
		}
	}
}

// contains reports whether cert itself is in b.
func (b bundle) contains(cert *x509.Certificate) bool {
	return slices.ContainsFunc(b, cert.Equal)
}

// with returns b with cert in its place.
func (b bundle) with(cert *x509.Certificate) bundle {
	i, found := slices.BinarySearchFunc(b, cert, compareAge)
	if found {
		return b
	}
	return slices.Insert(slices.Clone(b), i, cert)
}

// encode returns b as PEM.
func (b bundle) encode() []byte {
	var buf bytes.Buffer
	for _, cert := range b {
		buf.Write(pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: cert.Raw}))
	}
	return buf.Bytes()
}

// pool returns b as roots for verification.
func (b bundle) pool() *x509.CertPool {
	p := x509.NewCertPool()
	for _, cert := range b {
		p.AddCert(cert)
	}
	return p
}

// successor returns the bundle that should replace live: all of live and of needed, without what has expired at
// now and, beyond maxBundle, without the oldest that nobody asked for.
//
// A CA that is no longer used stays until it expires, because only its own end proves that no leaf of it is in
// use: a replica that is cut off from the API server does not learn of a rotation, keeps signing with the CA it
// knows, and may well still be called.
func (b bundle) successor(now time.Time, needed ...*x509.Certificate) bundle {
	var next bundle
	for _, cert := range slices.Concat(b, needed) {
		if !now.After(cert.NotAfter) {
			next = next.with(cert)
		}
	}
	for i := 0; i < len(next) && len(next) > maxBundle; {
		if bundle(needed).contains(next[i]) {
			i++
			continue
		}
		next = slices.Delete(next, i, i+1)
	}
	return next
}

// compareAge orders certificates by their first valid second, then by their bytes.
func compareAge(a, b *x509.Certificate) int {
	if c := a.NotBefore.Compare(b.NotBefore); c != 0 {
		return c
	}
	return bytes.Compare(a.Raw, b.Raw)
}
