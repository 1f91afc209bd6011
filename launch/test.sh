#!/usr/bin/env bash
# Runs the tests in an environment with the test extras; arguments go to pytest.
#   bash launch/test.sh cluster      those on a small SLURM cluster and on several hosts alone (as root, on Debian)
set -euo pipefail
# shellcheck disable=SC2034  # read by environment.sh
EXTRAS="[test]"
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
export OMP_NUM_THREADS=1
[ "${1:-}" != cluster ] || set -- tests/cluster "${@:2}"
exec "$python" -m pytest "$@"
