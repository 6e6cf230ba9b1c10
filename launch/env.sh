# The other launch scripts source this file. It makes the repository's own .venv once, and updates it
# when the requirements change. PYTHON names the interpreter (default python3), VENV the folder (default
# .venv in the repository).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
VENV="${VENV:-.venv}"

ensure_venv() {  # ensure_venv REQUIREMENTS_FILE...
    local version lock stamp wanted
    version="$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: $PYTHON is Python $version: must be 3.11 or later (set PYTHON=...)" >&2
        exit 2
    fi
    lock=requirements/lock-3.12.txt
    [ "$version" = 3.11 ] && lock=requirements/lock-3.11.txt
    stamp="$VENV/.installed-$(basename "${*: -1}")"
    wanted="$version $(cat "$@" "$lock" | sha256sum)"
    if [ ! -e "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        echo "installing into $VENV (Python $version, versions of $lock)" >&2
        [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
        local arguments=()
        for file in "$@"; do arguments+=(-r "$file"); done
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
            "${arguments[@]}" -c "$lock"
        echo "$wanted" > "$stamp"
    fi
}
