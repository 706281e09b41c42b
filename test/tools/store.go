// Package tools builds the pinned tools that tests, checks and the demo run: a real kube-apiserver and etcd, Helm, the
// linters. Each tool is one Go module in a folder of its own below this one, so that its hundreds of dependencies are
// pinned by go.sum and never mix with the product's.
//
// A tool is built once for all checkouts, into a cache outside of them, in a folder whose name carries a hash of the
// whole recipe: a checkout with another recipe gets another binary. Only Build writes there, under a lock, into a
// temporary folder that is renamed when it is complete, so a folder that exists can be used.
package tools

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// ErrNotBuilt is wrapped by Path when the tool is not in the cache.
var ErrNotBuilt = errors.New("not built yet: run `make tools`")

// modulePath is the module of this checkout, by which its root is recognised.
const modulePath = "multus-ip-manager.io"

// A Store knows the recipes of one checkout and the cache of this user.
type Store struct {
	modules string   // folder that holds <tool>/go.mod
	bin     string   // folder that holds the built tools
	recipes []Recipe // in building order
	goTool  string   // the go command
}

// Open returns the store of the checkout that the working directory lies in. The cache is
// ${MIM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/multus-ip-manager}.
func Open() (*Store, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	return &Store{
		modules: filepath.Join(root, "test", "tools"),
		bin:     filepath.Join(cache, "bin"),
		recipes: pinned(),
		goTool:  "go",
	}, nil
}

// Root returns the root folder of the checkout that the working directory lies in (go test and go run both start in it
// or below it; binaries built with -trimpath do not know it otherwise).
func Root() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && declares(string(data), modulePath) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find the checkout: no folder from %s upwards holds the go.mod of %s; run this inside a checkout", start, modulePath)
		}
	}
}

func declares(goMod, module string) bool {
	for line := range strings.Lines(goMod) {
		if strings.TrimSpace(line) == "module "+module {
			return true
		}
	}
	return false
}

// CacheDir returns the folder for everything that is built once and kept outside the checkout; it may not exist yet.
func CacheDir() (string, error) {
	if dir := os.Getenv("MIM_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	base := os.Getenv("XDG_CACHE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find a cache folder: %w; set MIM_CACHE", err)
		}
		base = filepath.Join(home, ".cache")
	}
	return filepath.Join(base, "multus-ip-manager"), nil
}

// Recipes returns all recipes in building order.
func (s *Store) Recipes() []Recipe {
	return append([]Recipe(nil), s.recipes...)
}

// Recipe returns the recipe of one tool; the error lists the tools that exist.
func (s *Store) Recipe(tool string) (Recipe, error) {
	names := make([]string, 0, len(s.recipes))
	for _, r := range s.recipes {
		if r.Name == tool {
			return r, nil
		}
		names = append(names, r.Name)
	}
	return Recipe{}, fmt.Errorf("no tool %q; there are: %s", tool, strings.Join(names, ", "))
}

// Dir returns the folder in which the tool is or will be, whether or not it is built.
func (s *Store) Dir(tool string) (string, error) {
	r, err := s.Recipe(tool)
	if err != nil {
		return "", err
	}
	hash, err := s.hash(r)
	if err != nil {
		return "", err
	}
	return filepath.Join(s.bin, strings.Join([]string{r.Name, r.Version, runtime.GOOS, runtime.GOARCH, hash}, "-")), nil
}

// Path returns the tool's binary, or the folder of its binaries where it has several; the error wraps ErrNotBuilt where it
// is not there.
func (s *Store) Path(tool string) (string, error) {
	dir, err := s.Dir(tool)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, tool)
	if _, err := os.Stat(path); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("%s is %w (looked for %s)", tool, ErrNotBuilt, path)
		}
		return "", fmt.Errorf("look for %s: %w", tool, err)
	}
	return path, nil
}

// Clean removes every built tool of every checkout.
func (s *Store) Clean() error {
	if err := os.RemoveAll(s.bin); err != nil {
		return fmt.Errorf("empty the tools cache: %w", err)
	}
	return nil
}

// hash digests everything that decides what comes out of a build. The Go release counts with its minor number only:
// a linter must be built by the release it checks, but a patch release is no reason to build for ten minutes.
func (s *Store) hash(r Recipe) (string, error) {
	text := fmt.Appendf(nil, "%s\n%s\n%s\n%s\n%q\n%q\n",
		goRelease(runtime.Version()), r.Name, r.Version, r.Package, buildArgs(r, "OUT"), buildEnv())
	// A tool may have source of its own beside its module.
	sources, err := filepath.Glob(filepath.Join(s.modules, r.Name, "*.go"))
	if err != nil {
		return "", fmt.Errorf("read the recipe of %s: %w", r.Name, err)
	}
	for _, path := range append([]string{filepath.Join(s.modules, r.Name, "go.mod"), filepath.Join(s.modules, r.Name, "go.sum")}, sources...) {
		data, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("read the recipe of %s: %w", r.Name, err)
		}
		text = fmt.Appendf(text, "%s %d\n%s", filepath.Base(path), len(data), data)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])[:12], nil
}

// goRelease shortens "go1.26.8 X:something" to "go1.26".
func goRelease(version string) string {
	version, _, _ = strings.Cut(version, " ")
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return version
	}
	return parts[0] + "." + parts[1]
}

// Dir is Store.Dir of the checkout that the working directory lies in.
func Dir(tool string) (string, error) {
	s, err := Open()
	if err != nil {
		return "", err
	}
	return s.Dir(tool)
}

// Path is Store.Path of the checkout that the working directory lies in.
func Path(tool string) (string, error) {
	s, err := Open()
	if err != nil {
		return "", err
	}
	return s.Path(tool)
}

// Build is Store.Build of the checkout that the working directory lies in.
func Build(ctx context.Context, tool string, progress io.Writer) (string, error) {
	s, err := Open()
	if err != nil {
		return "", err
	}
	return s.Build(ctx, tool, progress)
}
