package inject

import (
	"encoding/json"
	"strings"

	"multus-ip-manager.io/agent/settings"
)

// variant is all that distinguishes one patch from another as long as the pod
// overrides nothing.
type variant struct {
	mode           settings.Mode
	class          Class
	limitCPU       bool // every container has a CPU limit
	hasInit        bool // spec.initContainers is a list
	hasAnnotations bool // metadata.annotations is a map
}

// prepared is a configuration with everything derived from it. It is built once
// and never changed, so that it can be swapped as one value.
type prepared struct {
	config     Config
	containers map[settings.Mode]container // without resources
	status     map[settings.Mode]string    // value of the status annotation
	patches    map[variant][]byte
}

// operation is one step of a JSON patch (RFC 6902). Only "add" is ever needed.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

func prepare(c Config) (*prepared, error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	p := &prepared{
		config:     c,
		containers: map[settings.Mode]container{},
		status:     map[settings.Mode]string{},
		patches:    map[variant][]byte{},
	}
	for _, mode := range settings.Modes() {
		if !available(mode) {
			continue
		}
		if err := p.prepareMode(mode); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *prepared) prepareMode(mode settings.Mode) error {
	base, err := p.config.container(mode)
	if err != nil {
		return err
	}
	status, err := json.Marshal(Status{Mode: mode, Version: p.config.Version})
	if err != nil {
		return err
	}
	p.containers[mode], p.status[mode] = base, string(status)
	for _, class := range Classes() {
		for bits := range 8 {
			v := variant{mode, class, bits&1 != 0, bits&2 != 0, bits&4 != 0}
			if p.patches[v], err = p.render(v, p.config.Resources[mode]); err != nil {
				return err
			}
		}
	}
	return nil
}

// Status is the value of the status annotation, as JSON.
type Status struct {
	// Mode and Version say what was injected.
	Mode    settings.Mode `json:"mode"`
	Version string        `json:"version"`
}

// render makes the patch of a variant with the given resources.
func (p *prepared) render(v variant, r Resources) ([]byte, error) {
	c := p.containers[v.mode]
	c.Resources = resourcesFor(v.class, v.limitCPU, r)
	status := operation{"add", "/metadata/annotations/" + escape(settings.KeyStatus), p.status[v.mode]}
	if !v.hasAnnotations {
		status = operation{"add", "/metadata/annotations", map[string]string{settings.KeyStatus: p.status[v.mode]}}
	}
	// First, so that the network is there for the user's own init containers.
	first := operation{"add", "/spec/initContainers/0", c}
	if !v.hasInit {
		first = operation{"add", "/spec/initContainers", []container{c}}
	}
	return json.Marshal([]operation{status, first})
}

// escape makes a token of a JSON pointer (RFC 6901) from a key.
func escape(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}
