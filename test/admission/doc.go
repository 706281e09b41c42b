// Package admission tests what a real kube-apiserver makes of pods with the chart and the webhook installed: who is asked, who is
// changed, how, and who is refused. The webhook is the program as it is shipped, with the rights of its service account; how often it
// was asked is read from its log and from the API server's audit log.
package admission
