#!/usr/bin/env bash
#SBATCH --job-name=selfloop
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --requeue
# One process per GPU, on one node or several. Options of sbatch before the script replace those above:
#   bash launch/slurm.sh --prepare            # once, on a machine that can install packages
#   sbatch --nodes=2 launch/slurm.sh --config=configs/hardimagenet.py --workdir=/shared/run
# Two minutes before its time limit the job saves, exits and is queued again, and then resumes;
# REQUEUE=0 leaves that to you: the same command resumes. scancel ends it for good.
repository="${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"  # SLURM runs a copy of this file
source "$repository/launch/env.sh"
if [ "${1:-}" = --prepare ]; then
    ensure_venv requirements.txt requirements/cuda.txt
    exit
fi
if [ -z "${SLURM_NTASKS:-}" ]; then
    echo "error: SLURM_NTASKS is not set: start this script with sbatch" >&2
    exit 2
fi
gpus="${SLURM_GPUS_ON_NODE:-}"
tasks="${SLURM_NTASKS_PER_NODE:-$gpus}"
if [ -n "$gpus" ] && [ "$gpus" != "$tasks" ]; then
    echo "error: --ntasks-per-node=$tasks: must be $gpus, one task for each GPU of a node" >&2
    exit 2
fi
# A task sees its own GPU alone, as number 0. JAX would take the one of the task's number on the node.
export JAX_LOCAL_DEVICE_IDS=0
# Since SLURM 22.05 srun does not take this over from sbatch, and would give each task one core.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-8}"
# Without it a task whose driver fails would train on the CPU. A partition without GPUs has none.
[ -z "$gpus" ] || export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}"
code=0
srun --kill-on-bad-exit=1 "$VENV/bin/python" -m selfloop_jax.main "$@" || code=$?
if [ "$code" -eq 143 ] && [ "${REQUEUE:-1}" != 0 ] && scontrol requeue "$SLURM_JOB_ID"; then
    echo "progress is saved; the job is queued again" >&2
    exit
fi
[ "$code" -eq 0 ] || [ "$code" -eq 2 ] || echo "a process ended with code $code; the same command resumes" >&2
exit "$code"
