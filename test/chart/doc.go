// Package chart holds the tests of the product's Helm chart. They use the real Helm, and for all that only a cluster can
// tell (does the CEL compile, which pods does the API server ask about, what may the service account do) a real API
// server. `go test ./test/chart -update` rewrites the golden renders.
package chart
