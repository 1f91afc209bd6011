#!/usr/bin/env bash
# Runs the tests in an environment with the test extras, and says how long they took.
#   bash launch/test.sh         unit tests, Algorithm 1 on up to 3 ranks, one real training on 2: 97 s on 2 cores
#   bash launch/test.sh all     every tier
#   bash launch/test.sh TIER    unit, ranks (several ranks), system (whole jobs), or cluster (SLURM, several hosts, faults;
#                               as root, on Debian)
# Three files are tested at a time (-n 0: one), since most tests wait. Further arguments go to pytest: bash launch/test.sh
# all -k resume. Where a machine is busy: TEST_TIMEOUT=1800.
set -euo pipefail
# shellcheck disable=SC2034  # read by environment.sh
EXTRAS="[test]"
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
export OMP_NUM_THREADS=1
tier=quick
case ${1:-} in
all | unit | ranks | system | cluster) tier=$1 && shift ;;
esac
case $tier in
all) ;;
quick) set -- -m "quick or unit" "$@" ;;
*) set -- -m "$tier" "$@" ;;
esac
# those of clusters start many processes each, and run beside the others in .ci/run
files=3
[ "$tier" != cluster ] || files=2
status=0 began=$SECONDS
"$python" -m pytest -n "$files" --dist loadfile --no-loadscope-reorder "$@" || status=$?
echo "tests: $tier, $((SECONDS - began)) s"
[ "$tier" != quick ] || echo "bash launch/test.sh all runs the rest: many ranks, whole jobs, SLURM and several hosts"
exit "$status"
