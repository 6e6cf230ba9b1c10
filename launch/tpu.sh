#!/usr/bin/env bash
# A TPU VM; or a slice of several, with the same command on every worker (gcloud's
# `ssh --worker=all --command`):
#   bash launch/tpu.sh --config=configs/hardimagenet.py --workdir=/shared/run
# Not yet run on a TPU. All workers of a slice must see the folder of --workdir, on a file system with
# locks, such as Filestore: a bucket has none, and is refused. How many workers there are, the program
# asks JAX, which asks the slice.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_venv requirements.txt requirements/tpu.txt
# Without it a machine whose TPU fails would train on the CPU.
export JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}"
exec "$VENV/bin/python" -m selfloop_jax.main "$@"
