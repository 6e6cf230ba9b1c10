#!/usr/bin/env bash
# Four generations on real digits, then the report. The program gets all further arguments:
#   bash launch/quickstart.sh --config.seed=1 --workdir=runs/seed1
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_venv requirements.txt
started=$SECONDS
"$VENV/bin/python" -m selfloop_jax.main --config=configs/quickstart.py "$@"
echo "run time: $((SECONDS - started)) s"
