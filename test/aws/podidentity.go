package aws

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"
)

// Where the EKS Pod Identity agent of a node listens, at port 80.
const (
	PodIdentityIPv4 = "169.254.170.23"
	PodIdentityIPv6 = "fd00:ec2::23"
)

// podIdentityPath is the one thing it serves.
const podIdentityPath = "/v1/credentials"

// PodIdentity is the EKS Pod Identity agent of a node: an HTTP endpoint that gives a pod the credentials of the role that its service
// account is associated with, for the pod's token in the Authorization header. Refusals are plain text, as the agent writes them.
func (c *Cloud) PodIdentity() http.Handler { return http.HandlerFunc(c.servePodIdentity) }

// servePodIdentity journals a request and answers it.
func (c *Cloud) servePodIdentity(w http.ResponseWriter, r *http.Request) {
	id := c.requestID()
	call := c.logins.begin(Call{Action: "PodIdentity:" + r.Method, Path: r.URL.Path})
	defer c.logins.note(call, (*Call).end)
	var creds *podCreds
	refusal := c.loginAtAgent(r, call, id, false)
	if refusal == nil {
		creds, refusal = c.podIdentity(r, call, id)
	}
	if refusal == nil {
		refusal = c.loginAtAgent(r, call, id, true)
	}
	if refusal != nil {
		c.logins.note(call, func(call *Call) { call.Status, call.Code = refusal.Status, refusal.Code; call.end() })
		http.Error(w, refusal.Message, refusal.Status)
		return
	}
	c.logins.note(call, func(call *Call) { call.Status = http.StatusOK; call.end() })
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(creds) // a client that is gone
}

// loginAtAgent lets a request meet its faults. Throttling is the agent's own limit; all else is what EKS answered it.
func (c *Cloud) loginAtAgent(r *http.Request, call *entry, id string, after bool) *APIError {
	switch refusal := c.login(r, call, after); {
	case refusal == nil:
		return nil
	case refusal.Code == codeThrottled:
		return refuse(http.StatusTooManyRequests, codeThrottled, "Too Many Requests")
	default:
		return fromService(id, refusal)
	}
}

// podCreds is an answer.
type podCreds struct {
	AccessKeyID     string    `json:"AccessKeyId"`
	SecretAccessKey string    `json:"SecretAccessKey"` //nolint:gosec // the protocol's own name
	Token           string    `json:"Token"`
	AccountID       string    `json:"AccountId"`
	Expiration      time.Time `json:"Expiration"`
}

// podIdentity judges a request: first as the agent does, then as EKS does for it.
func (c *Cloud) podIdentity(r *http.Request, call *entry, id string) (*podCreds, *APIError) {
	token := r.Header.Get("Authorization")
	switch {
	case r.URL.Path != podIdentityPath:
		return nil, refuse(http.StatusNotFound, "404", "404 page not found")
	case !aimedAtAgent(r.Host):
		return nil, refuse(http.StatusForbidden, "AccessDenied", "Access Denied. Called agent through invalid address, please use either [%s %s] address not %s",
			PodIdentityIPv4, PodIdentityIPv6, r.Host)
	case token == "":
		return nil, badRequest("400", "Service account token cannot be empty")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	t, err := c.readToken(token)
	if err == nil && t.expired(now) {
		return nil, badRequest("400", "Service account token failed basic claim validations: token has invalid claims: token is expired")
	}
	if err != nil || !slices.Contains(t.Audience, AudiencePodIdentity) {
		return nil, fromService(id, badRequest("InvalidTokenException", "The token included in the request is invalid."))
	}
	name, associated := c.iam.associations[t.account()]
	role, exists := c.iam.podRoles[name]
	if !associated {
		return nil, fromService(id, refuse(http.StatusNotFound, "ResourceNotFoundException", "No association found for the service account"))
	}
	c.logins.note(call, func(call *Call) { call.Principal = c.roleARN(name) })
	if !exists || !role.trusts(AudiencePodIdentity) {
		return nil, fromService(id, badRequest("AccessDeniedException", "Unauthorized Exception! EKS does not have permissions to assume the associated role."))
	}
	creds := c.podCredentials(role, t.Kubernetes.Pod.UID)
	return &podCreds{AccessKeyID: creds.AccessKeyID, SecretAccessKey: creds.SecretAccessKey, Token: creds.SessionToken,
		AccountID: c.account, Expiration: creds.Expires}, nil
}

// podCredentials are what the agent keeps for a pod. It has new ones when a third of their life is left.
func (c *Cloud) podCredentials(role Role, uid string) Creds {
	ttl := c.sessionLife(6 * time.Hour)
	of := uid + " " + role.Name
	if cur, ok := c.iam.pods[of]; ok && cur.Expires.Sub(c.now()) > ttl/3 {
		return cur
	}
	c.iam.pods[of] = c.issue(ttl, principal{arn: c.sessionARN(role.Name, "eks-cluster-"+uid), role: role.Name})
	return c.iam.pods[of]
}

// aimedAtAgent tells whether a request was sent to one of the agent's addresses. Loopback is allowed as well, for an emulator without
// link-local addresses.
func aimedAtAgent(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	at, err := netip.ParseAddr(trimBrackets(host))
	return err == nil && (at.IsLoopback() || at.String() == PodIdentityIPv4 || at.String() == PodIdentityIPv6)
}

func trimBrackets(host string) string {
	if len(host) > 1 && host[0] == '[' && host[len(host)-1] == ']' {
		return host[1 : len(host)-1]
	}
	return host
}

// fromService is how the agent passes on what EKS refused.
func fromService(id string, e *APIError) *APIError {
	fault := "client"
	if e.Status >= http.StatusInternalServerError {
		fault = "server"
	}
	return &APIError{Status: e.Status, Code: e.Code, Message: fmt.Sprintf("[%s]: (%s): %s, fault: %s", id, e.Code, e.Message, fault)}
}
