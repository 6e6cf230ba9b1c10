#!/usr/bin/env bash
# Lint, format, types and all tests. Further arguments go to pytest: bash launch/test.sh tests/data
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_venv requirements.txt requirements/dev.txt
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
# Two processes: most of the time goes to starting and compiling, on one core each. A file stays in one process,
# and files are taken in their order, since the one that takes longest comes early in the alphabet.
"$VENV/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
