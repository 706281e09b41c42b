package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"multus-ip-manager.io/agent/report"
)

// command runs one command line with an environment.
func command(t *testing.T, env map[string]string, args ...string) (code report.Code, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = execute(t.Context(), args, &out, &err, func(key string) string { return env[key] })
	return code, out.String(), err.String()
}

func TestUsage(t *testing.T) {
	tests := map[string]struct {
		args []string
		env  map[string]string
		say  []string
	}{
		"no command":                {nil, nil, []string{"init", "--help"}},
		"unknown command":           {[]string{"innit"}, nil, []string{"innit"}},
		"unknown flag":              {[]string{"init", "--colour"}, nil, []string{"--colour"}},
		"an argument":               {[]string{"init", "net1"}, nil, []string{"net1"}},
		"an argument to version":    {[]string{"version", "1"}, nil, []string{"1"}},
		"a flag's value":            {[]string{"init", "--log-level=loud"}, nil, []string{"--log-level", "loud", "debug, info, warn, error"}},
		"a boolean's value":         {[]string{"init", "--map-by-subnet=perhaps"}, nil, []string{"map-by-subnet", "perhaps"}},
		"a deadline out of bounds":  {[]string{"init", "--deadline=25h"}, nil, []string{"--deadline", "25h", "24h"}},
		"an annotation's value":     {[]string{"init"}, map[string]string{"MIM_DEADLINE": "soon"}, []string{"multus-ip-manager.io/deadline", "soon"}},
		"every problem at once":     {[]string{"init", "--log-level=loud"}, map[string]string{"MIM_IGNORE": "10.0.0.0/33"}, []string{"loud", "10.0.0.0/33"}},
		"the alias checks the same": {[]string{"initContainers", "--log-level=loud"}, nil, []string{"--log-level", "loud"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := command(t, tt.env, tt.args...)
			if code != report.Usage {
				t.Errorf("exit code %d, want 2", code)
			}
			if stdout != "" {
				t.Errorf("standard output: %q", stdout)
			}
			for _, w := range tt.say {
				if !strings.Contains(stderr, w) {
					t.Errorf("%q does not say %q", stderr, w)
				}
			}
		})
	}
}

// A wrong command line, too, is told in the file that it names, wherever what is wrong stands.
func TestUsageInTerminationLog(t *testing.T) {
	tests := map[string]struct {
		args []string
		env  map[string]string
		say  string
	}{
		"a variable's value":            {[]string{"init", "--termination-log", "FILE"}, map[string]string{"MIM_DEADLINE": "never"}, "never"},
		"a flag's value":                {[]string{"sidecar", "--termination-log=FILE", "--log-level=loud"}, nil, "loud"},
		"an unknown flag before it":     {[]string{"init", "--colour", "--termination-log", "FILE"}, nil, "--colour"},
		"a boolean's value before it":   {[]string{"init", "--map-by-subnet=perhaps", "--termination-log", "FILE"}, nil, "perhaps"},
		"an unknown flag with a value":  {[]string{"init", "--colour", "red", "--termination-log", "FILE"}, nil, "--colour"},
		"an unknown command":            {[]string{"innit", "--termination-log", "FILE"}, nil, "unknown"},
		"a command that only asks":      {[]string{"ready", "--termination-log", "FILE"}, nil, ""},
		"a message that is not wished":  {[]string{"init", "--termination-log", "FILE", "--termination-log=-", "--colour"}, nil, ""},
		"a value that counts as no one": {[]string{"init", "--termination-log", "FILE", "--termination-log=", "--colour"}, nil, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "termination-log")
			if err := os.WriteFile(path, nil, 0o600); err != nil { // as the kubelet does
				t.Fatal(err)
			}
			for i, arg := range tt.args {
				tt.args[i] = strings.Replace(arg, "FILE", path, 1)
			}
			code, _, _ := command(t, tt.env, tt.args...)
			got := read(t, path)
			if code != report.Usage || !strings.Contains(got, tt.say) || (tt.say == "") != (got == "") {
				t.Errorf("exit code %d, message %q, want one with %q", code, got, tt.say)
			}
		})
	}
}

func TestBrokenAWSConfiguration(t *testing.T) {
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv5")
	path := filepath.Join(t.TempDir(), "termination-log")
	code, _, _ := command(t, nil, "init", "--termination-log="+path)
	if got := read(t, path); code != report.Usage || !strings.Contains(got, "IPv5") {
		t.Errorf("exit code %d, message %q", code, got)
	}
}

func TestVersion(t *testing.T) {
	code, stdout, stderr := command(t, nil, "version")
	want := "agent " + version + " " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH + "\n"
	if code != report.Done || stdout != want || stderr != "" {
		t.Errorf("exit code %d, %q, %q; want %q", code, stdout, stderr, want)
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"init", "--help"}, {"initContainers", "--help"}, {"help", "init"}} {
		code, stdout, _ := command(t, nil, args...)
		if code != report.Done || !strings.Contains(stdout, "Usage:") {
			t.Errorf("%v: exit code %d, %q", args, code, stdout)
		}
		if len(args) == 2 && !strings.Contains(stdout, "initContainers") {
			t.Errorf("%v does not tell the alias: %q", args, stdout)
		}
	}
	if _, stdout, _ := command(t, nil, "--help"); !strings.Contains(stdout, "Exit codes: 0 done") {
		t.Errorf("help does not list the exit codes: %q", stdout)
	}
}

// A failure is one line in the log and the same in the termination message; both names of the command do the same.
func TestFailure(t *testing.T) {
	for _, name := range []string{"init", "initContainers"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "termination-log")
			env := map[string]string{"MIM_INTERFACES": "no-such-link", "MIM_POD_NAME": "amf-0", "MIM_POD_NAMESPACE": "telco"}
			code, stdout, stderr := command(t, env, name, "--termination-log="+path)
			if code != report.InterfaceMissing || stdout != "" {
				t.Errorf("exit code %d, want 6; standard output %q", code, stdout)
			}
			message := read(t, path)
			if !strings.HasPrefix(message, "interface missing: ") || !strings.Contains(message, "no-such-link") || strings.Count(message, "\n") != 1 {
				t.Errorf("termination message %q", message)
			}
			var line struct {
				Level, Msg, Error, Namespace, Pod string
				Code                              int
			}
			lines := strings.Split(strings.TrimSpace(stderr), "\n")
			if err := json.Unmarshal([]byte(lines[len(lines)-1]), &line); err != nil {
				t.Fatalf("%v: %s", err, stderr)
			}
			if line.Level != "ERROR" || line.Code != 6 || line.Pod != "amf-0" || line.Namespace != "telco" || line.Error+"\n" != message {
				t.Errorf("log line %+v", line)
			}
		})
	}
}

// Success leaves no termination message, and the log has the form that was asked for.
func TestSuccess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "termination-log")
	env := map[string]string{"MIM_IGNORE": "0.0.0.0/0,::/0"}
	code, stdout, stderr := command(t, env, "init", "--termination-log="+path, "--log-format=text")
	if code != report.Done || stdout != "" {
		t.Errorf("exit code %d, standard output %q, log %s", code, stdout, stderr)
	}
	if !strings.Contains(stderr, `level=INFO msg="no address to assign`) {
		t.Errorf("log %q", stderr)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("a termination message after success: %v", err)
	}
	if _, _, stderr := command(t, env, "init", "--termination-log=-", "--log-level=error"); stderr != "" {
		t.Errorf("log at level error: %q", stderr)
	}
}

// Outside a container nobody wants the kubelet's file; any other path is written.
func TestTerminationLog(t *testing.T) {
	if got := terminationLog("/nowhere/else"); got != "/nowhere/else" {
		t.Errorf("a path that was asked for becomes %q", got)
	}
	if got := terminationLog(""); got != "" {
		t.Errorf("none becomes %q", got)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path) //nolint:gosec // a file of this test
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
