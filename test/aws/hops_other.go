//go:build !linux

package aws

import "syscall"

const defaultTTL = -1

// setTTL does nothing: hop limits are only real on Linux, where the network namespaces of the tests are.
func setTTL(syscall.Conn, int) error { return nil }
