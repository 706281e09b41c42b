package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
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

	// Interval is how often the files are read again besides the file system's events. Default: 10 s.
	Interval time.Duration

	// Log is where the source tells what it does. Default: slog.Default().
	Log *slog.Logger
}

// Files serves the key pair of a directory. Files that are missing at first are waited for (kubelet mounts an optional
// Secret up to a minute after it appeared), and files that vanish or are damaged later leave the last good pair in use.
type Files struct {
	opts    FilesOptions
	watcher atomic.Pointer[certwatcher.CertWatcher]
	fault   atomic.Pointer[error]
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
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Files{opts: o}, nil
}

// Run implements [Source].
func (f *Files) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if f.opts.Configuration != nil {
		group.Go(func() error { return f.opts.Configuration.Run(ctx) })
	}
	group.Go(func() error {
		f.follow(ctx)
		return nil
	})
	return group.Wait()
}

// follow keeps a watcher on the files, and makes another one when that gives up, until ctx ends.
func (f *Files) follow(ctx context.Context) {
	ticker := time.NewTicker(f.opts.Interval)
	defer ticker.Stop()
	for {
		if err := f.watch(ctx); err != nil && ctx.Err() == nil {
			err = fmt.Errorf("serving certificate in %s: %w", f.opts.Dir, err)
			f.opts.Log.Warn("cannot follow the certificate files; trying again", "error", err)
			f.fault.Store(&err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (f *Files) watch(ctx context.Context) error {
	w, err := certwatcher.New(filepath.Join(f.opts.Dir, corev1.TLSCertKey), filepath.Join(f.opts.Dir, corev1.TLSPrivateKeyKey))
	if err != nil {
		return err
	}
	f.watcher.Store(w)
	f.fault.Store(nil)
	return w.WithWatchInterval(f.opts.Interval).Start(ctx)
}

// GetCertificate implements [Source].
func (f *Files) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	w := f.watcher.Load()
	if w == nil {
		return nil, ErrNoCertificate
	}
	return w.GetCertificate(hello)
}

// Ready implements [Source].
func (f *Files) Ready() error {
	err := verdict(f.GetCertificate, f.opts.Configuration, time.Now())
	if fault := f.Fault(); err != nil && fault != nil {
		return fmt.Errorf("%w (%w)", err, fault)
	}
	return err
}

// Expiry implements [Source].
func (f *Files) Expiry() time.Time { return expiry(f.GetCertificate) }

// Fault implements [Source].
func (f *Files) Fault() error {
	if err := f.fault.Load(); err != nil {
		return *err
	}
	return nil
}
