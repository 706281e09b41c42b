package main

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// maxFile bounds one file of an image; more is refused rather than read into memory.
const maxFile = 512 << 20

// An Image is what one OCI layout holds, layers applied.
type Image struct {
	// Architecture and OS are the platform that the image says it is for.
	Architecture, OS string
	Config           Config
	// Compressed is what a node downloads and Unpacked what it stores, in bytes: the sum of the layers.
	Compressed, Unpacked int64
	// Files are the regular files by absolute path.
	Files map[string]File
	// Others are the paths of entries that are neither regular files nor directories.
	Others []string
}

// Config is the part of an OCI image configuration that a container runtime acts on.
type Config struct {
	User       string
	Entrypoint []string
	Cmd        []string
	Env        []string
	Labels     map[string]string
}

// File is one regular file.
type File struct {
	Mode     fs.FileMode
	UID, GID int
	Data     []byte
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// ReadLayout reads the one image of the OCI layout in dir.
func ReadLayout(dir string) (*Image, error) {
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	if err := readJSON(filepath.Join(dir, "index.json"), &index); err != nil {
		return nil, fmt.Errorf("read OCI layout: %w", err)
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("read OCI layout %s: it holds %d images, want 1", dir, len(index.Manifests))
	}
	var manifest struct {
		Config descriptor   `json:"config"`
		Layers []descriptor `json:"layers"`
	}
	if err := readJSON(blob(dir, index.Manifests[0]), &manifest); err != nil {
		return nil, fmt.Errorf("read image manifest: %w", err)
	}
	var config struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
		Config       Config `json:"config"`
	}
	if err := readJSON(blob(dir, manifest.Config), &config); err != nil {
		return nil, fmt.Errorf("read image configuration: %w", err)
	}
	img := &Image{Architecture: config.Architecture, OS: config.OS, Config: config.Config, Files: map[string]File{}}
	for _, l := range manifest.Layers {
		if err := img.apply(blob(dir, l), l); err != nil {
			return nil, fmt.Errorf("read layer %s: %w", l.Digest, err)
		}
	}
	return img, nil
}

func blob(dir string, d descriptor) string {
	algorithm, sum, _ := strings.Cut(d.Digest, ":")
	return filepath.Join(dir, "blobs", filepath.Base(algorithm), filepath.Base(sum))
}

func readJSON(file string, into any) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// apply lays one layer over the image.
func (img *Image) apply(file string, d descriptor) (err error) {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	img.Compressed += info.Size()
	var r io.Reader = f
	if strings.HasSuffix(d.MediaType, "gzip") {
		if r, err = gzip.NewReader(f); err != nil {
			return err
		}
	}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := img.entry(h, tr); err != nil {
			return err
		}
	}
}

func (img *Image) entry(h *tar.Header, r io.Reader) error {
	name := path.Join("/", h.Name)
	switch {
	case h.Typeflag == tar.TypeDir:
	case h.Typeflag != tar.TypeReg:
		img.Others = append(img.Others, name)
	case h.Size > maxFile:
		return fmt.Errorf("%s has %d bytes, more than this check reads", name, h.Size)
	default:
		data, err := io.ReadAll(io.LimitReader(r, maxFile))
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		img.Unpacked += h.Size
		img.Files[name] = File{Mode: h.FileInfo().Mode(), UID: h.Uid, GID: h.Gid, Data: data}
	}
	return nil
}
