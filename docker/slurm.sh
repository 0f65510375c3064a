#!/bin/bash
# A sweep on the nodes of one Slurm allocation. otsweep is installed in a shared folder, and its environment active.
#
#   sbatch -N 4 --ntasks-per-node=1 --cpus-per-task=16 docker/slurm.sh mnist mine /shared/folder --trials 200
#   sbatch -N 1 --cpus-per-task=16 --array=1-5 docker/slurm.sh mnist mine /shared/folder
#
# The words are a search space, the sweep's name, its storage, and options of `otsweep run`. An array's tasks are sweeps of
# their own, mine-1 to mine-5, with seeds 1 to 5. Preempted, requeued or sent again, it resumes what is there.
#SBATCH --requeue
#SBATCH --open-mode=append
# A minute before the time is over, so that the epochs in flight are kept.
#SBATCH --signal=B:TERM@60
set -euo pipefail

space=$1 name=$2 storage=$3 cpus=${SLURM_CPUS_PER_TASK:?"give sbatch --cpus-per-task"}
shift 3
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    name=$name-$SLURM_ARRAY_TASK_ID
    set -- --seed "$SLURM_ARRAY_TASK_ID" "$@"
fi
if [ -e "$storage/$name/plan.yaml" ]; then
    set -- resume "$name" --storage "$storage"
else
    set -- run "$space" --name "$name" --storage "$storage" "$@"
fi

# One node needs no cluster: otsweep starts a Ray of its own.
[ "$SLURM_NNODES" -gt 1 ] || exec otsweep "$@"

# Other jobs, of other users too, may share these nodes: ports, a folder and a token of this job's own.
ports=$(python3 -c 'import socket
held = [socket.create_server(("", 0)) for _ in range(4)]
print(*(each.getsockname()[1] for each in held))')
read -r port client agent other_agent <<<"$ports"
RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
folder=$(mktemp -d "${RAY_TMPDIR:-/tmp}/ray-XXXX")
# The address by which the other nodes reach this one; where it has several networks, name another.
address=$(hostname -I | cut -d ' ' -f 1)
export RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_ADDRESS=$address:$port

# On a busy machine a node may give up: Ray lets it half a minute to start.
node() {
    umask 077
    for _ in 1 2 3; do
        ray start --block --disable-usage-stats --min-worker-port=0 --max-worker-port=0 "$@"
    done
}
export -f node
node --head --num-cpus="$cpus" --node-ip-address="$address" --port="$port" --include-dashboard=false \
    --ray-client-server-port="$client" --dashboard-agent-listen-port="$agent" \
    --temp-dir="$folder/ray" >"$folder/head.log" 2>&1 &
until grep -q 'Ray runtime started' "$folder/head.log"; do
    kill -0 $! 2>/dev/null || { cat "$folder/head.log"; exit 1; }
    sleep 1
done
others=$((SLURM_NNODES - 1))
srun -N "$others" -n "$others" -c "$cpus" --exclude="$SLURMD_NODENAME" --output="$folder/others.log" \
    bash -c 'node "$@"' node --address="$RAY_ADDRESS" --num-cpus="$cpus" \
    --dashboard-agent-listen-port="$other_agent" &
# A sweep takes as many slots at once as there are when it starts.
for _ in {1..300}; do
    [ "$(grep -c 'Ray runtime started' "$folder/others.log" 2>/dev/null)" != "$others" ] || break
    sleep 1
done

otsweep "$@" &
sweep=$! status=0
# Slurm may ask this shell alone to end.
trap 'kill -TERM $sweep' TERM
wait $sweep || status=$?
while kill -0 $sweep 2>/dev/null; do
    wait $sweep && status=0 || status=$?
done
# Ray's processes are of this shell's group; without cgroups Slurm would not find them.
trap '' TERM
kill 0
wait || true
rm -rf "$folder" || true
exit "$status"
