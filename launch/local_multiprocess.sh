#!/usr/bin/env bash
# N processes on this machine make one run together, to try out what several hosts do:
#   bash launch/local_multiprocess.sh 2 --config=configs/quickstart.py \
#     --config.parallel.cpu_devices=1
# PORT is the port of the coordinator (default: a free one).
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
if ! [[ "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
    echo "error: N = ${1:-}: must be a whole number from 1, as in: bash launch/local_multiprocess.sh N --config=..." >&2
    exit 2
fi
processes="$1"
shift
ensure_venv requirements.txt
free_port='import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'
export JAX_COORDINATOR_ADDRESS="localhost:${PORT:-$("$VENV/bin/python" -c "$free_port")}"
export JAX_NUM_PROCESSES="$processes"
started=()
for ((i = 0; i < processes; i++)); do
    JAX_PROCESS_ID="$i" "$VENV/bin/python" -m selfloop_jax.main "$@" &
    started+=($!)
done
trap 'kill -TERM "${started[@]}" 2> /dev/null || true' TERM INT
code=0
for process in "${started[@]}"; do
    status=0
    wait "$process" || status=$?
    while [ "$status" -gt 128 ] && kill -0 "$process" 2> /dev/null; do  # a signal to this script ended the wait
        status=0
        wait "$process" || status=$?
    done
    [ "$code" -ne 0 ] || code="$status"
done
[ "$code" -eq 0 ] || [ "$code" -eq 2 ] || echo "a process ended with code $code; the same command resumes" >&2
exit "$code"
