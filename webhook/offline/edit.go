package offline

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	kyaml "sigs.k8s.io/yaml"
)

// errShape means that the text is not in the form that a way of editing can handle.
var errShape = errors.New("not in block style")

// insertLines adds lines to the text and leaves all others as they are. It handles block style, which is how people
// write manifests.
func insertLines(d document, edits []edit) ([]byte, error) {
	root, err := nodes(d.text)
	if err != nil {
		return nil, err
	}
	lines := bytes.SplitAfter(d.text, []byte("\n"))
	added := map[int][]byte{} // after this many lines
	for _, e := range edits {
		parent, key, token, err := find(root, e.Path)
		if err != nil {
			return nil, err
		}
		value, err := blockNode(e.Value)
		if err != nil {
			return nil, err
		}
		if key == nil || parent.Style&yaml.FlowStyle != 0 || len(parent.Content) == 0 || parent.Line <= key.Line {
			return nil, errShape
		}
		text, err := encode(entry(parent, token, value), parent.Column-1)
		if err != nil {
			return nil, err
		}
		added[key.Line] = append(added[key.Line], text...)
	}
	ending := "\n"
	if bytes.HasSuffix(lines[0], []byte("\r\n")) {
		ending = "\r\n"
	}
	var out []byte
	for i, line := range lines {
		out = append(out, line...)
		out = append(out, bytes.ReplaceAll(added[i+1], []byte("\n"), []byte(ending))...)
	}
	return out, nil
}

// editNodes adds to the parsed text and writes it anew: comments and the order of keys stay, spacing may not.
func editNodes(d document, edits []edit) ([]byte, error) {
	root, err := nodes(d.text)
	if err != nil {
		return nil, err
	}
	for _, e := range edits {
		parent, _, token, err := find(root, e.Path)
		if err != nil {
			return nil, err
		}
		value, err := blockNode(e.Value)
		if err != nil {
			return nil, err
		}
		if old := child(parent, token); old != nil && parent.Kind == yaml.MappingNode {
			*old = *value // replaces null or an empty list
			continue
		}
		parent.Content = slices.Insert(parent.Content, 0, entry(parent, token, value).Content...)
	}
	out, err := encode(root, 0)
	if err == nil && bytes.HasPrefix(d.text, []byte("---")) {
		out = append([]byte("---\n"), out...)
	}
	return out, err
}

// nodes parses the text and gives the value of the document.
func nodes(text []byte) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, errShape
	}
	return doc.Content[0], nil
}

// find gives the mapping or list into which a JSON pointer leads, the key by which that is reached (nil for the document
// and for elements of lists), and the pointer's last token.
func find(root *yaml.Node, path string) (parent, key *yaml.Node, token string, err error) {
	tokens := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i := range tokens {
		tokens[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(tokens[i])
	}
	parent = root
	last := len(tokens) - 1
	for _, t := range tokens[:last] {
		next := child(parent, t)
		if next == nil {
			return nil, nil, "", fmt.Errorf("%w: %s", errShape, path)
		}
		key = nil
		if parent.Kind == yaml.MappingNode {
			key = parent.Content[slices.Index(parent.Content, next)-1]
		}
		parent = next
	}
	return parent, key, tokens[last], nil
}

// child gives the value of a key or the element of an index, nil if it is not there.
func child(n *yaml.Node, token string) *yaml.Node {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == token {
				return n.Content[i+1]
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(token); err == nil && i < len(n.Content) {
			return n.Content[i]
		}
	case yaml.DocumentNode, yaml.ScalarNode, yaml.AliasNode:
	}
	return nil
}

// entry is a mapping or list, as the parent is, with just the new value.
func entry(parent *yaml.Node, token string, value *yaml.Node) *yaml.Node {
	if parent.Kind == yaml.SequenceNode {
		return &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{value}}
	}
	return &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!str", Value: token}, value}}
}

// blockNode turns JSON into what a person would write; keys keep their order.
func blockNode(value []byte) (*yaml.Node, error) {
	n, err := nodes(value)
	if err != nil {
		return nil, err
	}
	unstyle(n)
	return n, nil
}

func unstyle(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" && !plain(n.Value) {
		n.Style = yaml.SingleQuotedStyle
	}
	for _, c := range n.Content {
		unstyle(c)
	}
}

// plain tells whether a text needs no quotes, for readers of YAML 1.1 too, to whom "yes" is a boolean.
func plain(text string) bool {
	var v any
	err := kyaml.Unmarshal([]byte(text), &v)
	return err == nil && v == text
}

// encode writes a node with every line indented.
func encode(n *yaml.Node, indent int) ([]byte, error) {
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	e.CompactSeqIndent()
	if err := errors.Join(e.Encode(n), e.Close()); err != nil {
		return nil, err
	}
	if indent <= 0 {
		return out.Bytes(), nil
	}
	var text []byte
	for line := range bytes.Lines(out.Bytes()) {
		text = append(text, bytes.Repeat([]byte(" "), indent)...)
		text = append(text, line...)
	}
	return text, nil
}
