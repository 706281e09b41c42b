package plane

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// launcher stands between envtest, which does not tell the ids of the processes it starts, and a server: it writes the
// process id down and becomes the server. It also answers envtest's question which flags exist, for which the server
// would start once more (half a second); what it answers holds for every Kubernetes from 1.24 and etcd from 3.5.
// Who gives a start up says so first and reads the process ids then: a launcher that is not seen sees that itself. The
// file gets its name when it is whole, for an empty one would name no process.
const launcher = `#!/bin/sh
if [ "$1" = --help ]; then echo "  --unsafe-no-fsync"; exit 0; fi
echo $$ >%[1]s/%[2]s.starting
mv %[1]s/%[2]s.starting %[1]s/%[2]s.pid
if [ -e %[1]s/stopped ]; then exit 1; fi
exec %[3]s "$@"
`

// watcherScript waits until its standard input ends. That is when the process that holds the other end is gone, however
// it went; "done" says that it tidied up itself. A process id may meanwhile be another process's, so the command line
// is checked where it can be seen.
const watcherScript = `
read -r word
if [ "$word" = done ]; then exit 0; fi
: >"$1/stopped"
kill_all() {
  left=
  for f in "$1"/*.pid; do
    [ -e "$f" ] || continue
    pid=$(cat "$f")
    if [ -d /proc/self ] && ! grep -q -F -e "$1" "/proc/$pid/cmdline" 2>/dev/null; then continue; fi
    kill -KILL "$pid" 2>/dev/null && left=yes
  done
  [ -z "$left" ]
}
n=0
until kill_all "$1" || [ $n -ge 100 ]; do n=$((n+1)); sleep 0.05; done
rm -rf "$1"
`

// writeLauncher makes the script that starts the server and returns its path.
func writeLauncher(dir, name, binary string) (string, error) {
	path := filepath.Join(dir, "start-"+name)
	text := fmt.Sprintf(launcher, quote(dir), name, quote(binary))
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil { //nolint:gosec // it must be executable, for us alone
		return "", fmt.Errorf("write the launcher of %s: %w", name, err)
	}
	return path, nil
}

// quote makes s one word of a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// watcher is the process that tidies up after us when we cannot.
type watcher struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

func startWatcher(dir string) (*watcher, error) {
	cmd := exec.Command("/bin/sh", "-c", watcherScript, "sh", dir) //nolint:gosec // our own script
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the watcher: %w", err)
	}
	// Its own group: an interrupt at the terminal must not end it before us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the watcher: %w", err)
	}
	return &watcher{cmd: cmd, pipe: pipe}, nil
}

// dismiss ends the watcher without work.
func (w *watcher) dismiss() error {
	_, writeErr := io.WriteString(w.pipe, "done\n")
	closeErr := w.pipe.Close()
	waitErr := w.cmd.Wait()
	for _, err := range []error{writeErr, closeErr, waitErr} {
		if err != nil {
			return fmt.Errorf("end the watcher: %w", err)
		}
	}
	return nil
}

// killRecorded ends what was started in dir, for a start that is given up; a later start through a launcher fails. Nothing of it is
// kept, and kube-apiserver without etcd takes a minute to end when it is asked to, so it is not asked.
func killRecorded(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "stopped"), nil, 0o600); err != nil {
		return fmt.Errorf("give up the start: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.pid"))
	if err != nil {
		return fmt.Errorf("give up the start: %w", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file) //nolint:gosec // our own file
		if err != nil {
			return fmt.Errorf("give up the start: %w", err)
		}
		if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return nil
}

// startTimeout is for one server on a machine that is busy with something else; alone it takes 1 to 4 seconds.
const startTimeout = 90 * time.Second
