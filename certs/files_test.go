package certs_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"multus-ip-manager.io/certs"
)

// mount is a directory that is filled as kubelet fills the mount of a Secret: the files are links through ..data, and
// one rename changes both.
type mount struct {
	t   *testing.T
	dir string
	n   int
}

func (m *mount) write(cert, key []byte) {
	m.t.Helper()
	m.n++
	version := string(rune('a' + m.n))
	must(m.t, os.Mkdir(filepath.Join(m.dir, version), 0o755))
	must(m.t, os.WriteFile(filepath.Join(m.dir, version, "tls.crt"), cert, 0o600))
	must(m.t, os.WriteFile(filepath.Join(m.dir, version, "tls.key"), key, 0o600))
	must(m.t, os.Symlink(version, filepath.Join(m.dir, "..new")))
	must(m.t, os.Rename(filepath.Join(m.dir, "..new"), filepath.Join(m.dir, "..data")))
	if m.n == 1 {
		must(m.t, os.Symlink("..data/tls.crt", filepath.Join(m.dir, "tls.crt")))
		must(m.t, os.Symlink("..data/tls.key", filepath.Join(m.dir, "tls.key")))
	}
}

func TestFilesAreFollowed(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	m := &mount{t: t, dir: t.TempDir()}
	l := listen(t)
	source, err := certs.NewFiles(certs.FilesOptions{
		Dir: m.dir, Interval: 20 * time.Millisecond, Log: c.log, Configuration: certs.NewConfiguration(c.admin, c.config, c.log)})
	must(t, err)
	r := c.start(source, l)

	if _, err := r.GetCertificate(nil); !errors.Is(err, certs.ErrNoCertificate) {
		t.Errorf("without files: %v", err)
	}
	eventually(t, "the missing file is told", func() error {
		if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "tls.crt") {
			return errors.New("not told")
		}
		return nil
	})
	if !r.Expiry().IsZero() {
		t.Errorf("an expiry without a certificate")
	}

	ca := certs.NewTestCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	first := time.Now().Add(30 * time.Minute).Truncate(time.Second)
	m.write(ca.Leaf(t, "127.0.0.1", first))
	eventually(t, "served", func() error { _, err := r.GetCertificate(nil); return err })
	if err := r.Ready(); err == nil {
		t.Errorf("ready before the configuration trusts the CA")
	}
	entry := c.entry("files", l.Addr().String())
	entry.ClientConfig.CABundle, _ = ca.PEM(t)
	c.configure(entry)
	c.waitReady(r)
	c.admitSoon()

	load := c.load(r)
	second := first.Add(time.Minute)
	m.write(ca.Leaf(t, "127.0.0.1", second))
	eventually(t, "the new certificate is served", func() error {
		if !r.Expiry().Equal(second) {
			return errors.New("still the old one")
		}
		return nil
	})
	m.write([]byte("garbage"), []byte("garbage"))
	must(t, os.RemoveAll(filepath.Join(m.dir, "..data")))
	third := second.Add(time.Minute)
	m.write(ca.Leaf(t, "127.0.0.1", third))
	eventually(t, "followed after the damage", func() error {
		if !r.Expiry().Equal(third) {
			return errors.New("still the old one")
		}
		return nil
	})
	load.verify(t)
}

// A new certificate of a CA that the configuration does not trust yet is not served until it does, or until the old one has ended.
func TestUntrustedFilesReplaceNoTrustedOnes(t *testing.T) {
	t.Parallel()
	const settle = time.Second
	c := newCluster(t)
	m := &mount{t: t, dir: t.TempDir()}
	l := listen(t)
	source, err := certs.NewFiles(certs.FilesOptions{
		Dir: m.dir, Interval: 20 * time.Millisecond, Settle: settle, Log: c.log, Configuration: certs.NewConfiguration(c.admin, c.config, c.log)})
	must(t, err)
	r := c.start(source, l)
	before := certs.NewTestCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	after := certs.NewTestCA(t, time.Now().Add(-time.Hour), time.Now().Add(2*time.Hour))
	entry := c.entry("files", l.Addr().String())
	entry.ClientConfig.CABundle, _ = before.PEM(t)
	c.configure(entry)
	m.write(before.Leaf(t, "127.0.0.1", time.Now().Add(time.Hour)))
	c.waitReady(r)
	c.admitSoon()
	if err := r.Fault(); err != nil {
		t.Errorf("fault while all is well: %v", err)
	}

	load := c.load(r)
	m.write(after.Leaf(t, "127.0.0.1", time.Now().Add(time.Hour)))
	eventually(t, "it is told", func() error {
		if diff := cmp.Diff([]string{certs.ReasonNotTrusted}, certs.Reasons(r.Fault())); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	must(t, r.Ready())
	if !signedBy(t, r, before.Cert()) {
		t.Error("the new certificate is served and nobody trusts it")
	}
	conf := c.configuration()
	more, _ := after.PEM(t)
	conf.Webhooks[0].ClientConfig.CABundle = append(conf.Webhooks[0].ClientConfig.CABundle, more...)
	updated := time.Now() // before it is done: the source may learn of it earlier than we do
	_, err = c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Update(t.Context(), conf, metav1.UpdateOptions{})
	must(t, err)
	eventually(t, "it is served when it has been trusted for a while", func() error {
		if !signedBy(t, r, after.Cert()) {
			return errors.New("not yet")
		}
		return r.Fault()
	})
	if took := time.Since(updated); took < settle {
		t.Errorf("the new certificate is served after %s, before every API server can have learned of its CA", took)
	}
	load.verify(t)
}

// serveFiles runs a source of a certificate's files that looks at nobody's trust, until stop.
func serveFiles(t *testing.T) (m *mount, ca *certs.TestCA, source *certs.Files, stop func()) {
	t.Helper()
	m = &mount{t: t, dir: t.TempDir()}
	ca = certs.NewTestCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	m.write(ca.Leaf(t, "127.0.0.1", time.Now().Add(time.Hour)))
	source, err := certs.NewFiles(certs.FilesOptions{Dir: m.dir, Interval: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- source.Run(ctx) }()
	eventually(t, "ready", source.Ready)
	return m, ca, source, func() {
		cancel()
		must(t, <-done)
	}
}

// Files that cannot be used any more are a fault, and what they held before is served on.
func TestDamagedFilesAreTold(t *testing.T) {
	t.Parallel()
	m, ca, source, stop := serveFiles(t)
	_, foreign := ca.PEM(t)
	cert, _ := ca.Leaf(t, "127.0.0.1", time.Now().Add(time.Hour))
	m.write(cert, foreign)
	eventually(t, "it is told", func() error {
		if diff := cmp.Diff([]string{certs.ReasonReadFiles}, certs.Reasons(source.Fault())); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	must(t, source.Ready())
	m.write(ca.Leaf(t, "127.0.0.1", time.Now().Add(time.Hour)))
	eventually(t, "it passes", source.Fault)
	stop()
}

func TestFilesWithoutConfiguration(t *testing.T) {
	t.Parallel()
	if _, err := certs.NewFiles(certs.FilesOptions{}); err == nil {
		t.Errorf("accepted without a directory")
	}
	_, _, source, stop := serveFiles(t)
	must(t, source.Fault())
	stop()
	must(t, source.Ready()) // still there while the server drains
}
