package certs

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestQuiet(t *testing.T) {
	conflict := apierrors.NewConflict(schema.GroupResource{Resource: "secrets"}, "ca", errors.New("modified"))
	for name, tc := range map[string]struct {
		log  func(*slog.Logger)
		want bool
	}{
		"progress": {func(l *slog.Logger) { quiet(l).Info("try") }, false},
		"error":    {func(l *slog.Logger) { quiet(l).Error(errors.New("forbidden"), "failed") }, true},
		"conflict": {func(l *slog.Logger) { quiet(l).WithValues("a", 1).WithName("n").Error(conflict, "failed") }, false},
	} {
		var buf bytes.Buffer
		tc.log(slog.New(slog.NewTextHandler(&buf, nil)))
		if got := buf.Len() > 0; got != tc.want {
			t.Errorf("%s: logged = %v, want %v: %s", name, got, tc.want, &buf)
		}
	}
}
