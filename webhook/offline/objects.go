package offline

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	kjson "sigs.k8s.io/json"
)

// object is what there is to know of an object that is of interest: one that makes pods, or a namespace.
type object struct {
	head
	Metadata metadata `json:"metadata"`
	path     string   // in the document
	raw      []byte
}

type head struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

type metadata struct {
	Name         string            `json:"name"`
	GenerateName string            `json:"generateName"`
	Namespace    string            `json:"namespace"`
	Labels       map[string]string `json:"labels"`
}

// pod is a pod, or a template of pods, within a document.
type pod struct {
	path string
	json []byte
}

// owner is a kind of object that makes pods.
type owner struct {
	kind   string
	groups []string // "" is the core group
	path   []string // where its pod is
}

func owners() []owner {
	core, apps, batch := []string{""}, []string{"apps", "extensions"}, []string{"batch"}
	return []owner{
		{"Pod", core, nil},
		{"PodTemplate", core, []string{"template"}},
		{"ReplicationController", core, []string{"spec", "template"}},
		{"Deployment", apps, []string{"spec", "template"}},
		{"ReplicaSet", apps, []string{"spec", "template"}},
		{"StatefulSet", apps, []string{"spec", "template"}},
		{"DaemonSet", apps, []string{"spec", "template"}},
		{"Job", batch, []string{"spec", "template"}},
		{"CronJob", batch, []string{"spec", "jobTemplate", "spec", "template"}},
	}
}

// group is the API group of an apiVersion.
func group(apiVersion string) string {
	group, _, found := strings.Cut(apiVersion, "/")
	if !found {
		return ""
	}
	return group
}

func (h head) is(apiGroup, kind string) bool {
	return h.Kind == kind && group(h.APIVersion) == apiGroup
}

// owner gives the row of the kind in the table of what makes pods.
func (h head) owner() (owner, bool) {
	all := owners()
	i := slices.IndexFunc(all, func(o owner) bool { return o.kind == h.Kind && slices.Contains(o.groups, group(h.APIVersion)) })
	if i < 0 {
		return owner{}, false
	}
	return all[i], true
}

// objectsIn gives the object, or those of a list, that are of interest. The kind is used for what names none, because a
// list of one kind need not repeat it.
func objectsIn(raw []byte, path string, kind head) ([]object, error) {
	o := object{head: kind, path: path, raw: raw}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &o.head); err != nil {
		return nil, nil //nolint:nilerr // something else than an object of Kubernetes, and none of our business
	}
	if item, isList := strings.CutSuffix(o.Kind, "List"); isList && o.APIVersion != "" {
		return itemsOf(raw, path, head{o.APIVersion, item})
	}
	if _, ok := o.owner(); !ok && !o.is("", "Namespace") {
		return nil, nil
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &o); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Kind, err)
	}
	return []object{o}, nil
}

func itemsOf(raw []byte, path string, kind head) ([]object, error) {
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &list); err != nil {
		return nil, fmt.Errorf("%sList: %w", kind.Kind, err)
	}
	var all []object
	for i, item := range list.Items {
		objects, err := objectsIn(item, fmt.Sprintf("%s/items/%d", path, i), kind)
		if err != nil {
			return nil, fmt.Errorf("item %d: %w", i+1, err)
		}
		all = append(all, objects...)
	}
	return all, nil
}

// pods gives the pod that the object is or makes; an owner without a template has none.
func (o object) pods() []pod {
	owner, ok := o.owner()
	if !ok {
		return nil
	}
	p := pod{o.path, o.raw}
	for _, key := range owner.path {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(p.json, &fields); err != nil || fields[key] == nil || string(fields[key]) == "null" {
			return nil
		}
		p = pod{p.path + "/" + key, fields[key]}
	}
	return []pod{p}
}
