// Command tools builds the pinned tools and tells where they are. `make tools` and `make cache-clean` call it.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"multus-ip-manager.io/test/tools"
)

const usage = `usage: tools build [TOOL...]   build these (default: all that are not optional), unless they are built
       tools warm PACKAGE...   compile packages of the product into the build cache, with progress
       tools path TOOL         print the path of a built tool
       tools list              print every tool, its version and where it is
       tools clean             remove every built tool`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tools:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("no command\n%s", usage)
	}
	store, err := tools.Open()
	if err != nil {
		return err
	}
	switch command, names := args[0], args[1:]; {
	case command == "build":
		return build(ctx, store, names, progress)
	case command == "warm" && len(names) > 0:
		return store.Warm(ctx, names, progress)
	case command == "path" && len(names) == 1:
		path, err := store.Path(names[0])
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(out, path)
		return err
	case command == "list" && len(names) == 0:
		return list(store, out)
	case command == "clean" && len(names) == 0:
		return store.Clean()
	}
	return fmt.Errorf("unknown command %q\n%s", args, usage)
}

func build(ctx context.Context, store *tools.Store, names []string, progress io.Writer) error {
	if len(names) == 0 {
		for _, r := range store.Recipes() {
			if !r.Optional {
				names = append(names, r.Name)
			}
		}
	}
	for _, name := range names { // all names are checked before the first long build
		if _, err := store.Recipe(name); err != nil {
			return err
		}
	}
	for _, name := range names {
		if _, err := store.Build(ctx, name, progress); err != nil {
			return err
		}
	}
	return nil
}

func list(store *tools.Store, out io.Writer) error {
	for _, r := range store.Recipes() {
		where, err := store.Path(r.Name)
		if err != nil {
			where = "not built"
		}
		if _, err := fmt.Fprintf(out, "%-16s%-10s%s\n", r.Name, r.Version, where); err != nil {
			return err
		}
	}
	return nil
}
