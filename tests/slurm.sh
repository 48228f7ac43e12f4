#!/usr/bin/env bash
# A real Slurm of one node on this machine, for tests/workflow/test_slurm.py. Takes root and apt (Debian, Ubuntu).
#
#     tests/slurm.sh start FOLDER    install what is missing, start munged, slurmctld and slurmd; `eval` what it prints
#     tests/slurm.sh stop FOLDER     end what `start` started
#
# No accounting (slurmdbd): a cancelled job then leaves the queue without a word, which our own deadline must meet.
set -euo pipefail
action=${1:?start or stop} folder=${2:?a folder for its state}

install() {
    command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && return
    command -v apt-get >/dev/null || { echo "no apt-get here to install slurm-wlm and munge with" >&2; exit 3; }
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge; } >"$folder/apt.log" 2>&1 ||
        { echo "apt-get could not install slurm-wlm and munge: $(tail -1 "$folder/apt.log")" >&2; exit 3; }
}

configure() {
    mkdir -p "$folder/state" "$folder/spool"
    # ports of its own, so that a Slurm that this machine may be part of is left alone
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MinJobAge=10
KillWait=5
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=8 CoresPerSocket=8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
CONF
}

start() {
    [ "$(id -u)" = 0 ] || { echo "a Slurm can only be started by root" >&2; exit 3; }
    mkdir -p "$folder" && chmod 755 "$folder"
    install
    configure
    dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 2>/dev/null
    chmod 400 "$folder/munge.key"
    # --force: the folder of a test is writable by others; on this machine only root runs here
    munged --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" --pid-file "$folder/munged.pid" \
        --seed-file "$folder/munge.seed" --log-file "$folder/munged.log"
    export SLURM_CONF=$folder/slurm.conf
    slurmctld
    # config_overrides: the node has as many CPUs as we say, not as there are
    slurmd -N "$(hostname -s)"
    for _ in $(seq 60); do
        if sinfo --noheader --format=%T 2>/dev/null | grep -q idle; then
            echo "export SLURM_CONF=$folder/slurm.conf"
            return
        fi
        sleep 1
    done
    echo "Slurm did not become idle: $(tail -2 "$folder/slurmctld.log" "$folder/slurmd.log")" >&2
    exit 1
}

stop() {
    for name in slurmd slurmctld munged; do
        if [ -s "$folder/$name.pid" ]; then kill "$(cat "$folder/$name.pid")" 2>/dev/null || true; fi
    done
}

"$action"
