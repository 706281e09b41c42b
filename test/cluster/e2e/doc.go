// Package e2e tests the product on real nodes: the images as they are shipped, installed by the chart, with kubelets, containerd and
// Multus, and packets that arrive or do not.
//
// `make e2e` runs it: in a cluster of its own (package cluster), where what AWS does is emulated and can be made to fail, or in the
// cluster that KUBECONFIG names, where the tests that need the emulated AWS are skipped. These variables then say what to use:
//
//	E2E_VALUES   the chart's values file, with which it is installed, or upgraded, and left; without one it must be installed already
//	E2E_NETWORK  NAMESPACE/NAME of a NetworkAttachmentDefinition (default default/n3) that has ten addresses free
//	E2E_APP      the image of the test's application in a registry the nodes can pull from; `go run ./test/cluster/cmd/cluster image FILE`
//	             writes an archive of it for `docker load`
//
// E2E_ROUNDS is how many pods of each kind the figures are measured with (default 3).
package e2e
