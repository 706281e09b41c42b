package cases_test

import (
	"strings"
	"testing"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/admission/cases"
	"multus-ip-manager.io/webhook/inject"
)

func all(t *testing.T) map[string]cases.Case {
	t.Helper()
	list, err := cases.All()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]cases.Case{}
	for _, c := range list {
		if c.Doc == "" || c.Want.Action == "" || c.Want.Reason == "" {
			t.Errorf("%s: no comment or no expectation", c.Name)
		}
		out[c.Name] = c
	}
	return out
}

// Every row of what users write is in the table: each setting of a pod with a good, a bad and an empty value, each mode by
// namespace, by label and by annotation, and each reason there is.
func TestTheTableIsComplete(t *testing.T) {
	table := all(t)
	for _, row := range settings.Table() {
		if row.Annotation == "" || row.Key == "mode" {
			continue
		}
		for suffix, want := range map[string]inject.Reason{"": inject.Injected, "-invalid": inject.InvalidSetting, "-empty": inject.Injected} {
			c := table["none/setting-"+row.Key+suffix]
			if c.Want.Reason != want || !strings.Contains(string(c.Object), row.Annotation) {
				t.Errorf("none/setting-%s%s: %s, want %s", row.Key, suffix, c.Want.Reason, want)
			}
		}
	}
	for _, mode := range settings.Modes() {
		seen := map[string]bool{}
		for _, c := range table {
			if c.Want.Mode != mode {
				continue
			}
			seen["namespace"] = seen["namespace"] || string(c.NamespaceMode) == string(mode)
			seen["label"] = seen["label"] || strings.Contains(string(c.Object), `"labels":{"`+settings.KeyMode+`":"`+string(mode)+`"`)
			seen["annotation"] = seen["annotation"] || strings.Contains(string(c.Object), `"`+settings.KeyMode+`":"`+string(mode)+`"}`)
		}
		if len(seen) != 3 || !seen["namespace"] || !seen["label"] || !seen["annotation"] {
			t.Errorf("mode %s: only by %v", mode, seen)
		}
	}
	reasons := map[inject.Reason]bool{}
	for _, c := range table {
		reasons[c.Want.Reason] = true
	}
	for _, r := range inject.Reasons() {
		if !reasons[r.Reason] {
			t.Errorf("no case for %s", r.Reason)
		}
	}
}

func TestAsked(t *testing.T) {
	table := all(t)
	for name, want := range map[string]bool{
		"none/minimal": true, "none/no-networks": false, "none/networks-empty": false, "none/networks-empty-list": true, "none/opted-out": false,
		"none/update": false, "none/service": false, "none/mode-without-networks": true, "none/mode-label-sidecar": true,
	} {
		if got, err := table[name].Asked(); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestGrown(t *testing.T) {
	table := all(t)
	for name, least := range map[string]int{"none/networks-too-long": 200_000, "none/ignore-too-long": 200_000, "none/unrelated-200k": 200_000, "none/size-limit": 1_200_000} {
		if got := len(table[name].Object); got < least || got > 1_500_000 {
			t.Errorf("%s: %d bytes", name, got)
		}
	}
}
