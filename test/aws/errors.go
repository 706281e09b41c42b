package aws

import (
	"fmt"
	"net/http"
	"strings"
)

// APIError is a refusal as EC2 words it.
type APIError struct {
	Status  int // HTTP status
	Code    string
	Message string
}

// Error is "Code (status): message".
func (e *APIError) Error() string { return fmt.Sprintf("%s (%d): %s", e.Code, e.Status, e.Message) }

func refuse(status int, code, format string, args ...any) *APIError {
	return &APIError{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

func badRequest(code, format string, args ...any) *APIError {
	return refuse(http.StatusBadRequest, code, format, args...)
}

const (
	codeInvalidValue       = "InvalidParameterValue"
	codeInvalidCombination = "InvalidParameterCombination"
	codeMissingParameter   = "MissingParameter"
	codeAddressLimit       = "PrivateIpAddressLimitExceeded"
	codeThrottled          = "RequestLimitExceeded"
)

func invalidValue(format string, args ...any) *APIError {
	return badRequest(codeInvalidValue, format, args...)
}

func missingParameter(name string) *APIError {
	return badRequest(codeMissingParameter, "The request must contain the parameter %s", name)
}

func errThrottled() *APIError {
	return refuse(http.StatusServiceUnavailable, codeThrottled, "Request limit exceeded.")
}

// errNotFound words a missing resource: "The subnet ID 'x' does not exist", or the plural for several.
func errNotFound(code, noun string, ids ...string) *APIError {
	if len(ids) == 1 {
		return badRequest(code, "The %s ID '%s' does not exist", noun, ids[0])
	}
	return badRequest(code, "The %s IDs '%s' do not exist", noun, strings.Join(ids, ", "))
}

func errNoENI(ids ...string) *APIError {
	return errNotFound("InvalidNetworkInterfaceID.NotFound", "networkInterface", ids...)
}

func errAuth() *APIError {
	return refuse(http.StatusUnauthorized, "AuthFailure", "AWS was not able to validate the provided access credentials")
}
