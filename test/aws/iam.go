package aws

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Policy is what a principal may do. What no statement allows is refused; a Deny wins over an Allow.
type Policy struct {
	Allow []Statement
	Deny  []Statement
}

// Statement matches requests.
type Statement struct {
	Actions []string          // "ec2:Assign*", or without "ec2:"; none = every action
	ENIs    []string          // ids with wildcards; none = every resource. Describe calls name no resource: "*" only
	Tags    map[string]string // aws:ResourceTag conditions on the interface, values with wildcards
}

// principal is somebody who can sign requests.
type principal struct {
	arn      string
	instance string  // the role of this instance
	role     string  // the role of this name, taken by a pod
	policy   *Policy // nil = everything; an instance's role takes the instance's policy, a pod's role its own
}

type key struct {
	Creds
	who principal
}

type iam struct {
	keys         map[string]key    // by access key id
	roles        map[string]Creds  // newest credentials by instance id
	podRoles     map[string]Role   // roles that pods may take, by name
	associations map[string]string // role names by service account: EKS Pod Identity
	pods         map[string]Creds  // newest credentials that the Pod Identity agents gave, by pod UID and role
}

func newIAM() iam {
	return iam{keys: map[string]key{}, roles: map[string]Creds{}, podRoles: map[string]Role{}, associations: map[string]string{}, pods: map[string]Creds{}}
}

// UserOption configures a user.
type UserOption func(*principal)

// WithPolicy limits what a user may do; without it everything is allowed.
func WithPolicy(p Policy) UserOption { return func(u *principal) { u.policy = &p } }

// WithARN sets the user's ARN; default arn:aws:iam::<account>:user/<access key id>.
func WithARN(arn string) UserOption { return func(u *principal) { u.arn = arn } }

// AddUser adds a long-lived access key.
func (c *Cloud) AddUser(accessKeyID, secret string, opts ...UserOption) Creds {
	return c.AddCredentials(Creds{AccessKeyID: accessKeyID, SecretAccessKey: secret}, opts...)
}

// AddCredentials adds an access key, with a session token and an end if the credentials have them.
func (c *Cloud) AddCredentials(creds Creds, opts ...UserOption) Creds {
	who := principal{arn: fmt.Sprintf("arn:aws:iam::%s:user/%s", c.account, creds.AccessKeyID)}
	for _, o := range opts {
		o(&who)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.iam.keys[creds.AccessKeyID] = key{creds, who}
	return creds
}

// Credentials returns what the metadata service of an instance hands out now for the instance's role. They are
// rotated when a third of their life is left; older ones stay valid to their end. No role: the zero value.
func (c *Cloud) Credentials(instanceID string) Creds {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.roleCredentials(instanceID)
}

// RotateCredentials makes the metadata service hand out new credentials from now on; with revoke, the ones of before
// are refused as expired at once.
func (c *Cloud) RotateCredentials(instanceID string, revoke bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, ok := c.iam.roles[instanceID]
	delete(c.iam.roles, instanceID)
	if k := c.iam.keys[old.AccessKeyID]; ok && revoke {
		k.Expires = c.now()
		c.iam.keys[old.AccessKeyID] = k
	}
}

func (c *Cloud) roleCredentials(instanceID string) Creds {
	inst, ok := c.state.instances[instanceID]
	if !ok || inst.Role == "-" {
		return Creds{}
	}
	ttl := c.settings.CredentialsTTL
	if ttl <= 0 {
		ttl = 6 * time.Hour
	}
	now := c.now()
	if cur, ok := c.iam.roles[instanceID]; ok && cur.Expires.Sub(now) > ttl/3 {
		return cur
	}
	cur := c.issue(ttl, principal{arn: c.sessionARN(inst.Role, instanceID), instance: instanceID})
	c.iam.roles[instanceID] = cur
	return cur
}

// issue makes temporary credentials for a principal.
func (c *Cloud) issue(ttl time.Duration, who principal) Creds {
	now := c.now()
	c.iam.forget(now)
	creds := Creds{
		AccessKeyID:     "ASIA" + c.random("key", 10, base32.StdEncoding.EncodeToString),
		SecretAccessKey: c.random("secret", 30, base64.StdEncoding.EncodeToString),
		SessionToken:    "IQoJb3JpZ2lu" + c.random("session", 96, base64.StdEncoding.EncodeToString),
		Expires:         now.Add(ttl).UTC().Truncate(time.Second), // as precise as AWS writes it
	}
	c.iam.keys[creds.AccessKeyID] = key{creds, who}
	return creds
}

// sessionARN names whoever has taken a role.
func (c *Cloud) sessionARN(role, session string) string {
	return fmt.Sprintf("arn:aws:sts::%s:assumed-role/%s/%s", c.account, role, session)
}

// forget drops the keys of roles that ended long ago, so that a long run with short-lived credentials does not collect them. Newer ones
// must stay: EC2 calls them expired, not unknown.
func (i iam) forget(now time.Time) {
	maps.DeleteFunc(i.keys, func(_ string, k key) bool {
		return (k.who.instance != "" || k.who.role != "") && now.Sub(k.Expires) > time.Hour
	})
}

// random returns n bytes that are different each time and the same in every run with the same seed.
func (c *Cloud) random(purpose string, n int, encode func([]byte) string) string {
	c.serial++
	var out []byte
	for block := uint64(0); len(out) < n; block++ {
		mac := hmac.New(sha256.New, binary.BigEndian.AppendUint64(nil, c.seed))
		mac.Write([]byte(purpose))
		mac.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, c.serial), block))
		out = mac.Sum(out)
	}
	return encode(out[:n])
}

// authorize checks a principal's policy for an action on an interface ("" = a call that names no resource).
func (c *Cloud) authorize(who principal, action, eniID string) *APIError {
	policy := who.policy
	switch {
	case who.instance != "":
		policy = c.state.instances[who.instance].Policy
	case who.role != "":
		policy = c.iam.podRoles[who.role].Policy
	}
	if policy == nil {
		return nil
	}
	var tags map[string]string
	if e := c.state.enis[eniID]; e != nil {
		tags = e.Tags
	}
	hit := func(s Statement) bool { return s.matches(action, eniID, tags) }
	resource := ""
	if eniID != "" {
		resource = fmt.Sprintf(" on resource: arn:aws:ec2:%s:%s:network-interface/%s", c.region, c.account, eniID)
	}
	var why string
	switch {
	case slices.ContainsFunc(policy.Deny, hit):
		why = "with an explicit deny in an identity-based policy"
	case !slices.ContainsFunc(policy.Allow, hit):
		why = fmt.Sprintf("because no identity-based policy allows the ec2:%s action", action)
	default:
		return nil
	}
	return refuse(http.StatusForbidden, "UnauthorizedOperation", "You are not authorized to perform this operation. "+
		"User: %s is not authorized to perform: ec2:%s%s %s. Encoded authorization failure message: %s",
		who.arn, action, resource, why, c.random("denied", 60, base64.RawURLEncoding.EncodeToString))
}

func (s Statement) matches(action, eniID string, tags map[string]string) bool {
	hits := func(patterns []string, value string) bool {
		return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool { return wildcard(p, value) })
	}
	actions := make([]string, len(s.Actions))
	for i, a := range s.Actions {
		actions[i] = strings.TrimPrefix(a, "ec2:")
	}
	if !hits(actions, action) || !hits(s.ENIs, eniID) {
		return false
	}
	for k, pattern := range s.Tags {
		if v, ok := tags[k]; !ok || !wildcard(pattern, v) {
			return false
		}
	}
	return true
}
