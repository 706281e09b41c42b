// Command vuln runs govulncheck where its database can be had, and says so where it cannot: a machine without network must
// be able to run every check of this repository, but must not look as if it had found nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"
)

const (
	publicDatabase = "https://vuln.go.dev"
	// probeTimeout is how long the database may take to answer before it counts as unreachable.
	probeTimeout = 15 * time.Second
)

// errUnreachable is wrapped by probe when nothing is wrong but the network.
var errUnreachable = errors.New("the vulnerability database cannot be reached")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode()) // govulncheck has said what it found
	case err != nil:
		fmt.Fprintln(os.Stderr, "vuln:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, out, errOut io.Writer) error {
	flags := flag.NewFlagSet("vuln", flag.ContinueOnError)
	flags.SetOutput(errOut)
	tool := flags.String("govulncheck", "govulncheck", "the govulncheck program")
	if err := flags.Parse(args); err != nil {
		return err
	}
	database := getenv("GOVULNDB")
	if database == "" {
		database = publicDatabase
	}
	err := probe(ctx, database)
	if errors.Is(err, errUnreachable) {
		_, err = fmt.Fprintf(out, "SKIPPED: %v. Nothing was checked. "+
			"Set GOVULNDB to another database: a URL, or file://DIR of a copy (https://go.dev/security/vuln/database).\n", err)
		return err
	}
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, *tool, append([]string{"-db", database}, flags.Args()...)...)
	cmd.Stdout, cmd.Stderr = out, errOut
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("govulncheck: %w", err)
	}
	return nil
}

// probe asks for the file that every database of the public format has. A folder only has to be there: it may also be a
// plain collection of OSV entries.
func probe(ctx context.Context, database string) error {
	u, err := url.Parse(database)
	if err != nil {
		return fmt.Errorf("GOVULNDB: %w", err)
	}
	switch u.Scheme {
	case "file":
		return probeFolder(u.Path)
	case "http", "https":
		return probeHTTP(ctx, database)
	}
	return fmt.Errorf("GOVULNDB is %q, want a URL that begins with https:// or http://, or file://DIR", database)
}

func probeFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("GOVULNDB: %w", err) // somebody put it there on purpose: no reason to skip
	}
	if len(entries) == 0 {
		return fmt.Errorf("GOVULNDB: folder %s is empty", dir)
	}
	return nil
}

func probeHTTP(ctx context.Context, database string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, strings.TrimRight(database, "/")+"/index/modules.json.gz", http.NoBody)
	if err != nil {
		return fmt.Errorf("GOVULNDB: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	if err := resp.Body.Close(); err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusNotFound:
		return fmt.Errorf("GOVULNDB: there is no vulnerability database at %s", database)
	}
	return fmt.Errorf("%w: %s answers %s", errUnreachable, database, resp.Status) // a proxy that refuses, a server that is down
}
