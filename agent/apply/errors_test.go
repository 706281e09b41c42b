package apply

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	smithy "github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

func TestClassOfAnswers(t *testing.T) {
	tests := []struct {
		code   string
		status int
		want   Class
	}{
		{"InvalidNetworkInterfaceID.NotFound", 400, Gone},
		{"IncorrectState", 400, Gone},
		{"InvalidParameterValue", 400, Refused},
		{"InvalidParameter", 400, Refused},
		{"InvalidParameterCombination", 400, Refused},
		{"MissingParameter", 400, Refused},
		{"InvalidIPAddress.InUse", 400, Refused},
		{"InvalidNetworkInterfaceID.Malformed", 400, Refused},
		{"OperationNotPermitted", 400, Refused},
		{"PrivateIpAddressLimitExceeded", 400, Full},
		{"Ipv6AddressLimitExceeded", 400, Full},
		{"InsufficientFreeAddressesInSubnet", 400, Full},
		{"InsufficientCidrBlocks", 400, Full},
		{"RequestLimitExceeded", 503, Throttled},
		{"RequestLimitExceeded", 400, Throttled},
		{"Throttling", 400, Throttled},
		{"ThrottlingException", 400, Throttled},
		{"EC2ThrottledException", 503, Throttled},
		{"Whatever", 429, Throttled},
		{"UnauthorizedOperation", 403, Denied},
		{"AccessDenied", 403, Denied},
		{"AuthFailure", 401, Denied},
		{"AuthFailure", 403, Denied},
		{"InvalidClientTokenId", 403, Denied},
		{"SignatureDoesNotMatch", 403, Denied},
		{"OptInRequired", 401, Denied},
		{"Blocked", 403, Denied},
		{"PendingVerification", 400, Denied},
		{"AccountDisabled", 403, Denied},
		{"IncompleteSignature", 400, Denied},
		{"MissingAuthenticationToken", 400, Denied},
		{"InvalidSignatureException", 403, Denied},
		{"RequestInTheFuture", 403, Expired},
		{"RequestTimeTooSkewed", 403, Expired},
		{"UnknownParameter", 400, Refused},
		{"ValidationError", 400, Refused},
		{"UnsupportedOperation", 400, Refused},
		{"RequestResourceCountExceeded", 400, Refused},
		{"ExpiredToken", 400, Expired},
		{"RequestExpired", 400, Expired},
		{"InternalError", 500, Unavailable},
		{"InternalFailure", 500, Unavailable},
		{"ServiceUnavailable", 503, Unavailable},
		{"Unavailable", 503, Unavailable},
		{"NeverSeenBefore", 500, Unavailable},
		{"NeverSeenBefore", 502, Unavailable},
		{"NeverSeenBefore", 400, Refused},
		{"NeverSeenBefore", 403, Refused},
		{"", 502, Unavailable},
		{"", 400, Unanswered},
		{"", 407, Unanswered},
		{"", 200, Unanswered},
		{"UnknownError", 400, Unanswered},
		{"UnknownError", 503, Unavailable},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s %d", tt.code, tt.status), func(t *testing.T) {
			err := newOpError("AssignPrivateIpAddresses", "eni-1", nil, apiError(tt.code, tt.status, "text"))
			if err.Class != tt.want {
				t.Errorf("class %s, want %s", err.Class, tt.want)
			}
			if err.Code != tt.code || err.RequestID != "req-1" {
				t.Errorf("code %q, request %q", err.Code, err.RequestID)
			}
			if got := ClassOf(fmt.Errorf("wrapped: %w", err)); got != tt.want {
				t.Errorf("wrapped: class %s, want %s", got, tt.want)
			}
		})
	}
}

// htmlAnswer is what a proxy says: an HTTP status without EC2's XML.
func htmlAnswer(status int) error {
	return &smithy.OperationError{ServiceID: "EC2", OperationName: "Assign", Err: &awshttp.ResponseError{ResponseError: &smithyhttp.ResponseError{
		Response: &smithyhttp.Response{Response: &http.Response{StatusCode: status}},
		Err:      &smithy.DeserializationError{Err: errors.New("expected element type <Response> but have <html>")},
	}}}
}

func TestClassOfMissingAnswers(t *testing.T) {
	creds := func(err error) error {
		return &smithy.OperationError{ServiceID: "EC2", OperationName: "Assign", Err: fmt.Errorf("get identity: %w", &credentialsError{err: fmt.Errorf("failed to refresh cached credentials, %w", err)})}
	}
	tests := map[string]struct {
		err  error
		want Class
	}{
		"connection reset":              {noAnswer(), Unanswered},
		"dial refused":                  {&smithyhttp.RequestSendError{Err: &net.OpError{Op: "dial", Err: errors.New("connection refused")}}, Unanswered},
		"deadline":                      {&smithy.OperationError{Err: context.DeadlineExceeded}, Unanswered},
		"canceled":                      {&smithy.OperationError{Err: &smithy.CanceledError{Err: context.Canceled}}, Unanswered},
		"another ENI's answer":          {sameENI("eni-1", new(string)), Unanswered},
		"a proxy's page, 200":           {htmlAnswer(200), Unanswered},
		"a proxy's page, 403":           {htmlAnswer(403), Unanswered},
		"a proxy's page, 502":           {htmlAnswer(502), Unavailable},
		"credentials: metadata away":    {creds(noAnswer()), NoCredentials},
		"credentials: metadata 500":     {creds(htmlAnswer(500)), NoCredentials},
		"credentials: no role":          {creds(htmlAnswer(404)), Denied},
		"credentials: STS denies":       {creds(apiError("AccessDenied", 403, "no")), Denied},
		"credentials: STS token stale":  {creds(apiError("ExpiredTokenException", 400, "old")), Expired},
		"credentials: STS unknown idp":  {creds(apiError("InvalidIdentityToken", 400, "no provider")), Denied},
		"credentials: STS idp away":     {creds(apiError("IDPCommunicationError", 400, "later")), NoCredentials},
		"credentials: STS throttles":    {creds(apiError("Throttling", 400, "Rate exceeded")), Throttled},
		"credentials: STS down":         {creds(apiError("ServiceUnavailable", 503, "later")), NoCredentials},
		"credentials: attempt ran out":  {creds(context.DeadlineExceeded), NoCredentials},
		"credentials: nothing known":    {creds(errors.New("no EC2 IMDS role found")), NoCredentials},
		"a plain error of this package": {errors.New("the answer does not hold eni-1"), Unanswered},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := newOpError("AssignPrivateIpAddresses", "eni-1", nil, tt.err); err.Class != tt.want {
				t.Errorf("class %s, want %s", err.Class, tt.want)
			}
		})
	}
	if got := ClassOf(errors.New("not of this package")); got != Unanswered {
		t.Errorf("an unknown error is %s", got)
	}
}

func TestClassProperties(t *testing.T) {
	passing := map[Class]bool{Unanswered: true, Unsent: true, Throttled: true, Unavailable: true, Expired: true, NoCredentials: true, Full: true, Gone: true, Contested: true}
	uncertain := map[Class]bool{Unanswered: true, Unavailable: true}
	names := map[string]bool{}
	for c := Unanswered; c <= Refused; c++ {
		if c.Passing() != passing[c] {
			t.Errorf("%s: Passing = %t", c, c.Passing())
		}
		if c.Certain() == uncertain[c] {
			t.Errorf("%s: Certain = %t", c, c.Certain())
		}
		if c.String() == "" || names[c.String()] {
			t.Errorf("class %d has the name %q", int(c), c)
		}
		names[c.String()] = true
	}
}

func TestOpErrorSaysWhatToAllow(t *testing.T) {
	for code, want := range map[string]bool{"UnauthorizedOperation": true, "RequestLimitExceeded": false} {
		text := newOpError("AssignIpv6Addresses", "eni-1", nil, apiError(code, 403, "no")).Error()
		if got := strings.Contains(text, "allow ec2:AssignIpv6Addresses"); got != want {
			t.Errorf("%q says what to allow: %t, want %t", text, got, want)
		}
	}
}

// A refusal of the account is not read as one of an address.
func TestOpErrorNamesTheAccount(t *testing.T) {
	for code, class := range codes {
		e := newOpError("AssignPrivateIpAddresses", "eni-1", addrs("10.0.17.5"), apiError(code, 400, "no"))
		if got := strings.Contains(e.Error(), "the whole account, not an address"); got != accountCodes[code] {
			t.Errorf("%q names the account: %t", e, got)
		}
		if accountCodes[code] && class != Denied {
			t.Errorf("%s is %s", code, class)
		}
	}
	for code := range accountCodes {
		if _, known := codes[code]; !known {
			t.Errorf("%s has no class", code)
		}
	}
}

func TestOpErrorText(t *testing.T) {
	as := []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.0.0.6")}
	tests := map[string]struct {
		err  *OpError
		want string
	}{
		"an answer": {
			newOpError("AssignPrivateIpAddresses", "eni-1", as, apiError("InvalidParameterValue", 400, "Some\ntext")),
			"AssignPrivateIpAddresses 10.0.0.5, 10.0.0.6 on eni-1: InvalidParameterValue: Some text (request req-1)",
		},
		"no answer": {
			newOpError("AssignPrivateIpAddresses", "eni-1", as[:1], errors.New("a\n b")),
			"AssignPrivateIpAddresses 10.0.0.5 on eni-1: a b",
		},
		"a search": {
			newOpError("DescribeNetworkInterfaces", "", as[:1], errors.New("x")),
			"DescribeNetworkInterfaces 10.0.0.5: x",
		},
	}
	for name, tt := range tests {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, tt.want)
		}
	}
	var api smithy.APIError
	if err := fmt.Errorf("w: %w", tests["an answer"].err); !errors.As(err, &api) || api.ErrorCode() != "InvalidParameterValue" {
		t.Error("EC2's own error is lost")
	}
	if s := (&credentialsError{err: errors.New("why")}).Error(); !strings.Contains(s, "credentials") || !strings.Contains(s, "why") {
		t.Errorf("credentials error says %q", s)
	}
}
