# `make tune` runs the main job, `make test` passes all tests; both set up what is missing first.
SHELL := /bin/bash
JOB ?= configs/jobs/quickstart.yaml
OUT ?= runs/quickstart
with_env = eval "$$(.ci/setup --env)" &&

.PHONY: tune test build bench lint fuzz deny sanitize cuda check-cuda gpu-check setup

# On a machine with an NVIDIA driver it tunes with the build for GPUs; jobs say which backend they take.
tune:
	@if .ci/cuda --wanted; then \
		$(MAKE) --no-print-directory cuda && eval "$$(.ci/cuda --env)" && \
			target/cuda/release/optpipe tune $(JOB) --out $(OUT) --force; \
	else \
		$(MAKE) --no-print-directory build && target/release/optpipe tune $(JOB) --out $(OUT) --force; \
	fi

# Compiling the kernels takes NVRTC. Without it their tests are skipped, unless OPTPIPE_REQUIRE_NVRTC is 1.
# What is exported for PyTorch is run by PyTorch: without it the tests fail.
# PyTorch comes while the tests are built. The report's page is tried in Chromium: without it that test is skipped,
# unless OPTPIPE_REQUIRE_CHROMIUM is 1.
test: setup
	@mkdir -p target
	@$(with_env) { .ci/torch >target/torch-python & torch=$$!; \
		cargo test --release --workspace --no-run || exit 1; wait $$torch || exit 1; \
		OPTPIPE_TORCH_PYTHON=$$(cat target/torch-python); export OPTPIPE_TORCH_PYTHON; \
		if nvrtc=$$(.ci/nvrtc); then export LD_LIBRARY_PATH="$$nvrtc"; fi; \
		if chromium=$$(.ci/chromium); then export OPTPIPE_CHROMIUM="$$chromium"; fi; \
		cargo test --release --workspace; }

build: setup
	@$(with_env) cargo build --release --workspace

bench: setup
	@$(with_env) cargo bench --workspace

lint: setup
	@$(with_env) cargo fmt --all --check
	@$(with_env) cargo clippy --release --workspace --all-targets -- -D warnings
	@$(with_env) RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

# Damages many files of every kind and many problems: readers, exports and solves must hold. About a minute.
FUZZ_CASES ?= 16000
fuzz: setup
	@$(with_env) PROPTEST_CASES=$(FUZZ_CASES) cargo test --release --workspace --test main -- \
		damaged_files_are_refused_or_used changed_problems_are_refused_or_solved

# Licences, sources and advisories of what is built on.
deny:
	@.ci/deny

# The unsafe code that hands out memory under AddressSanitizer, where there is a nightly toolchain.
sanitize:
	@.ci/sanitize

# The build for GPUs, in target/cuda. It needs nvcc, which is installed from PyPI where there is none.
cuda: setup
	@$(with_env) cargo fetch --quiet && cuda=$$(.ci/cuda --env) && eval "$$cuda" && \
		cargo build --release --workspace --features cuda --target-dir target/cuda

# Lints what only a build for GPUs has, on any machine: nothing of CUDA is needed, nothing is linked.
check-cuda: setup
	@$(with_env) PATH="$(CURDIR)/.ci/stand-in:$$PATH" NVCC="$(CURDIR)/.ci/stand-in/nvcc" CUDA_COMPUTE_CAP=90 \
		cargo clippy --release --workspace --all-targets --features cuda -- -D warnings

# Builds for GPUs and checks on one: goals, measurements, verdicts. `make gpu-check RECORD=--record` also keeps the
# machine's calibration and profiles in configs/.
gpu-check: cuda
	@$(with_env) cuda=$$(.ci/cuda --env) && eval "$$cuda" && mkdir -p target/gpu-check && \
		cp target/cuda/release/optpipe target/gpu-check/optpipe && \
		built() { cargo "$$1" --profile release --package "$$2" --features cuda --target-dir target/cuda "$${@:3}" \
			--no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n1; } && \
		cp "$$(built test optpipe-kernels --test kernels)" target/gpu-check/kernels && \
		cp "$$(built bench optpipe-kernels --bench gpu)" target/gpu-check/speed && \
		cp "$$(built test optpipe --lib)" target/gpu-check/runner && .ci/gpu-check target/gpu-check $(RECORD)

setup:
	@.ci/setup
