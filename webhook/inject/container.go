package inject

import (
	"encoding/json"
	"maps"
	"math"

	"multus-ip-manager.io/agent/settings"
)

// agentPath is where the agent's image has its program: a probe cannot use the
// image's entry point.
const agentPath = "/agent"

// never is the largest number that the API accepts: a startup probe that gives
// up makes the kubelet restart the container, and a restart repairs no fault of
// AWS but forgets what is known.
const never = math.MaxInt32

// UID is the user and group of the injected container: a number, because
// runAsNonRoot cannot be verified for a name.
const UID = 65532

// container is the injected container as JSON. Fields are written in this
// order, so the same configuration always gives the same bytes.
type container struct {
	Name                     string          `json:"name"`
	Image                    string          `json:"image"`
	ImagePullPolicy          string          `json:"imagePullPolicy,omitempty"`
	RestartPolicy            string          `json:"restartPolicy,omitempty"`
	Args                     []string        `json:"args"`
	Env                      []envVar        `json:"env"`
	Resources                *resources      `json:"resources,omitempty"`
	StartupProbe             *probe          `json:"startupProbe,omitempty"`
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

type probe struct {
	Exec             exec `json:"exec"`
	PeriodSeconds    int  `json:"periodSeconds"`
	TimeoutSeconds   int  `json:"timeoutSeconds"`
	FailureThreshold int  `json:"failureThreshold"`
}

type exec struct {
	Command []string `json:"command"`
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

// ready holds the application back until the sidecar's addresses are on their
// ENIs. There is no liveness probe, and no preStop hook: it would run before
// the application is told to stop.
func ready() *probe {
	return &probe{
		Exec:             exec{Command: []string{agentPath, "ready"}},
		PeriodSeconds:    1,
		TimeoutSeconds:   5,
		FailureThreshold: never,
	}
}

// Container is the container that is injected in a mode into pods of a class,
// as JSON in the form of the Kubernetes API. It depends on nothing else, but for
// the CPU limit that it has in a Burstable pod in which every other container
// has one: what differs between pods reaches the agent by the downward API.
func (c Config) Container(mode settings.Mode, class Class) ([]byte, error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	base, err := c.container(mode)
	if err != nil {
		return nil, err
	}
	base.Resources = resourcesFor(class, false, c.Resources[mode])
	return json.Marshal(base)
}

// notIn gives the setting of the installation that is not meant for a mode: init
// ends before anybody could read its metrics, and what lives as long as the pod
// has no deadline but the one that its pod sets.
func notIn(mode settings.Mode) string {
	if mode == settings.Init {
		return "metrics-port"
	}
	return "deadline"
}

// container is all of the container but its resources.
func (c Config) container(mode settings.Mode) (container, error) {
	values := maps.Clone(c.Agent)
	delete(values, notIn(mode))
	args, err := settings.Args(mode, values)
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
	if mode == settings.Sidecar {
		// Kubernetes calls an init container that goes on a sidecar.
		out.RestartPolicy, out.StartupProbe = "Always", ready()
	}
	for _, v := range settings.Env() {
		out.Env = append(out.Env, envVar{Name: v.Name, ValueFrom: &envVarSource{FieldRef: fieldRef{APIVersion: "v1", FieldPath: v.FieldPath}}})
	}
	for _, v := range c.Env {
		out.Env = append(out.Env, envVar{Name: v.Name, Value: v.Value})
	}
	return out, nil
}

// resourcesFor keeps what the pod was promised: see Class. Where all others have
// a CPU limit (limitCPU), a quota on CPU limits is likely, which refuses a pod
// with a single container that has none; ours is then as in a Guaranteed pod.
func resourcesFor(class Class, limitCPU bool, r Resources) *resources {
	switch class {
	case PodLevel:
		// Requests beyond the pod's own would be refused by the API server, and
		// the class comes from the pod level.
		return nil
	case BestEffort:
		// Anything would make the pod Burstable. A namespace whose quota demands
		// requests refuses such a pod with or without us.
		return nil
	case Guaranteed:
		same := &amounts{CPU: r.GuaranteedCPU, Memory: r.Memory}
		return &resources{Requests: same, Limits: same}
	default:
		limits := &amounts{Memory: r.Memory}
		if limitCPU {
			limits.CPU = larger(r.CPU, r.GuaranteedCPU)
		}
		return &resources{Requests: &amounts{CPU: r.CPU, Memory: r.Memory}, Limits: limits}
	}
}

// larger gives the larger of two amounts of CPU.
func larger(a, b string) string {
	x, errX := settings.ParseCPU(a)
	y, errY := settings.ParseCPU(b)
	if errX != nil || errY != nil || x.Cmp(y) < 0 {
		return b
	}
	return a
}
