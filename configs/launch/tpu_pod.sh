#!/bin/bash
# UltraPixel on a TPU pod slice, through a queued resource: v6e-16, 4 hosts of 4 chips.
#
#   PROJECT=… ZONE=… REPOSITORY=https://… CHECKPOINT=gs://… DATA=gs://… RUN=gs://… configs/launch/tpu_pod.sh
#
# The converted checkpoint is copied to each host, and so is the data (to `data.cache_dir`; mount a bucket
# that is larger than the disk). Run it again after a preemption: the same command continues.

set -eu
name=ultrapixel
where="--project=$PROJECT --zone=$ZONE"

# shellcheck disable=SC2086  # several options
gcloud compute tpus queued-resources describe "$name" $where > /dev/null 2>&1 ||
    gcloud compute tpus queued-resources create "$name" --node-id="$name" $where \
        --accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot

until gcloud compute tpus queued-resources describe "$name" $where --format="value(state.state)" | grep -q ACTIVE
do
    sleep 60
done

# All hosts run the same; on a TPU they find one another.
gcloud compute tpus tpu-vm ssh "$name" $where --worker=all --command="
set -eu
test -d ultrapixel || git clone $REPOSITORY ultrapixel
cd ultrapixel
test -d .venv || (python3 -m venv .venv && .venv/bin/pip install -q -e . 'jax[tpu]' gcsfs)
test -d checkpoint || gcloud storage cp -r $CHECKPOINT checkpoint
.venv/bin/python train.py configs/train/guidance.py \
    --sources checkpoint --data.path $DATA --output $RUN \
    --machines.distributed --mesh.fsdp 4 --optimizer.accumulate 4
"
