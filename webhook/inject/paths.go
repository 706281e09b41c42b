package inject

import "multus-ip-manager.io/agent/settings"

// NamespaceMode is the mode label of the pod's namespace. The webhook reads
// nothing from the API server: the API server picks one of several webhook
// entries by namespaceSelector, and the entry's URL path tells the mode.
type NamespaceMode string

// What a namespace's mode label can be.
const (
	// NamespaceNone means the namespace has no mode label.
	NamespaceNone NamespaceMode = "none"
	// NamespaceInit, NamespaceSidecar and NamespaceNode are the known modes.
	NamespaceInit    NamespaceMode = NamespaceMode(settings.Init)
	NamespaceSidecar NamespaceMode = NamespaceMode(settings.Sidecar)
	NamespaceNode    NamespaceMode = NamespaceMode(settings.Node)
	// NamespaceOther means the label has any other value. Pods that would be
	// injected are denied there.
	NamespaceOther NamespaceMode = "other"
)

// Path is one webhook entry: the URL path and the namespaces that use it.
type Path struct {
	// Path is the URL path of the entry.
	Path string
	// NamespaceMode is what a call on this path says about the namespace.
	NamespaceMode NamespaceMode
	// Label is the value of the namespace's label multus-ip-manager.io/mode that
	// selects the entry; "" where Doc says how else it is selected.
	Label string
	// Doc says which namespaces the entry selects.
	Doc string
}

// Paths lists every entry; their selectors are disjoint and complete.
func Paths() []Path {
	paths := []Path{{"/mutate", NamespaceNone, "", "namespaces without the label " + settings.KeyMode}}
	for _, mode := range settings.Modes() {
		m := string(mode)
		paths = append(paths, Path{"/mutate/" + m, NamespaceMode(m), m, "namespaces labelled " + settings.KeyMode + "=" + m})
	}
	return append(paths, Path{"/mutate/other", NamespaceOther, "", "namespaces with any other value of the label " + settings.KeyMode})
}

// NamespaceModeOf is what a value of the namespace's mode label means, "" being no such label.
func NamespaceModeOf(label string) NamespaceMode {
	if label == "" {
		return NamespaceNone
	}
	if mode, err := settings.ParseMode(label); err == nil {
		return NamespaceMode(mode)
	}
	return NamespaceOther
}
