// Package chart holds the tests of the product's Helm chart. They use the real Helm, and for all that only a cluster can
// tell (does the CEL compile, which pods does the API server ask about, what may the service account do) a real API
// server. `go test ./test/chart -update` rewrites the golden renders and manifests/install.yaml, the render for people
// without Helm. testdata/previous.tgz is the chart before this one, from which upgrades start.
package chart
