#!/usr/bin/env bash
# A throw-away SLURM cluster on one machine, without systemd and cgroups: several slurmd with ports of their own.
#   slurm.sh up DIR [NODES]     then: export SLURM_CONF=DIR/slurm.conf
#   slurm.sh down DIR
# As root, with Debian's slurm-wlm and munge.
set -euo pipefail
act=$1
dir=$(mkdir -p "$2" && cd "$2" && pwd)
export SLURM_CONF=$dir/slurm.conf

if [ "$act" = down ]; then
    scancel --user=root --quiet || true
    for file in "$dir"/*.pid "$dir"/munge.run/*.pid; do
        [ ! -f "$file" ] || kill "$(cat "$file")" 2>/dev/null || true
    done
    exit 0
fi

nodes=${3:-3} host=$(hostname -s)
mkdir -p "$dir"/{state,log,munge,munge.run}
[ -s "$dir/munge/key" ] || dd if=/dev/urandom of="$dir/munge/key" bs=1024 count=1 status=none
chmod 700 "$dir/munge"
chmod 400 "$dir/munge/key"
chmod 755 "$dir/munge.run"
munged --force --key-file="$dir/munge/key" --socket="$dir/munge.run/socket" --seed-file="$dir/munge/seed" \
    --pid-file="$dir/munge.run/munged.pid" --log-file="$dir/munge.run/munged.log"

# cred_expire: a requeued job waits for it before it starts again
cat >"$SLURM_CONF" <<CONF
ClusterName=throwaway
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.run/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=16817
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=20
JobRequeue=1
OverTimeLimit=0
SlurmdParameters=config_overrides
GresTypes=gpu
CONF
# two devices on each node that only look like GPUs, for what SLURM tells jobs and tasks of theirs
for i in 0 1; do [ -e "$dir/gpu$i" ] || mknod "$dir/gpu$i" c 1 3; done
echo "NodeName=node[1-$nodes] Name=gpu File=$dir/gpu[0-1]" >"$dir/gres.conf"
for i in $(seq "$nodes"); do
    mkdir -p "$dir/spool.node$i"
    echo "NodeName=node$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((17000 + i)) CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN"
done >>"$SLURM_CONF"
echo "PartitionName=debug Nodes=node[1-$nodes] Default=YES MaxTime=INFINITE State=UP" >>"$SLURM_CONF"

slurmctld -c -f "$SLURM_CONF"
{
    cat /etc/hosts
    for i in $(seq "$nodes"); do echo "127.0.0.1 node$i"; done
} >"$dir/hosts"
for i in $(seq "$nodes"); do # the nodes' names resolve on the nodes alone
    unshare -m --propagation private bash -c "mount --bind '$dir/hosts' /etc/hosts && exec slurmd -N node$i -f '$SLURM_CONF'"
done
for _ in $(seq 60); do
    [ "$(sinfo -h -t idle -o %D 2>/dev/null || true)" = "$nodes" ] && exit 0
    sleep 0.5
done
echo "error: the nodes did not come up; see $dir/log" >&2
exit 1
