// Package aws is an emulator of the parts of Amazon EC2 that assign addresses to network interfaces: the EC2 Query
// API, the instance metadata service (IMDS), and what gives pods credentials of their own (STS, EKS Pod Identity), over their real wire protocols.
//
// A [Cloud] holds all state. [Cloud.EC2] is an http.Handler for the EC2 endpoint; [Cloud.ServeIMDS] serves the
// metadata service of one instance on any listener. They work on loopback, in network namespaces, and on net.Pipe in
// virtual time (testing/synctest): time is only read through the standard library and no goroutine runs in the
// background.
//
// How it is layered, from the inside out:
//
//   - decide*.go: pure functions from (state, wish, settings) to edits or a refusal. What EC2 would say is only here.
//   - state.go: the state, and the one function that applies edits to it, all or nothing.
//   - cloud.go, control.go: locking, history (for delayed views), the exported Go API.
//   - ec2.go, actions.go: one pipeline for every request (signature, faults, token bucket, policy, handler, answer)
//     and a table whose rows are the actions. A new action is a new row.
//   - imds*.go: the metadata service, a tree of keys rendered from a view of the state.
//   - roles.go, sts.go, podidentity.go: roles that pods take with their service account's token, at STS (IRSA) or from the node's EKS Pod
//     Identity agent. EC2 verifies their credentials as it does all others.
//
// What AWS does in a case that nobody outside has written down is a switch in [Quirks]; its zero value is the most
// likely behaviour.
package aws
