// Package quickack opens TCP connections that acknowledge at once what they read.
//
// A server that writes an answer's header and its body one after the other has the body held back by its kernel (Nagle's algorithm) until
// the header is acknowledged, and a kernel that carries requests and answers in turn delays that by 40 ms, because it hopes for data to
// send it with. On a connection that is kept, each request would cost that.
package quickack
