#!/usr/bin/env bash
# A Slurm of one node on this machine, to try and test sweeps on; no systemd, no accounting.
#
#   bash scripts/one_node_slurm.sh start FOLDER          starts it; prints the line to export
#   bash scripts/one_node_slurm.sh restart FOLDER        restarts the controller, with what it remembers
#   bash scripts/one_node_slurm.sh stop FOLDER
#
# Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge. FOLDER holds all that it writes, but for
# munge's socket in /run/munge. A munge that runs already is used as it is.
set -euo pipefail

fail() {
    printf 'one_node_slurm.sh: %s\n' "$*" >&2
    exit 2
}

missing() { # what keeps Slurm from running here, if anything
    local program
    [[ $(id -u) == 0 ]] || { echo "root is needed"; return; }
    for program in slurmctld slurmd scontrol sbatch munged; do
        command -v "$program" >/dev/null || PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null \
            || { echo "$program is missing: apt-get install slurmctld slurmd slurm-client munge"; return; }
    done
}

write_configuration() { # $1: folder
    local host ports
    host="$(hostname -s)"
    # Two free ports, so that it stands beside any other Slurm.
    ports="$(python3 -c 'import socket
found = [socket.socket() for _ in range(2)]
for each in found: each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in found))')"
    mkdir -p "$1/state" "$1/spool"
    cat >"$1/slurm.conf" <<CONF
ClusterName=one_node
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports% *}
SlurmdPort=${ports#* }
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$1/state
SlurmdSpoolDir=$1/spool
SlurmctldLogFile=$1/slurmctld.log
SlurmdLogFile=$1/slurmd.log
SlurmctldPidFile=$1/slurmctld.pid
SlurmdPidFile=$1/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MinJobAge=30
KillWait=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

wait_for() { # $1: seconds, the rest: a command that succeeds in the end
    local left="$1"
    shift
    until "$@" >/dev/null 2>&1; do
        ((left-- > 0)) || return 1
        sleep 1
    done
}

start_munge() { # $1: folder; notes that it was us
    munge -n </dev/null 2>/dev/null | unmunge >/dev/null 2>&1 && return
    mkdir -p /run/munge
    chown munge: /run/munge
    su -s /bin/sh munge -c "$(command -v munged)" || fail "munged does not start; its log is in /var/log/munge"
    touch "$1/munge_is_ours"
    wait_for 10 eval 'munge -n </dev/null | unmunge' || fail "munge does not answer"
}

node_is_idle() {
    [[ $(sinfo --noheader --format=%T) == idle ]]
}

end() { # $1: file with a process's number
    local process
    process="$(cat "$1" 2>/dev/null)" || return 0
    kill "$process" 2>/dev/null || return 0
    wait_for 15 eval "! kill -0 $process 2>/dev/null" || kill -9 "$process" 2>/dev/null || true
}

[[ $# == 2 ]] || fail "call it with start, restart or stop, and a folder"
why="$(missing)"
[[ -z $why ]] || fail "$why"
PATH="$PATH:/usr/sbin:/sbin"
mkdir -p "$2"
folder="$(cd "$2" && pwd)"
export SLURM_CONF="$folder/slurm.conf"
case "$1" in
    start)
        [[ ! -e $folder/slurmctld.pid ]] || fail "$folder has a Slurm already; stop it first"
        start_munge "$folder"
        write_configuration "$folder"
        slurmctld >>"$folder/start.log" 2>&1 && slurmd -N "$(hostname -s)" >>"$folder/start.log" 2>&1 \
            || fail "it does not start; see $folder/start.log"
        wait_for 30 node_is_idle || fail "the node does not come up; see $folder/slurmctld.log and slurmd.log"
        echo "export SLURM_CONF=$SLURM_CONF"
        ;;
    restart)
        end "$folder/slurmctld.pid"
        slurmctld >>"$folder/start.log" 2>&1 || fail "the controller does not start; see $folder/start.log"
        wait_for 30 scontrol ping || fail "the controller does not answer; see $folder/slurmctld.log"
        ;;
    stop)
        scancel --user=root 2>/dev/null || true
        end "$folder/slurmctld.pid"
        end "$folder/slurmd.pid"
        rm -f "$folder/slurmctld.pid" "$folder/slurmd.pid"
        if [[ -e $folder/munge_is_ours ]]; then
            end /run/munge/munged.pid
            rm -f "$folder/munge_is_ours"
        fi
        ;;
    *) fail "unknown: $1; allowed: start, restart, stop" ;;
esac
