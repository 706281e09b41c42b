package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/client-go/kubernetes"
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
	certSource, certDir           string
	namespace, secretName         string
	configuration                 string
	names                         []string
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
	f.IntVar(&o.port, "port", 9443, "port of the webhook")
	f.IntVar(&o.healthPort, "health-port", 8081, "port of /healthz and /readyz (plain HTTP)")
	f.IntVar(&o.metricsPort, "metrics-port", 8080, "port of /metrics (plain HTTP)")
	f.StringVar(&o.certSource, "cert-source", sourceSelf, "where the serving certificate comes from: self, cert-manager or secret")
	f.StringVar(&o.certDir, "cert-dir", "", "directory of tls.crt and tls.key; needed by the sources cert-manager and secret")
	f.StringVar(&o.namespace, "namespace", o.namespace, "namespace of the CA's Secret; default: environment variable POD_NAMESPACE")
	f.StringVar(&o.secretName, "secret-name", "multus-ip-manager-ca", "Secret in which the source self keeps its CA")
	f.StringVar(&o.configuration, "webhook-configuration", "multus-ip-manager", "MutatingWebhookConfiguration whose trust decides readiness (and is kept up by the source self); empty: not looked at")
	f.StringSliceVar(&o.names, "dns-names", nil, "DNS names and IP addresses for which the source self issues the certificate")
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
		})
		if err != nil {
			return nil, fmt.Errorf("%w (flags --namespace, --secret-name, --webhook-configuration, --dns-names)", err)
		}
		return source, nil
	case sourceCertManager, sourceSecret:
		if o.certDir == "" {
			return nil, fmt.Errorf("--cert-source=%s needs --cert-dir", o.certSource)
		}
		files := certs.FilesOptions{Dir: o.certDir, Log: log}
		if o.configuration != "" {
			config, err := o.restConfig()
			if err != nil {
				return nil, err
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return nil, fmt.Errorf("connect to the API server: %w", err)
			}
			files.Configuration = certs.NewConfiguration(client, o.configuration, log)
		}
		return certs.NewFiles(files)
	default:
		return nil, fmt.Errorf("--cert-source=%s: allowed: %s, %s, %s", o.certSource, sourceSelf, sourceCertManager, sourceSecret)
	}
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
