#!/usr/bin/env bash
# launch/docker.sh and the image, tried where no docker runs: Debian's buildah builds, its podman runs.
#   bash tests/system/cluster/docker.sh DIR       DIR gets a base system, the image and the runs: 15 GB, some ten minutes
# As root, with Debian's buildah, podman, runc, catatonit, fuse-overlayfs and debootstrap.
# BUILD_OPTIONS are added to those of `buildah bud`, such as volumes with a package index.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}" >&2 && exit 2; }
dir=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export BUILDAH_ISOLATION=chroot CONTAINERS_STORAGE_CONF=$dir/storage.conf
cat >"$CONTAINERS_STORAGE_CONF" <<CONF
[storage]
driver = "overlay"
graphroot = "$dir/storage"
runroot = "$dir/run"
[storage.options.overlay]
mount_program = "/usr/bin/fuse-overlayfs"
CONF
cat >"$dir/engine" <<'ENGINE'
#!/usr/bin/env bash
action=$1
shift
case $action in
    build) # shellcheck disable=SC2086 # several options
        exec buildah bud --layers --network host --ignorefile docker/Dockerfile.dockerignore ${BUILD_OPTIONS:-} "$@" ;;
    *) exec podman --runtime /usr/sbin/runc --cgroup-manager=cgroupfs "$action" \
        --ulimit nofile=1024:1024 --ulimit nproc=4096:4096 "$@" ;;
esac
ENGINE
chmod +x "$dir/engine"

if ! buildah inspect base-system >/dev/null 2>&1; then
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$dir/base" >/dev/null
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$dir/base" / >/dev/null
    buildah commit --quiet --rm "$container" base-system >/dev/null
    rm -rf "$dir/base"
fi

# As a user whom the image does not know: the owner of the folder of the runs
export ENGINE=$dir/engine BASE_IMAGE=localhost/base-system RUNS=$dir/runs DATA=$dir/data NPROC=2
rm -rf "$RUNS" && mkdir -p "$RUNS" && chown 1234:1234 "$RUNS"
train() { bash launch/docker.sh "$dir/digits.yaml" "replicas=[[crop],[rotation]]" "$@"; }
printf 'out: runs/digits\nepochs: 3\n' >"$dir/digits.yaml"

SECONDS=0
train
echo "== built and trained in $SECONDS s; the model belongs to $(stat -c %u "$RUNS/digits/model.safetensors")"
podman images --format '{{.Repository}} {{.Size}}'

train out=runs/stopped epochs=3000 &
until [ -f "$RUNS/stopped/LATEST" ]; do sleep 1; done
podman --cgroup-manager=cgroupfs stop "$(podman ps --quiet --latest)" >/dev/null
wait %1 || true
echo "== stopped: $(cat "$RUNS/stopped/PREEMPTED")"
train out=runs/stopped epochs=3000 average.k=7 && exit 1 || echo "== a mistake: exit status $?"
