package offline

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	kyaml "sigs.k8s.io/yaml"
)

// errShape means that the text is not in the form that a way of editing can handle.
var errShape = errors.New("not in a form that can be added to")

// insert adds to the text and leaves everything else as it is: lines in block style, words in flow style.
func insert(d document, edits []edit) ([]byte, error) {
	doc, err := nodes(d.text)
	if err != nil {
		return nil, err
	}
	lines := bytes.SplitAfter(d.text, []byte("\n"))
	added := map[int][]byte{} // at these offsets
	for _, e := range edits {
		at, text, err := insertion(lines, doc.Content[0], e)
		if err != nil {
			return nil, err
		}
		added[at] = append(added[at], text...)
	}
	var out []byte
	done := 0
	for _, at := range slices.Sorted(maps.Keys(added)) {
		out = append(append(out, d.text[done:at]...), bytes.ReplaceAll(added[at], []byte("\n"), ending(d.text))...)
		done = at
	}
	return append(out, d.text[done:]...), nil
}

// insertion gives what to add for one edit, and at which offset.
func insertion(lines [][]byte, root *yaml.Node, e edit) (at int, text []byte, err error) {
	parent, key, token, err := find(root, e.Path)
	if err != nil {
		return 0, nil, err
	}
	value, err := blockNode(e.Value)
	if err != nil {
		return 0, nil, err
	}
	added := entry(parent, token, value)
	switch {
	case parent.Kind == yaml.MappingNode && child(parent, token) != nil:
		return 0, nil, errShape // to be replaced
	case parent.Style&yaml.FlowStyle != 0:
		return flowInsertion(lines, parent, added)
	case key == nil || len(parent.Content) == 0 || parent.Line <= key.Line:
		return 0, nil, errShape
	}
	text, err = encode(added, parent.Column-1)
	return offset(lines, key.Line+1), text, err
}

// flowInsertion adds behind the opening bracket of a mapping or list.
func flowInsertion(lines [][]byte, parent, added *yaml.Node) (at int, text []byte, err error) {
	begin := offset(lines, parent.Line)
	line := []rune(string(lines[min(parent.Line, len(lines))-1]))
	if parent.Column > len(line) || line[parent.Column-1] != '{' && line[parent.Column-1] != '[' {
		return 0, nil, errShape // an anchor or a tag, or lines that end as only YAML knows it
	}
	added.Style = yaml.FlowStyle
	if text, err = encode(added, 0); err != nil {
		return 0, nil, err
	}
	text = bytes.TrimSpace(text)
	text = text[1 : len(text)-1] // without brackets of its own
	if len(parent.Content) > 0 {
		text = append(text, ", "...)
	}
	return begin + len(string(line[:parent.Column])), text, nil
}

// offset is where a line begins, counted from 1.
func offset(lines [][]byte, line int) int {
	at := 0
	for _, l := range lines[:min(line-1, len(lines))] {
		at += len(l)
	}
	return at
}

// ending is how lines of the text end.
func ending(text []byte) []byte {
	if first, _, ok := bytes.Cut(text, []byte("\n")); ok && bytes.HasSuffix(first, []byte("\r")) {
		return []byte("\r\n")
	}
	return []byte("\n")
}

// editNodes adds to the parsed text and writes it anew: most comments and the order of keys stay, spacing may not.
func editNodes(d document, edits []edit) ([]byte, error) {
	doc, err := nodes(bytes.ReplaceAll(d.text, []byte("\r\n"), []byte("\n")))
	if err != nil {
		return nil, err
	}
	for _, e := range edits {
		parent, _, token, err := find(doc.Content[0], e.Path)
		if err != nil {
			return nil, err
		}
		value, err := blockNode(e.Value)
		if err != nil {
			return nil, err
		}
		if old := child(parent, token); old != nil && parent.Kind == yaml.MappingNode {
			value.HeadComment, value.LineComment, value.FootComment = old.HeadComment, old.LineComment, old.FootComment
			*old = *value // replaces null or an empty list
			continue
		}
		parent.Content = slices.Insert(parent.Content, 0, entry(parent, token, value).Content...)
	}
	return encode(doc, 0)
}

// written gives a document that was written anew what is not part of YAML's values: the mark before it, and how its lines end.
func (d document) written(text []byte) []byte {
	if bytes.HasPrefix(d.text, []byte("---")) {
		text = append([]byte("---\n"), text...)
	}
	return bytes.ReplaceAll(text, []byte("\n"), ending(d.text))
}

// comments counts the comments of a text. What only looks like one counts too.
func comments(text []byte) map[string]int {
	counts := map[string]int{}
	for line := range bytes.Lines(text) {
		for i := range line {
			if line[i] == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
				counts[string(bytes.TrimSpace(line[i:]))]++
				break
			}
		}
	}
	return counts
}

// keepsComments tells whether all comments are still there.
func keepsComments(before, after []byte) bool {
	left := comments(after)
	for comment, n := range comments(before) {
		if left[comment] < n {
			return false
		}
	}
	return true
}

// nodes parses the text and gives the document, which has one value.
func nodes(text []byte) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, errShape
	}
	visit(&doc, func(n *yaml.Node) {
		if n.Tag == mergeTag {
			n.Tag = "" // or it would be written
		}
	})
	return &doc, nil
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
	doc, err := nodes(value)
	if err != nil {
		return nil, err
	}
	visit(doc, func(n *yaml.Node) {
		n.Style = 0
		if n.Kind == yaml.ScalarNode && n.Tag == "!!str" && !plain(n.Value) {
			n.Style = yaml.SingleQuotedStyle
		}
	})
	return doc.Content[0], nil
}

// visit calls f for a node and all below it.
func visit(n *yaml.Node, f func(*yaml.Node)) {
	f(n)
	for _, c := range n.Content {
		visit(c, f)
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
