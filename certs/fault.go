package certs

import (
	"errors"
	"fmt"
	"slices"
)

// Reasons of faults that are ours. Those of cert-manager are its own, as its conditions tell them.
const (
	// ReasonReadCA says that the Secret with the CA cannot be read or holds none.
	ReasonReadCA = "ReadCA"
	// ReasonWriteCA says that a CA that is due cannot be written into its Secret.
	ReasonWriteCA = "WriteCA"
	// ReasonPublishCA says that the CA cannot be written into the webhook configuration.
	ReasonPublishCA = "PublishCA"
	// ReasonNotOurs says that the webhook configuration calls somebody else.
	ReasonNotOurs = "NotOurs"
	// ReasonClockSkew says that this machine's clock and the API server's differ.
	ReasonClockSkew = "ClockSkew"
	// ReasonReadFiles says that the files of the certificate cannot be read.
	ReasonReadFiles = "ReadFiles"
	// ReasonNotTrusted says that a new certificate is there and the webhook configuration does not trust it.
	ReasonNotTrusted = "NotTrusted"
	// ReasonReadCertificate says that cert-manager's Certificate may not be read.
	ReasonReadCertificate = "ReadCertificate"
	// ReasonNotFound says that the Certificate does not exist.
	ReasonNotFound = "CertificateNotFound"
	// ReasonIssuerNotFound says that the Certificate's issuer does not exist.
	ReasonIssuerNotFound = "IssuerNotFound"
	// ReasonOverdue says that a renewal is due and nobody does anything.
	ReasonOverdue = "Overdue"
	// ReasonUnknown is that of an error that has none.
	ReasonUnknown = "Unknown"
)

// A FaultError is something that keeps a [Source] from renewing or publishing.
type FaultError struct {
	// Reason is one word, of a small set: it may be a metric's label.
	Reason string
	// Err says the rest.
	Err error
}

// Error implements error.
func (e *FaultError) Error() string { return e.Err.Error() }

// Unwrap returns what is behind it.
func (e *FaultError) Unwrap() error { return e.Err }

// faultf returns a FaultError.
func faultf(reason, format string, args ...any) error {
	return &FaultError{Reason: reason, Err: fmt.Errorf(format, args...)}
}

// Reasons returns the reasons of everything that err holds, sorted, each once; nothing for nil.
func Reasons(err error) []string {
	reasons := reasonsOf(err)
	slices.Sort(reasons)
	return slices.Compact(reasons)
}

func reasonsOf(err error) []string {
	if err == nil {
		return nil
	}
	// All of a joined error is looked at, not the first that fits.
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []string
		for _, e := range joined.Unwrap() {
			all = append(all, reasonsOf(e)...)
		}
		return all
	}
	if fault := (*FaultError)(nil); errors.As(err, &fault) {
		return []string{fault.Reason}
	}
	return []string{ReasonUnknown}
}
