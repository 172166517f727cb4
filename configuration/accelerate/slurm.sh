#!/bin/bash
# Pre-training on several machines under SLURM, as long as it takes: a minute before the time limit the processes write
# a checkpoint, the job is put back into the queue, and it goes on from there. Submit it from this repository's folder;
# the words after the script are those of run_pretrain.py. All machines must see this folder, .venv and output_dir.
#
#   sbatch configuration/accelerate/slurm.sh pretrain_imagenet_base --output_dir runs/large
#   sbatch --nodes 4 --time 24:00:00 configuration/accelerate/slurm.sh own_images --train_dir my_images
#
#SBATCH --job-name=mae
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

export FIRST GPUS
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
GPUS=$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-8}))

# Only this shell gets the signal (B:). It ends the launchers by SIGTERM, and they wait for their processes.
stopped=
trap 'stopped=yes; kill -TERM "$step"' USR1

# Each machine finds its own number in SLURM_NODEID.
srun bash -c 'exec .venv/bin/accelerate launch --config_file configuration/accelerate/multi_machine.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$GPUS" --main_process_ip "$FIRST" --machine_rank "$SLURM_NODEID" \
    run_pretrain.py "$@" --resume_from_checkpoint auto' mae "$@" &
step=$!
wait "$step"
code=$?
if [ -n "$stopped" ]; then
    wait "$step" # the signal has interrupted the first one
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
