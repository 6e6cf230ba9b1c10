#!/usr/bin/env bash
# One machine with one or several NVIDIA GPUs: installs JAX for CUDA 12, then runs the program.
#   bash launch/gpu.sh --config=configs/hardimagenet.py
# The program has run on one NVIDIA H200 (docs/performance.md), this script not yet. Operations are
# deterministic, so bits repeat on the same card and versions; --config.parallel.deterministic=False
# gives that up for speed, and the manifest records it. Compiled programs stay in
# ~/.cache/selfloop_jax.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_venv requirements.txt requirements/cuda.txt
# Without it a machine whose driver fails would train on the CPU.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}"
exec "$VENV/bin/python" -m selfloop_jax.main "$@"
