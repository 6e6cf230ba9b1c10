#!/usr/bin/env bash
# One machine with one NVIDIA GPU or several: installs JAX for CUDA 12 beside the rest, then runs the program.
#   bash launch/gpu.sh --config=configs/hardimagenet.py --config.parallel.precision=bfloat16
# Not yet run on a GPU. Deterministic operations are asked for, so that bits repeat on the same card and versions;
# --config.parallel.deterministic=False gives that up for speed, and the manifest records it. Compiled programs are
# kept in ~/.cache/selfloop_jax.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_venv requirements.txt requirements/cuda.txt
exec "$VENV/bin/python" -m selfloop_jax.main "$@"
