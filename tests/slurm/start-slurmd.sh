#!/bin/bash
# start-slurmd.sh DIR NODE   Start the daemon of one node of the cluster in DIR (it goes to the background, pid in DIR/pids).
# As root every node has mounts of its own: DIR/scratch, its own small disk; DIR/pmix and /dev/shm, in which nodes that share
# one host would collide (multi-node srun --mpi=pmix, OpenMPI's shared memory).
set -euo pipefail
DIR=${1:?usage: start-slurmd.sh DIR NODE} NODE=${2:?usage: start-slurmd.sh DIR NODE}
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$DIR/slurm.conf
mkdir -p "$DIR/state/slurmd-$NODE"
if [ "$(id -u)" = 0 ] && unshare -m true 2>/dev/null; then
  exec unshare -m --propagation private bash -c '
    for at in "$0/pmix" /dev/shm; do mount -t tmpfs tmpfs "$at" && chmod 1777 "$at" || exit; done
    mount -t tmpfs -o size=32m tmpfs "$0/scratch" && chmod 1777 "$0/scratch" || exit
    exec slurmd -f "$0/slurm.conf" -N "$1"' "$DIR" "$NODE"
fi
exec slurmd -f "$DIR/slurm.conf" -N "$NODE"
