package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/certs"
	"multus-ip-manager.io/webhook/inject"
)

// Values of --cert-source.
const (
	sourceSelf        = "self"
	sourceCertManager = "cert-manager"
	sourceSecret      = "secret"
)

// options are the flags of serve.
type options struct {
	host                          string
	port, healthPort, metricsPort int
	drainTimeout                  time.Duration
	certSource, certDir           string
	namespace, secretName         string
	certificate                   string
	configuration                 string
	names                         []string
	caDuration, leafDuration      time.Duration
	caSettle                      time.Duration
	certificateInterval           time.Duration
	kubeconfig                    string
	configFile                    string
	mode, agentImage, pullPolicy  string
	agentEnv, agentArgs           []string
	logLevel, logFormat           string
}

func defaultOptions(getenv func(string) string) *options {
	return &options{namespace: getenv("POD_NAMESPACE")}
}

func (o *options) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.host, "host", "", "IP address to listen on; all if empty")
	f.IntVar(&o.port, "port", 9443, "port of the webhook; 0, here and below: a free one, which the log tells")
	f.IntVar(&o.healthPort, "health-port", 8081, "port of /healthz and /readyz (plain HTTP)")
	f.IntVar(&o.metricsPort, "metrics-port", 8080, "port of /metrics (plain HTTP)")
	f.DurationVar(&o.drainTimeout, "drain-timeout", 10*time.Second, "after SIGTERM, longest time for which connections are closed by answers on them; shorter when nobody asks")
	f.StringVar(&o.certSource, "cert-source", sourceSelf, "where the serving certificate comes from: self, cert-manager or secret")
	f.StringVar(&o.certDir, "cert-dir", "", "directory of tls.crt and tls.key; needed by the sources cert-manager and secret")
	f.StringVar(&o.namespace, "namespace", o.namespace, "namespace of the CA's Secret, and of the Certificate; default: environment variable POD_NAMESPACE")
	f.StringVar(&o.certificate, "certificate", "", "cert-manager's Certificate, whose state the source cert-manager tells; empty: not looked at")
	f.DurationVar(&o.certificateInterval, "certificate-interval", 0, "how often the Certificate and its issuer are looked at; 0: 30s")
	f.StringVar(&o.secretName, "secret-name", "multus-ip-manager-ca", "Secret in which the source self keeps its CA")
	f.StringVar(&o.configuration, "webhook-configuration", "multus-ip-manager", "MutatingWebhookConfiguration whose trust decides readiness (and is kept up by the source self); empty: not looked at")
	f.StringSliceVar(&o.names, "dns-names", nil, "DNS names and IP addresses for which the source self issues the certificate")
	f.DurationVar(&o.caDuration, "ca-duration", 0, "life of the source self's CA, replaced after two thirds of it; 0: a year")
	f.DurationVar(&o.leafDuration, "leaf-duration", 0, "life of the source self's certificates, each replaced after about two thirds of it; 0: a week")
	f.DurationVar(&o.caSettle, "ca-settle", 0, "how long a new CA of the source self must be trusted before it signs; 0: 1m")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file, to run outside the cluster")
	o.addInjectionFlags(f)
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "json", "json or text")
}

// addInjectionFlags adds those that say what is injected.
func (o *options) addInjectionFlags(f *pflag.FlagSet) {
	f.StringVar(&o.configFile, "config", "", "JSON file with the injection's settings; flags win over it")
	f.StringVar(&o.mode, "default-mode", "", "mode of pods for which neither the namespace nor the pod names one: init (default) or sidecar")
	f.StringVar(&o.agentImage, "agent-image", "", "image of the injected container")
	f.StringVar(&o.pullPolicy, "agent-pull-policy", "", "imagePullPolicy of the injected container: Always, IfNotPresent or Never")
	f.StringArrayVar(&o.agentEnv, "agent-env", nil, "NAME=VALUE for the environment of the injected container; may be repeated")
	f.StringArrayVar(&o.agentArgs, "agent-arg", nil, "SETTING=VALUE of the agent, such as deadline=10m (=VALUE may be left out for true); may be repeated")
}

// injection returns the settings of the injection: the file's, with the flags over them.
func (o *options) injection() (inject.Config, error) {
	c := inject.DefaultConfig()
	unset := c.Version
	if o.configFile != "" {
		data, err := os.ReadFile(o.configFile)
		if err != nil {
			return c, fmt.Errorf("--config: %w", err)
		}
		if c, err = inject.ParseConfig(data); err != nil {
			return c, fmt.Errorf("--config=%s: %w", o.configFile, err)
		}
	}
	if c.Version == unset {
		c.Version = version
	}
	if o.mode != "" {
		mode, err := settings.ParseMode(o.mode)
		if err != nil {
			return c, fmt.Errorf("--default-mode: %w", err)
		}
		c.Mode = mode
	}
	if o.agentImage != "" {
		c.Image = o.agentImage
	}
	if o.pullPolicy != "" {
		c.ImagePullPolicy = o.pullPolicy
	}
	for _, arg := range o.agentArgs {
		name, value, found := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !found {
			value = "true"
		}
		if c.Agent == nil {
			c.Agent = map[string]string{}
		}
		c.Agent[name] = value
	}
	for _, env := range o.agentEnv {
		name, value, found := strings.Cut(env, "=")
		if !found {
			return c, fmt.Errorf("--agent-env=%s: want NAME=VALUE", env)
		}
		c.Env = setEnv(c.Env, name, value)
	}
	return c, nil
}

// setEnv replaces the variable of that name, or appends it.
func setEnv(env []inject.EnvVar, name, value string) []inject.EnvVar {
	for i := range env {
		if env[i].Name == name {
			env[i].Value = value
			return env
		}
	}
	return append(env, inject.EnvVar{Name: name, Value: value})
}

// source returns the source of the serving certificate.
func (o *options) source(log *slog.Logger) (certs.Source, error) {
	switch o.certSource {
	case sourceSelf:
		config, err := o.restConfig()
		if err != nil {
			return nil, err
		}
		source, err := certs.NewSelf(certs.SelfOptions{
			REST: config, Namespace: o.namespace, SecretName: o.secretName, Configuration: o.configuration, Names: o.names, Log: log,
			CADuration: o.caDuration, LeafDuration: o.leafDuration, Settle: o.caSettle,
		})
		if err != nil {
			return nil, fmt.Errorf("%w (flags --namespace, --secret-name, --webhook-configuration, --dns-names)", err)
		}
		return source, nil
	case sourceCertManager, sourceSecret:
		if o.certDir == "" {
			return nil, fmt.Errorf("--cert-source=%s needs --cert-dir", o.certSource)
		}
		return o.filesSource(log)
	default:
		return nil, fmt.Errorf("--cert-source=%s: allowed: %s, %s, %s", o.certSource, sourceSelf, sourceCertManager, sourceSecret)
	}
}

// filesSource returns the source of a certificate that others issue and that is mounted.
func (o *options) filesSource(log *slog.Logger) (certs.Source, error) {
	files := certs.FilesOptions{Dir: o.certDir, Log: log}
	tells := o.certSource == sourceCertManager && o.certificate != ""
	if o.configuration == "" && !tells {
		return certs.NewFiles(files)
	}
	config, err := o.restConfig()
	if err != nil {
		return nil, err
	}
	if o.configuration != "" {
		if files.Configuration, err = certs.ConnectConfiguration(config, o.configuration, log); err != nil {
			return nil, err
		}
	}
	if !tells {
		return certs.NewFiles(files)
	}
	source, err := certs.NewCertManager(certs.CertManagerOptions{
		Files: files, REST: config, Namespace: o.namespace, Certificate: o.certificate, Interval: o.certificateInterval})
	if err != nil {
		return nil, fmt.Errorf("%w (flags --namespace, --certificate)", err)
	}
	return source, nil
}

// restConfig returns the way to the API server: the kubeconfig's, else the pod's own.
func (o *options) restConfig() (*rest.Config, error) {
	var config *rest.Config
	var err error
	if o.kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	} else if config, err = rest.InClusterConfig(); errors.Is(err, rest.ErrNotInCluster) {
		err = fmt.Errorf("%w: outside a cluster use --kubeconfig", err)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	config.UserAgent = "multus-ip-webhook/" + version
	return config, nil
}
