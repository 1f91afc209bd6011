#!/usr/bin/env bash
# A first run: Lookaround with three replicas on handwritten digits, then one network on the same data.
# Makes an environment in .venv (VENV=DIR: elsewhere), downloads no data, leaves runs/quickstart-*.
#   bash launch/quickstart.sh [key.path=value ...]      values for both trainings
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
export OMP_NUM_THREADS=1 # one thread per process: the ranks already share the cores

echo "== Lookaround: 3 replicas, one augmentation each, averaged every 5 iterations"
NPROC=3 bash launch/torchrun.sh configs/digits/resnet8-lookaround.yaml out=runs/quickstart-lookaround "$@"

echo "== Baseline: 1 network that sees all three augmentations, equal data"
"$python" -m lookaround_ddp train configs/digits/resnet8-sgdm.yaml out=runs/quickstart-sgdm "$@"

"$python" -m lookaround_ddp report runs/quickstart-lookaround runs/quickstart-sgdm \
    --curves runs/quickstart-lookaround/against-sgdm.png
echo "pictures: runs/quickstart-lookaround/curves.png, and against the baseline runs/quickstart-lookaround/against-sgdm.png"
