// Package dashboards tests what lies in manifests/dashboards: alerts and dashboards are taken apart by Prometheus's own
// libraries (test/tools/promcheck), everything that they refer to must be in what a real webhook, a real agent and a real API
// server expose, and each alert fires on series of its fault and on no healthy ones. `go test ./test/dashboards -update`
// writes the copies of the files that the chart and the Prometheus operator need.
package dashboards
