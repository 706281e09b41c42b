package plane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/test/tools"
)

// Helm runs the real Helm binary with settings, caches and plugins of its own, apart from the user's.
type Helm struct {
	path       string
	home       string
	kubeconfig string
}

// NewHelm returns a Helm that keeps its files in home. kubeconfig may be empty where no cluster is needed (Template,
// Lint).
func NewHelm(home, kubeconfig string) (*Helm, error) {
	path, err := Binary("helm")
	if err != nil {
		return nil, err
	}
	return &Helm{path: path, home: home, kubeconfig: kubeconfig}, nil
}

// Helm returns a Helm that works on this plane, as its administrator.
func (p *Plane) Helm() (*Helm, error) {
	return NewHelm(filepath.Join(p.Dir, "helm"), p.Kubeconfig)
}

// ChartDir is the product's chart in the checkout that the working directory lies in.
func ChartDir() (string, error) {
	root, err := tools.Root()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "manifests", "chart"), nil
}

// A Release says what to install where.
type Release struct {
	// Name of the release.
	Name string
	// Namespace it is installed in; Install makes it where it is missing.
	Namespace string
	// Chart is the folder of the chart.
	Chart string
	// Values go to Helm as a values file; nil means the chart's defaults. Any value that marshals to a YAML object.
	Values any
	// Args are further arguments.
	Args []string
}

// Install installs a release and returns what Helm printed (NOTES.txt).
func (h *Helm) Install(ctx context.Context, r Release) (string, error) {
	return h.release(ctx, "install", r, "--create-namespace")
}

// Upgrade upgrades a release and returns what Helm printed.
func (h *Helm) Upgrade(ctx context.Context, r Release) (string, error) {
	return h.release(ctx, "upgrade", r)
}

// Template renders a release without a cluster.
func (h *Helm) Template(ctx context.Context, r Release) (string, error) {
	return h.release(ctx, "template", r)
}

// Lint checks the chart with the release's values, as strictly as Helm can.
func (h *Helm) Lint(ctx context.Context, r Release) (string, error) {
	values, err := marshalValues(r.Values)
	if err != nil {
		return "", err
	}
	return h.Run(ctx, values, append([]string{"lint", r.Chart, "--strict", "--values=-"}, r.Args...)...)
}

// Uninstall removes a release.
func (h *Helm) Uninstall(ctx context.Context, name, namespace string) (string, error) {
	return h.Run(ctx, nil, "uninstall", name, "--namespace", namespace)
}

func (h *Helm) release(ctx context.Context, verb string, r Release, more ...string) (string, error) {
	values, err := marshalValues(r.Values)
	if err != nil {
		return "", err
	}
	args := append([]string{verb, r.Name, r.Chart, "--namespace", r.Namespace, "--values=-"}, more...)
	return h.Run(ctx, values, append(args, r.Args...)...)
}

func marshalValues(values any) ([]byte, error) {
	if values == nil {
		return []byte("{}\n"), nil
	}
	data, err := yaml.Marshal(values)
	if err != nil {
		return nil, fmt.Errorf("write the chart's values: %w", err)
	}
	return data, nil
}

// Run runs any Helm command and returns its standard output; what it said on standard error is in the error.
func (h *Helm) Run(ctx context.Context, stdin []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, h.path, args...)
	cmd.Env = append(environmentWithoutHelm(),
		"HELM_CACHE_HOME="+filepath.Join(h.home, "cache"),
		"HELM_CONFIG_HOME="+filepath.Join(h.home, "config"),
		"HELM_DATA_HOME="+filepath.Join(h.home, "data"),
		// An empty KUBECONFIG would mean the user's own cluster: never that.
		"KUBECONFIG="+h.kubeconfigOrNone(),
	)
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(stderr.String() + "\n" + strings.TrimSpace(stdout.String()))
		return stdout.String(), errors.Join(fmt.Errorf("helm %s: %w", args[0], err), errors.New(said))
	}
	return stdout.String(), nil
}

func (h *Helm) kubeconfigOrNone() string {
	if h.kubeconfig != "" {
		return h.kubeconfig
	}
	return filepath.Join(h.home, "no-cluster")
}

// environmentWithoutHelm drops settings that a user may have for Helm and that would change what it does.
func environmentWithoutHelm() []string {
	var env []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "HELM_") && !strings.HasPrefix(entry, "KUBECONFIG=") {
			env = append(env, entry)
		}
	}
	return env
}
