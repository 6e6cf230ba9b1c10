#!/usr/bin/env bash
#SBATCH --job-name=selfloop
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
# One process per GPU, on one node or several. Options of sbatch before the script replace those above:
#   bash launch/slurm.sh --prepare            # once, on a machine that can install packages
#   sbatch --nodes=2 launch/slurm.sh --config=configs/hardimagenet.py --workdir=/shared/run
# Two minutes before its time limit the job saves and exits; the same command resumes it.
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
code=0
srun --kill-on-bad-exit=1 "$VENV/bin/python" -m selfloop_jax.main "$@" \
    "--config.parallel.processes=$SLURM_NTASKS" || code=$?
[ "$code" -eq 0 ] || [ "$code" -eq 2 ] || echo "a process ended with code $code; the same command resumes" >&2
exit "$code"
