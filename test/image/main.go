package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	var (
		want Want
		fs   = flag.NewFlagSet("image", flag.ContinueOnError)
		dir  = fs.String("layout", "", "folder with the OCI layout")
		no   = fs.String("no-modules", "", "comma-separated modules that must not be linked in; a trailing slash means all below")
	)
	fs.StringVar(&want.Binary, "binary", "", "name of the program")
	fs.StringVar(&want.Module, "module", "multus-ip-manager.io", "module that the program is built from")
	fs.StringVar(&want.Arch, "arch", runtime.GOARCH, "architecture")
	fs.StringVar(&want.Version, "version", "dev", "version label")
	fs.Int64Var(&want.MaxUnpacked, "max-unpacked", 0, "budget in bytes, 0 for none")
	fs.Int64Var(&want.MaxCompressed, "max-compressed", 0, "budget in bytes, 0 for none")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *no != "" {
		want.NoModules = strings.Split(*no, ",")
	}
	img, err := ReadLayout(*dir)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "%-9s linux/%s  %.1f MB unpacked  %.1f MB compressed  user %s  entrypoint %q\n",
		want.Binary, img.Architecture, float64(img.Unpacked)/1e6, float64(img.Compressed)/1e6, img.Config.User, img.Config.Entrypoint); err != nil {
		return err
	}
	if p := Check(img, want); len(p) > 0 {
		return fmt.Errorf("%s is not as it has to be:\n  %s", want.Binary, strings.Join(p, "\n  "))
	}
	return nil
}
