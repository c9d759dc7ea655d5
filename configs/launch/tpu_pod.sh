#!/bin/bash
# UltraPixel on a TPU pod slice, through a queued resource: v6e-16, 4 hosts of 4 chips.
#
#   PROJECT=… ZONE=… REPOSITORY=https://… CHECKPOINT=gs://… DATA=gs://… RUN=gs://… configs/launch/tpu_pod.sh
#
# The converted checkpoint is copied to each host, and so is the data (to `data.cache_dir`; mount a bucket
# that is larger than the disk). Run it again after a preemption: the same command makes a new slice in place of
# the one that was taken away, and continues.

set -eu
name=ultrapixel
where=("--project=$PROJECT" "--zone=$ZONE")
queue() { gcloud compute tpus queued-resources "$1" "$name" "${where[@]}" "${@:2}"; }

failures=0
said=
while true
do
    if ! state=$(queue describe --format="value(state.state)" 2>&1)
    then
        case $state in *NOT_FOUND*) failures=0 state=ABSENT ;; *) failures=$((failures + 1)) ;; esac
    fi
    [ "$state" = "$said" ] || echo "queued resource $name: $state" >&2
    said=$state
    case $state in
        ACTIVE) break ;;
        ABSENT)
            queue create --node-id="$name" --accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot
            continue ;;
        SUSPENDED) # a preempted slice does not come back
            queue delete --force --quiet
            continue ;;
        FAILED)
            queue describe --format="yaml(state)" >&2
            echo "error: no slice came; when the reason is mended: gcloud compute tpus queued-resources delete" \
                "$name ${where[*]} --force, then run this again" >&2
            exit 1 ;;
        *) [ $failures -lt 10 ] || exit 1 ;; # on its way in or out, or the answer did not come
    esac
    sleep 60
done

# All hosts run the same; on a TPU they find one another. What is there under its own name is whole.
gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="
set -eu
if ! test -d ultrapixel
then
    rm -rf ultrapixel.partial
    git clone $REPOSITORY ultrapixel.partial
    mv ultrapixel.partial ultrapixel
fi
cd ultrapixel
if ! test -e .venv/installed
then
    rm -rf .venv
    python3 -m venv .venv
    .venv/bin/pip install -q -e '.[gcs]' 'jax[tpu]'
    touch .venv/installed
fi
if ! test -d checkpoint
then
    rm -rf checkpoint.partial
    gcloud storage cp -r $CHECKPOINT checkpoint.partial
    mv checkpoint.partial checkpoint
fi
.venv/bin/python train.py configs/train/guidance.py \
    --sources checkpoint --data.path $DATA --output $RUN \
    --machines.distributed --mesh.fsdp 4 --optimizer.accumulate 4
"
