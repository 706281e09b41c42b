package main

import (
	"bytes"
	"crypto/x509"
	"debug/buildinfo"
	"debug/elf"
	"encoding/pem"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

const (
	// roots is where Go's crypto/x509 looks first.
	roots = "/etc/ssl/certs/ca-certificates.crt"
	// fewRoots is far below what any distribution ships (about 140) and far above a private bundle.
	fewRoots = 50
	// user is the unprivileged user that the injected container and the chart name too.
	user = "65532:65532"
)

// Want is what an image has to be.
type Want struct {
	// Binary is the only program in it: /Binary, and the image's entrypoint.
	Binary string
	// Module is the module whose package Binary the program must have been built from.
	Module string
	// Arch is the architecture in Go's words.
	Arch string
	// Version is the version label.
	Version string
	// MaxUnpacked and MaxCompressed are bounds in bytes, 0 for none.
	MaxUnpacked, MaxCompressed int64
	// NoModules are modules that must not be linked into the program; "k8s.io/" means all below it.
	NoModules []string
}

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// Check returns one sentence for each thing that is not as wanted.
func Check(img *Image, want Want) []string {
	var p problems
	p.platform(img, want)
	p.config(img.Config, want)
	p.size(img, want)
	p.files(img, want)
	p.roots(img.Files[roots].Data)
	if f, ok := img.Files["/"+want.Binary]; ok {
		p.static(f.Data, want)
		p.modules(f.Data, want)
	}
	return p
}

type problems []string

func (p *problems) addf(format string, args ...any) { *p = append(*p, fmt.Sprintf(format, args...)) }

func (p *problems) platform(img *Image, want Want) {
	if img.OS != "linux" || img.Architecture != want.Arch {
		p.addf("image is for %s/%s, want linux/%s", img.OS, img.Architecture, want.Arch)
	}
}

func (p *problems) config(c Config, want Want) {
	if c.User != user {
		p.addf("USER is %q, want %q: the kubelet verifies runAsNonRoot by the number", c.User, user)
	}
	if len(c.Entrypoint) != 1 || c.Entrypoint[0] != "/"+want.Binary {
		p.addf("ENTRYPOINT is %q, want [%q]", c.Entrypoint, "/"+want.Binary)
	}
	if len(c.Cmd) != 0 {
		p.addf("CMD is %q, want none: it would be an argument when the pod names no args", c.Cmd)
	}
	if got := c.Labels["org.opencontainers.image.version"]; got != want.Version {
		p.addf("version label is %q, want %q", got, want.Version)
	}
}

func (p *problems) size(img *Image, want Want) {
	if want.MaxUnpacked > 0 && img.Unpacked > want.MaxUnpacked {
		p.addf("unpacked size is %d bytes, the budget is %d", img.Unpacked, want.MaxUnpacked)
	}
	if want.MaxCompressed > 0 && img.Compressed > want.MaxCompressed {
		p.addf("compressed size is %d bytes, the budget is %d", img.Compressed, want.MaxCompressed)
	}
}

func (p *problems) files(img *Image, want Want) {
	wanted := []string{"/" + want.Binary, roots}
	slices.Sort(wanted)
	if got := slices.Sorted(maps.Keys(img.Files)); !slices.Equal(got, wanted) {
		p.addf("files are %q, want %q", got, wanted)
	}
	if len(img.Others) > 0 {
		p.addf("image has entries that are no plain files: %q", img.Others)
	}
	for name, f := range img.Files {
		if f.UID != 0 || f.GID != 0 {
			p.addf("%s belongs to %d:%d, want 0:0: the program must not be able to change it", name, f.UID, f.GID)
		}
		if f.Mode.Perm()&0o022 != 0 || f.Mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			p.addf("%s has mode %v, want no write bit for others and no setuid", name, f.Mode)
		}
	}
	if f, ok := img.Files["/"+want.Binary]; ok && f.Mode.Perm()&0o005 != 0o005 {
		p.addf("/%s has mode %v: user %s cannot run it", want.Binary, f.Mode, user)
	}
}

func (p *problems) roots(bundle []byte) {
	n := 0
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && cert.IsCA {
			n++
		}
	}
	if n < fewRoots {
		p.addf("%s holds %d root certificates, want %d or more: AWS's endpoints could not be verified", roots, n, fewRoots)
	}
}

func (p *problems) static(program []byte, want Want) {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		p.addf("/%s is no ELF program: %v", want.Binary, err)
		return
	}
	if f.Machine != machines[want.Arch] {
		p.addf("/%s is for %v, want %v", want.Binary, f.Machine, machines[want.Arch])
	}
	for _, s := range f.Progs {
		if s.Type == elf.PT_INTERP || s.Type == elf.PT_DYNAMIC {
			p.addf("/%s is dynamically linked (%v): an image from scratch has no loader", want.Binary, s.Type)
		}
	}
}

func (p *problems) modules(program []byte, want Want) {
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		p.addf("/%s has no Go build information: %v", want.Binary, err)
		return
	}
	if info.Path != want.Module+"/"+want.Binary {
		p.addf("/%s was built from %s, want %s/%s", want.Binary, info.Path, want.Module, want.Binary)
	}
	for _, dep := range info.Deps {
		for _, no := range want.NoModules {
			if dep.Path == no || strings.HasSuffix(no, "/") && strings.HasPrefix(dep.Path, no) {
				p.addf("/%s has %s linked in", want.Binary, dep.Path)
			}
		}
	}
}
