// Package ns makes Linux network namespaces for tests and for the demo: links, addresses, routes, rules, echo requests and
// commands inside them. Everything is done through system calls and netlink, so no "ip", "ping" or "unshare" need be
// installed, and nothing has to be cleaned up: a namespace lives only as long as a file descriptor, a socket or a process
// holds it, so it is gone when the process ends, however it ends.
//
// A program that uses this package first calls [Main] (a test binary) or [Reexec] (any other). Both run the program again
// inside namespaces of its own, so that the machine's network is never touched and no root is needed where the kernel lets
// ordinary users make user namespaces.
package ns
