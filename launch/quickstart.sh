#!/usr/bin/env bash
# A first run: Lookaround with three replicas on handwritten digits, then one network on the same data.
# Makes an environment in .venv (VENV=DIR: elsewhere), downloads no data, leaves runs/quickstart-*.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
export OMP_NUM_THREADS=1 # one thread per process: the ranks already share the cores
common=(channels_last=true evaluate.every=5)

echo "== Lookaround: 3 replicas, one augmentation each, averaged every 5 iterations"
"$python" -m torch.distributed.run --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:0 --local-addr=127.0.0.1 \
    --nproc-per-node=3 -m lookaround_ddp train out=runs/quickstart-lookaround evaluate.replicas=true "${common[@]}"

echo "== Baseline: 1 network that sees all three augmentations, equal data"
"$python" -m lookaround_ddp train out=runs/quickstart-single "replicas=[[crop, rotation, perspective]]" \
    data.workers=1 "${common[@]}"

"$python" -m lookaround_ddp report runs/quickstart-lookaround runs/quickstart-single \
    --curves runs/quickstart-lookaround/against-single.png
echo "curves: runs/quickstart-lookaround/curves.png, and against the baseline: against-single.png"
