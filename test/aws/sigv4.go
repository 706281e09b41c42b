package aws

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	sigAlgorithm = "AWS4-HMAC-SHA256"
	sigTime      = "20060102T150405Z"
	maxExpires   = 7 * 24 * 60 * 60 // seconds a presigned request may live
)

// signature is what a request says about how it was signed, in its header or (presigned) in its query.
type signature struct {
	accessKey, date, region, service, terminator string
	signedHeaders                                []string
	value                                        string
	timestamp, token                             string
	expires                                      time.Duration // presigned only
	presigned                                    bool
}

// readSignature finds the signature; a refusal where it is absent or malformed.
func readSignature(r *http.Request) (signature, *APIError) {
	q := r.URL.Query()
	var s signature
	var credential, headers, algorithm string
	switch auth := r.Header.Get("Authorization"); {
	case auth != "":
		var rest string
		algorithm, rest, _ = strings.Cut(auth, " ")
		for part := range strings.SplitSeq(rest, ",") {
			k, v, _ := strings.Cut(strings.TrimSpace(part), "=")
			switch k {
			case "Credential":
				credential = v
			case "SignedHeaders":
				headers = v
			case "Signature":
				s.value = v
			}
		}
		s.timestamp, s.token = r.Header.Get("X-Amz-Date"), r.Header.Get("X-Amz-Security-Token")
		if s.timestamp == "" {
			if t, err := http.ParseTime(r.Header.Get("Date")); err == nil {
				s.timestamp = t.UTC().Format(sigTime)
			}
		}
	case q.Has("X-Amz-Signature"):
		s.presigned = true
		algorithm, credential, headers = q.Get("X-Amz-Algorithm"), q.Get("X-Amz-Credential"), q.Get("X-Amz-SignedHeaders")
		s.value, s.timestamp, s.token = q.Get("X-Amz-Signature"), q.Get("X-Amz-Date"), q.Get("X-Amz-Security-Token")
		seconds, err := strconv.Atoi(q.Get("X-Amz-Expires"))
		if err != nil || seconds < 0 || seconds > maxExpires {
			return s, badRequest("IncompleteSignature", "X-Amz-Expires %q: want seconds, at most a week", q.Get("X-Amz-Expires"))
		}
		s.expires = time.Duration(seconds) * time.Second
	default:
		return s, missingParameter("AWSAccessKeyId")
	}
	scope := strings.Split(credential, "/")
	if algorithm != sigAlgorithm || len(scope) != 5 || headers == "" || s.value == "" || s.timestamp == "" {
		return s, badRequest("IncompleteSignature", "The request signature does not conform to AWS standards.")
	}
	s.accessKey, s.date, s.region, s.service, s.terminator = scope[0], scope[1], scope[2], scope[3], scope[4]
	s.signedHeaders = strings.Split(headers, ";")
	return s, nil
}

// authenticate verifies the signature of a request to a service against the secret of its access key, as EC2 does, and returns who
// signed it.
func (c *Cloud) authenticate(r *http.Request, body []byte, service string) (principal, *APIError) {
	s, refusal := readSignature(r)
	if refusal != nil {
		return principal{}, refusal
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.iam.keys[s.accessKey]
	if !ok {
		return principal{}, errAuth()
	}
	if err := c.checkScope(s, service); err != nil {
		return principal{}, err
	}
	if err := c.checkTime(s, c.now()); err != nil {
		return principal{}, err
	}
	want := s.compute(r, body, k.SecretAccessKey)
	if subtle.ConstantTimeCompare([]byte(want), []byte(s.value)) != 1 {
		if c.settings.Quirks.SignatureMismatch {
			return principal{}, refuse(http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated "+
				"does not match the signature you provided. Check your AWS Secret Access Key and signing method.")
		}
		return principal{}, errAuth()
	}
	if subtle.ConstantTimeCompare([]byte(k.SessionToken), []byte(s.token)) != 1 {
		return principal{}, errAuth()
	}
	if !k.Expires.IsZero() && !c.now().Before(k.Expires) {
		if c.settings.Quirks.ExpiredToken {
			return principal{}, badRequest("ExpiredToken", "The security token included in the request is expired")
		}
		return principal{}, errExpired()
	}
	return k.who, nil
}

func errExpired() *APIError { return badRequest("RequestExpired", "Request has expired.") }

// checkScope refuses a signature made for another service, region or day.
func (c *Cloud) checkScope(s signature, service string) *APIError {
	switch {
	case s.service != service:
		return refuse(http.StatusUnauthorized, "AuthFailure", "Credential should be scoped to correct service: '%s'.", service)
	case s.region != c.region && !c.settings.AnyRegion:
		return refuse(http.StatusUnauthorized, "AuthFailure", "Credential should be scoped to a valid region, not '%s'.", s.region)
	case s.terminator != "aws4_request" || !strings.HasPrefix(s.timestamp, s.date):
		return errAuth()
	case !slices.Contains(s.signedHeaders, "host"):
		return errAuth() // a signature that another endpoint's requests could carry
	}
	return nil
}

// checkTime refuses stale and future dates, and presigned requests after their end.
func (c *Cloud) checkTime(s signature, now time.Time) *APIError {
	at, err := time.Parse(sigTime, s.timestamp)
	if err != nil {
		return badRequest("IncompleteSignature", "The request date %q is not valid", s.timestamp)
	}
	if s.presigned {
		if skew := c.settings.MaxClockSkew; now.After(at.Add(s.expires)) || skew > 0 && at.Sub(now) > skew {
			return errExpired()
		}
		return nil
	}
	if skew := c.settings.MaxClockSkew; skew > 0 && now.Sub(at).Abs() > skew {
		return errExpired()
	}
	return nil
}

// compute is the signature the request should have.
func (s signature) compute(r *http.Request, body []byte, secret string) string {
	canonical := strings.Join([]string{
		r.Method, canonicalPath(r.URL), s.canonicalQuery(r.URL), s.canonicalHeaders(r),
		strings.Join(s.signedHeaders, ";"), payloadHash(body),
	}, "\n")
	sum := sha256.Sum256([]byte(canonical))
	scope := strings.Join([]string{s.date, s.region, s.service, s.terminator}, "/")
	text := strings.Join([]string{sigAlgorithm, s.timestamp, scope, hex.EncodeToString(sum[:])}, "\n")
	k := []byte("AWS4" + secret)
	for _, part := range []string{s.date, s.region, s.service, s.terminator, text} {
		mac := hmac.New(sha256.New, k)
		mac.Write([]byte(part))
		k = mac.Sum(nil)
	}
	return hex.EncodeToString(k)
}

// payloadHash is always computed from the body: EC2 knows no unsigned payload.
func payloadHash(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// canonicalPath is the path as sent, encoded once more, as for every service but S3.
func canonicalPath(u *url.URL) string {
	p := u.EscapedPath()
	if p == "" {
		return "/"
	}
	parts := strings.Split(p, "/")
	for i := range parts {
		parts[i] = sigEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

// canonicalQuery is sorted by name, then by value: "a.1" comes before "a.10", which sorting "name=value" would miss.
func (s signature) canonicalQuery(u *url.URL) string {
	query := u.Query()
	if s.presigned {
		query.Del("X-Amz-Signature")
	}
	escaped := map[string][]string{}
	for k, values := range query {
		for _, v := range values {
			escaped[sigEscape(k)] = append(escaped[sigEscape(k)], sigEscape(v))
		}
	}
	var pairs []string
	for _, k := range sortedKeys(escaped) {
		slices.Sort(escaped[k])
		for _, v := range escaped[k] {
			pairs = append(pairs, k+"="+v)
		}
	}
	return strings.Join(pairs, "&")
}

func (s signature) canonicalHeaders(r *http.Request) string {
	var b strings.Builder
	for _, name := range s.signedHeaders {
		values := slices.Clone(r.Header.Values(name))
		switch {
		case name == "host":
			values = []string{r.Host}
		case name == "content-length":
			// net/http takes this header out of the map.
			values = []string{strconv.FormatInt(r.ContentLength, 10)}
		}
		for i, v := range values {
			values[i] = strings.Join(strings.Fields(v), " ")
		}
		b.WriteString(name + ":" + strings.Join(values, ",") + "\n")
	}
	return b.String()
}

// sigEscape is RFC 3986 encoding: everything but unreserved characters.
func sigEscape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		ch := s[i]
		if ch >= 'a' && ch <= 'z' || ch >= 'A' && ch <= 'Z' || ch >= '0' && ch <= '9' || strings.IndexByte("-_.~", ch) >= 0 {
			b.WriteByte(ch)
			continue
		}
		b.WriteString("%" + strings.ToUpper(hex.EncodeToString([]byte{ch})))
	}
	return b.String()
}
