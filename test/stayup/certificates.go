package stayup

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// configuration is the name of the webhook configuration.
const configuration = "multus-ip-manager"

// Served is a certificate as a client sees it.
type Served struct {
	// Leaf and CA tell one certificate, and one CA, from the next.
	Leaf, CA string
}

// Trust connects to the replicas again and again as the API server does, trusting what the webhook configuration says at that moment
// and nothing else: an API server that keeps its connections hardly ever looks at a certificate.
type Trust struct {
	rig  *Rig
	stop context.CancelFunc
	done sync.WaitGroup

	// Connections and Refused are how many connections were tried, and how many of them failed; Errors are the first errors.
	// They may be read once Stop has returned.
	Connections, Refused int
	Errors               []string
}

// Trust begins to connect, to each replica ten times a second.
func (r *Rig) Trust(ctx context.Context) *Trust {
	ctx, stop := context.WithCancel(ctx)
	t := &Trust{rig: r, stop: stop}
	t.done.Go(func() { t.run(ctx) })
	return t
}

// Stop ends the attempts.
func (t *Trust) Stop() {
	t.stop()
	t.done.Wait()
}

func (t *Trust) run(ctx context.Context) {
	for Wait(ctx, 100*time.Millisecond) == nil {
		bundle, err := t.rig.bundle(ctx)
		if err != nil {
			continue // there is no API server that could connect either
		}
		for _, p := range t.rig.Replicas() {
			select {
			case <-p.up:
			default:
				continue
			}
			_, err := t.rig.connect(ctx, p, bundle)
			if ctx.Err() != nil {
				return
			}
			t.Connections++
			if err != nil && t.rig.current(ctx, p, bundle) {
				t.Refused++
				if len(t.Errors) < 5 {
					t.Errors = append(t.Errors, err.Error())
				}
			}
		}
	}
}

// bundle is what the webhook configuration trusts.
func (r *Rig) bundle(ctx context.Context) ([]byte, error) {
	conf := &admissionregistrationv1.MutatingWebhookConfiguration{}
	err := r.Plane.Client.Get(ctx, client.ObjectKey{Name: configuration}, conf)
	if err != nil || len(conf.Webhooks) == 0 {
		return nil, errors.Join(errors.New("no webhook configuration"), err)
	}
	return append([]byte{}, conf.Webhooks[0].ClientConfig.CABundle...), nil // not nil: who trusts nobody does not trust anybody
}

// current reports whether a replica still serves, and the webhook configuration still trusts the same: if not, a connection that
// failed meanwhile shows nothing but that this took long.
func (r *Rig) current(ctx context.Context, p *Replica, bundle []byte) bool {
	now, err := r.bundle(ctx)
	return err == nil && bytes.Equal(now, bundle) && slices.Contains(r.Replicas(), p)
}

// connect makes one connection; a nil bundle trusts anything.
func (r *Rig) connect(ctx context.Context, p *Replica, bundle []byte) (Served, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{
		RootCAs: roots, InsecureSkipVerify: bundle == nil, MinVersion: tls.VersionTLS12, //nolint:gosec // without a bundle nobody is trusted with anything
		ServerName: r.service.Name + "." + r.service.Namespace + ".svc",
	}}
	conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(p.Addr, uint16(p.ports.webhook)).String()) //nolint:gosec // a port
	if err != nil {
		return Served{}, err
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	c, ok := conn.(*tls.Conn)
	if !ok || len(c.ConnectionState().PeerCertificates) == 0 {
		return Served{}, errors.New("no certificate")
	}
	leaf := c.ConnectionState().PeerCertificates[0]
	return Served{Leaf: leaf.SerialNumber.String(), CA: fmt.Sprintf("%x", leaf.AuthorityKeyId)}, nil
}

// Served is what each replica serves now.
func (r *Rig) Served(ctx context.Context) (map[*Replica]Served, error) {
	all := map[*Replica]Served{}
	for _, p := range r.Replicas() {
		served, err := r.connect(ctx, p, nil)
		if err != nil {
			return nil, fmt.Errorf("replica %s: %w", p.Addr, err)
		}
		all[p] = served
	}
	return all, nil
}

// AwaitServed waits until each replica serves something that differs from before as changed says.
func (r *Rig) AwaitServed(ctx context.Context, before map[*Replica]Served, changed func(before, now Served) bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if err := Wait(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("the certificates are still those from before: %w", err)
		}
		now, err := r.Served(ctx)
		if err != nil {
			return err
		}
		all := true
		for p, was := range before {
			all = all && changed(was, now[p])
		}
		if all {
			return nil
		}
	}
}

// NewLeaf reports whether a leaf has been replaced under the same CA, NewCA whether the CA has been.
func NewLeaf(before, now Served) bool { return before.Leaf != now.Leaf && before.CA == now.CA }

// NewCA reports whether the CA has been replaced.
func NewCA(before, now Served) bool { return before.CA != now.CA }
