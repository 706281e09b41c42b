# Everything a developer or CI runs. `make help` lists the targets; what is set with ?= can be set on the command line.
#
# One build cache serves tests, binaries and images, as long as all of them compile with the same flags: the AWS EC2
# package alone costs two CPU minutes each time a flag differs. So the flags are set here, once, for everything below.
export CGO_ENABLED := 0
export GOFLAGS := -trimpath -buildvcs=false

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

GO ?= go
# VERSION goes into the binaries and the images' labels.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS = -s -w -X main.version=$(VERSION)
BINARIES := agent webhook
# ARCHES are the other architectures that must at least compile.
ARCHES ?= arm64

# Images are $(IMAGE_PREFIX)multus-ip-agent:$(TAG) and …webhook; a prefix ends in its own slash: registry.example/team/
IMAGE_PREFIX ?=
# TAG is what the chart asks for unless told otherwise.
TAG ?= $(shell sed -n 's/^appVersion: *//p' manifests/chart/Chart.yaml)
PLATFORM ?= linux/$(shell $(GO) env GOARCH)
# ENGINE is the first of the three that answers. A docker client without a daemon does not.
ENGINE ?= $(shell for e in docker podman buildah; do $$e info >/dev/null 2>&1 && echo $$e && break; done)

# PKGS is what `make test` tests.
PKGS ?= ./...
# TESTFLAGS goes to every go test, for example TESTFLAGS='-run TestInit -v'.
TESTFLAGS ?=
# RACE_PKGS are tested once more under the race detector: what runs goroutines. It needs cgo, so it compiles everything
# a second time (about 10 CPU minutes the first time); the pure packages are left out.
RACE_PKGS ?= ./agent/apply/... ./agent/locate/... ./agent/observe/... ./agent/report/... ./agent/run/... ./certs/... ./webhook/... ./test/aws/...
# DEMO_TOOLS are the built tools that the demo starts, TEST_TOOLS those of the tests. KUBEBUILDER_ASSETS brings a control plane of one's
# own.
DEMO_TOOLS := $(if $(KUBEBUILDER_ASSETS),,etcd kube-apiserver) helm
TEST_TOOLS := $(DEMO_TOOLS) promcheck cert-manager
TOOLS := $(GO) run ./test/tools/cmd/tools
# CLUSTER_TOOLS are the further tools of the test cluster.
CLUSTER_TOOLS := etcd kube-apiserver helm kubernetes-node cni-plugins multus whereabouts
CLUSTER := $(GO) run ./test/cluster/cmd/cluster

FUZZTIME ?= 60s
BENCH ?= .
# BENCHTIME is a number of rounds: with the samples beside it, one start of a pod fills a second.
BENCHTIME ?= 15x
# VULN_PKGS is what users get: the vulnerabilities of test tools are no one's risk.
VULN_PKGS ?= ./agent/... ./webhook/... ./certs/...
# GOLDEN_PKGS are the packages whose tests have an -update flag.
GOLDEN_PKGS = $(shell grep -rlE --include='*_test.go' 'flag\.Bool."update"' . | xargs -r -n1 dirname | sort -u)

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "%-14s%s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: cluster-up
cluster-up: ## bring up a real two-node cluster in an emulated VPC (root, containerd, runc, nftables, buildah; the first time about 20 minutes)
	@$(TOOLS) build $(CLUSTER_TOOLS)
	@$(TOOLS) warm ./agent ./webhook ./test/cluster/...
	@$(CLUSTER) up

.PHONY: cluster-down
cluster-down: ## end that cluster and remove everything it made
	@$(CLUSTER) down

# E2E is passed to go test.
E2E ?= -v -timeout 30m -parallel 6

# A cluster that was up before stays up.
.PHONY: e2e
e2e: ## test on real nodes: in that cluster, or in the one of KUBECONFIG (see test/cluster/e2e/doc.go)
	@$(TOOLS) build $(CLUSTER_TOOLS)
	@$(TOOLS) warm ./agent ./webhook ./test/cluster/...
	@$(CLUSTER) during $(GO) test -count=1 $(E2E) ./test/cluster/e2e

.PHONY: demo
demo: ## show it working: a real API server, an emulated VPC, two pods that could not reach each other
	@$(TOOLS) build $(DEMO_TOOLS)
	@$(TOOLS) warm ./agent ./webhook ./test/demo
	@$(GO) run ./test/demo

.PHONY: test
test: unit vet race ## run all tests; builds kube-apiserver, etcd and Helm first (once, about 10 minutes on 2 cores)

.PHONY: vet
vet: ## run go vet
	$(GO) vet $(PKGS)

.PHONY: unit
unit: ## run all tests but the race detector's
	@$(TOOLS) build $(TEST_TOOLS)
	@$(TOOLS) warm $(PKGS)
	$(GO) test $(TESTFLAGS) $(PKGS)

.PHONY: race
race: ## run the tests of the concurrent packages under the race detector (needs a C compiler)
	@if command -v "$$($(GO) env CC)" >/dev/null; then \
	  echo "CGO_ENABLED=1 $(GO) test -race $(TESTFLAGS) $(RACE_PKGS)"; \
	  CGO_ENABLED=1 $(GO) test -race $(TESTFLAGS) $(RACE_PKGS); \
	else \
	  echo "SKIPPED: the race detector needs cgo and there is no C compiler ($$($(GO) env CC)); install gcc"; \
	fi

# Before Go 1.27 the end of the time may itself be reported as a failure (golang/go#75804): "context deadline exceeded" and no
# input. A failing input is always written down, so its absence tells the two apart. Making inputs smaller is bounded, for
# it would take all of so short a time.
.PHONY: fuzz
fuzz: ## fuzz every fuzz target for FUZZTIME (60s) each
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sort | while IFS=: read -r file func; do \
	  echo "== $${func#func } in $$(dirname "$$file") for $(FUZZTIME)"; \
	  $(GO) test -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1000x "$$(dirname "$$file")" 2>&1 | tee "$$log" || \
	    { grep -qx '    context deadline exceeded' "$$log" && ! grep -q 'Failing input' "$$log" && echo "the time was over, and no input failed"; }; \
	done

# SOAK is how long the soak lasts, SOAK_SEED what it does.
SOAK ?= 10m
SOAK_SEED ?= 1

.PHONY: soak
soak: ## move virtual addresses between pods under random faults for SOAK (10m); at the end EC2 and the interfaces agree, and nothing has leaked
	@$(TOOLS) warm ./agent ./test/soak
	$(GO) run ./test/soak -for $(SOAK) -seed $(SOAK_SEED)

.PHONY: bench
bench: ## measure the budgets: time, CPU, memory, EC2 calls, sizes (BENCH selects, BENCHTIME lengthens)
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) ./test/bench/...

.PHONY: mutate
mutate: ## break the code as test/mutations.txt says, one line at a time, and see each named test fail
	$(GO) run ./test/mutate

.PHONY: lint
lint: ## run golangci-lint with .golangci.yaml
	@$(TOOLS) build golangci-lint
	"$$($(TOOLS) path golangci-lint)" run $(PKGS)

.PHONY: fmt
fmt: ## format all Go files
	@$(TOOLS) build golangci-lint
	"$$($(TOOLS) path golangci-lint)" fmt

.PHONY: vuln
vuln: ## look for known vulnerabilities; GOVULNDB=URL or file://DIR is the database
	@$(TOOLS) build govulncheck
	@$(GO) run ./test/vuln -govulncheck "$$($(TOOLS) path govulncheck)" $(VULN_PKGS)

.PHONY: golden
golden: ## write the golden files anew from what the code does now; read the diff before you commit it
	@$(TOOLS) build $(TEST_TOOLS)
	$(GO) test $(GOLDEN_PKGS) -update

.PHONY: build
build: ## build both binaries into bin/
	@for b in $(BINARIES); do \
	  echo "$(GO) build -o bin/$$b ./$$b"; \
	  $(GO) build -ldflags '$(LDFLAGS)' -o "bin/$$b" "./$$b"; \
	done

.PHONY: cross
cross: ## build both binaries for the other architectures (ARCHES) into bin/linux-ARCH/
	@for a in $(ARCHES); do for b in $(BINARIES); do \
	  echo "GOARCH=$$a $(GO) build -o bin/linux-$$a/$$b ./$$b"; \
	  GOOS=linux GOARCH=$$a $(GO) build -ldflags '$(LDFLAGS)' -o "bin/linux-$$a/$$b" "./$$b"; \
	done; done

.PHONY: image
image: ## build both images with docker, podman or buildah (ENGINE, IMAGE_PREFIX, TAG, PLATFORM)
	@test -n "$(ENGINE)" || { echo "no working docker, podman or buildah found; install one, or set ENGINE"; exit 1; }
	@for b in $(BINARIES); do \
	  echo "$(ENGINE) build -f Dockerfile.$$b -t $(IMAGE_PREFIX)multus-ip-$$b:$(TAG)"; \
	  $(ENGINE) build --platform $(PLATFORM) --target $$b --build-arg VERSION=$(VERSION) \
	    -f Dockerfile.$$b -t "$(IMAGE_PREFIX)multus-ip-$$b:$(TAG)" .; \
	done

.PHONY: image-ci
image-ci: ## build both images without a registry (buildah, as root) and check size, user, entrypoint, contents
	@VERSION=$(VERSION) test/image/build.sh $(BINARIES)

.PHONY: tools
tools: ## build every pinned tool into a cache outside this folder (once; about 15 minutes on 2 cores)
	@$(TOOLS) build

.PHONY: cache-clean
cache-clean: ## remove the built tools and the image builds' storage
	@test/image/build.sh clean
	@$(TOOLS) clean
