package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"multus-ip-manager.io/webhook/check"
)

// checkCommand is what `helm test` runs in a pod; people can run it with a kubeconfig from where the Service is reached.
func checkCommand() *cobra.Command {
	o := &options{}
	var namespace string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Ask the webhook what the API server would ask it, and say whether all is well",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := o.restConfig()
			if err != nil {
				return err
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return fmt.Errorf("connect to the API server: %w", err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return check.Run(ctx, check.Options{
				Client: client, Configuration: o.configuration, Namespace: namespace, Out: cmd.OutOrStdout(),
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.configuration, "webhook-configuration", "multus-ip-manager", "MutatingWebhookConfiguration whose entries are asked")
	f.StringVar(&namespace, "namespace", "", "opted-in namespace in which the API server makes a pod, as a dry run; needs the right to create pods there")
	f.DurationVar(&timeout, "timeout", time.Minute, "how long to wait for all to be well")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file, to run outside the cluster")
	return cmd
}
