# shellcheck shell=bash
# Sourced by the scripts beside it: a virtual environment with this package, made once and reused.
# Settings: VENV (default .venv), PYTHON (default python3), EXTRAS (such as [test]).
# An environment that they did not make is used as it is, if it has the package; nothing is installed into it.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac # the scripts go to the clone
[ -z "${VENV:-}" ] || VENV=$venv # for scripts that these call
wanted="$(cksum <"$root/pyproject.toml") ${EXTRAS:-}"
if [ -x "$venv/bin/python" ] && [ ! -e "$venv/installed" ]; then
    "$venv/bin/python" -I -c "import lookaround_ddp" 2>/dev/null || {
        echo "error: $venv is not of these scripts, and has no lookaround_ddp: install it there yourself" \
            "($venv/bin/pip install '$root${EXTRAS:-}'), or name another with VENV=DIR" >&2
        exit 2
    }
elif ! grep -qF "$wanted" "$venv/installed" 2>/dev/null; then # with extras is good enough where none are asked for
    [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
    touch "$venv/installed"
    echo "installing lookaround_ddp${EXTRAS:-} and what it needs into $venv (PyTorch is large) ..." >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check --editable "$root${EXTRAS:-}" || exit 1
    echo "$wanted" >"$venv/installed"
fi
# shellcheck disable=SC2034  # for the scripts that source this file
python=$venv/bin/python
