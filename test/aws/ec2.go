package aws

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"net/http"
	"strconv"
	"time"
)

const apiVersion = "2016-11-15"

// EC2 is the regional EC2 endpoint: the Query protocol, version 2016-11-15, by POST or GET.
func (c *Cloud) EC2() http.Handler { return http.HandlerFunc(c.serveEC2) }

// request is one EC2 request on its way through the pipeline.
type request struct {
	params
	action  action
	version string
	call    *entry
	who     principal
}

// serveEC2 journals a request and answers it.
func (c *Cloud) serveEC2(w http.ResponseWriter, r *http.Request) {
	id := c.requestID()
	body, readErr := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	values, refusal := parseParams(r.URL.RawQuery, body)
	q := &request{params: params{values: values}, version: apiVersion}
	q.call = c.journal.begin(c.describeCall(q))
	// Deferred, so that requests that end without an answer have an end, too.
	defer c.journal.note(q.call, (*Call).end)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(readErr, &tooLarge):
		refusal = refuse(http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "The request body is too large")
	case readErr != nil:
		panic(http.ErrAbortHandler) // the client is gone
	}
	if r.Method != http.MethodPost && r.Method != http.MethodGet {
		refusal = refuse(http.StatusMethodNotAllowed, "MethodNotAllowed", "The Query protocol knows POST and GET, not %s", r.Method)
	}
	var answer any
	if refusal == nil {
		answer, refusal = c.handle(r, q, body)
	}
	c.answer(w, q, id, answer, refusal)
}

// describeCall is the journal's first sight of a request.
func (c *Cloud) describeCall(q *request) Call {
	shown := maps.Clone(q.values)
	for _, secret := range []string{"Signature", "SecurityToken"} {
		delete(shown, secret)
	}
	call := Call{Action: q.text("Action"), Params: shown, ENI: q.text("NetworkInterfaceId")}
	if ids := q.list("NetworkInterfaceId"); call.ENI == "" && len(ids) > 0 {
		call.ENI = ids[0]
	}
	for _, name := range []string{"PrivateIpAddress", "Ipv6Addresses", "Ipv4Prefix", "Ipv6Prefix"} {
		call.Addresses = append(call.Addresses, q.list(name)...)
	}
	return call
}

// handle is the pipeline: who is it, is it scripted to fail, is it too often, is it allowed, what does it do.
func (c *Cloud) handle(r *http.Request, q *request, body []byte) (any, *APIError) {
	who, refusal := c.authenticate(r, body, "ec2")
	q.who = who
	c.journal.note(q.call, func(call *Call) { call.Principal, call.Instance = who.arn, who.instance })
	if err := c.meet(r, q, false); err != nil {
		return nil, err
	}
	if refusal != nil {
		return nil, refusal
	}
	if err := q.resolve(); err != nil {
		return nil, err
	}
	pause(c.Settings().Latency)
	answer, refusal := c.perform(q)
	c.plane.flush()
	if refusal != nil {
		return nil, refusal
	}
	if err := c.meet(r, q, true); err != nil {
		return nil, err
	}
	return answer, nil
}

// meet lets the request meet its faults, before or after it took effect.
func (c *Cloud) meet(r *http.Request, q *request, after bool) *APIError {
	faults := c.faults.draw(c.journal.read(q.call), after)
	if len(faults) == 0 {
		return nil
	}
	c.journal.note(q.call, func(call *Call) { call.Fault = string(faults[len(faults)-1].fault.Kind) })
	return suffer(r.Context(), faults)
}

// resolve finds the action and checks the parameters' names.
func (q *request) resolve() *APIError {
	name := q.text("Action")
	if name == "" {
		return badRequest("MissingAction", "The request is missing an action or a required parameter.")
	}
	version := q.text("Version")
	if version == "" {
		return missingParameter("Version")
	}
	// Older clients name older versions, and AWS still serves them.
	if !isDate(version) || version > apiVersion {
		return badRequest("NoSuchVersion", "The requested version (%s) of service AmazonEC2 does not exist", version)
	}
	q.version = version
	row, ok := actionTable()[name]
	if !ok {
		return badRequest("InvalidAction", "The action %s is not valid for this web service.", name)
	}
	q.action = row
	return q.known(row.params)
}

// perform takes a token, checks the policy and runs the action, under the lock.
func (c *Cloud) perform(q *request) (any, *APIError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := q.text("Action")
	bucket := name
	if q.action.bucket != nil {
		bucket = q.action.bucket(q, name)
	}
	if c.settings.Throttle && !c.buckets.take(bucket, c.settings.Buckets, time.Now()) {
		return nil, errThrottled()
	}
	resource := ""
	if q.action.mutates {
		resource = q.text("NetworkInterfaceId")
	}
	if err := c.authorize(q.who, name, resource); err != nil {
		return nil, err
	}
	dry := q.boolean("DryRun")
	if q.err != nil {
		return nil, q.err
	}
	if dry {
		return nil, refuse(http.StatusPreconditionFailed, "DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
	}
	return q.action.run(c, q)
}

// answer writes the XML and closes the journal's entry.
func (c *Cloud) answer(w http.ResponseWriter, q *request, id string, answer any, refusal *APIError) {
	status, root := http.StatusOK, xml.StartElement{Name: xml.Name{Local: q.text("Action") + "Response"},
		Attr: []xml.Attr{{Name: xml.Name{Local: "xmlns"}, Value: "http://ec2.amazonaws.com/doc/" + q.version + "/"}}}
	code := ""
	if refusal != nil {
		status, code = refusal.Status, refusal.Code
		root = xml.StartElement{Name: xml.Name{Local: "Response"}}
		answer = errorXML{Code: refusal.Code, Message: refusal.Message, RequestID: id}
	} else if a, ok := answer.(interface{ setRequestID(string) }); ok {
		a.setRequestID(id)
	}
	var b bytes.Buffer
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n")
	if err := xml.NewEncoder(&b).EncodeElement(answer, root); err != nil {
		status, code = http.StatusInternalServerError, "InternalError"
		b.Reset()
	}
	c.journal.note(q.call, func(call *Call) { call.Status, call.Code = status, code; call.end() })
	w.Header().Set("Date", c.clock().UTC().Format(http.TimeFormat))
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.Header().Set("X-Amzn-Requestid", id)
	w.Header().Set("Cache-Control", "no-cache, no-store")
	w.Header().Set("Server", "AmazonEC2")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

// requestID looks like a UUID.
func (c *Cloud) requestID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.random("request", 16, hexString)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

type errorXML struct {
	Code      string `xml:"Errors>Error>Code"`
	Message   string `xml:"Errors>Error>Message"`
	RequestID string `xml:"RequestID"`
}

// isDate recognizes a version: EC2's and IMDS's are dates.
func isDate(s string) bool {
	_, err := time.Parse(time.DateOnly, s)
	return err == nil
}
