#!/usr/bin/env bash
# Lint, format, types and all tests. pytest gets all further arguments:
#   bash launch/test.sh tests/data/test_pool_rules.py
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_venv requirements.txt requirements/dev.txt
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
# Two processes, because most of the time goes to starting and compiling, on one core each. A file
# stays in one process. Files are taken in their order, because the one that takes longest comes early
# in the alphabet.
"$VENV/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
