package inject

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	kjson "sigs.k8s.io/json"

	"multus-ip-manager.io/agent/settings"
)

// podView is the part of a pod that a decision needs. Everything else is
// skipped by the decoder and never written back.
type podView struct {
	Metadata struct {
		Name            string            `json:"name"`
		GenerateName    string            `json:"generateName"`
		Namespace       string            `json:"namespace"`
		Labels          map[string]string `json:"labels"`
		Annotations     map[string]string `json:"annotations"`
		OwnerReferences []struct {
			Kind       string `json:"kind"`
			Name       string `json:"name"`
			Controller bool   `json:"controller"`
		} `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		HostNetwork bool `json:"hostNetwork"`
		OS          struct {
			Name string `json:"name"`
		} `json:"os"`
		SecurityContext struct {
			WindowsOptions map[string]json.RawMessage `json:"windowsOptions"`
		} `json:"securityContext"`
		NodeSelector map[string]string `json:"nodeSelector"`
		Affinity     struct {
			Node struct {
				Required struct {
					Terms []nodeTerm `json:"nodeSelectorTerms"`
				} `json:"requiredDuringSchedulingIgnoredDuringExecution"`
			} `json:"nodeAffinity"`
		} `json:"affinity"`
		Resources      resourceView    `json:"resources"`
		InitContainers []containerView `json:"initContainers"`
		Containers     []containerView `json:"containers"`
	} `json:"spec"`
}

// nodeTerm is one of the alternatives of which a node must meet one.
type nodeTerm struct {
	Expressions []nodeExpression `json:"matchExpressions"`
}

type nodeExpression struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"`
	Values   []string `json:"values"`
}

type containerView struct {
	Name      string       `json:"name"`
	Resources resourceView `json:"resources"`
}

type resourceView struct {
	Requests map[string]quantity `json:"requests"`
	Limits   map[string]quantity `json:"limits"`
}

// quantity is a Kubernetes quantity as text. In JSON it may also be a number.
type quantity string

// UnmarshalJSON accepts a string or a number.
func (q *quantity) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		*q = quantity(s)
		return nil
	}
	var n json.Number
	if err := json.Unmarshal(b, &n); err != nil {
		return err
	}
	*q = quantity(n)
	return nil
}

// decodePod reads keys exactly as they are spelt: to encoding/json "Spec" and
// "spec" are the same, to the API server and to a JSON patch they are not. For
// the same reason a key that is there twice is an error. Where the pod's name
// could be read, it comes with the error.
func decodePod(raw []byte) (*podView, error) {
	// JSON null decodes into anything, but it is no pod.
	if trimmed := strings.TrimSpace(string(raw[:min(len(raw), 16)])); !strings.HasPrefix(trimmed, "{") {
		return nil, fmt.Errorf("a pod is a JSON object, not %s", kindOf(trimmed))
	}
	p := new(podView)
	twice, err := kjson.UnmarshalStrict(raw, p, kjson.DisallowDuplicateFields)
	if err != nil {
		var wrongType *json.UnmarshalTypeError
		if errors.As(err, &wrongType) {
			return nil, fmt.Errorf("unexpected %s in %s", wrongType.Value, wrongType.Field)
		}
		return nil, err
	}
	if len(twice) > 0 {
		return p, twice[0]
	}
	if len(p.Spec.Containers) == 0 {
		return p, errors.New("a pod has at least one container")
	}
	return p, nil
}

// kindOf names a JSON value that is no object by how it begins. The value itself is not for the log.
func kindOf(begin string) string {
	switch {
	case begin == "":
		return "nothing"
	case begin == "null":
		return begin
	case begin[0] == '[':
		return "a list"
	}
	return "a plain value"
}

// hasContainer tells whether any container of the pod has the name.
func (p *podView) hasContainer(name string) bool {
	for _, list := range [][]containerView{p.Spec.InitContainers, p.Spec.Containers} {
		for _, c := range list {
			if c.Name == name {
				return true
			}
		}
	}
	return false
}

// injected gives the mode in which this webhook, of this or another version,
// has injected the pod before, "" if it has not: a container is ours if it is an
// init container of our name and the annotation that goes with it says so.
func (p *podView) injected() settings.Mode {
	var s Status
	if err := json.Unmarshal([]byte(p.Metadata.Annotations[settings.KeyStatus]), &s); err != nil {
		return ""
	}
	mode, err := settings.ParseMode(string(s.Mode))
	if err != nil || p.own() < 0 {
		return ""
	}
	return mode
}

// own gives the index of the init container of our name, -1 if there is none.
func (p *podView) own() int {
	return slices.IndexFunc(p.Spec.InitContainers, func(c containerView) bool { return c.Name == settings.ContainerName })
}

const windows = "windows"

// osLabels are the labels that tell a node's operating system.
func osLabels() []string { return []string{"kubernetes.io/os", "beta.kubernetes.io/os"} }

// isWindows tells whether the pod can only run on a Windows node.
func (p *podView) isWindows() bool {
	os := p.Spec.OS.Name
	for _, label := range osLabels() {
		os = cmp.Or(os, p.Spec.NodeSelector[label])
	}
	if os != "" {
		return os == windows
	}
	terms := p.Spec.Affinity.Node.Required.Terms
	if len(terms) > 0 && !slices.ContainsFunc(terms, func(t nodeTerm) bool { return !t.isWindows() }) {
		return true
	}
	return len(p.Spec.SecurityContext.WindowsOptions) > 0
}

// isWindows tells whether only Windows nodes meet the term.
func (t nodeTerm) isWindows() bool {
	return slices.ContainsFunc(t.Expressions, func(e nodeExpression) bool {
		return slices.Contains(osLabels(), e.Key) && e.Operator == "In" && slices.Equal(e.Values, []string{windows})
	})
}

// Subject names the pod for logs. At admission a pod made by a controller has
// no name yet, only a prefix and an owner.
type Subject struct {
	// Namespace is the request's, or else the pod's own.
	Namespace string
	// Name is the pod's name, or its generateName with a "*" behind it.
	Name string
	// Owner is the controlling owner as Kind/name, "" if there is none.
	Owner string
}

func (p *podView) subject(namespace string) Subject {
	s := Subject{Namespace: namespace, Name: p.Metadata.Name}
	if s.Namespace == "" {
		s.Namespace = p.Metadata.Namespace
	}
	if s.Name == "" && p.Metadata.GenerateName != "" {
		s.Name = p.Metadata.GenerateName + "*"
	}
	for _, o := range p.Metadata.OwnerReferences {
		if o.Controller {
			s.Owner = o.Kind + "/" + o.Name
		}
	}
	return s
}
