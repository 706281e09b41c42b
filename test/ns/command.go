package ns

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// UnprivilegedID is the uid and gid of unprivileged commands where root starts them; it is the one the product's containers run as.
const UnprivilegedID = 65532

// Opts says how a command runs.
type Opts struct {
	// Unprivileged takes every privilege from the command, as the restricted Pod Security Standard does: no capability, none to
	// be had by executing another program, no new privileges. Root starts it as uid and gid [UnprivilegedID]. Inside a user
	// namespace made by [Reexec] no second uid is mapped, so it stays uid 0 there; that uid means nothing any more, because its
	// capability sets, the bounding set included, are empty, SECBIT_NOROOT takes from uid 0 what execve would give it back, and
	// no_new_privs forbids set-user-ID and file capabilities. Only the permission bits of the user's own files still speak for it.
	Unprivileged bool
	Env          []string // nil: this process's environment
	Dir          string   // "": this process's working directory
	Stdin        io.Reader
	Stdout       io.Writer
	Stderr       io.Writer
	// Mounts are files and directories only this command sees, for instance a resolv.conf of its own.
	Mounts []Mount
}

// Cmd is a command in a namespace; it is used like an exec.Cmd. It is killed when this process ends, however it ends.
type Cmd struct {
	ns     *Namespace
	opts   Opts
	cmd    *exec.Cmd
	exited chan struct{}
	once   sync.Once
}

// Command prepares a command: path as for exec.Command. When ctx is done it is killed.
func (n *Namespace) Command(ctx context.Context, o Opts, path string, args ...string) *Cmd {
	c := exec.CommandContext(ctx, path, args...) // tests run what they like
	c.Env = o.Env
	if c.Env == nil {
		c.Env = os.Environ()
	}
	c.Env = withoutMarker(c.Env)
	c.Dir, c.Stdin, c.Stdout, c.Stderr = o.Dir, o.Stdin, o.Stdout, o.Stderr
	c.WaitDelay = 5 * time.Second // a grandchild that holds the output open does not hold us
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return &Cmd{ns: n, opts: o, cmd: c, exited: make(chan struct{})}
}

// Start starts the command without waiting for its end. Wait must be called afterwards.
//
// No helper program is needed between: namespaces, identity, capabilities and mounts belong to a thread in Linux, so they are
// changed on a thread that then starts the command, and that is kept (the kernel ties Pdeathsig to it) until the command ended.
func (c *Cmd) Start() error {
	if c.cmd.Err != nil {
		return c.ns.wrap("run", c.cmd.Err)
	}
	started := make(chan error, 1)
	go func() {
		err := c.ns.Do(func() error {
			executable, err := c.prepareThread()
			if err != nil {
				return err
			}
			if executable != nil {
				defer func() { _ = executable.Close() }()
			}
			if err := c.cmd.Start(); err != nil {
				return err
			}
			started <- nil
			<-c.exited
			return nil
		})
		if err != nil {
			started <- c.ns.wrap("start "+c.cmd.Args[0], err)
		}
	}()
	return <-started
}

// prepareThread makes the calling thread what the command shall be. The file, if any, must stay open until the start.
func (c *Cmd) prepareThread() (*os.File, error) {
	if err := privateMounts(c.opts.Mounts); err != nil {
		return nil, err
	}
	if !c.opts.Unprivileged {
		return nil, nil
	}
	id, err := unprivilegedID()
	if err != nil {
		return nil, err
	}
	var executable *os.File
	if id != 0 && !reachable(c.cmd.Path) {
		if executable, err = os.Open(c.cmd.Path); err != nil {
			return nil, err
		}
		c.cmd.Path = selfFD(executable)
	}
	return executable, dropPrivileges(id)
}

// Wait waits for the command's end; the error is exec.Cmd's.
func (c *Cmd) Wait() error {
	err := c.cmd.Wait()
	c.once.Do(func() { close(c.exited) })
	return err
}

// Run starts the command and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns its standard output.
func (c *Cmd) Output() ([]byte, error) {
	if c.cmd.Stdout != nil {
		return nil, errors.New("namespace command: Stdout already set")
	}
	var out bytes.Buffer
	c.cmd.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput runs the command and returns what it wrote to standard output and standard error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.cmd.Stdout != nil || c.cmd.Stderr != nil {
		return nil, errors.New("namespace command: Stdout or Stderr already set")
	}
	var out bytes.Buffer
	c.cmd.Stdout, c.cmd.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// StdoutPipe is exec.Cmd's, as are StderrPipe and StdinPipe: call them before Start, read to the end before Wait.
func (c *Cmd) StdoutPipe() (io.ReadCloser, error) { return c.cmd.StdoutPipe() }

// StderrPipe is described at StdoutPipe.
func (c *Cmd) StderrPipe() (io.ReadCloser, error) { return c.cmd.StderrPipe() }

// StdinPipe is described at StdoutPipe.
func (c *Cmd) StdinPipe() (io.WriteCloser, error) { return c.cmd.StdinPipe() }

// Pid is the process id after Start.
func (c *Cmd) Pid() int { return c.cmd.Process.Pid }

// Signal sends a signal to the running command.
func (c *Cmd) Signal(s os.Signal) error { return c.cmd.Process.Signal(s) }

// State is the exit status, times and resource use after Wait.
func (c *Cmd) State() *os.ProcessState { return c.cmd.ProcessState }
