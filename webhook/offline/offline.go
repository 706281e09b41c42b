// Package offline does to manifests what the webhook would do to the pods made from them. It asks the same injector, and
// changes the text of a manifest no more than it must.
//
// Like package inject it is pure: bytes in, bytes out.
package offline

import (
	"encoding/json"
	"fmt"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/inject"
)

// NotAsked is the reason for pods that the API server does not even ask the webhook about. It is none of the webhook's
// own reasons, because the webhook never sees such a pod.
const NotAsked inject.Reason = "not-asked"

// Options are what a manifest does not say.
type Options struct {
	// Injector decides.
	Injector *inject.Injector
	// Namespace is the namespace of objects that name none.
	Namespace string
	// ModeLabel is the value of the mode label of namespaces that are not part of the input, "" for no such label. They
	// count as opted in. A Namespace in the input speaks for itself.
	ModeLabel string
}

// Input is one file.
type Input struct {
	// Name is for messages.
	Name string
	// Data is a stream of YAML documents or JSON values.
	Data []byte
}

// Result is what became of the input.
type Result struct {
	// Outputs are the files in the order of the input, with the containers in them. What is not changed is the same byte
	// for byte.
	Outputs [][]byte
	// Reports tell of every pod and every template of pods, in the order of the input.
	Reports []Report
}

// Report is what was decided about one object.
type Report struct {
	// Input is the name of the file, Object the object as Kind namespace/name.
	Input, Object string
	// Decision is the injector's; its patch is about the pod, not the object around it.
	Decision inject.Decision
	// Rewritten is set where the document had to be written anew, and comments or the order of its keys are lost.
	Rewritten bool
}

// Run decides about everything in the inputs.
func Run(o Options, inputs []Input) (Result, error) {
	r := runner{Options: o, namespaces: map[string]map[string]string{}}
	files := make([][]document, len(inputs))
	for i, input := range inputs {
		for _, part := range split(input.Data) {
			doc, err := parse(part)
			if err != nil {
				return Result{}, fmt.Errorf("%s: line %d: %w", input.Name, part.line, err)
			}
			for _, object := range doc.objects {
				if object.is("", "Namespace") {
					r.namespaces[object.Metadata.Name] = object.Metadata.Labels
				}
			}
			files[i] = append(files[i], doc)
		}
	}
	var out Result
	for i, docs := range files {
		var data []byte
		for _, doc := range docs {
			text, err := r.document(inputs[i].Name, doc)
			if err != nil {
				return Result{}, fmt.Errorf("%s: line %d: %w", inputs[i].Name, doc.line, err)
			}
			data = append(data, text...)
		}
		out.Outputs = append(out.Outputs, data)
	}
	out.Reports = r.reports
	return out, nil
}

// runner is the state of one Run.
type runner struct {
	Options
	namespaces map[string]map[string]string // labels of those in the input, by name
	reports    []Report
}

// document gives the text of a document with what is to be injected.
func (r *runner) document(input string, doc document) ([]byte, error) {
	first := len(r.reports)
	var edits []edit
	for _, object := range doc.objects {
		for _, pod := range object.pods() {
			d := r.decide(object, pod)
			r.reports = append(r.reports, Report{Input: input, Object: r.name(object), Decision: d})
			more, err := editsOf(d.Patch, pod.path)
			if err != nil {
				return nil, err
			}
			edits = append(edits, more...)
		}
	}
	if len(edits) == 0 {
		return doc.text, nil
	}
	text, rewritten, err := doc.edited(edits)
	for i := first; rewritten && i < len(r.reports); i++ {
		r.reports[i].Rewritten = r.reports[i].Decision.Patch != nil
	}
	return text, err
}

func (r *runner) namespaceOf(object object) string {
	if object.Metadata.Namespace != "" {
		return object.Metadata.Namespace
	}
	return r.Namespace
}

func (r *runner) name(object object) string {
	name := object.Metadata.Name
	if name == "" {
		name = object.Metadata.GenerateName + "*"
	}
	return fmt.Sprintf("%s %s/%s", object.Kind, r.namespaceOf(object), name)
}

// decide asks the injector, unless the API server would not ask the webhook.
func (r *runner) decide(object object, pod pod) inject.Decision {
	namespace := r.namespaceOf(object)
	label := r.ModeLabel
	if namespace == "kube-system" {
		return notAsked("nothing is injected in namespace kube-system")
	}
	if labels, known := r.namespaces[namespace]; known {
		if labels[settings.LabelInject] != settings.InjectEnabled {
			return notAsked(fmt.Sprintf("namespace %s, which is part of the input, is not labelled %s=%s", namespace, settings.LabelInject, settings.InjectEnabled))
		}
		label = labels[settings.KeyMode]
		if _, set := labels[settings.KeyMode]; set && label == "" {
			label = string(inject.NamespaceOther) // an empty value is a value, and none that is known
		}
	}
	return r.Injector.Decide(inject.Request{
		Operation: "CREATE", Resource: "pods", Namespace: namespace, NamespaceMode: inject.NamespaceModeOf(label), Pod: pod.json,
	})
}

func notAsked(why string) inject.Decision {
	return inject.Decision{Action: inject.ActionSkip, Reason: NotAsked, Message: "the API server does not ask the webhook: " + why}
}

// edit is one step of a patch, on the object around the pod. It adds a key to a mapping or an element to a list.
type edit struct {
	Op    string          `json:"op"`
	Path  string          `json:"path"`
	Value json.RawMessage `json:"value"`
}

// editsOf moves a patch of a pod to where the pod is in the object.
func editsOf(patch []byte, path string) ([]edit, error) {
	if patch == nil {
		return nil, nil
	}
	var edits []edit
	if err := json.Unmarshal(patch, &edits); err != nil {
		return nil, err
	}
	for i := range edits {
		edits[i].Path = path + edits[i].Path
	}
	return edits, nil
}

// patched applies the edits to the document as JSON; keys keep their order.
func (d document) patched(edits []edit) ([]byte, error) {
	data, err := json.Marshal(edits)
	if err != nil {
		return nil, err
	}
	patch, err := jsonpatch.DecodePatch(data)
	if err != nil {
		return nil, err
	}
	return patch.Apply(d.json)
}

// edited gives the text with the edits, and whether it had to be written anew.
func (d document) edited(edits []edit) (text []byte, rewritten bool, err error) {
	want, err := d.patched(edits)
	if err != nil {
		return nil, false, err
	}
	if d.isJSON {
		text, err := d.indented(want)
		return text, false, err
	}
	// Each way keeps less of the text than the one before; what is not exactly what the server would make is not used.
	if text, err := insert(d, edits); err == nil && means(text, want) {
		return text, false, nil
	}
	if text, err := editNodes(d, edits); err == nil && means(text, want) {
		text = d.written(text)
		return text, !keepsComments(d.text, text), nil
	}
	text, err = yaml.JSONToYAML(want)
	return d.written(text), true, err
}
