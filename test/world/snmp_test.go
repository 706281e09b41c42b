package world

import (
	"slices"
	"strings"
)

// snmp finds a counter in the text of /proc/net/snmp: a line of names, then a line of values.
func snmp(text, counter string) string {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if at := slices.Index(names, counter); at >= 0 && at < len(fields) {
			return fields[at]
		}
		names = fields
	}
	return ""
}
