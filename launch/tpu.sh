#!/usr/bin/env bash
# A TPU VM; or a slice of several, with the same command on every worker (gcloud's
# `ssh --worker=all --command`):
#   bash launch/tpu.sh --config=configs/hardimagenet.py --workdir=/shared/run
# Not yet run on a TPU. All workers of a slice must see the folder of --workdir.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_venv requirements.txt requirements/tpu.txt
IFS=, read -r -a workers <<< "${TPU_WORKER_HOSTNAMES:-localhost}"
exec "$VENV/bin/python" -m selfloop_jax.main "$@" "--config.parallel.processes=${#workers[@]}"
