package certs

import (
	"context"
	"log/slog"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// quiet returns a logger for the library, whose lines tell of each attempt: debug detail for us, except errors.
func quiet(log *slog.Logger) logr.Logger {
	return logr.FromSlogHandler(noConflicts{log.Handler()}).V(4)
}

// noConflicts makes debug detail of conflicts: when a CA is due, every replica tries to replace it, one succeeds and the
// API server tells the others so.
type noConflicts struct{ slog.Handler }

// Handle implements slog.Handler.
func (h noConflicts) Handle(ctx context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok && apierrors.IsConflict(err) {
			r.Level = slog.LevelDebug
		}
		return true
	})
	if !h.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h noConflicts) WithAttrs(attrs []slog.Attr) slog.Handler {
	return noConflicts{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h noConflicts) WithGroup(name string) slog.Handler {
	return noConflicts{h.Handler.WithGroup(name)}
}
