package tools

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// buildOutput keeps what the Go command prints; safe for one writer and one reader.
type buildOutput struct {
	mu    sync.Mutex
	data  []byte
	lines int
}

// Write implements io.Writer.
func (b *buildOutput) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p...)
	b.lines += bytes.Count(p, []byte("\n"))
	return len(p), nil
}

// state returns how many packages were named and the last one. Lines that are not package paths (downloads, errors)
// count too: this is progress for a person, not an account.
func (b *buildOutput) state() (int, string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines, lastLine(b.data)
}

// tail returns the last n lines.
func (b *buildOutput) tail(n int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	lines := strings.Split(strings.TrimRight(string(b.data), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

// reporter tells a person how a build goes: one line that is rewritten on a terminal, plain lines elsewhere.
type reporter struct {
	w        io.Writer
	tool     string
	terminal bool
	every    time.Duration
	start    time.Time
}

func newReporter(w io.Writer, tool string) *reporter {
	p := &reporter{w: w, tool: tool, every: 10 * time.Second, start: time.Now(), terminal: isTerminal(w)}
	if p.terminal {
		p.every = time.Second
	}
	return p
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "" && os.Getenv("TERM") != "dumb"
}

func (p *reporter) line(text string) {
	if p.terminal {
		_, _ = fmt.Fprint(p.w, "\r\x1b[K")
	}
	_, _ = fmt.Fprintf(p.w, "%s: %s\n", p.tool, text)
}

// status is a line that the next one may replace.
func (p *reporter) status(text string) {
	if !p.terminal {
		p.line(text)
		return
	}
	const width = 100
	if len(text) > width {
		text = text[:width]
	}
	_, _ = fmt.Fprintf(p.w, "\r\x1b[K%s: %s", p.tool, text)
}

func (p *reporter) started(r Recipe) {
	p.start = time.Now()
	p.line(fmt.Sprintf("building %s from %s; the first time this takes about %s on two cores, later nothing", r.Version, r.Module, r.FirstBuild))
}

func (p *reporter) done(dir string) {
	p.line(fmt.Sprintf("built in %s into %s", p.elapsed(), dir))
}

func (p *reporter) elapsed() time.Duration { return time.Since(p.start).Round(time.Second) }

// follow tells the state of a build until the returned function is called.
func (p *reporter) follow(out *buildOutput) (stop func()) {
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(p.every)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				n, now := out.state()
				if now == "" {
					now = "looking what has changed"
				}
				p.status(fmt.Sprintf("%s, %d packages compiled, now %s", p.elapsed(), n, now))
			}
		}
	})
	return func() { close(end); wg.Wait() }
}

func lastLine(b []byte) string {
	b = bytes.TrimRight(b, "\n")
	if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
		b = b[i+1:]
	}
	return strings.TrimSpace(string(b))
}
