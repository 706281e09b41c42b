// Package loopback gives a test's process a loopback address that no other process uses, so that a port found free there stays free
// until the program that is to listen on it does. On 127.0.0.1 another package's test may take it between.
package loopback
