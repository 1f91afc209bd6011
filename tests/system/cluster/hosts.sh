#!/usr/bin/env bash
# Several "hosts" on one machine: network namespaces on a bridge, each with an address and a hostname of its own.
#   hosts.sh up N | down N | cut I | mend I
#   hosts.sh slow N RATE         the links of hosts 1 to N carry no more than RATE, such as 1gbit, each way
#   hosts.sh on I COMMAND...     runs COMMAND as host I: 10.77.0.I, hostname nodeI, processes of its own, up for I days
# As root, with Debian's iproute2. Each hostname resolves on every host.
set -euo pipefail
act=$1
shift
case $act in
    up)
        ip netns add la-switch
        ip -n la-switch link set lo up
        ip -n la-switch link add br0 type bridge
        ip -n la-switch link set br0 up
        for i in $(seq "$1"); do
            ip netns add "la-host$i"
            ip -n "la-host$i" link set lo up
            ip link add name eth0 netns "la-host$i" type veth peer name "p$i" netns la-switch
            ip -n la-switch link set "p$i" master br0 up
            ip -n "la-host$i" addr add "10.77.0.$i/24" dev eth0
            ip -n "la-host$i" link set eth0 up
            mkdir -p "/etc/netns/la-host$i"
            {
                echo "127.0.0.1 localhost"
                for j in $(seq "$1"); do echo "10.77.0.$j node$j"; done
            } >"/etc/netns/la-host$i/hosts"
        done
        ;;
    down)
        for i in $(seq "$1"); do
            ip netns del "la-host$i" || true
            rm -rf "/etc/netns/la-host$i"
        done
        ip netns del la-switch || true
        ;;
    slow)
        for i in $(seq "$1"); do
            tc -n "la-host$i" qdisc replace dev eth0 root tbf rate "$2" burst 256kb latency 50ms
            tc -n la-switch qdisc replace dev "p$i" root tbf rate "$2" burst 256kb latency 50ms
        done
        ;;
    cut) ip -n la-switch link set "p$1" down ;;
    mend) ip -n la-switch link set "p$1" up ;;
    on)
        i=$1
        shift
        since=$((i * 86400)) # no two hosts' clocks agree
        exec ip netns exec "la-host$i" unshare --uts --time --monotonic "$since" --boottime "$since" \
            --pid --fork --mount-proc --kill-child bash -c "hostname node$i; exec \"\$@\"" _ "$@"
        ;;
    *) echo "error: $act?" >&2 && exit 2 ;;
esac
