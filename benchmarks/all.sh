#!/usr/bin/env bash
# The lines behind the tables of docs/performance.md, into a file that begins anew:
#   bash benchmarks/all.sh docs/performance.jsonl peers/bin/python
# On a GPU (not tried yet): PRESETS=cifar PRECISION=bfloat16 DEVICES=1 bash benchmarks/all.sh ...
# The peer's Python has benchmarks/peers/requirements.txt; PYTHON is ours (default .venv/bin/python).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
LINES_FILE="$1"
PEER="$2"
PYTHON="${PYTHON:-.venv/bin/python}"
PRESETS="${PRESETS:-quick,small}"
PRECISION="${PRECISION:-float32}"
DEVICES="${DEVICES:-1,2}"
CONFIG="${CONFIG:-configs/quickstart.py}"

: > "$LINES_FILE"
run() { "$PYTHON" -m "benchmarks.$1" "${@:2}" | tee -a "$LINES_FILE"; }

run compare --peer="$PEER" --presets="$PRESETS" --precision="$PRECISION" --devices="$DEVICES" --rounds="${ROUNDS:-7}"
run speed --presets="$PRESETS" --precision="$PRECISION" --devices="${DEVICES##*,}"
run loop --config="$CONFIG"
run profile --config="$CONFIG"
run devices
