package apply

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	smithy "github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Class is what an EC2 fault means for the caller. Callers switch on it and never on EC2's texts.
type Class int

// The classes of an [OpError].
const (
	// Unanswered: no answer, or one that cannot be read. The call may have taken effect.
	Unanswered Class = iota
	// Unsent: there was no connection to EC2, so that nothing of the call was sent and it surely had no effect.
	Unsent
	// Throttled: EC2 did nothing and wants to be asked later.
	Throttled
	// Unavailable: EC2 answered that it could not do it now. The call may have taken effect.
	Unavailable
	// Expired: the credentials are too old, or the node's clock is wrong; fresh ones will do, and EC2's own time.
	Expired
	// NoCredentials: nobody gave credentials yet.
	NoCredentials
	// Full: the ENI (or the subnet) has no room for another address.
	Full
	// Gone: the ENI is not there, or not yet in a state to take addresses.
	Gone
	// Contested: another ENI claimed the address after us.
	Contested
	// Denied: the credentials do not permit the call, or are not valid at all.
	Denied
	// Refused: EC2 does not accept the request, because of one of its addresses.
	Refused
)

var classNames = map[Class]string{
	Unanswered: "unanswered", Unsent: "unsent", Throttled: "throttled", Unavailable: "unavailable", Expired: "expired", NoCredentials: "no-credentials",
	Full: "full", Contested: "contested", Gone: "gone", Denied: "denied", Refused: "refused",
}

// String gives the class as logs and metrics name it.
func (c Class) String() string { return classNames[c] }

// Passing tells whether waiting can help.
func (c Class) Passing() bool { return c != Denied && c != Refused }

// Certain tells whether a failed call surely had no effect.
func (c Class) Certain() bool { return c != Unanswered && c != Unavailable }

// OpError is a failed EC2 call: what was tried, on which ENI, with which addresses, and what EC2 said.
type OpError struct {
	// Op is the EC2 action.
	Op string
	// ENI is the network interface the action was for, empty for a search.
	ENI string
	// Addrs are the addresses of the call.
	Addrs []netip.Addr
	// Code is EC2's error code, empty when there was no answer.
	Code string
	// RequestID is what AWS support asks for, empty when there was no answer.
	RequestID string
	// Class is what the fault means.
	Class Class
	// Err is the cause.
	Err error
}

// Error implements error.
func (e *OpError) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if len(e.Addrs) > 0 {
		fmt.Fprintf(&b, " %s", someAddrs(e.Addrs))
	}
	if e.ENI != "" {
		fmt.Fprintf(&b, " on %s", e.ENI)
	}
	var api smithy.APIError
	var signing *credentialsError
	switch {
	case errors.As(e.Err, &signing):
		// Nothing was sent to EC2, and what the SDK says about that is of no use here; a request's id is among the rest.
		fmt.Fprintf(&b, ": %s", oneLine(signing.Error()))
		return b.String()
	case e.Code != "" && errors.As(e.Err, &api):
		fmt.Fprintf(&b, ": %s: %s", e.Code, oneLine(api.ErrorMessage()))
	default:
		fmt.Fprintf(&b, ": %s", oneLine(e.Err.Error()))
	}
	if e.RequestID != "" {
		fmt.Fprintf(&b, " (request %s)", e.RequestID)
	}
	if e.Code == unauthorized {
		fmt.Fprintf(&b, ": allow ec2:%s for the pod's or the node's role", e.Op)
	}
	if accountCodes[e.Code] {
		b.WriteString(": EC2 refuses the whole account, not an address: its owner must settle that with AWS (activation, verification, payment, " +
			"the Region's opt-in)")
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *OpError) Unwrap() error { return e.Err }

// ClassOf gives the class of an error of this package; what it does not know counts as unanswered.
func ClassOf(err error) Class {
	var op *OpError
	if errors.As(err, &op) {
		return op.Class
	}
	return Unanswered
}

// authFailure is EC2's code for credentials that it does not know. They may have been replaced, so the next call fetches them anew.
const authFailure = "AuthFailure"

// unauthorized is EC2's code for a call that the role's policies do not allow.
const unauthorized = "UnauthorizedOperation"

// accountCodes are EC2's codes for an account that may not use it; [codes] has them, too. AWS lifts some of them by itself in hours or
// days, which is not what a pod's start can wait for.
var accountCodes = map[string]bool{"AccountDisabled": true, "Blocked": true, "OptInRequired": true, "PendingVerification": true}

// codes is the one place that tells what an EC2 error code means. Codes that are not here are judged by their HTTP status: 5xx
// passes, any other is a refusal of the request. Throttling codes come from the SDK's own list.
var codes = map[string]Class{
	"PrivateIpAddressLimitExceeded":     Full,
	"Ipv6AddressLimitExceeded":          Full,
	"InsufficientFreeAddressesInSubnet": Full,
	"InsufficientCidrBlocks":            Full,

	"InvalidNetworkInterfaceID.NotFound": Gone,
	"InvalidNetworkInterface.NotFound":   Gone,
	"IncorrectState":                     Gone,
	"IncorrectInstanceState":             Gone,
	"InvalidInstanceID.NotFound":         Gone,

	unauthorized:                  Denied,
	"AccessDenied":                Denied,
	"AccessDeniedException":       Denied,
	authFailure:                   Denied,
	"InvalidClientTokenId":        Denied,
	badIdentityToken:              Denied,
	"SignatureDoesNotMatch":       Denied,
	"IncompleteSignature":         Denied,
	"MissingAuthenticationToken":  Denied,
	"UnrecognizedClientException": Denied,
	"InvalidSignatureException":   Denied,
	"AccountDisabled":             Denied,
	"Blocked":                     Denied,
	"OptInRequired":               Denied,
	"PendingVerification":         Denied,
	"RequestExpired":              Expired,
	"RequestInTheFuture":          Expired,
	"RequestTimeTooSkewed":        Expired,
	"ExpiredToken":                Expired,
	"ExpiredTokenException":       Expired,
	"InternalError":               Unavailable,
	"InternalFailure":             Unavailable,
	"ServiceUnavailable":          Unavailable,
	"Unavailable":                 Unavailable,
	"RequestTimeout":              Unavailable,
	"RequestTimeoutException":     Unavailable,
	"IDPCommunicationError":       Unavailable,
}

// newOpError classifies what the SDK gave.
func newOpError(op, eni string, addrs []netip.Addr, err error) *OpError {
	e := &OpError{Op: op, ENI: eni, Addrs: addrs, Err: err}
	var answer *smithyhttp.ResponseError
	status := 0
	if errors.As(err, &answer) {
		status = answer.HTTPStatusCode()
	}
	var id interface{ ServiceRequestID() string }
	if errors.As(err, &id) {
		e.RequestID = id.ServiceRequestID()
	}
	var signing *credentialsError
	if errors.As(err, &signing) {
		e.Class = signing.class()
		e.Code, _ = verdictOf(err)
		return e
	}
	e.Code = codeOf(err)
	if e.Class = classify(e.Code, status); e.Class == Denied && wrongClock(err) {
		e.Class = Expired
	}
	return e
}

// wrongClock tells whether a request was refused because of the time it was signed with. The SDK marks that, by the date of the answer, and
// corrects the time of the next request.
func wrongClock(err error) bool {
	var marked interface{ RetryableError() bool }
	return errors.As(err, &marked) && marked.RetryableError()
}

// unknownCode is what the SDK makes of an error answer without a code.
const unknownCode = "UnknownError"

func codeOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func classify(code string, status int) Class {
	if _, throttled := retry.DefaultThrottleErrorCodes[code]; throttled || status == http.StatusTooManyRequests {
		return Throttled
	}
	if c, known := codes[code]; known {
		return c
	}
	switch {
	case status >= http.StatusInternalServerError:
		return Unavailable
	case code == "" || code == unknownCode:
		// An answer whose body is not EC2's says nothing about the request.
		return Unanswered
	case status >= http.StatusBadRequest:
		return Refused
	}
	return Unanswered
}

// someAddrs names the first few of many: each of the addresses gets the text.
func someAddrs(addrs []netip.Addr) string {
	const most = 4
	if len(addrs) <= most {
		return joinAddrs(addrs)
	}
	return fmt.Sprintf("%s and %d more", joinAddrs(addrs[:most-1]), len(addrs)-most+1)
}

func joinAddrs(addrs []netip.Addr) string {
	s := make([]string, len(addrs))
	for i, a := range addrs {
		s[i] = a.String()
	}
	return strings.Join(s, ", ")
}

// oneLine keeps messages fit for a log line and a termination message.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
