package ns

import (
	"fmt"
	"os"
	"path"
	"strings"
)

// Sysctl is one kernel setting below /proc/sys: Key with slashes or dots ("net/ipv4/ip_forward"; use slashes where an
// interface name contains a dot), and its value.
type Sysctl struct{ Key, Value string }

// Set writes settings in the namespace, in order; the first that fails ends it.
func (n *Namespace) Set(settings ...Sysctl) error {
	return n.Do(func() error { return n.wrap("sysctl", writeSysctls(settings)) })
}

// Get reads one setting of the namespace.
func (n *Namespace) Get(key string) (string, error) {
	var value string
	err := n.Do(func() error {
		raw, err := os.ReadFile(sysctlPath(key))
		value = strings.TrimSpace(string(raw))
		return n.wrap("sysctl", err)
	})
	return value, err
}

// writeSysctls writes settings for the calling thread's namespace: /proc/sys/net shows that of whoever looks.
func writeSysctls(settings []Sysctl) error {
	for _, s := range settings {
		if err := os.WriteFile(sysctlPath(s.Key), []byte(s.Value), 0o644); err != nil { //nolint:gosec // exists, mode unused
			return fmt.Errorf("set %s to %s: %w", s.Key, s.Value, err)
		}
	}
	return nil
}

func sysctlPath(key string) string {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return path.Join("/proc/sys", key)
}
