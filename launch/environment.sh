# shellcheck shell=bash
# Sourced by the scripts beside it: a virtual environment with this package, made once and reused.
# Settings: VENV (default .venv), PYTHON (default python3), EXTRAS (such as [test]).
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
wanted="$(cksum <"$root/pyproject.toml") ${EXTRAS:-}"
if ! grep -qF "$wanted" "$venv/installed" 2>/dev/null; then # with extras is good enough where none are asked for
    [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
    echo "installing lookaround_ddp${EXTRAS:-} and what it needs into $venv (PyTorch is large) ..." >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check --editable "$root${EXTRAS:-}" || exit 1
    echo "$wanted" >"$venv/installed"
fi
# shellcheck disable=SC2034  # for the scripts that source this file
python=$venv/bin/python
