// Package cases is the one table of what admission decides: for each row of the settings that users write, and for each
// reason of the enumeration, a pod with the mode label of its namespace and the decision that is expected of it. The pure
// function, the webhook's HTTP handler, the command line and a real API server are all tested with it.
//
// A case is a file testdata/MODE/NAME.yaml and its expectation NAME.golden.yaml beside it. MODE is what the namespace's
// mode label says: a mode, "none" for no such label, "other" for any other value. The comment at the top of the file says
// what the case shows. Comment lines of the form "# operation: UPDATE" and "# api-server: ..." are about the request: see
// Case.
package cases

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/inject"
)

//go:embed testdata
var testdata embed.FS

const (
	goldenSuffix = ".golden.yaml"
	// Namespace is the namespace of every case's pod.
	Namespace = "telco"
	// OtherMode is the value of the mode label of namespaces of the kind "other".
	OtherMode = "daemon"
)

// Case is one row of the table.
type Case struct {
	// Name is MODE/NAME, Doc what the case shows.
	Name, Doc string
	// NamespaceMode is the mode label of the pod's namespace.
	NamespaceMode inject.NamespaceMode
	// Operation and Resource are those of the admission request: CREATE and pods, but for the cases about others.
	Operation, Resource string
	// APIServer says why a real API server refuses the object for a reason of its own, "" where it does not.
	APIServer string
	// YAML is the object as a user writes it, Object the same as JSON.
	YAML, Object []byte
	// Want is the expected decision.
	Want Want
}

// Want is a decision as golden files have it.
type Want struct {
	Action   inject.Action     `json:"action"`
	Reason   inject.Reason     `json:"reason"`
	Mode     settings.Mode     `json:"mode,omitempty"`
	Message  string            `json:"message"`
	Warnings []string          `json:"warnings,omitempty"`
	Audit    map[string]string `json:"auditAnnotations"`
	Patch    json.RawMessage   `json:"patch,omitempty"`
}

// Config is the configuration under which the expectations hold.
func Config() inject.Config {
	c := inject.DefaultConfig()
	c.Image = "example.com/multus-ip-agent:v1.0.0"
	c.Version = "v1.0.0"
	c.Agent = map[string]string{"vpc-cni-subnets": "subnet-0a1b2c3d4e5f60718", "log-format": "json"}
	c.Env = []inject.EnvVar{{Name: "AWS_REGION", Value: "eu-central-1"}}
	return c
}

// All gives the cases in the order of their names. A case whose golden file is missing has an empty Want.
func All() ([]Case, error) {
	var out []Case
	err := fs.WalkDir(testdata, "testdata", func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.HasSuffix(file, goldenSuffix) {
			return err
		}
		c, err := load(file)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		out = append(out, c)
		return nil
	})
	return out, err
}

// Goldens lists the names of the cases that have a golden file.
func Goldens() ([]string, error) {
	files, err := fs.Glob(testdata, "testdata/*/*"+goldenSuffix)
	for i, file := range files {
		files[i] = strings.TrimSuffix(strings.TrimPrefix(file, "testdata/"), goldenSuffix)
	}
	return files, err
}

func load(file string) (Case, error) {
	data, err := fs.ReadFile(testdata, file)
	if err != nil {
		return Case{}, err
	}
	name := strings.TrimSuffix(strings.TrimPrefix(file, "testdata/"), ".yaml")
	c := Case{Name: name, NamespaceMode: inject.NamespaceMode(path.Dir(name)), Operation: "CREATE", YAML: data}
	c.readComments()
	if grow, ok := grown()[name]; ok {
		if c.YAML, err = enlarge(data, grow); err != nil {
			return Case{}, err
		}
	}
	if c.Object, err = yaml.YAMLToJSONStrict(c.YAML); err != nil {
		return Case{}, err
	}
	var head struct{ Kind string }
	if err := json.Unmarshal(c.Object, &head); err != nil {
		return Case{}, err
	}
	c.Resource = strings.ToLower(head.Kind) + "s"
	golden, err := fs.ReadFile(testdata, strings.TrimSuffix(file, ".yaml")+goldenSuffix)
	if err != nil {
		return c, nil //nolint:nilerr // no expectation yet: the test that writes it says so
	}
	return c, yaml.UnmarshalStrict(golden, &c.Want)
}

// readComments reads the comment at the top of the file.
func (c *Case) readComments() {
	var doc []string
	for line := range strings.Lines(string(c.YAML)) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "#")
		if !ok {
			break
		}
		switch key, value, _ := strings.Cut(strings.TrimSpace(text), ": "); key {
		case "operation":
			c.Operation = value
		case "api-server":
			c.APIServer = value
		default:
			doc = append(doc, strings.TrimSpace(text))
		}
	}
	c.Doc = strings.Join(doc, " ")
}

// Request is the question that the case asks.
func (c Case) Request() inject.Request {
	return inject.Request{Operation: c.Operation, Resource: c.Resource, Namespace: Namespace, NamespaceMode: c.NamespaceMode, Pod: c.Object}
}

// Golden is the file name, below the folder of this package, and the content of the golden file of a decision.
func (c Case) Golden(d inject.Decision) (file string, content []byte, err error) {
	content, err = yaml.Marshal(Want{d.Action, d.Reason, d.Mode, d.Message, d.Warnings, d.AuditAnnotations, d.Patch})
	return path.Join("testdata", c.Name+goldenSuffix), content, err
}

// NamespaceLabels are the labels of a namespace in which the case happens.
func (c Case) NamespaceLabels() map[string]string {
	labels := map[string]string{settings.LabelInject: settings.InjectEnabled}
	if value, set := c.ModeLabel(); set {
		labels[settings.KeyMode] = value
	}
	return labels
}

// ModeLabel is the value of the namespace's mode label, and whether there is one.
func (c Case) ModeLabel() (value string, set bool) {
	switch c.NamespaceMode {
	case inject.NamespaceNone:
		return "", false
	case inject.NamespaceOther:
		return OtherMode, true
	default:
		return string(c.NamespaceMode), true
	}
}

// Asked tells whether the API server asks the webhook at all, with the chart's rules and conditions.
func (c Case) Asked() (bool, error) {
	var object struct {
		Metadata struct {
			Labels, Annotations map[string]string
		}
	}
	if err := json.NewDecoder(bytes.NewReader(c.Object)).Decode(&object); err != nil {
		return false, err
	}
	labels, annotations := object.Metadata.Labels, object.Metadata.Annotations
	_, byAnnotation := annotations[settings.KeyMode]
	_, byLabel := labels[settings.KeyMode]
	return c.Operation == "CREATE" && c.Resource == "pods" && labels[settings.LabelInject] != settings.InjectDisabled &&
		(annotations[settings.Networks] != "" || byAnnotation || byLabel), nil
}
