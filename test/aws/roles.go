package aws

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Audiences of service account tokens: whom a token is for.
const (
	AudienceSTS         = "sts.amazonaws.com"
	AudiencePodIdentity = "pods.eks.amazonaws.com"
)

// Role is an IAM role that pods may take, by IAM roles for service accounts (IRSA, through [Cloud.STS]) or by EKS Pod Identity (through
// [Cloud.PodIdentity]).
type Role struct {
	Name   string
	Policy *Policy // what whoever has taken it may do; nil = everything
	// Trusts are whom the role may be taken by: service accounts as "namespace:name", with wildcards, by their token at STS; and
	// [AudiencePodIdentity], which is the service that hands out EKS Pod Identity's credentials.
	Trusts []string
}

func (r Role) trusts(who string) bool {
	return slices.ContainsFunc(r.Trusts, func(p string) bool { return wildcard(p, who) })
}

// PutRole adds a role, or replaces the one of that name, and returns its ARN. Sessions that began before follow the new policy.
func (c *Cloud) PutRole(r Role) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.iam.podRoles[r.Name] = r
	return c.roleARN(r.Name)
}

func (c *Cloud) roleARN(name string) string {
	return fmt.Sprintf("arn:aws:iam::%s:role/%s", c.account, name)
}

// Associate makes an EKS Pod Identity association of a service account ("namespace:name") with a role; without a role's name it ends.
func (c *Cloud) Associate(serviceAccount, role string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if role == "" {
		delete(c.iam.associations, serviceAccount)
		return
	}
	c.iam.associations[serviceAccount] = role
}

// EndSessions makes all credentials of a pods' role expire now. The Pod Identity agents notice and fetch new ones.
func (c *Cloud) EndSessions(role string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, k := range c.iam.keys {
		if k.who.role == role {
			k.Expires = c.now()
			c.iam.keys[id] = k
		}
	}
	clear(c.iam.pods)
}

// TokenRequest says what token the cluster is to make for a pod.
type TokenRequest struct {
	Namespace, ServiceAccount string
	PodUID                    string
	Audience                  string        // AudienceSTS, AudiencePodIdentity, or another
	TTL                       time.Duration // default 24 h, as the EKS webhooks ask for
}

// claims is what a service account token says.
type claims struct {
	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Audience []string `json:"aud"`
	Issued   int64    `json:"iat"`
	Expires  int64    `json:"exp"`
	// Kubernetes is the claim that is called kubernetes.io.
	Kubernetes struct {
		Namespace string `json:"namespace"`
		Pod       struct {
			UID string `json:"uid"`
		} `json:"pod"`
	} `json:"kubernetes.io"`
}

// account is the service account as "namespace:name".
func (t claims) account() string { return strings.TrimPrefix(t.Subject, "system:serviceaccount:") }

func (t claims) expired(now time.Time) bool { return now.Unix() >= t.Expires }

// ServiceAccountToken makes a token as the cluster's API server projects it into pods: a signed JWT. Only this cloud can check the
// signature: there is no key to publish.
func (c *Cloud) ServiceAccountToken(r TokenRequest) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	ttl := r.TTL
	if ttl == 0 {
		ttl = 24 * time.Hour
	}
	t := claims{Issuer: "https://" + c.issuer(), Subject: "system:serviceaccount:" + r.Namespace + ":" + r.ServiceAccount,
		Audience: []string{r.Audience}, Issued: c.now().Unix(), Expires: c.now().Add(ttl).Unix()}
	t.Kubernetes.Namespace, t.Kubernetes.Pod.UID = r.Namespace, r.PodUID
	payload, err := json.Marshal(t)
	if err != nil {
		panic(err) // strings and numbers
	}
	signed := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(payload)
	return signed + "." + c.sign(signed)
}

// issuer is the cluster's identity provider.
func (c *Cloud) issuer() string {
	return "oidc.eks." + c.region + ".amazonaws.com/id/E0000000000000000000000000000001"
}

func (c *Cloud) sign(text string) string {
	mac := hmac.New(sha256.New, binary.BigEndian.AppendUint64([]byte("the cluster's key"), c.seed))
	mac.Write([]byte(text))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// readToken reads a token without judging when it ends and whom it is for. The reasons are STS's.
func (c *Cloud) readToken(token string) (claims, *APIError) {
	var t claims
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return t, errBadToken("The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(payload, &t) != nil {
		return t, errBadToken("The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)")
	}
	if t.Issuer != "https://"+c.issuer() {
		return t, errBadToken("No OpenIDConnect provider found in your account for %s", t.Issuer)
	}
	if !hmac.Equal([]byte(c.sign(parts[0]+"."+parts[1])), []byte(parts[2])) {
		return t, errBadToken("Couldn't verify the signature of the ID Token")
	}
	return t, nil
}

func errBadToken(format string, args ...any) *APIError {
	return refuse(http.StatusBadRequest, "InvalidIdentityToken", format, args...)
}
