// Package certmanager runs cert-manager's real controllers against a test's API server: those that issue certificates from
// self-signed and CA issuers and the one that injects CAs. They are the tool "cert-manager" of test/tools, because their hundreds
// of dependencies are not the product's.
//
// Its tests prove the chart's certificate source "cert-manager" with them.
package certmanager
