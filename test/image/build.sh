#!/usr/bin/env bash
# Builds this repository's images from their unchanged Dockerfiles on a machine without a registry, and checks them.
#
#   build.sh BINARY...   for each: build Dockerfile.BINARY, check the image, run "BINARY version" in it
#   build.sh clean       remove the storage
#
# With KEEP=DIR, each image is also written to DIR/multus-ip-BINARY.tar, with the name and tag that the chart asks for.
#
# It needs root (to compose a file system), buildah and a static busybox. The base image that the Dockerfiles name is
# composed from this machine's Go, so the Go cache that tests and binaries fill serves the images too: a build links.
set -euo pipefail
cd "$(dirname "$0")/../.."

store=${MIM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/multus-ip-manager}/images
VERSION=${VERSION:-dev}
ARCH=${ARCH:-$(go env GOARCH)}
base=docker.io/library/golang:1.26

b() { buildah --root "$store/root" --runroot "$store/run" "$@"; }

fail() {
  echo "image build: $*" >&2
  exit 1
}

clean() {
  [[ -d $store ]] || return 0
  # A killed build leaves its file systems mounted; what cannot be unmounted cannot be removed either.
  awk -v s="$store/" 'index($2, s) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r -n1 umount
  rm -rf "$store"
}

# compose makes the base image: Go as this machine has it, a shell to start it, and the roots of trust.
compose() {
  local goroot version have container root
  goroot=$(go env GOROOT) version=$(go env GOVERSION)
  have=$(b inspect --type image --format '{{index .OCIv1.Config.Labels "go"}}' "$base" 2>/dev/null || true)
  [[ $have != "$version" ]] || return 0
  echo "composing $base from $version (once)"
  container=$(b from scratch)
  root=$(b mount "$container")
  mkdir -p "$root"/{bin,etc/ssl/certs,root,usr/local/go} "$root/tmp"
  chmod 1777 "$root/tmp"
  cp "$(command -v busybox)" "$root/bin/busybox"
  chroot "$root" /bin/busybox --install -s /bin
  cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  tar -C "$goroot" --exclude=./test --exclude=./doc --exclude=./api --exclude=testdata -cf - . | tar -C "$root/usr/local/go" -xf -
  b umount "$container" >/dev/null
  b config --env PATH=/usr/local/go/bin:/bin --env GOTOOLCHAIN=local --workingdir / --label "go=$version" "$container"
  b commit --quiet --rm "$container" "$base" >/dev/null
}

# The modules that a program must not carry, and its budgets in bytes.
declare -A limits=(
  [agent]="-max-unpacked 15000000 -max-compressed 6000000 -no-modules k8s.io/,sigs.k8s.io/,github.com/cert-manager/"
  [webhook]="-no-modules github.com/aws/,github.com/vishvananda/"
)

# The host's Go caches are mounted at a path of their own and named by build arguments: a mount at the cache mounts'
# own path would lie hidden under them.
image() {
  local name=$1 ref=multus-ip-$1 out=$work/$1 container told
  b build --quiet --isolation chroot --network host --pull-never --platform "linux/$ARCH" --target "$name" \
    --volume "$(go env GOCACHE):/host/build" --build-arg GOCACHE=/host/build \
    --volume "$(go env GOMODCACHE):/host/mod" --build-arg GOMODCACHE=/host/mod \
    --build-arg VERSION="$VERSION" --env GOPROXY="$(go env GOPROXY)" --env GOSUMDB="$(go env GOSUMDB)" \
    -f "Dockerfile.$name" -t "$ref" . >/dev/null
  b push --quiet --format oci "$ref" "oci:$out" >/dev/null
  if [[ -n ${KEEP:-} ]]; then
    rm -f "$KEEP/$ref.tar" # it cannot be written over
    b push --quiet "$ref" "docker-archive:$KEEP/$ref.tar:docker.io/library/$ref:$(sed -n 's/^appVersion: *//p' manifests/chart/Chart.yaml)" >/dev/null
  fi
  # shellcheck disable=SC2086 # limits are several words
  go run ./test/image -layout "$out" -binary "$name" -arch "$ARCH" -version "$VERSION" ${limits[$name]:-}
  if [[ $ARCH == "$(go env GOHOSTARCH)" ]]; then
    container=$(b from --pull-never "$ref")
    told=$(b run --isolation chroot --network host "$container" -- "/$name" version)
    b rm "$container" >/dev/null
    [[ $told == *"$VERSION"* ]] || fail "/$name version says '$told', want $VERSION in it"
  fi
  b rmi "$ref" >/dev/null
}

if [[ ${1:-} == clean ]]; then
  clean
  exit
fi
[[ $(id -u) == 0 ]] || fail "composing a base image needs root; use 'make image' with docker, podman or buildah"
for tool in buildah busybox; do
  command -v "$tool" >/dev/null || fail "$tool is not installed (Debian: apt-get install buildah busybox-static)"
done
[[ -s /etc/ssl/certs/ca-certificates.crt ]] || fail "no root certificates (Debian: apt-get install ca-certificates)"

export CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false"
mkdir -p "$store"
exec 9>"$store/.lock"
flock 9 # two checkouts share the storage
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
compose
for name in "$@"; do
  start=$SECONDS
  image "$name"
  echo "          built and checked in $((SECONDS - start)) s"
done
