#!/usr/bin/env bash
# Lint, format and all tests. Further arguments go to pytest: bash launch/test.sh tests/test_pool.py
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_venv requirements.txt requirements/dev.txt
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/python" -m pytest "$@"
