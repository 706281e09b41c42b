// Command app is the application of the pods in the cluster's tests, and what keeps their sandboxes.
//
//	app serve        tell when it started, and answer requests at port 8080 until it is told to end
//	app run SECONDS  tell when it started, and end after that time, as a Job does
//	app pause        keep a sandbox, and reap orphans
//
// What it answers:
//
//	GET /started                        when it started
//	GET /addresses                      the addresses of its interfaces, by name
//	GET /ping?to=ADDRESS&for=5s         send echo requests until one is answered: 200, or 504
//	GET /stream?to=ADDRESS&for=10s&every=10ms   send one at each interval, and count
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	started := time.Now()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, started, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, started time.Time, args []string) error {
	if len(args) == 1 && args[0] == "pause" {
		return pause(ctx)
	}
	fmt.Println("started", started.UTC().Format(time.RFC3339Nano))
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve(ctx, started)
	case len(args) == 2 && args[0] == "run":
		seconds, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(seconds) * time.Second):
		}
		return nil
	}
	return errors.New("usage: app serve | run SECONDS | pause")
}

func serve(ctx context.Context, started time.Time) error {
	mux := http.NewServeMux()
	handle := func(path string, f func(*http.Request) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			out, err := f(r)
			if errors.Is(err, errNoAnswer) {
				http.Error(w, err.Error(), http.StatusGatewayTimeout)
				return
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			_ = json.NewEncoder(w).Encode(out)
		})
	}
	handle("/started", func(*http.Request) (any, error) { return started, nil })
	handle("/addresses", func(*http.Request) (any, error) { return addresses() })
	handle("/ping", func(r *http.Request) (any, error) {
		q, err := parse(r)
		if err != nil {
			return nil, err
		}
		return "answered", ping(r.Context(), q.to, q.during)
	})
	handle("/stream", func(r *http.Request) (any, error) {
		q, err := parse(r)
		if err != nil {
			return nil, err
		}
		return stream(r.Context(), q.to, q.during, q.every)
	})
	server := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// question is what /ping and /stream are asked.
type question struct {
	to            netip.Addr
	during, every time.Duration
}

func parse(r *http.Request) (q question, err error) {
	if q.to, err = netip.ParseAddr(r.FormValue("to")); err != nil {
		return q, err
	}
	if q.during, err = time.ParseDuration(r.FormValue("for")); err != nil {
		return q, err
	}
	q.every = 100 * time.Millisecond
	if e := r.FormValue("every"); e != "" {
		q.every, err = time.ParseDuration(e)
	}
	return q, err
}

// pause reaps whatever becomes an orphan in the pod's process namespace.
func pause(ctx context.Context) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-children:
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
					break
				}
			}
		}
	}
}

func addresses() (map[string][]string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, l := range links {
		list, err := l.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range list {
			out[l.Name] = append(out[l.Name], a.String())
		}
	}
	return out, nil
}
