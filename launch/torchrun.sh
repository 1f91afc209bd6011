#!/usr/bin/env bash
# Trains a config on all of this machine's GPUs that its replicas can share, or on the CPU.
#   bash launch/torchrun.sh CONFIG [key.path=value ...]
# On several machines, the same command on each of them, with
#   NNODES=3 NODE_RANK=0 HEAD=host0 (NODE_RANK from 0 on; HEAD is the host of node 0; PORT there, default 29400)
# Also read: NPROC (processes for each node; default: chosen), MAX_RESTARTS (default 3), OMP_NUM_THREADS (default 1).
# SIGTERM, SIGUSR1 and Ctrl-C: the ranks save and leave, and the run folder has a file PREEMPTED.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
[ $# -ge 1 ] || { sed -n '2,8s/^# //p' "${BASH_SOURCE[0]}" >&2 && exit 2; }
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# without it, ranks that were restarted mostly read stale addresses from the store (torch 2.14)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}" # a lost connection is told in a line, not in 30 frames
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}" # to save after a signal; 30 by default
nodes=${NNODES:-1}

# A torchrun whose ranks have ended, and that does not reach the head's store, would wait for it for minutes.
leave_when_cut_off() {
    local torchrun=$1 ranks='' missed=0 children=() child running
    trap '' TERM INT USR1
    while sleep 2 && kill -0 "$torchrun" 2>/dev/null; do
        running=0
        read -ra children <"/proc/$torchrun/task/$torchrun/children" || true # of one line without an end
        for child in "${children[@]}"; do
            [ "$child" -ne $BASHPID ] || continue # this watch
            [[ $(cat "/proc/$child/stat" 2>/dev/null || true) = *") Z "* ]] || running=$((running + 1))
        done
        [ $running -lt 1 ] || ranks=started
        if [ -z "$ranks" ] || [ $running -ge 1 ] || timeout 3 bash -c "</dev/tcp/$HEAD/${PORT:-29400}" 2>/dev/null; then
            missed=0
        elif [ $((missed += 1)) -ge 6 ]; then
            echo "error: $HEAD cannot be reached at port ${PORT:-29400}: start this node again when it can" >&2
            kill -KILL "$torchrun"
        fi
    done
}

chosen=$("$python" -m lookaround_ddp processes --nodes "$nodes" "$@")
signals=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
options=(--rdzv-backend=c10d --nnodes="$nodes" --nproc-per-node="${NPROC:-${chosen%% *}}"
    --max-restarts="${MAX_RESTARTS:-3}" --signals-to-handle="$signals")
if [ "$nodes" -eq 1 ]; then # not --standalone, which hangs where the host's own name does not resolve
    options+=(--rdzv-endpoint=127.0.0.1:0 --local-addr=127.0.0.1)
else
    : "${NODE_RANK:?is not set: it counts the nodes from 0 on}" "${HEAD:?is not set: it names the host of node 0}"
    if [ "$NODE_RANK" -eq 0 ] && timeout 3 bash -c "</dev/tcp/$HEAD/${PORT:-29400}" 2>/dev/null; then
        echo "error: port ${PORT:-29400} of $HEAD is in use, perhaps by another training: set PORT on all nodes" >&2
        exit 2
    fi
    # the address and the interface that lead to the head, since a host's own name may mean 127.0.1.1
    way=$("$python" -m lookaround_ddp.distributed.network "$HEAD")
    read -r address interface <<<"$way"
    export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$interface}" NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-$interface}"
    export LOOKAROUND_NODES=$nodes
    options+=(--rdzv-endpoint="$HEAD:${PORT:-29400}" --rdzv-id="${RDZV_ID:-lookaround}" --local-addr="$address"
        --rdzv-conf="is_host=$([ "$NODE_RANK" -eq 0 ] && echo true || echo false)")
    [ "$NODE_RANK" -eq 0 ] || [ $$ -eq 1 ] || [ -t 0 ] || leave_when_cut_off $$ &
fi
command=("$python" -m torch.distributed.run "${options[@]}" -m lookaround_ddp train "$@")
[ $$ -eq 1 ] || [ -t 0 ] || exec "${command[@]}"

# The first process of a container, which nothing in there can kill; and a terminal's, to hear of a second Ctrl-C, which
# torchrun keeps to itself: it makes the ranks leave at once.
"${command[@]}" &
torchrun=$! interrupts=0
# shellcheck disable=SC2317 # a trap calls it
interrupt() {
    local ranks=()
    read -ra ranks <"/proc/$torchrun/task/$torchrun/children" || true
    if [ ${#ranks[@]} -eq 0 ]; then
        kill -TERM "$torchrun" # it still starts
    elif [ $((interrupts += 1)) -gt 1 ]; then
        kill -INT "${ranks[@]}" 2>/dev/null || true
    elif [ ! -t 0 ]; then # a terminal tells it itself
        kill -INT "$torchrun"
    fi
}
trap interrupt INT
for signal in TERM HUP QUIT USR1; do
    # shellcheck disable=SC2064 # this signal, now
    trap "kill -$signal $torchrun" "$signal"
done
[ "$nodes" -eq 1 ] || [ "$NODE_RANK" -eq 0 ] || leave_when_cut_off $torchrun &
status=0
while kill -0 "$torchrun" 2>/dev/null; do
    wait "$torchrun" && status=0 || status=$? # returns early when a signal comes
done
exit "$status"
