// Package check asks the webhook what the API server would ask it, from where the API server's way begins: the webhook
// configuration. It proves that each entry leads to a webhook that listens, serves a certificate which the entry's caBundle
// trusts, and injects. Where a namespace is given, it also lets the API server make a pod there, as a dry run.
package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Options say what is checked.
type Options struct {
	// Client reaches the API server. It needs get on the configuration, with a Namespace create on pods there, and, where Services'
	// names do not resolve, get on the Service.
	Client kubernetes.Interface
	// Configuration is the name of the MutatingWebhookConfiguration.
	Configuration string
	// Namespace is an opted-in namespace for a dry run through the API server; empty for none.
	Namespace string
	// Every is the pause between two attempts; two seconds if zero.
	Every time.Duration
	// Out gets a line for all that is found.
	Out io.Writer
}

// Run checks until all is well or ctx ends, because after an installation replicas and certificates take a moment. It then
// returns nil, or what the last attempt found.
func Run(ctx context.Context, o Options) error {
	if o.Every == 0 {
		o.Every = 2 * time.Second
	}
	told := ""
	for {
		found, err := o.attempt(ctx)
		if err == nil {
			for _, line := range found {
				_, _ = fmt.Fprintln(o.Out, "ok:", line)
			}
			return nil
		}
		// The end cuts attempts short: what that says is no finding.
		if ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			_, _ = fmt.Fprintf(o.Out, "not yet: %s\n", told)
		}
		select {
		case <-ctx.Done():
			if told == "" {
				return fmt.Errorf("no attempt came to an end: %w", err)
			}
			return errors.New(told)
		case <-time.After(o.Every):
		}
	}
}

// attempt returns a sentence for each thing that is well, or all that is not.
func (o Options) attempt(ctx context.Context) ([]string, error) {
	config, err := o.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, o.Configuration, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read the webhook configuration: %w", err)
	}
	if len(config.Webhooks) == 0 {
		return nil, fmt.Errorf("webhook configuration %q has no webhooks", o.Configuration)
	}
	var found []string
	var faults []error
	for _, entry := range config.Webhooks {
		line, err := o.askEntry(ctx, entry)
		if err != nil {
			faults = append(faults, fmt.Errorf("webhook %q of configuration %q: %w", entry.Name, o.Configuration, err))
			continue
		}
		found = append(found, entry.Name+": "+line)
	}
	if o.Namespace != "" && len(faults) == 0 {
		line, err := o.throughAPIServer(ctx, config.Webhooks)
		if err != nil {
			faults = append(faults, err)
		}
		found = append(found, line)
	}
	return found, errors.Join(faults...)
}
