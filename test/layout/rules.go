// Package layout keeps the house in order: who may import whom, what the Makefile offers, what must not be written
// anywhere. The rules are functions over plain values, so that each is also tested on a house that breaks it.
package layout

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Module is the product's module.
const Module = "multus-ip-manager.io"

// A Package is one row of `go list -deps -json`.
type Package struct {
	ImportPath string
	Imports    []string
	Standard   bool
}

// A Graph holds packages by import path, with everything that they import.
type Graph map[string]Package

// A Rule returns one sentence for each place that breaks it.
type Rule func(Graph) []string

// ImportRules are the import rules of the repository by name. Test files are free: only what is compiled into a program
// counts.
func ImportRules() map[string]Rule {
	return map[string]Rule{
		"decisions do no I/O":                    pure,
		"pods carry no Kubernetes client":        noKubernetesInPods,
		"the product does not need its tests":    noTestPackages,
		"agent and webhook share their settings": onlySettingsShared,
		"packages lie where the layout says":     knownFolders,
	}
}

// own names a package of this module by its folder.
func own(folder string) string { return Module + "/" + folder }

// in tells whether a package lies in a folder of this module or below it.
func in(path, folder string) bool {
	return path == own(folder) || strings.HasPrefix(path, own(folder)+"/")
}

// below tells whether an import path is a module or package path or lies below it.
func below(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

// filter returns the import paths that satisfy a condition, sorted.
func (g Graph) filter(keep func(string) bool) []string {
	return slices.Sorted(func(yield func(string) bool) {
		for path := range maps.Keys(g) {
			if keep(path) && !yield(path) {
				return
			}
		}
	})
}

// closure returns the packages and all that they import, sorted.
func (g Graph) closure(roots ...string) []string {
	seen := map[string]bool{}
	for todo := slices.Clone(roots); len(todo) > 0; {
		path := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !seen[path] {
			seen[path] = true
			todo = append(todo, g[path].Imports...)
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// pure: plan and inject decide from values alone, so that every decision can be tested and replayed. The standard library
// reaches os through fmt; what counts there is what our own packages import.
func pure(g Graph) []string {
	var (
		standard = []string{"os", "net", "io/ioutil", "path/filepath", "syscall", "log", "database", "plugin", "testing"}
		others   = []string{
			"github.com/aws", "github.com/vishvananda", "golang.org/x/sys", "golang.org/x/net",
			"k8s.io/client-go", "sigs.k8s.io/controller-runtime", "github.com/cert-manager",
		}
		harmless = map[string]bool{
			"net/netip": true, "net/url": true, "log/slog": true, // values; nothing is opened or written by importing them
		}
		broken []string
	)
	for _, root := range []string{"agent/plan", "webhook/inject"} {
		for _, path := range g.closure(own(root)) {
			for _, other := range others {
				if below(path, other) {
					broken = append(broken, fmt.Sprintf("%s does I/O: it imports %s", root, path))
				}
			}
			if !below(path, Module) {
				continue
			}
			for _, imported := range g[path].Imports {
				parsesMAC := imported == "net" && path == own("agent/settings") // net.ParseMAC has no twin in net/netip
				if slices.ContainsFunc(standard, func(s string) bool { return below(imported, s) }) && !harmless[imported] && !parsesMAC {
					broken = append(broken, fmt.Sprintf("%s does I/O: %s imports %s", root, path, imported))
				}
			}
		}
	}
	return broken
}

// noKubernetesInPods: the pod agent talks to the kernel and to AWS. Any package of Kubernetes would multiply its size and
// start-up time. The node daemon is another program and may.
func noKubernetesInPods(g Graph) []string {
	var broken []string
	for _, path := range g.closure(g.filter(func(p string) bool { return in(p, "agent") && !in(p, "agent/node") })...) {
		if below(path, "k8s.io") || below(path, "sigs.k8s.io") || below(path, "github.com/cert-manager") {
			broken = append(broken, "the pod agent imports "+path)
		}
	}
	return broken
}

// noTestPackages: nothing outside test/ imports test/.
func noTestPackages(g Graph) []string {
	var broken []string
	for _, path := range g.filter(func(p string) bool { return below(p, Module) && !in(p, "test") }) {
		for _, imported := range g[path].Imports {
			if in(imported, "test") {
				broken = append(broken, fmt.Sprintf("%s imports %s", path, imported))
			}
		}
	}
	return broken
}

// onlySettingsShared: the two programs are deployed and rolled apart; the one thing on which they must agree is what can be
// set and what it means.
func onlySettingsShared(g Graph) []string {
	var (
		broken  []string
		webhook = g.closure(g.filter(func(p string) bool { return in(p, "webhook") })...)
		agent   = g.closure(g.filter(func(p string) bool { return in(p, "agent") })...)
	)
	for _, path := range webhook {
		if below(path, Module) && slices.Contains(agent, path) && path != own("agent/settings") {
			broken = append(broken, "agent and webhook both use "+path)
		}
	}
	return broken
}

// knownFolders: a new top folder is a decision, not an accident.
func knownFolders(g Graph) []string {
	var broken []string
	for _, path := range g.filter(func(p string) bool { return below(p, Module) }) {
		if !slices.ContainsFunc([]string{"agent", "webhook", "certs", "manifests", "test"}, func(f string) bool { return in(path, f) }) {
			broken = append(broken, path+" lies in no folder of the layout")
		}
	}
	return broken
}

// UndocumentedTargets returns the targets of a Makefile that its help does not list.
func UndocumentedTargets(makefile, help string) []string {
	listed := map[string]bool{}
	for line := range strings.Lines(help) {
		if fields := strings.Fields(line); len(fields) > 1 {
			listed[fields[0]] = true
		}
	}
	var missing []string
	for line := range strings.Lines(makefile) {
		name, _, found := strings.Cut(line, ":")
		isTarget := found && name != "" && !strings.ContainsAny(name, " \t.#$%=") && !strings.HasPrefix(line, name+":=")
		if isTarget && !listed[name] {
			missing = append(missing, name)
		}
	}
	return missing
}

// Unwanted returns the lines of a text that hold something which belongs to a machine or to unfinished work.
func Unwanted(file, text string) []string {
	// Written in halves, so that this file passes its own rule.
	words := []string{
		"/wo" + "rk/", "/ro" + "ot/", "TO" + "DO", "FIX" + "ME", "t.Skip" + "()", "b.Skip" + "()", "proxy.go" + "lang.org", "registry.npm" + "js",
	}
	if strings.HasSuffix(file, "_test.go") {
		words = append(words, "time.Sle"+"ep(")
	}
	var found []string
	number := 0
	for line := range strings.Lines(text) {
		number++
		for _, word := range words {
			if strings.Contains(line, word) {
				found = append(found, fmt.Sprintf("%s:%d: %q", file, number, word))
			}
		}
	}
	return found
}
