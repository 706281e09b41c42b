package plane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// Options of Start. The zero value is what most tests want.
type Options struct {
	// Address is the IP address that the API server listens on; default 127.0.0.1. Give an address of another interface
	// where clients live in other network namespaces.
	Address string
	// APIServerArgs adds or replaces flags of kube-apiserver (without the leading dashes).
	APIServerArgs map[string][]string
}

// A Plane is a running control plane. Its methods can be used by several goroutines.
type Plane struct {
	// Config connects as an administrator (group system:masters), with no rate limit to speak of.
	Config *rest.Config
	// Client reads and writes through Config, uncached; its scheme holds Kubernetes' own kinds and
	// CustomResourceDefinition. Other kinds go as unstructured objects.
	Client client.WithWatch
	// Kubeconfig is a file with the administrator's access, for kubectl and Helm; only this user can read it.
	Kubeconfig string
	// Dir holds every file of this plane: etcd.log and kube-apiserver.log, the kubeconfig, data and certificates.
	// Stop removes it.
	Dir string

	env     *envtest.Environment
	watcher *watcher
	logs    []*os.File
	closing chan struct{} // closed by Stop; ends the controllers' stand-in
	done    sync.WaitGroup
	stop    func() error
}

// Start starts a control plane and returns when it can be used: CustomResourceDefinitions served, the "default" service
// account of the namespace "default" there. When ctx ends first, the start is given up and tidied up. The plane itself
// runs until Stop.
func Start(ctx context.Context, opts Options) (*Plane, error) {
	p, err := prepare(opts)
	if err != nil {
		return nil, err
	}
	p.stop = sync.OnceValue(p.shutdown)
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

// Stop ends both servers and removes every file. Calling it again does nothing and returns the same.
func (p *Plane) Stop() error { return p.stop() }

// prepare makes everything that needs no running server.
func prepare(opts Options) (p *Plane, err error) {
	if opts.Address == "" {
		opts.Address = "127.0.0.1"
	}
	apiServer, err := Binary("kube-apiserver")
	if err != nil {
		return nil, err
	}
	etcd, err := Binary("etcd")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "multus-ip-manager-plane-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the control plane: %w", err)
	}
	p = &Plane{Dir: dir, Kubeconfig: filepath.Join(dir, "kubeconfig"), closing: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if p.env, err = p.environment(opts, apiServer, etcd); err != nil {
		return nil, err
	}
	if p.watcher, err = startWatcher(dir); err != nil {
		return nil, err
	}
	return p, nil
}

// environment configures envtest.
func (p *Plane) environment(opts Options, apiServer, etcd string) (*envtest.Environment, error) {
	crds, err := definitions()
	if err != nil {
		return nil, err
	}
	env := &envtest.Environment{
		CRDs:                     crds,
		ControlPlaneStartTimeout: startTimeout,
		ControlPlaneStopTimeout:  20 * time.Second,
	}
	server := env.ControlPlane.GetAPIServer()
	env.ControlPlane.Etcd = &envtest.Etcd{}
	for _, item := range []struct {
		name, binary string
		path, dir    *string
		log          func(*os.File)
	}{
		{"etcd", etcd, &env.ControlPlane.Etcd.Path, &env.ControlPlane.Etcd.DataDir,
			func(f *os.File) { env.ControlPlane.Etcd.Out, env.ControlPlane.Etcd.Err = f, f }},
		{"kube-apiserver", apiServer, &server.Path, &server.CertDir,
			func(f *os.File) { server.Out, server.Err = f, f }},
	} {
		if *item.path, err = writeLauncher(p.Dir, item.name, item.binary); err != nil {
			return nil, err
		}
		*item.dir = filepath.Join(p.Dir, item.name)
		if err := os.Mkdir(*item.dir, 0o700); err != nil {
			return nil, fmt.Errorf("make a folder for %s: %w", item.name, err)
		}
		log, err := os.Create(p.logFile(item.name))
		if err != nil {
			return nil, fmt.Errorf("make the log of %s: %w", item.name, err)
		}
		p.logs = append(p.logs, log)
		item.log(log)
	}
	port, err := freePort(opts.Address)
	if err != nil {
		return nil, err
	}
	server.ListenAddr = envtest.ListenAddr{Address: opts.Address, Port: port}
	// A member alone elects itself after the election timeout: no use to wait a second for others.
	env.ControlPlane.Etcd.Configure().Set("heartbeat-interval", "10").Set("election-timeout", "100")
	args := server.Configure()
	// Nothing here uses the Service "kubernetes", and without it a plane needs no address but loopback and no default
	// route: else the server insists on an address that its endpoints could have.
	args.Set("advertise-address", opts.Address)
	args.Set("endpoint-reconciler-type", "none")
	// envtest switches ServiceAccount admission off. Here pods shall go through what a cluster's pods go through.
	args.Disable("disable-admission-plugins")
	// As on OpenShift: who may not delete an object may not say whose it is.
	args.Append("enable-admission-plugins", "OwnerReferencesPermissionEnforcement")
	args.Set("profiling", "false")
	for name, values := range opts.APIServerArgs {
		args.Set(name, values...)
	}
	return env, nil
}

func (p *Plane) start(ctx context.Context) error {
	// envtest logs through controller-runtime, which prints a stack trace when nobody has said where logs go. What went wrong is in
	// the error and in the servers' own logs.
	ctrllog.SetLogger(logr.Discard())
	// envtest's start cannot be cancelled; ending its processes makes it return.
	giveUp := context.AfterFunc(ctx, func() { _ = killRecorded(p.Dir) })
	config, err := p.env.Start()
	if !giveUp() && ctx.Err() != nil {
		return fmt.Errorf("start of the control plane given up: %w", context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("start the control plane: %w%s%s", err, p.logTail("etcd"), p.logTail("kube-apiserver"))
	}
	// envtest has made a certificate for webhooks, outside of Dir; nobody uses it.
	if err := p.env.WebhookInstallOptions.Cleanup(); err != nil {
		return fmt.Errorf("tidy up after the start: %w", err)
	}
	p.Config = config
	if err := os.WriteFile(p.Kubeconfig, p.env.KubeConfig, 0o600); err != nil {
		return fmt.Errorf("write the kubeconfig: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme)); err != nil {
		return fmt.Errorf("build the scheme: %w", err)
	}
	if p.Client, err = client.NewWithWatch(config, client.Options{Scheme: scheme}); err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	return p.startServiceAccounts(ctx)
}

func (p *Plane) shutdown() error {
	close(p.closing)
	p.done.Wait()
	errs := []error{p.env.Stop()}
	for _, log := range p.logs {
		errs = append(errs, log.Close())
	}
	errs = append(errs, p.watcher.dismiss(), os.RemoveAll(p.Dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop the control plane: %w", err)
	}
	return nil
}

func (p *Plane) logFile(name string) string { return filepath.Join(p.Dir, name+".log") }

// logTail is the end of a server's log, for an error message.
func (p *Plane) logTail(name string) string {
	data, err := os.ReadFile(p.logFile(name))
	if err != nil || len(data) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	const keep = 8
	if len(lines) > keep {
		lines = lines[len(lines)-keep:]
	}
	return "\n" + name + " said last:\n  " + strings.Join(lines, "\n  ")
}
