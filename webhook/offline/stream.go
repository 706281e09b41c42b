package offline

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
	kyaml "sigs.k8s.io/yaml"
)

// part is a piece of a file. The parts of a file, one after the other, are the file.
type part struct {
	text   []byte
	line   int // of its first byte, from 1
	isJSON bool
}

// document is a part that has been read.
type document struct {
	part
	json    []byte // nil if there is nothing in it
	objects []object
}

// split divides a stream before each line that begins a document, and JSON values from each other.
func split(data []byte) []part {
	if trimmed := bytes.TrimSpace(data); len(trimmed) > 0 && trimmed[0] == '{' {
		if parts, ok := splitJSON(data); ok {
			return parts
		}
	}
	var parts []part
	begin, line, number := 0, 0, 1
	for at := 0; at < len(data); line++ {
		next := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			next = at + i + 1
		}
		// At the first column this is a new document, whatever it stands in.
		if text := data[at:next]; at > begin && bytes.HasPrefix(text, []byte("---")) && (len(text) == 3 || strings.ContainsRune(" \t\r\n", rune(text[3]))) {
			parts = append(parts, part{text: data[begin:at], line: number})
			begin, number = at, line+1
		}
		at = next
	}
	return append(parts, part{text: data[begin:], line: number})
}

// splitJSON divides a stream of JSON values; white space belongs to the value before it.
func splitJSON(data []byte) ([]part, bool) {
	d := json.NewDecoder(bytes.NewReader(data))
	var ends []int64
	for {
		var value json.RawMessage
		err := d.Decode(&value)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, false // perhaps YAML in flow style
		}
		ends = append(ends, d.InputOffset())
	}
	var parts []part
	begin := 0
	for i, end := range ends {
		stop := int(end)
		for stop < len(data) && (i == len(ends)-1 || strings.ContainsRune(" \t\r\n", rune(data[stop]))) {
			stop++
		}
		parts = append(parts, part{text: data[begin:stop], line: 1 + bytes.Count(data[:begin], []byte("\n")), isJSON: true})
		begin = stop
	}
	return parts, true
}

// parse reads a part. What is no object is a document without objects.
func parse(p part) (document, error) {
	doc := document{part: p}
	if empty(p.text) {
		return doc, nil
	}
	raw := bytes.TrimSpace(p.text)
	if !p.isJSON {
		var err error
		if raw, err = toJSON(p.text); err != nil {
			if bytes.Contains(p.text, []byte("{{")) {
				return doc, fmt.Errorf("not YAML: %w (is this a template? Render it first)", err)
			}
			return doc, fmt.Errorf("not YAML: %w", err)
		}
	}
	doc.json = raw
	if len(raw) == 0 || raw[0] != '{' {
		return doc, nil
	}
	var err error
	doc.objects, err = objectsIn(raw, "", head{})
	return doc, err
}

// toJSON reads YAML as kubectl does, but for a key that is written twice.
func toJSON(text []byte) ([]byte, error) {
	value, err := kyaml.YAMLToJSONStrict(text)
	if err != nil && onlyMerged(text) {
		return kyaml.YAMLToJSON(text)
	}
	return value, err
}

const mergeTag = "!!merge"

// onlyMerged tells whether keys are there twice only because "<<" has them, too, which is how what it brings is overridden.
func onlyMerged(text []byte) bool {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return false
	}
	merges, twice := false, false
	visit(&doc, func(n *yaml.Node) {
		if n.Kind != yaml.MappingNode {
			return
		}
		seen := map[string]bool{}
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			merges = merges || key.Tag == mergeTag
			twice = twice || seen[key.Value]
			seen[key.Value] = true
		}
	})
	return merges && !twice
}

// empty tells whether there is nothing but comments, directives and marks.
func empty(text []byte) bool {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' && string(line) != "---" && string(line) != "..." {
			return false
		}
	}
	return true
}

// indented gives a JSON value the indentation and the end of the original.
func (d document) indented(value []byte) ([]byte, error) {
	value = bytes.TrimSpace(value)
	body := bytes.TrimRight(d.text, " \t\r\n")
	out := new(bytes.Buffer)
	if _, second, several := bytes.Cut(bytes.TrimLeft(body, " \t\r\n"), []byte("\n")); several {
		indent := second[:len(second)-len(bytes.TrimLeft(second, " \t"))]
		if err := json.Indent(out, value, "", string(indent)); err != nil {
			return nil, err
		}
	} else {
		out.Write(value)
	}
	text := bytes.ReplaceAll(out.Bytes(), []byte("\n"), ending(d.text))
	return append(text, d.text[len(body):]...), nil
}

// means tells whether the text is YAML for the value.
func means(text, value []byte) bool {
	got, err := toJSON(text)
	if err != nil {
		return false
	}
	var a, b any
	return json.Unmarshal(got, &a) == nil && json.Unmarshal(value, &b) == nil && reflect.DeepEqual(a, b)
}
