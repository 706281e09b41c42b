package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// authority signs every certificate of the cluster.
type authority struct {
	dir  Dir
	key  crypto.Signer
	cert *x509.Certificate
}

// identity is who a certificate is for: as a client (name, groups) and as a server (hosts: names and addresses).
type identity struct {
	file   string // below pki
	name   string
	groups []string
	hosts  []string
}

// newAuthority makes the CA and the keys that service account tokens are signed with.
func newAuthority(d Dir) (*authority, error) {
	if err := os.MkdirAll(d.pki(""), 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "test cluster"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	a := &authority{dir: d, key: key, cert: template}
	if a.cert, err = a.issue("ca", template, key); err != nil {
		return nil, err
	}
	tokens, err := rsa.GenerateKey(rand.Reader, 2048) // the API server wants RSA or a key of its own for each curve
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(&tokens.PublicKey)
	if err != nil {
		return nil, err
	}
	return a, errors.Join(writeKey(d.pki("tokens.key"), tokens), writePEM(d.pki("tokens.pub"), "PUBLIC KEY", public))
}

// certificate makes file.crt and file.key.
func (a *authority) certificate(id identity) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: id.name, Organization: id.groups},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, h := range id.hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	_, err = a.issue(id.file, template, key)
	return err
}

func (a *authority) issue(file string, template *x509.Certificate, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", file, err)
	}
	if err := errors.Join(writePEM(a.dir.pki(file+".crt"), "CERTIFICATE", der), writeKey(a.dir.pki(file+".key"), key)); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// kubeconfig makes a certificate and the file with which its owner reaches the server.
func (a *authority) kubeconfig(id identity, path, server string) error {
	if err := a.certificate(id); err != nil {
		return err
	}
	var data [3][]byte
	for i, file := range []string{"ca.crt", id.file + ".crt", id.file + ".key"} {
		var err error
		if data[i], err = os.ReadFile(a.dir.pki(file)); err != nil {
			return err
		}
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["cluster"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: data[0]}
	config.AuthInfos["user"] = &clientcmdapi.AuthInfo{ClientCertificateData: data[1], ClientKeyData: data[2]}
	config.Contexts["cluster"] = &clientcmdapi.Context{Cluster: "cluster", AuthInfo: "user"}
	config.CurrentContext = "cluster"
	return clientcmd.WriteToFile(*config, path)
}

func writeKey(path string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
