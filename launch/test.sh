#!/usr/bin/env bash
# Runs the tests in an environment with the test extras, and says how long they took.
#   bash launch/test.sh              unit tests, Algorithm 1 on up to 3 ranks, one real training on 2
#   bash launch/test.sh all          every tier: unit, ranks, system
#   bash launch/test.sh TIER         unit, ranks or system alone; cluster: those of SLURM and of several hosts alone
#                                    (as root, on Debian)
# Further arguments go to pytest: bash launch/test.sh all -k resume. Where a machine is busy: TEST_TIMEOUT=1800.
set -euo pipefail
# shellcheck disable=SC2034  # read by environment.sh
EXTRAS="[test]"
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
export OMP_NUM_THREADS=1
unit="not ranks and not system"
tier=${1:-}
case $tier in
all | unit | ranks | system | cluster) shift ;;
*) tier=quick ;;
esac
case $tier in
all) ;;
quick) set -- -m "quick or ($unit)" "$@" ;;
unit) set -- -m "$unit" "$@" ;;
cluster) set -- tests/system/cluster "$@" ;;
*) set -- -m "$tier" "$@" ;;
esac
status=0
"$python" -m pytest "$@" || status=$?
echo "tests: $tier, $SECONDS s, of which some may have gone into installing"
[ "$tier" != quick ] || echo "bash launch/test.sh all runs the rest: many ranks, and whole jobs (resuming, faults, SLURM)"
exit "$status"
