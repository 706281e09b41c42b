package chart

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/test/plane"
)

// valueSchema is the part of JSON Schema that the chart's schema is written in.
type valueSchema struct {
	Type                 any                    `json:"type"`
	Properties           map[string]valueSchema `json:"properties"`
	AdditionalProperties any                    `json:"additionalProperties"`
	Items                *valueSchema           `json:"items"`
	Required             []string               `json:"required"`
}

func chartFile(t *testing.T, name string) []byte {
	t.Helper()
	dir, err := plane.ChartDir()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func valuesSchema(t *testing.T) valueSchema {
	t.Helper()
	var s valueSchema
	if err := json.Unmarshal(chartFile(t, "values.schema.json"), &s); err != nil {
		t.Fatal(err)
	}
	delete(s.Properties, "global") // Helm's own
	return s
}

func defaults(t *testing.T) map[string]any {
	t.Helper()
	out := map[string]any{}
	if err := yaml.UnmarshalStrict(chartFile(t, "values.yaml"), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// each calls f with every value that the schema describes, from the outside in.
func (s valueSchema) each(path []string, f func(path []string, s valueSchema)) {
	for name, property := range s.Properties {
		inner := append(slices.Clone(path), name)
		f(inner, property)
		property.each(inner, f)
	}
}

// set puts a value at a path of nested maps.
func set(values map[string]any, path []string, value any) {
	for _, name := range path[:len(path)-1] {
		inner, ok := values[name].(map[string]any)
		if !ok {
			inner = map[string]any{}
			values[name] = inner
		}
		values = inner
	}
	values[path[len(path)-1]] = value
}

func get(values map[string]any, path []string) (any, bool) {
	var value any = values
	for _, name := range path {
		inner, ok := value.(map[string]any)
		if !ok {
			return nil, false
		}
		if value, ok = inner[name]; !ok {
			return nil, false
		}
	}
	return value, true
}

// What the schema knows has a default and a comment, and the other way round.
func TestEveryValueIsDocumented(t *testing.T) {
	chart := defaults(t)
	s := valuesSchema(t)
	isSection := func(s valueSchema) bool { return len(s.Properties) > 0 }
	s.each(nil, func(path []string, _ valueSchema) {
		_, found := get(chart, path)
		// What Kubernetes defines is empty by default.
		if !found && !slices.Contains([]string{"affinity", "resources"}, path[0]) {
			t.Errorf("%s is in the schema and not in values.yaml", strings.Join(path, "."))
		}
	})
	var walk func(values map[string]any, s valueSchema, path string)
	walk = func(values map[string]any, s valueSchema, path string) {
		for name, value := range values {
			property, found := s.Properties[name]
			if !found {
				t.Errorf("%s%s is in values.yaml and not in the schema", path, name)
			}
			if inner, ok := value.(map[string]any); ok && isSection(property) {
				walk(inner, property, path+name+".")
			}
		}
	}
	walk(chart, s, "")
	// A comment stands above each block of lines.
	for block := range strings.SplitSeq(string(chartFile(t, "values.yaml")), "\n\n") {
		first, _, _ := strings.Cut(strings.TrimSpace(block), "\n")
		if !strings.HasPrefix(first, "#") && !strings.HasSuffix(first, ":") {
			t.Errorf("no comment says what this is for:\n%s", block)
		}
	}
}

// A misspelt value must never be silently without effect.
func TestTheSchemaIsClosed(t *testing.T) {
	// Their insides are Kubernetes', which checks them itself.
	open := []string{"affinity.nodeAffinity", "affinity.podAffinity", "affinity.podAntiAffinity", "extraEnv[].valueFrom"}
	var check func(path string, s valueSchema)
	check = func(path string, s valueSchema) {
		if types := fmt.Sprint(s.Type); strings.Contains(types, "object") && s.AdditionalProperties == nil && !slices.Contains(open, path) {
			t.Errorf("%s takes anything", path)
		}
		for name, property := range s.Properties {
			check(strings.TrimPrefix(path+"."+name, "."), property)
		}
		if s.Items != nil {
			check(path+"[]", *s.Items)
		}
	}
	check("", valuesSchema(t))
}

// Each value of a wrong type is refused, and the message names the value. Helm tells all that is wrong at once.
func TestWrongTypes(t *testing.T) {
	helm, dir := offlineHelm(t)
	for name, wrong := range map[string]any{
		"string": "-?-", "number": 1.5, "boolean": true, "array": []any{[]any{}}, "object": map[string]any{"no such value": map[string]any{}},
	} {
		t.Run(name, func(t *testing.T) {
			values := map[string]any{}
			var paths [][]string
			valuesSchema(t).each(nil, func(path []string, s valueSchema) {
				types := fmt.Sprint(s.Type)
				if len(s.Properties) > 0 && name != "object" {
					return // a section; its values are told below
				}
				// Strings that are no names, such as priorityClassName, may hold anything.
				if types == name && (name != "object" || s.AdditionalProperties == nil) {
					return
				}
				if len(s.Properties) > 0 {
					path = append(slices.Clone(path), "no such value")
				}
				set(values, path, wrong)
				paths = append(paths, path)
			})
			out, err := helm.Template(t.Context(), plane.Release{Name: releaseName, Namespace: releaseNamespace, Chart: dir, Values: values})
			if err == nil {
				t.Fatalf("was rendered:\n%s", out)
			}
			for _, path := range paths {
				at := "'/" + strings.Join(path[:len(path)-1], "/") + "': additional properties 'no such value' not allowed"
				if path[len(path)-1] != "no such value" {
					at = "at '/" + strings.Join(path, "/")
				}
				if !strings.Contains(strings.ReplaceAll(err.Error(), "at ''", "at '/'"), at) {
					t.Errorf("%s: not named (%s)", strings.Join(path, "."), at)
				}
			}
			if t.Failed() {
				t.Log(err)
			}
		})
	}
	t.Run("section", func(t *testing.T) {
		values := map[string]any{}
		for name, s := range valuesSchema(t).Properties {
			if len(s.Properties) > 0 {
				values[name] = "text"
			}
		}
		_, err := helm.Template(t.Context(), plane.Release{Name: releaseName, Namespace: releaseNamespace, Chart: dir, Values: values})
		for name := range values {
			if err == nil || !strings.Contains(err.Error(), "at '/"+name+"': got string, want object") {
				t.Errorf("%s: not named in %v", name, err)
			}
		}
	})
}

// null takes a default away. Either the chart can do without the value, or the message names it.
func TestNullsAreUnderstood(t *testing.T) {
	helm, dir := offlineHelm(t)
	s := valuesSchema(t)
	optional := map[string]any{}
	required := map[string]any{}
	var missing []string
	var split func(path []string, s valueSchema)
	split = func(path []string, s valueSchema) {
		for name, property := range s.Properties {
			inner := append(slices.Clone(path), name)
			switch {
			case !slices.Contains(s.Required, name):
				if len(property.Properties) == 0 || len(property.Required) == 0 {
					set(optional, inner, nil)
				}
			case len(property.Properties) > 0 && len(property.Required) > 0:
				split(inner, property)
			default:
				set(required, inner, nil)
				missing = append(missing, strings.Join(inner, "/"))
			}
		}
	}
	split(nil, s)
	release := plane.Release{Name: releaseName, Namespace: releaseNamespace, Chart: dir}
	release.Values = optional
	if _, err := helm.Template(t.Context(), release); err != nil {
		t.Errorf("without all that the schema does not require: %v", err)
	}
	release.Values = required
	_, err := helm.Template(t.Context(), release)
	for _, path := range missing {
		name := path[strings.LastIndex(path, "/")+1:]
		if err == nil || !strings.Contains(err.Error(), "'"+name+"'") {
			t.Errorf("%s is null: not named in %v", path, err)
		}
	}
	if len(missing) < 10 {
		t.Errorf("only %q are required", missing)
	}
}
