# `make tune` runs the main job, `make test` passes all tests; both set up what is missing first.
SHELL := /bin/bash
JOB ?= configs/jobs/quickstart.yaml
OUT ?= runs/quickstart
with_env = eval "$$(.ci/setup --env)" &&

.PHONY: tune test build bench lint check-cuda setup

tune: build
	@target/release/optpipe tune $(JOB) --out $(OUT) --force

# Compiling the kernels takes NVRTC. Without it their tests are skipped, unless OPTPIPE_REQUIRE_NVRTC is 1.
# What is exported for PyTorch is run by PyTorch: without it the tests fail.
test: setup
	@$(with_env) { OPTPIPE_TORCH_PYTHON=$$(.ci/torch) || exit 1; export OPTPIPE_TORCH_PYTHON; \
		if nvrtc=$$(.ci/nvrtc); then export LD_LIBRARY_PATH="$$nvrtc"; fi; cargo test --release --workspace; }

build: setup
	@$(with_env) cargo build --release --workspace

bench: setup
	@$(with_env) cargo bench --workspace

lint: setup
	@$(with_env) cargo fmt --all --check
	@$(with_env) cargo clippy --release --workspace --all-targets -- -D warnings
	@$(with_env) RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

# Lints what only a build for GPUs has, on any machine: nothing of CUDA is needed, nothing is linked.
check-cuda: setup
	@$(with_env) PATH="$(CURDIR)/.ci/stand-in:$$PATH" NVCC="$(CURDIR)/.ci/stand-in/nvcc" CUDA_COMPUTE_CAP=90 \
		cargo clippy --release --workspace --all-targets --features cuda -- -D warnings

setup:
	@.ci/setup
