#!/bin/bash
# UltraPixel on a SLURM cluster: 2 nodes of 8 GPUs, one process for each GPU.
#
#   CHECKPOINT=… DATA=… RUN=… sbatch --export=ALL configs/launch/slurm.sh [OPTION…]
#
# The three directories lie on a file system that all nodes see; the options are train.py's. When the time is up
# or the job is preempted, the run saves; the job is queued again until all steps are done.
# `tests/launch/slurm_here.sh` runs this file under a SLURM of its own.

#SBATCH --job-name=ultrapixel
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ultrapixel-%j.log

set -eu
preset=${PRESET:-configs/train/guidance.py}
steps=${STEPS:-15000}

# SLURM tells jax the processes and their GPUs. No --gpus-per-task: each process has to see all of a node.
srun --kill-on-bad-exit=1 python train.py "$preset" \
    --sources "$CHECKPOINT" --data.path "$DATA" --output "$RUN" --steps "$steps" \
    --machines.distributed --mesh.fsdp 8 --optimizer.accumulate 4 "$@"

# Only a run that ended without an error comes here: done, or stopped by the signal above.
grep -qs "\"step\": $steps," "$RUN/metrics.jsonl" || scontrol requeue "$SLURM_JOB_ID"
