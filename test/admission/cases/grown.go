package cases

import (
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/agent/settings"
)

// grown are the cases whose files stand for something too large to keep: by name, what makes the object large.
func grown() map[string]func(object map[string]any) {
	return map[string]func(map[string]any){
		// Two hundred thousand bytes; all annotations together may have 256 KiB.
		"none/networks-too-long": annotate(settings.Networks, strings.Repeat("n3,", 66_666)+"n3"),
		"none/networks-long":     annotate(settings.Networks, strings.Repeat("n3,", 33_333)+"n3"),
		"none/ignore-too-long":   annotate(settings.KeyIgnore, strings.Repeat("10.0.0.0/8,", 18_181)+"10.0.0.0/8"),
		"none/unrelated-200k":    annotate("example.com/note", strings.Repeat("x", 200_000)),
		// etcd takes an object of one and a half million bytes.
		"none/size-limit": variables(10_000, 100),
	}
}

// enlarge gives the YAML of an object after it has grown.
func enlarge(data []byte, grow func(map[string]any)) ([]byte, error) {
	object := map[string]any{}
	if err := yaml.UnmarshalStrict(data, &object); err != nil {
		return nil, err
	}
	grow(object)
	return yaml.Marshal(object)
}

func annotate(key, value string) func(map[string]any) {
	return func(object map[string]any) {
		object["metadata"].(map[string]any)["annotations"].(map[string]any)[key] = value
	}
}

// variables gives the first container so many variables with values of so many bytes.
func variables(number, size int) func(map[string]any) {
	return func(object map[string]any) {
		var list []any
		for n := range number {
			list = append(list, map[string]any{"name": fmt.Sprintf("V%d", n), "value": strings.Repeat("v", size)})
		}
		containers := object["spec"].(map[string]any)["containers"].([]any)
		containers[0].(map[string]any)["env"] = list
	}
}
