#!/usr/bin/env bash
#SBATCH --job-name=fixpo
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
#SBATCH --signal=B:USR1@120
#
# An example: trains in an Apptainer container on a Slurm cluster, as long as it takes, in jobs of a few hours.
#
#   sbatch docker/slurm_apptainer.sh --env=dmlab_30_rooms_collect_good_objects --experiment=rooms
#
# 120 s before the time limit, and when the job is preempted, the training program is told; it saves, and ends with exit status 75.
# The job then goes back into the queue and takes up the run from its checkpoint. Any other exit status is the job's own.
#
# SIF      the image (sf_fixpo.sif)
# RUNS     folder for train_dir, on a file system that all nodes see (the folder of the job)
# SCRATCH  folder on the node's own disk for temporary files (TMPDIR, or else /tmp)
# APPTAINER (apptainer) and MAX_REQUEUES (1000) may be set too. Keys: WANDB_API_KEY and HF_TOKEN of the submitting shell, or
# WANDB_API_KEY_FILE and HF_TOKEN_FILE, paths of files in RUNS.
set -euo pipefail

sif="${SIF:-sf_fixpo.sif}"
runs="${RUNS:-${SLURM_SUBMIT_DIR:-$PWD}}"
scratch="${SCRATCH:-${TMPDIR:-/tmp}}"
if [ "$#" -eq 0 ]; then
    echo "slurm_apptainer.sh: give the flags of the training program, such as --env=NAME" >&2
    exit 2
fi
for path in "$sif" "$runs" "$scratch"; do
    if [ ! -e "$path" ]; then
        echo "slurm_apptainer.sh: $path is not there (SIF, RUNS and SCRATCH say where to look)" >&2
        exit 2
    fi
done
gpu=()
if [ -n "${SLURM_JOB_GPUS:-${CUDA_VISIBLE_DEVICES:-}}" ]; then
    gpu=(--nv)
fi

# Secrets go by environment, never by a command line, which everybody on the node may read.
for name in WANDB_API_KEY WANDB_API_KEY_FILE HF_TOKEN HF_TOKEN_FILE; do
    if [ -n "${!name:-}" ]; then
        export "APPTAINERENV_$name=${!name}"
    fi
done

# Environment and home of the image, not of the node: a package in ~/.local must not replace one of the image. /dev/shm is the
# node's. Apptainer passes signals on to what it runs, and the entry point gives its place to the training program.
"${APPTAINER:-apptainer}" exec --cleanenv --home "$scratch:/home/fixpo" "${gpu[@]}" \
    --bind "$runs:/runs" --bind "$scratch:/tmp" --pwd /runs \
    --env "OMP_NUM_THREADS=1,WANDB_MODE=${WANDB_MODE:-offline}" \
    "$sif" fixpo train --num_workers="${SLURM_CPUS_PER_TASK:-2}" "$@" &
child=$!
trap 'kill -USR1 "$child" 2>/dev/null || true' USR1 TERM

# a signal ends the first `wait`; what counts is the exit status of the program
status=0
wait "$child" || status=$?
while kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
done

if [ "$status" -eq 75 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_REQUEUES:-1000}" ]; then
        echo "slurm_apptainer.sh: saved, and not queued again: MAX_REQUEUES=${MAX_REQUEUES:-1000}" >&2
    else
        echo "slurm_apptainer.sh: saved; job $SLURM_JOB_ID goes back into the queue" >&2
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$status"
