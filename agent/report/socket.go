package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// Socket is the name of the status socket, in the abstract namespace of Unix sockets: it needs no port and no volume, ends with
// its process, and is seen in the pod's network namespace only. Everybody there can ask, so the status holds no secret.
const Socket = "@multus-ip-manager"

const (
	// exchange is how long one question may take, on either side.
	exchange = 2 * time.Second
	// patience is how long the agent may take to tell its status. It is less than exchange, so that whoever asks a stuck agent
	// hears that it is stuck.
	patience = 1500 * time.Millisecond
	// maxClients is how many clients are served at once.
	maxClients = 64
	// maxStatus is the longest status, in bytes, that is read. One of 1,000 addresses has about 300 KiB.
	maxStatus = 8 << 20
)

// StatusFunc tells the present status. It may fail, and it may hang: then whoever asked is told so.
type StatusFunc = func(context.Context) (Status, error)

// ErrNoAgent says that nobody listens at the status socket.
var ErrNoAgent = errors.New("no agent answers")

// answer is the one JSON document that the server writes. A status that cannot be told is a document with an error only.
type answer struct {
	*Status
	Error string `json:"error,omitempty"`
}

// Serve answers each connection to the Unix socket name with one JSON document, the [Status], and closes it. It returns when
// ctx has ended, with every connection closed. A name in use is told in the log and tried again now and then.
//
// What a client sends is not read, and a client that does not read holds nobody else up. A status function that neither ends nor
// heeds its context is waited for once, not once per client.
func Serve(ctx context.Context, name string, status StatusFunc, log *slog.Logger) {
	listen := func(ctx context.Context) (net.Listener, error) {
		var lc net.ListenConfig
		return lc.Listen(ctx, "unix", name)
	}
	keep(ctx, "the status socket "+name, listen, (&server{questions: newQuestions(ctx, status)}).serve, log)
}

type server struct{ questions *questions }

// serve returns when the listener fails, which it does when ctx ends.
func (s *server) serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	clients := crowd{most: maxClients}
	var wg sync.WaitGroup
	defer func() {
		stop()
		l.Close()
		clients.disperse()
		wg.Wait()
		s.questions.drain()
	}()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		clientCtx, cancel := context.WithTimeout(ctx, exchange)
		c := &client{Conn: conn, cancel: cancel}
		clients.enter(c)
		wg.Go(func() {
			defer clients.leave(c)
			defer func() { _ = c.Close() }()
			c.tell(clientCtx, s.questions)
		})
	}
}

// client is a connection whose Close also ends waiting on its behalf.
type client struct {
	net.Conn
	cancel context.CancelFunc
}

// Close implements [io.Closer].
func (c *client) Close() error {
	c.cancel()
	return c.Conn.Close()
}

// tell writes the document. An error is the client's: it went away or does not read, and there is nobody to tell it to.
func (c *client) tell(ctx context.Context, q *questions) {
	_ = c.SetDeadline(time.Now().Add(exchange))
	if asked, err := q.ask(ctx); err == nil {
		_, _ = c.Write(asked.document)
	}
}

// questions puts the same question of several clients once.
type questions struct {
	put func(*question)

	mu   sync.Mutex
	open *question
}

type question struct {
	done     chan struct{} // closed when the rest is there
	status   Status
	err      error
	document []byte // both as the socket tells them
}

func (q *question) settle(status Status, err error) *question {
	q.status, q.err, q.document = status, err, document(status, err)
	close(q.done)
	return q
}

// newQuestions makes questions that are given up when life ends; the client that happened to be the first may be gone before.
func newQuestions(life context.Context, status StatusFunc) *questions {
	q := &questions{}
	q.put = func(open *question) {
		ctx, cancel := context.WithTimeout(life, patience)
		defer cancel()
		s, err := status(ctx)
		if err != nil && ctx.Err() != nil {
			err = errStuck
		}
		q.mu.Lock()
		q.open = nil
		q.mu.Unlock()
		open.settle(s, err)
	}
	return q
}

var errStuck = fmt.Errorf("its loop has been stuck for %s at least", patience)

func newQuestion() *question { return &question{done: make(chan struct{})} }

// ask gives a settled question. The error is that of ctx.
func (q *questions) ask(ctx context.Context) (*question, error) {
	q.mu.Lock()
	if q.open == nil {
		q.open = newQuestion()
		go q.put(q.open)
	}
	open := q.open
	q.mu.Unlock()
	late := time.NewTimer(patience + patience/10) // where the status function does not heed its context
	defer late.Stop()
	select {
	case <-open.done:
		return open, nil
	case <-late.C:
		return newQuestion().settle(Status{}, errStuck), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// drain waits for the open question, which ends with its life, but not for one that heeds nothing.
func (q *questions) drain() {
	q.mu.Lock()
	open := q.open
	q.mu.Unlock()
	if open == nil {
		return
	}
	select {
	case <-open.done:
	case <-time.After(patience / 10):
	}
}

func document(status Status, err error) []byte {
	if status.Addresses == nil {
		status.Addresses = []AddressStatus{} // scripts want a list
	}
	a := answer{Status: &status}
	if err != nil {
		a = answer{Error: err.Error()}
	}
	b, err := json.Marshal(a)
	if err != nil { // a time outside of the years 0 to 9999
		b, _ = json.Marshal(answer{Error: err.Error()})
	}
	return append(b, '\n')
}

// Ask asks the agent that listens at the Unix socket name, within 2 seconds. An error that is [ErrNoAgent] says that none
// listens; any other that there is one, but no status of it.
func Ask(ctx context.Context, name string) (Status, error) {
	return askOver(ctx, name, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", name)
	})
}

func askOver(ctx context.Context, name string, dial func(context.Context) (net.Conn, error)) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, exchange)
	defer cancel()
	conn, err := dial(ctx)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return Status{}, fmt.Errorf("%w at %s: it has not started yet, has ended, or is in another network namespace", ErrNoAgent, name)
	}
	if err != nil {
		return Status{}, fmt.Errorf("ask the agent at %s: %w", name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	a := answer{Status: &Status{}}
	switch err := json.NewDecoder(io.LimitReader(conn, maxStatus)).Decode(&a); {
	case err != nil && ctx.Err() != nil:
		return Status{}, fmt.Errorf("the agent at %s does not answer: %w", name, ctx.Err())
	case errors.Is(err, io.EOF):
		return Status{}, fmt.Errorf("the agent at %s ended the connection without an answer", name)
	case err != nil:
		return Status{}, fmt.Errorf("the answer at %s is not a status: %w", name, err)
	case a.Error != "":
		return Status{}, fmt.Errorf("the agent at %s cannot tell its status: %s", name, a.Error)
	case a.Status == nil || a.Mode == "":
		return Status{}, fmt.Errorf("the answer at %s is not a status: it names no mode", name)
	}
	return *a.Status, nil
}
