package certs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// patience is how long an issuance may take, and how late a renewal may begin, before that is a fault.
const patience = 5 * time.Minute

// CertManagerOptions configures [NewCertManager].
type CertManagerOptions struct {
	// Files is where the certificate is mounted.
	Files FilesOptions

	// REST tells how to reach the API server. The rights it needs besides those of [Configuration]: get on the Certificate and, to
	// tell what is wrong with it, on its issuer.
	REST *rest.Config

	// Namespace and Certificate name the Certificate.
	Namespace, Certificate string

	// Interval is how often both are looked at. Default: 30 s, little beside what an issuance may take before it is a fault.
	Interval time.Duration
}

// CertManager serves what cert-manager issues, as [Files] does, and tells in cert-manager's own words why it will not be renewed.
type CertManager struct {
	*Files
	client dynamic.Interface
	opts   CertManagerOptions

	mu      sync.Mutex
	renewal time.Time
	fault   error
	told    string
}

var _ Source = (*CertManager)(nil)

// NewCertManager checks the options. Nothing is read before Run.
func NewCertManager(o CertManagerOptions) (*CertManager, error) {
	if o.REST == nil || o.Namespace == "" || o.Certificate == "" {
		return nil, errors.New("certificate source cert-manager: needs the Certificate's namespace and name")
	}
	files, err := NewFiles(o.Files)
	if err != nil {
		return nil, err
	}
	if o.Interval == 0 {
		o.Interval = 30 * time.Second
	}
	o.Files = files.opts
	config := rest.CopyConfig(o.REST)
	if o.Files.Configuration != nil {
		config.Wrap(o.Files.Configuration.clock.wrap)
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("certificate source cert-manager: %w", err)
	}
	return &CertManager{Files: files, client: client, opts: o}, nil
}

// Run implements [Source].
func (c *CertManager) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.Files.Run(ctx) })
	group.Go(func() error {
		tick := time.NewTicker(c.opts.Interval)
		defer tick.Stop()
		for {
			c.look(ctx)
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
	return group.Wait()
}

// Renewal implements [Source]: when cert-manager means to renew.
func (c *CertManager) Renewal() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.renewal
}

// Ready implements [Source].
func (c *CertManager) Ready() error {
	return ready(c.GetCertificate, c.opts.Files.Configuration, c.Fault)
}

// Fault implements [Source].
func (c *CertManager) Fault() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.fault, c.Files.Fault())
}

// look reads the Certificate and its issuer. What cannot be read now leaves the last verdict standing, as long as that can pass.
func (c *CertManager) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	certificate, issuer, err := c.fetch(ctx)
	read := certificate != nil || err == nil // the issuer may be what cannot be read
	switch {
	case err == nil:
		err = renewalFault(c.opts.Files.Configuration.now(), c.opts.Namespace+"/"+c.opts.Certificate, certificate, issuer)
	case apierrors.IsForbidden(err):
		err = &FaultError{Reason: ReasonReadCertificate, Err: err}
	default:
		c.opts.Files.Log.Debug("cannot look at the Certificate", "error", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if read {
		c.renewal = time.Time{}
		if certificate != nil {
			c.renewal = timeOf(certificate.Status.RenewalTime)
		}
	}
	c.fault = err
	tellFault(c.opts.Files.Log.With("certificate", c.opts.Namespace+"/"+c.opts.Certificate, "renewal", c.renewal), &c.told, err)
}

// fetch returns the Certificate, nil when there is none, and its issuer, nil when there is none or it is not of a kind we know.
func (c *CertManager) fetch(ctx context.Context) (*cmapi.Certificate, *issuer, error) {
	certificate := &cmapi.Certificate{}
	found, err := c.get(ctx, "certificates", c.opts.Namespace, c.opts.Certificate, certificate)
	if err != nil || !found {
		return nil, nil, err
	}
	ref := certificate.Spec.IssuerRef
	if ref.Group != "" && ref.Group != cmapi.SchemeGroupVersion.Group {
		return certificate, nil, nil
	}
	i := &issuer{kind: ref.Kind, name: ref.Name}
	namespace, resource := c.opts.Namespace, "issuers"
	switch ref.Kind {
	case cmapi.ClusterIssuerKind:
		namespace, resource = "", "clusterissuers"
	case "":
		i.kind = cmapi.IssuerKind
	}
	object := &cmapi.Issuer{} // a ClusterIssuer has the same status
	i.exists, err = c.get(ctx, resource, namespace, ref.Name, object)
	i.conditions = object.Status.Conditions
	return certificate, i, err
}

// get reads one of cert-manager's objects into to.
func (c *CertManager) get(ctx context.Context, resource, namespace, name string, to any) (found bool, err error) {
	all := c.client.Resource(cmapi.SchemeGroupVersion.WithResource(resource))
	client := dynamic.ResourceInterface(all)
	if namespace != "" {
		client = all.Namespace(namespace)
	}
	object, err := client.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s %s: %w", resource, name, err)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, to); err != nil {
		return false, fmt.Errorf("read %s %s: %w", resource, name, err)
	}
	return true, nil
}

// issuer is what a Certificate's renewal depends on.
type issuer struct {
	kind, name string
	exists     bool
	conditions []cmapi.IssuerCondition
}

// fault returns why nothing can be issued, nil when something can, or when there is no telling.
func (i *issuer) fault() error {
	if i == nil {
		return nil
	}
	if !i.exists {
		return faultf(ReasonIssuerNotFound, "its %s %q does not exist", i.kind, i.name)
	}
	for _, condition := range i.conditions {
		if condition.Type == cmapi.IssuerConditionReady && condition.Status == cmmeta.ConditionFalse {
			return faultf(condition.Reason, "its %s %q is not ready: %s: %s", i.kind, i.name, condition.Reason, condition.Message)
		}
	}
	return nil
}

// renewalFault returns why the Certificate of that name will not be renewed or was not issued, by all that cert-manager says; nil
// when all is well. A broken issuer is told when it breaks, not when the renewal that needs it is due.
func renewalFault(now time.Time, name string, certificate *cmapi.Certificate, issuer *issuer) error {
	if certificate == nil {
		return faultf(ReasonNotFound, "Certificate %s does not exist: cert-manager does not renew what is served", name)
	}
	issuing := conditionOf(certificate, cmapi.CertificateConditionIssuing)
	ready := conditionOf(certificate, cmapi.CertificateConditionReady)
	wrap := func(reason, format string, args ...any) error {
		return faultf(reason, "Certificate %s: %w", name, fmt.Errorf(format, args...))
	}
	if err := issuer.fault(); err != nil {
		return wrap(Reasons(err)[0], "%w", err)
	}
	inTime := issuing.Status == cmmeta.ConditionTrue && now.Sub(timeOf(issuing.LastTransitionTime)) < patience
	attempts := certificate.Status.FailedIssuanceAttempts
	renewal := timeOf(certificate.Status.RenewalTime)
	switch {
	case issuing.Status == cmmeta.ConditionFalse && certificate.Status.LastFailureTime != nil:
		return wrap(issuing.Reason, "%s: %s", issuing.Reason, issuing.Message)
	case attempts != nil && *attempts > 0:
		return wrap(cmapi.CertificateRequestReasonFailed, "%d attempts failed; %s", *attempts, issuing.Message)
	case inTime:
		return nil
	case issuing.Status == cmmeta.ConditionTrue:
		return wrap(issuing.Reason, "%s since %s and not done: %s", issuing.Reason, timeOf(issuing.LastTransitionTime).Format(time.RFC3339), issuing.Message)
	case ready.Status == cmmeta.ConditionFalse:
		return wrap(ready.Reason, "%s: %s", ready.Reason, ready.Message)
	case ready.Status == "" && now.Sub(certificate.CreationTimestamp.Time) > patience:
		return wrap(ReasonOverdue, "nobody has looked at it since it was made at %s: does cert-manager run?", certificate.CreationTimestamp.Format(time.RFC3339))
	case !renewal.IsZero() && now.Sub(renewal) > patience:
		return wrap(ReasonOverdue, "renewal was due at %s and nobody has begun it: does cert-manager run?", renewal.Format(time.RFC3339))
	}
	return nil
}

// conditionOf returns a condition, the zero value when it was not set.
func conditionOf(certificate *cmapi.Certificate, kind cmapi.CertificateConditionType) cmapi.CertificateCondition {
	for _, condition := range certificate.Status.Conditions {
		if condition.Type == kind {
			return condition
		}
	}
	return cmapi.CertificateCondition{}
}

func timeOf(t *metav1.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.Time
}
