package aws

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	tokenPath      = "/latest/api/token"
	tokenHeader    = "X-Aws-Ec2-Metadata-Token"
	tokenTTLHeader = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	maxTokenTTL    = 21600 // seconds
)

// session is an IMDSv2 token.
type session struct {
	instance string
	until    time.Time
}

// IMDS is the metadata service of an instance as the instance itself meets it. Hop limits play no part here: use
// [Cloud.ServeIMDS] on real connections, or [Cloud.IMDSFrom] where there are no packets.
func (c *Cloud) IMDS(instanceID string) http.Handler { return c.IMDSFrom(instanceID, 1) }

// IMDSFrom is the metadata service as a client meets it that is some hops away, the instance itself being 1 away: where
// the instance's hop limit is lower, a token request is never answered.
func (c *Cloud) IMDSFrom(instanceID string, hops int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.serveIMDS(w, r, instanceID, hops) })
}

// serveIMDS journals a request and answers it.
func (c *Cloud) serveIMDS(w http.ResponseWriter, r *http.Request, instanceID string, hops int) {
	call := c.lookups.begin(Call{Action: "IMDS:" + r.Method, Path: r.URL.Path, Instance: instanceID})
	defer c.lookups.note(call, (*Call).end)
	status, body := c.imdsReply(w, r, instanceID, hops, call)
	code := ""
	if status != http.StatusOK {
		code = strconv.Itoa(status)
		body = fmt.Sprintf("<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<html><head><title>%d - %s</title></head>"+
			"<body><h1>%d - %s</h1></body></html>\n", status, http.StatusText(status), status, http.StatusText(status))
		w.Header().Set("Content-Type", "text/html")
	}
	c.lookups.note(call, func(call *Call) { call.Status, call.Code = status, code; call.end() })
	w.Header().Set("Server", "EC2ws")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, body)
	}
}

// imdsReply decides the answer; it sets the headers of a good one.
func (c *Cloud) imdsReply(w http.ResponseWriter, r *http.Request, instanceID string, hops int, call *entry) (int, string) {
	_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody))
	if faults := c.faults.draw(c.lookups.read(call), false); len(faults) > 0 {
		c.lookups.note(call, func(call *Call) { call.Fault = string(faults[len(faults)-1].fault.Kind) })
		if refusal := suffer(r.Context(), faults); refusal != nil {
			return refusal.Status, ""
		}
	}
	c.mu.Lock()
	inst, ok := c.state.instances[instanceID]
	c.mu.Unlock()
	switch {
	case !ok, inst.IMDSDisabled:
		return http.StatusForbidden, ""
	case r.Method == http.MethodPut:
		if hops > inst.HopLimit {
			c.lookups.note(call, func(call *Call) { call.Fault = "hop limit" })
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		}
		return c.imdsToken(w, r, instanceID)
	case path.Clean(r.URL.Path) == tokenPath:
		w.Header().Set("Allow", "OPTIONS, PUT")
		if r.Method == http.MethodOptions {
			return http.StatusOK, ""
		}
		return http.StatusMethodNotAllowed, ""
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return http.StatusMethodNotAllowed, ""
	}
	return c.imdsGet(w, r, inst)
}

// imdsToken makes a session token.
func (c *Cloud) imdsToken(w http.ResponseWriter, r *http.Request, instanceID string) (int, string) {
	if path.Clean(r.URL.Path) != tokenPath {
		return http.StatusMethodNotAllowed, ""
	}
	// Whatever its value, so that an open proxy cannot be used to get one; and that slash is a different path to IMDS.
	if _, forwarded := r.Header["X-Forwarded-For"]; forwarded || strings.HasSuffix(r.URL.Path, "/") {
		return http.StatusForbidden, ""
	}
	ttl, err := strconv.Atoi(r.Header.Get(tokenTTLHeader))
	if err != nil || ttl < 1 || ttl > maxTokenTTL {
		return http.StatusBadRequest, ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for t, s := range c.sessions {
		if now.After(s.until) {
			delete(c.sessions, t)
		}
	}
	t := c.random("token", 40, base64.URLEncoding.EncodeToString)
	c.sessions[t] = session{instance: instanceID, until: now.Add(time.Duration(ttl) * time.Second)}
	w.Header().Set(tokenTTLHeader, strconv.Itoa(ttl))
	w.Header().Set("Content-Type", "text/plain")
	return http.StatusOK, t
}

// imdsVersions is what IMDS lists at its root. Clients like cloud-init look for the newest one that they know.
func imdsVersions() []string {
	return []string{"1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01", "2008-09-01",
		"2009-04-04", "2011-01-01", "2011-05-01", "2012-01-12", "2014-02-25", "2014-11-05", "2015-10-20", "2016-04-19",
		"2016-06-30", "2016-09-02", "2018-03-28", "2018-08-17", "2018-09-24", "2019-10-01", "2020-10-27", "2021-01-03",
		"2021-03-23", "2021-07-15", "2022-09-24", "2024-04-11", "latest"}
}

// imdsGet answers a read.
func (c *Cloud) imdsGet(w http.ResponseWriter, r *http.Request, inst Instance) (int, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	values, sent := r.Header[tokenHeader]
	if sent {
		s, ok := c.sessions[values[0]]
		if !ok || s.instance != inst.ID || !time.Now().Before(s.until) {
			return http.StatusUnauthorized, ""
		}
		w.Header().Set(tokenTTLHeader, strconv.Itoa(int(time.Until(s.until).Seconds())))
	} else if inst.TokensRequired {
		return http.StatusUnauthorized, ""
	}
	version, rest, _ := strings.Cut(strings.Trim(path.Clean("/"+r.URL.Path), "/"), "/")
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Accept-Ranges", "none")
	switch {
	case version == "":
		return http.StatusOK, strings.Join(imdsVersions(), "\n")
	case !slices.Contains(imdsVersions(), version):
		return http.StatusNotFound, ""
	}
	body, ok := c.metadata(inst).read(rest)
	if !ok {
		return http.StatusNotFound, ""
	}
	return http.StatusOK, body
}
