package inject

import (
	"encoding/json"

	"multus-ip-manager.io/agent/settings"
)

// UID is the user and group of the injected container: a number, because
// runAsNonRoot cannot be verified for a name.
const UID = 65532

// container is the injected container as JSON. Fields are written in this
// order, so the same configuration always gives the same bytes.
type container struct {
	Name                     string          `json:"name"`
	Image                    string          `json:"image"`
	ImagePullPolicy          string          `json:"imagePullPolicy,omitempty"`
	Args                     []string        `json:"args"`
	Env                      []envVar        `json:"env"`
	Resources                *resources      `json:"resources,omitempty"`
	TerminationMessagePath   string          `json:"terminationMessagePath"`
	TerminationMessagePolicy string          `json:"terminationMessagePolicy"`
	SecurityContext          securityContext `json:"securityContext"`
}

type envVar struct {
	Name      string        `json:"name"`
	Value     string        `json:"value,omitempty"`
	ValueFrom *envVarSource `json:"valueFrom,omitempty"`
}

type envVarSource struct {
	FieldRef fieldRef `json:"fieldRef"`
}

type fieldRef struct {
	APIVersion string `json:"apiVersion"`
	FieldPath  string `json:"fieldPath"`
}

type resources struct {
	Requests *amounts `json:"requests,omitempty"`
	Limits   *amounts `json:"limits,omitempty"`
}

type amounts struct {
	CPU    string `json:"cpu,omitempty"`
	Memory string `json:"memory,omitempty"`
}

type securityContext struct {
	AllowPrivilegeEscalation bool           `json:"allowPrivilegeEscalation"`
	Capabilities             capabilities   `json:"capabilities"`
	Privileged               bool           `json:"privileged"`
	ReadOnlyRootFilesystem   bool           `json:"readOnlyRootFilesystem"`
	RunAsGroup               int            `json:"runAsGroup"`
	RunAsNonRoot             bool           `json:"runAsNonRoot"`
	RunAsUser                int            `json:"runAsUser"`
	SeccompProfile           seccompProfile `json:"seccompProfile"`
}

type capabilities struct {
	Drop []string `json:"drop"`
}

type seccompProfile struct {
	Type string `json:"type"`
}

// restricted meets the restricted Pod Security Standard by itself, whatever the
// pod's own security context says. Reading addresses needs no capability.
func restricted() securityContext {
	return securityContext{
		Capabilities:           capabilities{Drop: []string{"ALL"}},
		ReadOnlyRootFilesystem: true,
		RunAsGroup:             UID,
		RunAsNonRoot:           true,
		RunAsUser:              UID,
		SeccompProfile:         seccompProfile{Type: "RuntimeDefault"},
	}
}

// Container is the container that is injected in a mode into pods of a class,
// as JSON in the form of the Kubernetes API. It depends on nothing else: what
// differs between pods reaches the agent by the downward API.
func (c Config) Container(mode settings.Mode, class Class) ([]byte, error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	base, err := c.container(mode)
	if err != nil {
		return nil, err
	}
	base.Resources = resourcesFor(class, c.Resources[mode])
	return json.Marshal(base)
}

// container is all of the container but its resources.
func (c Config) container(mode settings.Mode) (container, error) {
	args, err := settings.Args(mode, c.Agent)
	if err != nil {
		return container{}, err
	}
	out := container{
		Name:                     settings.ContainerName,
		Image:                    c.Image,
		ImagePullPolicy:          c.ImagePullPolicy,
		Args:                     append([]string{string(mode)}, args...),
		TerminationMessagePath:   settings.DefaultTerminationLog,
		TerminationMessagePolicy: "File",
		SecurityContext:          restricted(),
	}
	for _, v := range settings.Env() {
		out.Env = append(out.Env, envVar{Name: v.Name, ValueFrom: &envVarSource{FieldRef: fieldRef{APIVersion: "v1", FieldPath: v.FieldPath}}})
	}
	for _, v := range c.Env {
		out.Env = append(out.Env, envVar{Name: v.Name, Value: v.Value})
	}
	return out, nil
}

// resourcesFor keeps what the pod was promised: see Class.
func resourcesFor(class Class, r Resources) *resources {
	switch class {
	case PodLevel:
		// Requests beyond the pod's own would be refused by the API server, and
		// the class comes from the pod level.
		return nil
	case Guaranteed:
		same := &amounts{CPU: r.GuaranteedCPU, Memory: r.Memory}
		return &resources{Requests: same, Limits: same}
	default:
		return &resources{
			Requests: &amounts{CPU: r.CPU, Memory: r.Memory},
			Limits:   &amounts{Memory: r.Memory},
		}
	}
}
