// Command cert-manager runs those of cert-manager's controllers that the product's chart needs, against one API server: issuers
// that are self-signed or a CA, certificates, their requests and the injection of CAs into webhook configurations. It is
// assembled from cert-manager's importable packages as its own programs are, with one difference: a failed issuance is tried
// again after --retry, not after an hour, so that a test can see it heal.
//
// It ends when its standard input does: a test that is killed leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/controller/cainjector"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"   // registers itself, as those below
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"         // requests to a CA
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned" // requests to nobody
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
	"github.com/cert-manager/cert-manager/pkg/util"
	"github.com/cert-manager/cert-manager/pkg/util/feature"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx)
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "cert-manager:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	flags := flag.NewFlagSet("cert-manager", flag.ContinueOnError) // a library has put its own into the common one
	kubeconfig := flags.String("kubeconfig", "", "kubeconfig file of an administrator")
	retry := flags.Duration("retry", time.Second, "time before a failed issuance is tried again")
	gates := flags.String("feature-gates", "", "cert-manager's feature gates, such as CAInjectorMerging=false")
	if err := flags.Parse(os.Args[1:]); err != nil {
		return err
	}
	if err := feature.DefaultMutableFeatureGate.Set(*gates); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	ctrl.SetLogger(klog.Background())

	ended := make(chan error)
	parts := 0
	start := func(f func(context.Context) error) {
		parts++
		go func() { ended <- f(ctx) }()
	}
	controllers, begin, err := certificates(ctx, *kubeconfig, *retry)
	if err != nil {
		return err
	}
	for _, c := range controllers {
		start(func(ctx context.Context) error { return c.Run(1, ctx) })
	}
	begin()
	injector, err := injection(ctx, *kubeconfig)
	if err != nil {
		return err
	}
	start(injector.Start)
	var errs []error
	for range parts {
		errs = append(errs, <-ended)
		cancel() // none of them goes on without the others
	}
	if err := errors.Join(errs...); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// certificates returns all controllers that the packages above have registered, and what starts their informers.
func certificates(ctx context.Context, kubeconfig string, retry time.Duration) ([]controller.Interface, func(), error) {
	factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		Kubeconfig:         kubeconfig,
		KubernetesAPIQPS:   500,
		KubernetesAPIBurst: 500,
		IssuerOptions:      controller.IssuerOptions{ClusterResourceNamespace: "cert-manager"},
		CertificateOptions: controller.CertificateOptions{
			CertificateRequestMinimumBackoffDuration: retry,
			CertificateRequestMaximumBackoffDuration: retry,
		},
	})
	if err != nil {
		return nil, nil, err
	}
	shared, err := factory.Build()
	if err != nil {
		return nil, nil, err
	}
	known := controller.Known()
	var all []controller.Interface
	for _, name := range slices.Sorted(maps.Keys(known)) {
		c, err := known[name](factory)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, c)
	}
	return all, func() {
		shared.SharedInformerFactory.Start(ctx.Done())
		shared.KubeSharedInformerFactory.Start(ctx.Done())
	}, nil
}

// injection returns the manager of the CA injector. The agent's name in its connection is the field manager of what it applies:
// the one that cert-manager's own program has.
func injection(ctx context.Context, kubeconfig string) (ctrl.Manager, error) {
	base, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), cmapi.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	skip := true // the names of controllers are checked for the whole process
	manager, err := ctrl.NewManager(util.RestConfigWithUserAgent(base, "cainjector"), ctrl.Options{
		Scheme:     scheme,
		Metrics:    metricsserver.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: &skip},
		// The injector watches the metadata of Secrets and reads each Secret itself.
		Client: client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&corev1.Secret{}}}},
	})
	if err != nil {
		return nil, err
	}
	return manager, cainjector.RegisterAllInjectors(ctx, manager, cainjector.SetupOptions{
		EnableCertificatesDataSource: true,
		EnabledReconcilersFor:        map[string]bool{cainjector.MutatingWebhookConfigurationName: true},
	})
}
