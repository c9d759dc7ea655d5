#!/bin/bash
# `configs/launch/slurm.sh` under a real SLURM that runs here alone, as root: one node, two tasks, CPU devices.
#
#   apt-get install -y slurm-wlm munge
#   STEPS=4000 tests/launch/slurm_here.sh [DIRECTORY]
#
# Two jobs train the tests' stage C on the same data: one that nothing disturbs, and one whose time is up long
# before it is done, so that it is signalled, saves and is queued again. Both logs must have the same losses, to
# the last digit. STEPS are so many that they take more than three minutes, or the second job is done before its
# time is up. Everything listens on 127.0.0.1 and is stopped at the end. What it said is in docs/training.md.

set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
here=${1:-$(mktemp -d)}
mkdir -p "$here"/{state,spool}
here=$(cd "$here" && pwd)
steps=${STEPS:-4000}

export SLURM_CONF=$here/slurm.conf
cat > "$SLURM_CONF" << CONF
ClusterName=here
SlurmctldHost=localhost(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthInfo=socket=$here/munge.socket
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=16 RealMemory=1000 Gres=gpu:2
PartitionName=all Nodes=ALL Default=YES MaxTime=60
CONF
# Two devices that nobody opens count as GPUs, so that the launch file can ask for some.
printf "NodeName=localhost Name=gpu File=%s\n" /dev/null /dev/zero > "$here/gres.conf"

dd if=/dev/urandom of="$here/munge.key" bs=128 count=1 status=none
chmod 700 "$here" "$here/munge.key"
trap 'for name in slurmd slurmctld munge; do kill "$(cat "$here/$name.pid")"; done 2> /dev/null' EXIT
munged --force --key-file="$here/munge.key" --socket="$here/munge.socket" --pid-file="$here/munge.pid" \
    --log-file="$here/munge.log" --seed-file="$here/munge.seed"
slurmctld
slurmd -N localhost
sinfo

export JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1 XLA_FLAGS=--xla_force_host_platform_device_count=1
export PYTHONPATH=$root PATH=$root/.venv/bin:$PATH XDG_CACHE_HOME=$here/cache
export PRESET=tests/training/presets/stage_c.py STEPS=$steps DATA=$here/data CHECKPOINT=$root/ultrapixel_jax/assets/byte_tokenizer
cd "$root"
python -c "
from pathlib import Path
from tests.training.tiny_run import write_latents
write_latents(Path('$DATA'))"

# NAME OPTION…: the launch file, with what is another here.
submit() {
    RUN=$here/$1 sbatch --parsable --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=1 \
        --output="$here/$1.log" "${@:2}" configs/launch/slurm.sh \
        --mesh.fsdp 2 --optimizer.accumulate 1 --checkpoints.every 100000
}

# A job's number: wait for its end.
wait_for() {
    while state=$(squeue --noheader --format=%T --jobs="$1" 2> /dev/null) && [ -n "$state" ]
    do
        [ "$state" = "${said-}" ] || echo "job $1: $state"
        said=$state
        sleep 2
    done
}

for name in undisturbed disturbed
do
    options=(--time=30)
    [ $name = undisturbed ] || options=(--time=4 --signal=TERM@60)
    job=$(submit $name "${options[@]}")
    wait_for "$job"
    grep -hv "^step\|^E0000\|^WARNING" "$here/$name.log"
done

# Losses and norms of every line, without what tells of time.
python - "$here" << 'PYTHON'
import sys
from pathlib import Path
from tests.training.tiny_run import metrics

one, other = (metrics(Path(sys.argv[1]) / name) for name in ("undisturbed", "disturbed"))
assert one == other, "the logs are not the same"
print(f"{len(one)} lines of the log, to step {one[-1]['step']}, loss {one[-1]['loss']}: the same to the last digit")
PYTHON
grep -q "continues after step" "$here/disturbed.log" || { echo "was not disturbed: take more STEPS"; exit 1; }
