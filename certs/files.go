package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
)

// FilesOptions configures [NewFiles].
type FilesOptions struct {
	// Dir holds tls.crt (the leaf, then its intermediates) and tls.key, as a mounted Secret of type
	// kubernetes.io/tls does.
	Dir string

	// Configuration is where trust is read from; nil leaves it unchecked. Files runs it.
	Configuration *Configuration

	// Interval is how often the files are read again besides the file system's events, once there are some; before, that is
	// at least once a second. Default: 10 s.
	Interval time.Duration

	// Settle is how long a pair that was not trusted at first must be trusted before it replaces one that is: within it every API
	// server learns of its CA. Default: 10 s.
	Settle time.Duration

	// Log is where the source tells what it does. Default: slog.Default().
	Log *slog.Logger
}

// Files serves the key pair of a directory. Files that are missing at first are waited for (kubelet mounts an optional
// Secret up to a minute after it appeared), and files that vanish or are damaged later leave the last good pair in use.
//
// A new pair that the webhook configuration does not trust replaces none that it does: whoever brings the CA there may be later
// than the kubelet, or fail.
type Files struct {
	opts    FilesOptions
	changed chan struct{}
	serving atomic.Pointer[tls.Certificate]
	watcher atomic.Pointer[certwatcher.CertWatcher]

	// Of the goroutine that chooses: the latest pair was not trusted at first, and since when it is (zero: it is not).
	doubted bool
	trusted time.Time

	mu        sync.Mutex
	read      error // of the files
	untrusted error // of the pair that is not served
	told      string
}

var _ Source = (*Files)(nil)

// NewFiles checks the options. No file is read before Run.
func NewFiles(o FilesOptions) (*Files, error) {
	if o.Dir == "" {
		return nil, errors.New("certificate source: needs the directory of tls.crt and tls.key")
	}
	if o.Interval == 0 {
		o.Interval = 10 * time.Second
	}
	if o.Settle == 0 {
		o.Settle = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Files{opts: o, changed: make(chan struct{}, 1)}, nil
}

// Run implements [Source].
func (f *Files) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	var trust <-chan struct{}
	if f.opts.Configuration != nil {
		trust = f.opts.Configuration.subscribe()
		group.Go(func() error { return f.opts.Configuration.Run(ctx) })
	}
	group.Go(func() error {
		f.follow(ctx)
		return nil
	})
	group.Go(func() error {
		f.choose(ctx, trust)
		return nil
	})
	return group.Wait()
}

// follow keeps a watcher on the files, and makes another one when that gives up, until ctx ends.
func (f *Files) follow(ctx context.Context) {
	for {
		if err := f.watch(ctx); err != nil && ctx.Err() == nil {
			f.set(&f.read, faultf(ReasonReadFiles, "serving certificate in %s: %w", f.opts.Dir, err))
		}
		pause := f.opts.Interval
		if f.watcher.Load() == nil {
			pause = min(pause, time.Second)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (f *Files) watch(ctx context.Context) error {
	w, err := certwatcher.New(filepath.Join(f.opts.Dir, corev1.TLSCertKey), filepath.Join(f.opts.Dir, corev1.TLSPrivateKeyKey))
	if err != nil {
		return err
	}
	f.set(&f.read, nil)
	f.watcher.Store(w)
	w.RegisterCallback(func(tls.Certificate) { notify(f.changed) }) // is called for the present one, too
	return w.WithWatchInterval(f.opts.Interval).Start(ctx)
}

// choose decides what to serve after each change of the files and of what the API server trusts, until ctx ends.
func (f *Files) choose(ctx context.Context, trust <-chan struct{}) {
	tick := time.NewTicker(f.opts.Interval) // certificates expire without an event
	defer tick.Stop()
	for {
		f.chooseNow()
		var settled <-chan time.Time
		if !f.trusted.IsZero() {
			settled = time.After(time.Until(f.trusted.Add(f.opts.Settle)))
		}
		select {
		case <-ctx.Done():
			return
		case <-settled:
		case <-f.changed:
		case <-trust:
		case <-tick.C:
			f.set(&f.read, f.readable()) // the watcher does not tell what it fails in
		}
	}
}

// readable returns why the files cannot be served as they are now.
func (f *Files) readable() error {
	_, err := tls.LoadX509KeyPair(filepath.Join(f.opts.Dir, corev1.TLSCertKey), filepath.Join(f.opts.Dir, corev1.TLSPrivateKeyKey))
	if err != nil {
		return faultf(ReasonReadFiles, "serving certificate in %s: %w", f.opts.Dir, err)
	}
	return nil
}

func (f *Files) chooseNow() {
	w := f.watcher.Load()
	if w == nil {
		return
	}
	latest, _ := w.GetCertificate(nil) // never fails, by its documentation
	next, err := f.pick(f.serving.Load(), latest)
	if f.serving.Swap(next) != next {
		if leaf, err := leafOf(next); err == nil {
			f.opts.Log.Info("serving another certificate", "notAfter", leaf.NotAfter, "issuer", leaf.Issuer.String())
		}
	}
	f.set(&f.untrusted, err)
}

// pick returns latest, unless API servers would accept serving and not latest; then it says so.
func (f *Files) pick(serving, latest *tls.Certificate) (*tls.Certificate, error) {
	switch {
	case serving != nil && slices.EqualFunc(serving.Certificate, latest.Certificate, bytes.Equal):
		return serving, nil // perhaps read once more
	case serving == nil || f.opts.Configuration == nil:
		return latest, nil
	}
	if f.accepted(serving) == nil {
		switch err := f.accepted(latest); {
		case err != nil:
			f.doubted, f.trusted = true, time.Time{}
			return serving, faultf(ReasonNotTrusted, "the new certificate is not served yet, the one before is still trusted: %w", err)
		case f.doubted && f.trusted.IsZero():
			f.trusted = time.Now()
			return serving, nil
		case f.doubted && time.Since(f.trusted) < f.opts.Settle:
			return serving, nil
		}
	}
	f.doubted, f.trusted = false, time.Time{}
	return latest, nil
}

func (f *Files) accepted(pair *tls.Certificate) error {
	conf := f.opts.Configuration
	return verdict(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair, nil }, conf, conf.now())
}

// GetCertificate implements [Source].
func (f *Files) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if pair := f.serving.Load(); pair != nil {
		return pair, nil
	}
	return nil, ErrNoCertificate
}

// Ready implements [Source].
func (f *Files) Ready() error { return ready(f.GetCertificate, f.opts.Configuration, f.Fault) }

// Expiry implements [Source].
func (f *Files) Expiry() time.Time { return expiry(f.GetCertificate) }

// Renewal implements [Source]: nobody tells.
func (*Files) Renewal() time.Time { return time.Time{} }

// Fault implements [Source].
func (f *Files) Fault() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.faultLocked()
}

func (f *Files) faultLocked() error {
	faults := []error{f.read, f.untrusted}
	if conf := f.opts.Configuration; conf != nil {
		faults = append(faults, conf.clock.fault())
	}
	return errors.Join(faults...)
}

// set keeps a fault, and says it when it is another one.
func (f *Files) set(field *error, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*field = err
	tellFault(f.opts.Log, &f.told, f.faultLocked())
}
