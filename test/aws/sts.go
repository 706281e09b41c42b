package aws

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"time"
)

const (
	stsVersion = "2011-06-15"
	// Sessions that pods ask of STS, in seconds. The maximum is that of a role nobody has changed.
	minSession, defaultSession, maxSession = 900, 3600, 3600
	// sessionName and roleName are what IAM takes for names.
	sessionName = `^[\w+=,.@-]{2,64}$`
	roleName    = `^arn:aws[a-z-]*:iam::(\d{12}):role/(?:[\x21-\x7e]+/)?([\w+=,.@-]{1,64})$`
)

// STS is the regional endpoint of the Security Token Service: the Query protocol, version 2011-06-15. It knows AssumeRoleWithWebIdentity,
// for roles made with [Cloud.PutRole] and tokens made with [Cloud.ServiceAccountToken], and GetCallerIdentity.
func (c *Cloud) STS() http.Handler { return http.HandlerFunc(c.serveSTS) }

// serveSTS journals a request and answers it.
func (c *Cloud) serveSTS(w http.ResponseWriter, r *http.Request) {
	id := c.requestID()
	body, readErr := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	values, refusal := parseParams(r.URL.RawQuery, body)
	q := &params{values: values}
	shown := maps.Clone(values)
	delete(shown, "WebIdentityToken")
	call := c.logins.begin(Call{Action: "STS:" + q.text("Action"), Params: shown, Principal: q.text("RoleArn")})
	defer c.logins.note(call, (*Call).end)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(readErr, &tooLarge):
		refusal = refuse(http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "The request body is too large")
	case readErr != nil:
		panic(http.ErrAbortHandler) // the client is gone
	}
	var answer any
	if refusal == nil {
		refusal = c.login(r, call, false)
	}
	if refusal == nil {
		answer, refusal = c.handleSTS(r, q, body)
	}
	if refusal == nil {
		refusal = c.login(r, call, true)
	}
	if refusal != nil && refusal.Code == codeThrottled {
		refusal = badRequest("Throttling", "Rate exceeded")
	}
	c.answerSTS(w, q, call, id, answer, refusal)
}

// login lets a request for credentials meet its faults.
func (c *Cloud) login(r *http.Request, call *entry, after bool) *APIError {
	faults := c.faults.draw(c.logins.read(call), after)
	if len(faults) == 0 {
		return nil
	}
	c.logins.note(call, func(call *Call) { call.Fault = string(faults[len(faults)-1].fault.Kind) })
	return suffer(r.Context(), faults)
}

func (c *Cloud) handleSTS(r *http.Request, q *params, body []byte) (any, *APIError) {
	if v := q.text("Version"); v != stsVersion {
		return nil, badRequest("NoSuchVersion", "The requested version (%s) of service AWSSecurityTokenService does not exist", v)
	}
	switch action := q.text("Action"); action {
	case "AssumeRoleWithWebIdentity":
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.assumeByToken(q)
	case "GetCallerIdentity":
		who, err := c.authenticate(r, body, "sts")
		if err != nil {
			return nil, err
		}
		return &callerXML{ARN: who.arn, UserID: "AIDAEMULATED", Account: c.account}, nil
	default:
		return nil, badRequest("InvalidAction", "Could not find operation %s for version %s", action, stsVersion)
	}
}

// assumeByToken is AssumeRoleWithWebIdentity. The token is judged before the role, as AWS does: who has no valid token learns nothing
// about roles.
func (c *Cloud) assumeByToken(q *params) (any, *APIError) {
	arn, session := q.text("RoleArn"), q.text("RoleSessionName")
	name := regexp.MustCompile(roleName).FindStringSubmatch(arn)
	seconds := defaultSession
	if text := q.text("DurationSeconds"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, badRequest("MalformedInput", "DurationSeconds is no number")
		}
		seconds = n
	}
	switch {
	case q.text("WebIdentityToken") == "":
		return nil, errValidation("1 validation error detected: Value null at 'webIdentityToken' failed to satisfy constraint: Member must not be null")
	case !regexp.MustCompile(sessionName).MatchString(session):
		return nil, errValidation("1 validation error detected: Value '%s' at 'roleSessionName' failed to satisfy constraint", session)
	case name == nil:
		return nil, errValidation("Request ARN is invalid")
	case seconds < minSession:
		return nil, errValidation("1 validation error detected: Value '%d' at 'durationSeconds' failed to satisfy constraint: "+
			"Member must have value greater than or equal to %d", seconds, minSession)
	case seconds > maxSession:
		return nil, errValidation("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	t, err := c.readToken(q.text("WebIdentityToken"))
	now := c.now()
	switch {
	case err != nil:
		return nil, err
	case t.expired(now):
		return nil, badRequest("ExpiredTokenException", "Token expired: current date/time %d must be before the expiration date/time %d", now.Unix(), t.Expires)
	case !slices.Contains(t.Audience, AudienceSTS):
		return nil, errBadToken("Incorrect token audience")
	}
	role, known := c.iam.podRoles[name[2]]
	if !known || name[1] != c.account || arn != c.roleARN(role.Name) || !role.trusts(t.account()) {
		return nil, refuse(http.StatusForbidden, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
	}
	who := principal{arn: c.sessionARN(role.Name, session), role: role.Name}
	creds := c.issue(c.sessionLife(time.Duration(seconds)*time.Second), who)
	return &assumedXML{Subject: t.Subject, Audience: AudienceSTS, ARN: who.arn, ID: "AROAEMULATED:" + session,
		Key: creds.AccessKeyID, Secret: creds.SecretAccessKey, Token: creds.SessionToken, Expires: creds.Expires.Format(time.RFC3339),
		Provider: "arn:aws:iam::" + c.account + ":oidc-provider/" + c.issuer()}, nil
}

// sessionLife is how long credentials of pods live.
func (c *Cloud) sessionLife(asked time.Duration) time.Duration {
	if c.settings.SessionTTL > 0 {
		return c.settings.SessionTTL
	}
	return asked
}

func errValidation(format string, args ...any) *APIError {
	return badRequest("ValidationError", format, args...)
}

// answerSTS writes the XML and closes the journal's entry.
func (c *Cloud) answerSTS(w http.ResponseWriter, q *params, call *entry, id string, answer any, refusal *APIError) {
	name := func(local string) xml.StartElement {
		return xml.StartElement{Name: xml.Name{Local: local}, Attr: []xml.Attr{{Name: xml.Name{Local: "xmlns"}, Value: "https://sts.amazonaws.com/doc/" + stsVersion + "/"}}}
	}
	action := q.text("Action")
	status, code, root := http.StatusOK, "", name(action+"Response")
	whole := any(stsXML{Result: answer, Name: xml.Name{Local: action + "Result"}, RequestID: id})
	if refusal != nil {
		status, code, root = refusal.Status, refusal.Code, name("ErrorResponse")
		blame := "Sender"
		if status >= http.StatusInternalServerError {
			blame = "Receiver"
		}
		whole = stsErrorXML{Type: blame, Code: refusal.Code, Message: refusal.Message, RequestID: id}
	}
	var b bytes.Buffer
	if err := xml.NewEncoder(&b).EncodeElement(whole, root); err != nil {
		status, code = http.StatusInternalServerError, "InternalFailure"
		b.Reset()
	}
	c.logins.note(call, func(call *Call) { call.Status, call.Code = status, code; call.end() })
	w.Header().Set("Date", c.clock().UTC().Format(http.TimeFormat))
	w.Header().Set("Content-Type", "text/xml")
	w.Header().Set("X-Amzn-Requestid", id)
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

// stsXML is an answer of STS: the action's result and the request's id.
type stsXML struct {
	Result    any
	Name      xml.Name
	RequestID string
}

// MarshalXML names the result's element after the action.
func (s stsXML) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	type metadata struct {
		RequestID string `xml:"RequestId"`
	}
	return errors.Join(
		e.EncodeToken(start),
		e.EncodeElement(s.Result, xml.StartElement{Name: s.Name}),
		e.EncodeElement(metadata{s.RequestID}, xml.StartElement{Name: xml.Name{Local: "ResponseMetadata"}}),
		e.EncodeToken(start.End()),
	)
}

type assumedXML struct {
	Subject  string `xml:"SubjectFromWebIdentityToken"`
	Audience string
	ARN      string `xml:"AssumedRoleUser>Arn"`
	ID       string `xml:"AssumedRoleUser>AssumedRoleId"`
	Key      string `xml:"Credentials>AccessKeyId"`
	Secret   string `xml:"Credentials>SecretAccessKey"`
	Token    string `xml:"Credentials>SessionToken"`
	Expires  string `xml:"Credentials>Expiration"`
	Provider string
}

type callerXML struct {
	ARN     string `xml:"Arn"`
	UserID  string `xml:"UserId"`
	Account string
}

type stsErrorXML struct {
	Type      string `xml:"Error>Type"`
	Code      string `xml:"Error>Code"`
	Message   string `xml:"Error>Message"`
	RequestID string `xml:"RequestId"`
}
