#!/usr/bin/env bash
# Trains a config in a container, on all GPUs of this machine.
#   bash launch/docker.sh CONFIG [key.path=value ...]        CONFIG: one of configs/ by its name, or a file of your own
# DATA (default: data) is mounted as /workspace/data, RUNS (default: runs) as /workspace/runs, both from here.
# Several machines: with NNODES, NODE_RANK and HEAD, as launch/torchrun.sh has them. ENGINE names another docker.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -ge 1 ] || { sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}" >&2 && exit 2; }
engine=${ENGINE:-docker} config=$1
shift
shipped=$root/configs/${config%.yaml}.yaml
[ -f "$config" ] || [ ! -f "$shipped" ] || config=$shipped
[ -f "$config" ] || { echo "error: there is no config $config" >&2 && exit 2; }
config=$(realpath "$config")
case $config in # one of the clone's may be based on others there
    "$root"/configs/*) mounted=$root/configs inside=/workspace/configs/${config#"$root"/configs/} ;;
    *) mounted=$(dirname "$config") inside=/workspace/configs/$(basename "$config") ;;
esac
mkdir -p "${RUNS:-runs}" "${DATA:-data}"

"$engine" build --quiet -f "$root/docker/Dockerfile" -t lookaround_ddp ${BASE_IMAGE:+--build-arg "BASE_IMAGE=$BASE_IMAGE"} "$root" >/dev/null
gpus=()
! command -v nvidia-smi >/dev/null || gpus=(--gpus all)
passed=()
for name in NNODES NODE_RANK HEAD PORT NPROC OMP_NUM_THREADS MAX_RESTARTS GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME \
    WANDB_API_KEY; do
    [ -z "${!name:-}" ] || passed+=(--env "$name")
done
# as the owner of the folder that it writes to, not as the image's user, who may not
exec "$engine" run --rm --init --network host --shm-size 8g --stop-timeout 60 "${gpus[@]}" "${passed[@]}" \
    --user "$(stat -c %u:%g "${RUNS:-runs}")" \
    --volume "$(realpath "${DATA:-data}"):/workspace/data:ro" --volume "$(realpath "${RUNS:-runs}"):/workspace/runs" \
    --volume "$mounted:/workspace/configs:ro" lookaround_ddp "$inside" data.root=/workspace/data "$@"
