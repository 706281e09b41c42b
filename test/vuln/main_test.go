package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	database := func(status int) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/index/modules.json.gz" {
				status = http.StatusTeapot
			}
			w.WriteHeader(status)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "GO-1.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	up := database(http.StatusOK)

	for name, tt := range map[string]struct {
		database string
		exit     int // of govulncheck
		out, err string
	}{
		"nothing found":        {up, 0, "checked -db " + up + " ./a ./b", ""},
		"trailing slash":       {up + "/", 0, "checked -db " + up + "/ ./a ./b", ""},
		"a folder":             {"file://" + folder, 0, "checked -db file://" + folder, ""},
		"something found":      {up, 3, "checked", "exit status 3"},
		"no server":            {gone.URL, 0, "SKIPPED: the vulnerability database cannot be reached: ", ""},
		"a server that fails":  {database(http.StatusBadGateway), 0, "502 Bad Gateway. Nothing was checked", ""},
		"a proxy that says no": {database(http.StatusForbidden), 0, "SKIPPED: ", ""},
		"another web site":     {database(http.StatusNotFound), 0, "", "no vulnerability database at"},
		"no such folder":       {"file://" + folder + "/no", 0, "", "no such file"},
		"an empty folder":      {"file://" + t.TempDir(), 0, "", "is empty"},
		"a bare path":          {folder, 0, "", "want a URL"},
	} {
		t.Run(name, func(t *testing.T) {
			tool := filepath.Join(t.TempDir(), "govulncheck")
			script := fmt.Sprintf("#!/bin/sh\necho checked \"$@\"\nexit %d\n", tt.exit)
			if err := os.WriteFile(tool, []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			getenv := func(string) string { return tt.database }
			err := run(t.Context(), []string{"-govulncheck", tool, "./a", "./b"}, getenv, &out, &out)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error is %v, want %q", err, tt.err)
			}
			if !strings.Contains(out.String(), tt.out) || tt.out == "" && out.Len() > 0 {
				t.Errorf("output is %q, want %q in it", out.String(), tt.out)
			}
			if strings.Contains(out.String(), "SKIPPED") && strings.Contains(out.String(), "checked -db") {
				t.Errorf("output is %q: skipped and checked at once", out.String())
			}
		})
	}
}
