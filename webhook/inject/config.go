package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"multus-ip-manager.io/agent/settings"
)

// Config is what the installation decides. The chart renders it; the JSON form
// is the configuration file of the webhook.
type Config struct {
	// Mode is the mode of pods for which nothing else names one.
	Mode settings.Mode `json:"mode"`
	// Image is the agent's image.
	Image string `json:"image"`
	// ImagePullPolicy is Always, IfNotPresent, Never, or "" for the cluster's own
	// default.
	ImagePullPolicy string `json:"imagePullPolicy,omitempty"`
	// Agent are settings of the agent by flag name without dashes, such as
	// "deadline": "10m". Only those that differ from the agent's defaults become
	// arguments of the container. The deadline is for mode init alone, the metrics
	// port for the others.
	Agent map[string]string `json:"agent,omitempty"`
	// Env are further variables of the container, such as AWS_REGION or
	// AWS_ENDPOINT_URL_EC2, in this order.
	Env []EnvVar `json:"env,omitempty"`
	// Resources of the container by mode; modes that are missing keep the defaults.
	Resources map[settings.Mode]Resources `json:"resources,omitempty"`
	// Version is written to the status annotation.
	Version string `json:"version,omitempty"`
}

// EnvVar is a variable with a fixed value.
type EnvVar struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Resources of the injected container in one mode, as Kubernetes quantities.
type Resources struct {
	// CPU is the request in Burstable pods. There is no limit, with a tight one
	// the start of the container takes seconds; but where every other container of
	// the pod has a CPU limit, ours is GuaranteedCPU.
	CPU string `json:"cpu,omitempty"`
	// Memory is both request and limit, in Burstable and Guaranteed pods.
	Memory string `json:"memory,omitempty"`
	// GuaranteedCPU is both request and limit in Guaranteed pods. It is never a
	// whole number of cores, or the kubelet would pin cores to the container.
	GuaranteedCPU string `json:"guaranteedCPU,omitempty"`
}

// DefaultConfig is a complete configuration; the chart sets image and version.
func DefaultConfig() Config {
	return Config{
		Mode:  settings.Init,
		Image: "multus-ip-agent:latest",
		Resources: map[settings.Mode]Resources{
			settings.Init:    {CPU: "20m", Memory: "48Mi", GuaranteedCPU: "500m"},
			settings.Sidecar: {CPU: "20m", Memory: "48Mi", GuaranteedCPU: "100m"},
		},
		Version: "dev",
	}
}

// ParseConfig reads a configuration in JSON over the defaults. Unknown keys are
// errors, so that a misspelt one does not silently do nothing.
func ParseConfig(data []byte) (Config, error) {
	c := Config{}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("configuration: more than one JSON value")
	}
	c = c.withDefaults()
	return c, c.Validate()
}

// withDefaults fills what is not set; Resources of the result are a map of its own.
func (c Config) withDefaults() Config {
	d := DefaultConfig()
	if c.Mode == "" {
		c.Mode = d.Mode
	}
	if c.Image == "" {
		c.Image = d.Image
	}
	if c.Version == "" {
		c.Version = d.Version
	}
	for mode, r := range c.Resources {
		base := d.Resources[mode]
		for _, f := range []struct{ to, from *string }{{&r.CPU, &base.CPU}, {&r.Memory, &base.Memory}, {&r.GuaranteedCPU, &base.GuaranteedCPU}} {
			if *f.to == "" {
				*f.to = *f.from
			}
		}
		d.Resources[mode] = r
	}
	c.Resources = d.Resources
	return c
}

// Validate reports everything that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	if _, err := settings.ParseMode(string(c.Mode)); err != nil {
		errs = append(errs, fmt.Errorf("mode: %w", err))
	} else if !available(c.Mode) {
		errs = append(errs, fmt.Errorf("mode: %s", notAvailable(c.Mode, c.Version)))
	}
	if c.Image == "" {
		errs = append(errs, errors.New("image: the agent's image is missing"))
	}
	if !slices.Contains([]string{"", "Always", "IfNotPresent", "Never"}, c.ImagePullPolicy) {
		errs = append(errs, fmt.Errorf("imagePullPolicy=%q: allowed: Always, IfNotPresent, Never", c.ImagePullPolicy))
	}
	for _, mode := range settings.Modes() {
		if _, err := settings.Args(mode, c.Agent); err != nil {
			errs = append(errs, fmt.Errorf("agent: %w", err))
			break
		}
	}
	errs = append(errs, c.checkEnv()...)
	errs = append(errs, c.checkResources()...)
	return errors.Join(errs...)
}

func (c Config) checkEnv() []error {
	var errs []error
	taken := map[string]bool{}
	for _, v := range settings.Env() {
		taken[v.Name] = true
	}
	for i, v := range c.Env {
		switch {
		case v.Name == "":
			errs = append(errs, fmt.Errorf("env[%d]: the name is missing", i))
		case taken[v.Name]:
			errs = append(errs, fmt.Errorf("env[%d]: %s is set twice or belongs to the agent", i, v.Name))
		}
		taken[v.Name] = true
	}
	return errs
}

func (c Config) checkResources() []error {
	var errs []error
	for mode, r := range c.Resources {
		if _, err := settings.ParseMode(string(mode)); err != nil {
			errs = append(errs, fmt.Errorf("resources: %w", err))
			continue
		}
		if _, err := settings.ParseCPU(r.CPU); err != nil {
			errs = append(errs, fmt.Errorf("resources.%s.cpu: %w", mode, err))
		}
		if _, err := settings.ParseMemory(r.Memory); err != nil {
			errs = append(errs, fmt.Errorf("resources.%s.memory: %w", mode, err))
		}
		if err := pinsNothing(r.GuaranteedCPU); err != nil {
			errs = append(errs, fmt.Errorf("resources.%s.guaranteedCPU: %w", mode, err))
		}
	}
	return errs
}

// pinsNothing refuses whole cores: in a Guaranteed pod the kubelet's static CPU
// policy would pin them to the container.
func pinsNothing(cpu string) error {
	q, err := settings.ParseCPU(cpu)
	if err == nil && q.IsWhole() {
		return fmt.Errorf("%q is a whole number of cores, which the kubelet would pin in a Guaranteed pod", cpu)
	}
	return err
}

// available tells which modes this version can inject.
func available(mode settings.Mode) bool { return mode == settings.Init || mode == settings.Sidecar }

func notAvailable(mode settings.Mode, version string) string {
	return fmt.Sprintf("mode %q is not available yet in version %s: use %s or %s", mode, version, settings.Init, settings.Sidecar)
}
