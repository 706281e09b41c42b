package certs

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

func TestRenewalFault(t *testing.T) {
	now := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) *metav1.Time { return &metav1.Time{Time: now.Add(-d)} }
	condition := func(kind cmapi.CertificateConditionType, status cmmeta.ConditionStatus, reason, message string, since time.Duration) cmapi.CertificateCondition {
		return cmapi.CertificateCondition{Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: ago(since)}
	}
	issuing := func(since time.Duration) cmapi.CertificateCondition {
		return condition(cmapi.CertificateConditionIssuing, cmmeta.ConditionTrue, "Renewing", "renewal was scheduled", since)
	}
	ready := condition(cmapi.CertificateConditionReady, cmmeta.ConditionTrue, "Ready", "up to date", time.Hour)
	healthy := &issuer{kind: "Issuer", name: "ours", exists: true, conditions: []cmapi.IssuerCondition{
		{Type: cmapi.IssuerConditionReady, Status: cmmeta.ConditionTrue, Reason: "KeyPairVerified"}}}
	certificate := func(change func(*cmapi.CertificateStatus)) *cmapi.Certificate {
		c := &cmapi.Certificate{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: *ago(time.Hour)},
			Status: cmapi.CertificateStatus{Conditions: []cmapi.CertificateCondition{ready}, RenewalTime: ago(-time.Hour)}}
		if change != nil {
			change(&c.Status)
		}
		return c
	}
	attempts := 3
	for name, test := range map[string]struct {
		certificate *cmapi.Certificate
		issuer      *issuer
		reason      string
		says        []string
	}{
		"all is well":           {certificate: certificate(nil), issuer: healthy},
		"an issuer of others":   {certificate: certificate(nil)},
		"no Certificate":        {issuer: nil, reason: ReasonNotFound, says: []string{"net/webhook"}},
		"no issuer":             {certificate: certificate(nil), issuer: &issuer{kind: "ClusterIssuer", name: "ours"}, reason: ReasonIssuerNotFound, says: []string{`ClusterIssuer "ours"`}},
		"an issuer that is new": {certificate: certificate(nil), issuer: &issuer{exists: true}},
		"an issuer that is not ready": {certificate: certificate(nil), issuer: &issuer{kind: "Issuer", name: "ours", exists: true, conditions: []cmapi.IssuerCondition{
			{Type: cmapi.IssuerConditionReady, Status: cmmeta.ConditionFalse, Reason: "ErrGetKeyPair", Message: "no such secret"}}},
			reason: "ErrGetKeyPair", says: []string{`Issuer "ours"`, "no such secret"}},
		"being renewed": {certificate: certificate(func(s *cmapi.CertificateStatus) {
			s.RenewalTime = ago(time.Second)
			s.Conditions = append(s.Conditions, issuing(patience-time.Second))
		}), issuer: healthy},
		"being renewed for long": {certificate: certificate(func(s *cmapi.CertificateStatus) {
			s.Conditions = append(s.Conditions, issuing(patience))
		}), issuer: healthy, reason: "Renewing", says: []string{"not done", "renewal was scheduled"}},
		"refused": {certificate: certificate(func(s *cmapi.CertificateStatus) {
			s.LastFailureTime = ago(time.Minute)
			s.Conditions = append(s.Conditions, condition(cmapi.CertificateConditionIssuing, cmmeta.ConditionFalse, "Denied", "the request was denied", time.Minute))
		}), issuer: healthy, reason: "Denied", says: []string{"the request was denied"}},
		"refused and tried again": {certificate: certificate(func(s *cmapi.CertificateStatus) {
			s.LastFailureTime, s.FailedIssuanceAttempts = ago(time.Minute), &attempts
			s.Conditions = append(s.Conditions, issuing(time.Second))
		}), issuer: healthy, reason: "Failed", says: []string{"3 attempts"}},
		"issued": {certificate: certificate(func(s *cmapi.CertificateStatus) {
			s.Conditions = append(s.Conditions, condition(cmapi.CertificateConditionIssuing, cmmeta.ConditionFalse, "Issued", "issued", time.Hour))
		}), issuer: healthy},
		"the first one is being made": {certificate: certificate(func(s *cmapi.CertificateStatus) {
			s.Conditions = []cmapi.CertificateCondition{
				condition(cmapi.CertificateConditionReady, cmmeta.ConditionFalse, "DoesNotExist", "no Secret", time.Second), issuing(time.Second)}
		}), issuer: healthy},
		"not ready": {certificate: certificate(func(s *cmapi.CertificateStatus) {
			s.Conditions = []cmapi.CertificateCondition{condition(cmapi.CertificateConditionReady, cmmeta.ConditionFalse, "Expired", "it expired", time.Second)}
		}), issuer: healthy, reason: "Expired", says: []string{"it expired"}},
		"nobody cares for a new one": {certificate: certificate(func(s *cmapi.CertificateStatus) { *s = cmapi.CertificateStatus{} }),
			issuer: healthy, reason: ReasonOverdue, says: []string{"does cert-manager run?"}},
		"nobody cares for a renewal": {certificate: certificate(func(s *cmapi.CertificateStatus) { s.RenewalTime = ago(patience + time.Second) }),
			issuer: healthy, reason: ReasonOverdue, says: []string{"does cert-manager run?"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := renewalFault(now, "net/webhook", test.certificate, test.issuer)
			var want []string
			if test.reason != "" {
				want = []string{test.reason}
			}
			if diff := cmp.Diff(want, Reasons(err)); diff != "" {
				t.Fatalf("%v: %s", err, diff)
			}
			for _, s := range test.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
		})
	}
}

func TestReasons(t *testing.T) {
	plain := errors.New("plain")
	for name, test := range map[string]struct {
		err  error
		want []string
	}{
		"nothing": {},
		"plain":   {err: plain, want: []string{ReasonUnknown}},
		"wrapped": {err: fmt.Errorf("more: %w", faultf("One", "one")), want: []string{"One"}},
		"joined":  {err: errors.Join(faultf("Two", "two"), errors.Join(faultf("One", "one"), faultf("Two", "again")), plain), want: []string{"One", "Two", ReasonUnknown}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, Reasons(test.err)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCertManagerOptions(t *testing.T) {
	if _, err := NewCertManager(CertManagerOptions{Files: FilesOptions{Dir: t.TempDir()}, Namespace: "net", Certificate: "webhook"}); err == nil {
		t.Error("accepted without a connection")
	}
}

// certificateAPI is the part of an API server that knows one Certificate and its issuer.
type certificateAPI struct{ forbidden, away atomic.Bool }

func (c *certificateAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case c.away.Load():
		http.Error(w, "{}", http.StatusServiceUnavailable)
	case c.forbidden.Load():
		http.Error(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"certificates: forbidden"}`, http.StatusForbidden)
	case strings.HasSuffix(r.URL.Path, "/certificates/webhook"):
		_, _ = io.WriteString(w, `{"kind":"Certificate","apiVersion":"cert-manager.io/v1","metadata":{"name":"webhook"},
			"spec":{"issuerRef":{"name":"ours"}},"status":{"renewalTime":"2126-01-02T03:04:05Z","conditions":[{"type":"Ready","status":"True"}]}}`)
	default:
		_, _ = io.WriteString(w, `{"kind":"Issuer","apiVersion":"cert-manager.io/v1","metadata":{"name":"ours"},
			"status":{"conditions":[{"type":"Ready","status":"False","reason":"ErrGetKeyPair","message":"no such secret"}]}}`)
	}
}

// What cannot be read leaves standing what was: when the renewal is due, and why it will fail; what may not be read is a fault. And
// a source that is not ready says cert-manager's reason, too.
func TestCertManagerLooks(t *testing.T) {
	api := &certificateAPI{}
	server := httptest.NewServer(api)
	defer server.Close()
	c, err := NewCertManager(CertManagerOptions{
		Files: FilesOptions{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}, REST: &rest.Config{Host: server.URL}, Namespace: "net", Certificate: "webhook"})
	if err != nil {
		t.Fatal(err)
	}
	check := func(when, reason string) {
		t.Helper()
		c.look(t.Context())
		if diff := cmp.Diff([]string{reason}, Reasons(c.Fault())); diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", when, c.Fault(), diff)
		}
		if want := time.Date(2126, 1, 2, 3, 4, 5, 0, time.UTC); !c.Renewal().Equal(want) {
			t.Errorf("%s: the renewal is due at %s, want %s", when, c.Renewal(), want)
		}
		if err := c.Ready(); !errors.Is(err, ErrNoCertificate) || !slices.Contains(Reasons(err), reason) {
			t.Errorf("%s: not ready because of %v", when, err)
		}
	}
	check("the issuer is broken", "ErrGetKeyPair")
	api.away.Store(true)
	check("the API server is away", "ErrGetKeyPair")
	api.away.Store(false)
	api.forbidden.Store(true)
	check("it may not be read", ReasonReadCertificate)
}
