// Package report tells the outcome of an agent: its exit code and the line that `kubectl describe pod` shows.
package report

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// Code is an exit code of the agent. The numbers are a contract with users: alerts and runbooks name them.
type Code int

// The exit codes.
const (
	// Done: every wanted address is on its ENI, or none is wanted.
	Done Code = 0
	// GaveUp: a fault that can pass had not passed at the deadline, or the agent was told to stop.
	GaveUp Code = 1
	// Usage: a setting is invalid.
	Usage Code = 2
	// Permission: the AWS credentials are missing or do not permit a call.
	Permission Code = 3
	// ENIFull: the ENI had no room for the addresses up to the deadline.
	ENIFull Code = 4
	// AddressRefused: an address can never be on the ENI.
	AddressRefused Code = 5
	// InterfaceMissing: Multus did not make an interface the pod asked for.
	InterfaceMissing Code = 6
	// NoMetadata: this is no EC2 node, or its metadata service does not answer pods.
	NoMetadata Code = 7
	// NoRoute: the pod's routes lead to AWS by an interface that works only after assignment.
	NoRoute Code = 8
)

var codeNames = map[Code]string{
	Done: "done", GaveUp: "gave up", Usage: "usage", Permission: "permission", ENIFull: "ENI full", AddressRefused: "address refused",
	InterfaceMissing: "interface missing", NoMetadata: "no metadata", NoRoute: "no route to AWS",
}

// String names the code as messages do.
func (c Code) String() string { return codeNames[c] }

// Failure is why an agent ends with a code other than [Done].
type Failure struct {
	Code Code
	Err  error
}

// Error implements error.
func (f *Failure) Error() string { return f.Code.String() + ": " + f.Err.Error() }

// Unwrap gives the cause.
func (f *Failure) Unwrap() error { return f.Err }

// Fail makes a [*Failure] with a formatted cause.
func Fail(code Code, format string, args ...any) *Failure {
	return &Failure{Code: code, Err: fmt.Errorf(format, args...)}
}

// CodeOf gives the exit code an error stands for.
func CodeOf(err error) Code {
	if err == nil {
		return Done
	}
	var f *Failure
	if errors.As(err, &f) {
		return f.Code
	}
	return GaveUp
}

// maxTermination is how many bytes the kubelet reads of a termination message.
const maxTermination = 4096

// WriteTermination writes the one-line termination message. The file is the kubelet's; where there is none (an agent started by
// hand) that is no failure of the agent, so the error is for a log line only.
func WriteTermination(path, message string) error {
	if path == "" {
		return nil
	}
	line := strings.Join(strings.Fields(message), " ")
	if len(line) > maxTermination-1 {
		line = strings.ToValidUTF8(line[:maxTermination-len("…\n")], "") + "…"
	}
	// The kubelet's file exists; it must be overwritten in place, because it is a bind mount.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|os.O_CREATE, 0o644) //nolint:gosec // the path is the operator's, the content is for everybody
	if err != nil {
		return fmt.Errorf("termination message: %w", err)
	}
	if _, err := f.WriteString(line + "\n"); err != nil {
		return errors.Join(fmt.Errorf("termination message: %w", err), f.Close())
	}
	return f.Close()
}
