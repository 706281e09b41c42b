package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"

	admissionv1 "k8s.io/api/admission/v1"
)

// front stands before an admission handler and answers what is no admission review with an HTTP status, as API servers
// expect it. controller-runtime's handler answers most of that with 200 and half a review, of which an API server says only
// that it is no review, and what was wrong shows in no count of status codes; and it decides about objects of other kinds.
func front(next http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := &answer{ResponseWriter: w}
		defer a.recover(r, log)
		if status, message := unfit(r); status != 0 {
			http.Error(a, message, status)
			return
		}
		r.Header.Set("Content-Type", "application/json") // exactly this is what the handler accepts
		next.ServeHTTP(a, r)
	})
}

// unfit tells, without its body, what keeps a request from being an admission review; status 0: nothing does.
func unfit(r *http.Request) (status int, message string) {
	if r.Method != http.MethodPost {
		return http.StatusMethodNotAllowed, "an admission review is posted"
	}
	said := r.Header.Get("Content-Type")
	if media, _, err := mime.ParseMediaType(said); err != nil || media != "application/json" {
		return http.StatusUnsupportedMediaType, fmt.Sprintf("an admission review is application/json, not %.100q", said)
	}
	if r.ContentLength < 0 {
		return http.StatusLengthRequired, "the size of an admission review is said before it is sent"
	}
	if r.ContentLength > largestBody {
		return http.StatusRequestEntityTooLarge, fmt.Sprintf("an admission review has at most %d bytes, not %d", largestBody, r.ContentLength)
	}
	return 0, ""
}

// answer is a response to a review, or an error.
type answer struct {
	http.ResponseWriter
	begun bool
}

// Unwrap serves http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) WriteHeader(status int) {
	a.begun = true
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if !a.begun {
		if status, message := noReview(p); status != 0 {
			http.Error(a, message, status)
			return len(p), nil
		}
	}
	a.begun = true
	return a.ResponseWriter.Write(p)
}

// recover answers a panic. The admission handler deals with its own, so this one is of what is around it.
func (a *answer) recover(r *http.Request, log *slog.Logger) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler { //nolint:errorlint // no error is meant by it: net/http compares it the same way
		panic(p)
	}
	attrs := []any{"path", r.URL.Path, "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack())}
	if err, ok := p.(runtime.Error); ok { // any other value may tell of the pod
		attrs = append(attrs, "error", err.Error())
	}
	log.Error("panic outside of a decision", attrs...)
	if a.begun {
		panic(http.ErrAbortHandler) // the rest of the answer is missing: the connection's end says so
	}
	http.Error(a, "the webhook failed inside; its log tells more", http.StatusInternalServerError)
}

// noReview gives the status and message for an answer of controller-runtime's handler to what was no review: without a kind
// where it noticed, and with the request's own where it did not. Status 0: it was one.
func noReview(p []byte) (status int, message string) {
	versions := []string{"admission.k8s.io/v1", "admission.k8s.io/v1beta1"}
	for _, version := range versions {
		begin := `{"kind":"AdmissionReview","apiVersion":"` + version + `","response":{"uid":"`
		if rest, ok := bytes.CutPrefix(p, []byte(begin)); ok && !bytes.HasPrefix(rest, []byte(`"`)) {
			return 0, "" // the request had an identity
		}
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(p, &review); err != nil {
		return http.StatusInternalServerError, err.Error()
	}
	if review.Kind == "AdmissionReview" && slices.Contains(versions, review.APIVersion) && review.Response != nil && review.Response.UID != "" {
		return 0, "" // the same, written in another way
	}
	if review.Kind != "" || review.Response == nil || review.Response.Result == nil {
		return http.StatusBadRequest, fmt.Sprintf("not understood as an admission review with a request: %.100q of %.100q", review.Kind, review.APIVersion)
	}
	if status = int(review.Response.Result.Code); status < 400 || status > 599 {
		status = http.StatusInternalServerError
	}
	return status, review.Response.Result.Message
}
