//go:build !linux

package quickack

// supported tells whether this system has the option.
const supported = false

// acknowledge does nothing.
func acknowledge(uintptr) {}
