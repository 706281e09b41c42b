// Package admit connects package inject to the admission protocol: one handler
// for each webhook entry, with a log line and metrics for every decision.
package admit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"multus-ip-manager.io/webhook/inject"
)

// Names of the metrics.
const (
	// DecisionsMetric counts decisions by mode, outcome and reason. The namespace
	// is no label: it would make one series per namespace and reason.
	DecisionsMetric = "multus_ip_manager_admission_decisions_total"
	// DurationMetric is a histogram of the seconds a decision takes, without the
	// transport.
	DurationMetric = "multus_ip_manager_admission_decision_duration_seconds"
	// PanicsMetric counts decisions that ended in a panic, which is always a
	// fault of the webhook. Its log has the stack.
	PanicsMetric = "multus_ip_manager_admission_panics_total"
)

// Handler answers admission requests of one webhook entry. A dry run is handled
// as any other request, because a decision has no side effects.
type Handler struct {
	injector  *inject.Injector
	namespace inject.NamespaceMode
	log       *slog.Logger
	decisions *prometheus.CounterVec
	duration  prometheus.Histogram
	panics    prometheus.Counter
}

var _ admission.Handler = (*Handler)(nil)

// New makes the handler for the entry whose namespaces have the given mode
// label (see inject.Paths). Handlers that share a registerer share its metrics.
func New(injector *inject.Injector, namespace inject.NamespaceMode, log *slog.Logger, reg prometheus.Registerer) (*Handler, error) {
	if injector == nil || log == nil || reg == nil {
		return nil, errors.New("admission handler: injector, logger and registerer are needed")
	}
	decisions, err := register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: DecisionsMetric,
		Help: "Decisions about pods by mode, outcome (inject, keep, adjust, skip, deny) and reason.",
	}, []string{"mode", "outcome", "reason"}))
	if err != nil {
		return nil, err
	}
	duration, err := register(reg, prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: DurationMetric,
		Help: "Time to decide about one pod, without the transport.",
		// A decision takes 20 µs for a small pod and some ms at the API's size limit; the API server waits 5 s for all.
		Buckets: []float64{10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 250e-3, 1, 5},
	}))
	if err != nil {
		return nil, err
	}
	panics, err := register(reg, prometheus.NewCounter(prometheus.CounterOpts{
		Name: PanicsMetric,
		Help: "Decisions that ended in a panic; the pod was refused, and the log has the stack.",
	}))
	if err != nil {
		return nil, err
	}
	return &Handler{injector: injector, namespace: namespace, log: log, decisions: decisions, duration: duration, panics: panics}, nil
}

// register registers a collector, or gives the one that is registered already.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	err := reg.Register(c)
	var there prometheus.AlreadyRegisteredError
	if errors.As(err, &there) {
		if existing, ok := there.ExistingCollector.(C); ok {
			return existing, nil
		}
	}
	if err != nil {
		return c, fmt.Errorf("metrics: %w", err)
	}
	return c, nil
}

// Handle decides about one request.
func (h *Handler) Handle(ctx context.Context, req admission.Request) (resp admission.Response) {
	defer func() {
		if p := recover(); p != nil {
			resp = h.panicked(ctx, req, p)
		}
	}()
	start := time.Now()
	d := h.injector.Decide(inject.Request{
		Operation:     string(req.Operation),
		Resource:      req.Resource.Resource,
		SubResource:   req.SubResource,
		Namespace:     req.Namespace,
		NamespaceMode: h.namespace,
		Pod:           req.Object.Raw,
	})
	took := time.Since(start)
	h.duration.Observe(took.Seconds())
	h.decisions.WithLabelValues(string(d.Mode), string(d.Action), string(d.Reason)).Inc()
	h.tell(ctx, req, d, took)
	return Response(d)
}

// Response renders a decision for the API server.
func Response(d inject.Decision) admission.Response {
	resp := admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{
		Allowed:          d.Action != inject.ActionDeny,
		Warnings:         d.Warnings,
		AuditAnnotations: d.AuditAnnotations,
	}}
	switch {
	case d.Reason == inject.BadRequest:
		resp.Result = &metav1.Status{Code: http.StatusBadRequest, Reason: metav1.StatusReasonBadRequest, Message: d.Message}
	case d.Action == inject.ActionDeny:
		resp.Result = &metav1.Status{Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: d.Message}
	case len(d.Patch) > 0:
		// Patch, not Patches: the bytes are ready and are not parsed again.
		patchType := admissionv1.PatchTypeJSONPatch
		resp.Patch, resp.PatchType = d.Patch, &patchType
	}
	return resp
}

// panicked counts and logs a panic, and refuses the pod. controller-runtime would deal with it, too, but tells the value
// to whoever creates the pod and to the log, and the value may hold what the pod's containers are told. Its type and the
// stack, in which arguments are but addresses, say where the fault is; the runtime's own errors hold nothing else.
func (h *Handler) panicked(ctx context.Context, req admission.Request, p any) admission.Response {
	h.panics.Inc()
	attrs := []slog.Attr{
		slog.String("namespace", req.Namespace), slog.String("pod", req.Name), slog.String("request", string(req.UID)),
		slog.String("type", fmt.Sprintf("%T", p)), slog.String("stack", string(debug.Stack())),
	}
	if err, ok := p.(runtime.Error); ok {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	h.log.LogAttrs(ctx, slog.LevelError, "panic in a decision", attrs...)
	return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Result: &metav1.Status{
		Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError,
		Message: fmt.Sprintf("multus-ip-manager failed while it looked at this pod; its log has the stack under request %s", req.UID),
	}}}
}

// tell writes the log line of a decision: never the pod's content.
func (h *Handler) tell(ctx context.Context, req admission.Request, d inject.Decision, took time.Duration) {
	level := slog.LevelInfo
	switch d.Action {
	case inject.ActionInject, inject.ActionAdjust:
	case inject.ActionSkip, inject.ActionKeep:
		level = slog.LevelDebug
	case inject.ActionDeny:
		level = slog.LevelWarn
	}
	if !h.log.Enabled(ctx, level) {
		return
	}
	namespace, name := d.Subject.Namespace, d.Subject.Name
	if namespace == "" {
		namespace = req.Namespace
	}
	if name == "" {
		name = req.Name
	}
	attrs := []slog.Attr{
		slog.String("namespace", namespace),
		slog.String("pod", name),
		slog.String("owner", d.Subject.Owner),
		slog.String("mode", string(d.Mode)),
		slog.String("outcome", string(d.Action)),
		slog.String("reason", string(d.Reason)),
		slog.String("request", string(req.UID)),
		slog.Bool("dryRun", req.DryRun != nil && *req.DryRun),
		slog.String("took", took.String()),
	}
	if d.Action == inject.ActionDeny {
		attrs = append(attrs, slog.String("message", d.Message))
	}
	if len(d.LogWarnings) > 0 {
		attrs = append(attrs, slog.Any("warnings", d.LogWarnings))
	}
	h.log.LogAttrs(ctx, level, "admission", attrs...)
}
