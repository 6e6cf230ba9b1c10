#!/usr/bin/env bash
# A SLURM of one node on this machine, for tests; as root, with Debian's slurm-wlm and munge:
#   bash tests/slurm/cluster.sh FOLDER      # then, elsewhere: export SLURM_CONF=FOLDER/slurm.conf
# Everything it writes lies in FOLDER. It says "ready" once jobs can be submitted, and stops all
# daemons and jobs when its input ends, at SIGTERM, or after 20 minutes.
set -euo pipefail
folder="$(realpath "$1")"
host="$(hostname -s)"
mkdir -p "$folder"/{state,spool,munge}
chmod 0755 "$folder" "$folder"/munge  # munged refuses others
head -c 1024 /dev/urandom > "$folder/munge/key"
chmod 0400 "$folder/munge/key"
free_ports='
import socket
all = [socket.socket() for _ in range(2)]
for each in all: each.bind(("", 0))
print(*(each.getsockname()[1] for each in all))'
read -r controller node <<< "$(python3 -c "$free_ports")"
cat > "$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(localhost)
SlurmctldPort=$controller
SlurmdPort=$node
SlurmUser=root
AuthType=auth/munge
# A job that is queued again waits until its old credentials have expired: 2 minutes by default.
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
NodeName=$host NodeAddr=localhost CPUs=8 State=UNKNOWN
PartitionName=test Nodes=$host Default=YES State=UP
CONF
export SLURM_CONF="$folder/slurm.conf"
stop() {
    trap - EXIT TERM INT
    scancel --quiet --user=root --signal=KILL 2> /dev/null || true
    for job in $(jobs -p); do kill "$job" 2> /dev/null || true; done
    wait
}
trap stop EXIT
trap exit TERM INT
timeout 1200 munged --foreground --force --key-file="$folder/munge/key" --num-threads=1 \
    --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" \
    --seed-file="$folder/munge/seed" 2> "$folder/munge/said" &
for _ in $(seq 100); do [ -S "$folder/munge/socket" ] && break; sleep 0.1; done
timeout 1200 slurmctld -D > /dev/null 2>&1 &
timeout 1200 slurmd -D -N "$host" > /dev/null 2>&1 &
for _ in $(seq 300); do
    if [ "$(sinfo --noheader --format=%T 2> /dev/null)" = idle ]; then
        echo ready
        read -r -t 1200 || true
        exit
    fi
    sleep 0.2
done
echo "error: no node came up within a minute: see $folder/*.log" >&2
exit 1
