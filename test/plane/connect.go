package plane

import (
	"fmt"

	"github.com/go-logr/logr"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// Connect is a Plane for a cluster that runs already: what reads and writes can be used, and there is nothing to stop.
func Connect(config *rest.Config) (*Plane, error) {
	ctrllog.SetLogger(logr.Discard()) // see Plane.start
	p := &Plane{Config: config, stop: func() error { return nil }}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("build the scheme: %w", err)
		}
	}
	var err error
	if p.Client, err = client.NewWithWatch(config, client.Options{Scheme: scheme}); err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return p, nil
}

// InstallDefinitions makes the API server serve the kinds that every plane serves besides Kubernetes' own, and waits until it does.
func (p *Plane) InstallDefinitions() error {
	crds, err := definitions()
	if err != nil {
		return err
	}
	if _, err := envtest.InstallCRDs(p.Config, envtest.CRDInstallOptions{CRDs: crds}); err != nil {
		return fmt.Errorf("install the definitions: %w", err)
	}
	return nil
}
