#!/usr/bin/env bash
# cluster.sh: a real multi-node Slurm cluster on one Linux machine, for tests.
#
#   cluster.sh up                 start it (nothing to do when it is healthy); returns when every node is idle
#   cluster.sh down               stop everything this script started
#   cluster.sh status             one line per daemon and node; exit 0 only if all is healthy
#   cluster.sh env                print the shell lines that point sbatch, srun, squeue... at this cluster
#   cluster.sh run CMD...         run CMD on the submit host (this machine) with SLURM_CONF and node names set
#   cluster.sh exec NODE CMD...   run CMD on a node
#   cluster.sh crash NODE [down]  kill the node at once and silently: network, slurmd, job steps, everything;
#                                  down: also set it DOWN in slurmctld, which otherwise waits for its timeouts
#   cluster.sh boot NODE          start a crashed node again
#   cluster.sh link NODE up|down  plug in / pull out the node's network cable
#   cluster.sh bridge             print the name of the bridge that joins the nodes on this machine
#   cluster.sh slurmd NODE kill|start   kill -9 only the node's slurmd (its job steps live on) / start it again
#
# Each node is a set of Linux namespaces (network, host name, pids, mounts, ipc) holding one slurmd, so nodes
# have their own host names, addresses and ports; they share this machine's file system (except /dev/shm, and
# what SLURM_UP_PRIVATE names). No cgroups, no systemd, no accounting database. Must run as root.
#
# Settings, all from the environment (read by `up`, which saves them for the other sub-commands):
#   SLURM_UP_DIR       state directory: configuration, key, logs, spool, sockets   (default /tmp/fmfsd-slurm)
#   SLURM_UP_NODES     number of nodes, named n1, n2, ...                          (3)
#   SLURM_UP_CPUS      CPUs each node claims (need not exist)                      (8)
#   SLURM_UP_MEM       MiB of memory each node claims (need not exist)             (64000)
#   SLURM_UP_GPUS      GPUs each node claims (fakes: links to /dev/null); 0=none  (4)
#   SLURM_UP_GPU_TYPE  type of these GPUs, as a100                                (none)
#   SLURM_UP_TIMEOUT   SlurmdTimeout: seconds until a silent node is DOWN          (10)
#   SLURM_UP_MESSAGE   MessageTimeout: seconds Slurm waits for an answer; a crash is noticed after about
#                      TIMEOUT + 2 x MESSAGE seconds; too low = false alarms under load       (5)
#   SLURM_UP_KILLWAIT  KillWait: seconds from SIGTERM to SIGKILL                   (5)
#   SLURM_UP_REQUEUE   cred_expire: seconds before a requeued job may start again  (5; Slurm's own default is 120)
#   SLURM_UP_SSHD      1: sshd on every node, passwordless among nodes and `run`   (0)
#   SLURM_UP_CGROUP    track job processes by cgroup (v1 freezer), as real clusters do: yes, no, auto  (auto)
#                      without it, a process whose parent dies escapes scancel until its step ends
#   SLURM_UP_PRIVATE   directories private (empty, in memory) on each node, e.g. "/tmp/ray /var/tmp"  (none)
#   SLURM_UP_EXTRA     more lines for slurm.conf                                   (none)
#   SLURM_UP_MODE      netns, flat (no namespaces: every node is this host), auto  (auto)
#   SLURM_UP_NET       first three numbers of the nodes' /24 network               (from the state directory's name)
#   SLURM_UP_WAIT      seconds `up` waits for the nodes                            (30)
# shellcheck disable=SC1091,SC2010,SC2015,SC2016,SC2044,SC2086,SC2154
# (files that exist only while a cluster runs; our own names without spaces; text that other shells expand)
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

D=${SLURM_UP_DIR:-/tmp/fmfsd-slurm}
die() { echo "cluster: error: $*" >&2; exit 1; }
info() { echo "cluster: $*"; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }

# ---- processes: identified by outer pid and start time, so that a reused pid is never mistaken for ours -------------
starttime() { local s; s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; s=${s##*) }; set -- $s; [ "$1" != Z ] && [ "$1" != X ] && echo "${20}"; }
remember()  { local t; t=$(starttime "$2") || return 1; echo "$2 $t" >"$D/pids/$1"; }
alive()     { local p t; [ -r "$D/pids/$1" ] && read -r p t <"$D/pids/$1" && [ "$(starttime "$p")" = "$t" ]; }
pid_of()    { local p t; alive "$1" && read -r p t <"$D/pids/$1" && echo "$p"; }
stop() {  # stop NAME SIGNAL SECONDS: signal it, wait for it, then kill -9
    local p i; p=$(pid_of "$1") || { rm -f "$D/pids/$1"; return 0; }
    kill -s "$2" "$p" 2>/dev/null || true
    for ((i = 0; i < $3 * 20; i++)); do alive "$1" || break; sleep 0.05; done
    if alive "$1"; then kill -s KILL "$p" 2>/dev/null || true; for ((i = 0; i < 40; i++)); do alive "$1" || break; sleep 0.05; done; fi
    rm -f "$D/pids/$1"
}
await_pidfile() {  # await_pidfile NAME FILE: read a daemon's pid from its pid file
    local i p; for ((i = 0; i < 100; i++)); do
        if p=$(cat "$2" 2>/dev/null) && [ -n "$p" ] && remember "$1" "$p"; then return 0; fi; sleep 0.05
    done; return 1
}

# ---- checks -------------------------------------------------------------------------------------------------
check_host() {
    local missing=() c p pair
    local need=(munged:munge slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client sinfo:slurm-client flock:util-linux unshare:util-linux nsenter:util-linux)
    [ "$MODE" = flat ] || need+=(ip:iproute2)
    [ "$SSHD" = 0 ] || need+=(sshd:openssh-server ssh:openssh-client ssh-keygen:openssh-client)
    for pair in "${need[@]}"; do c=${pair%%:*} p=${pair#*:}; command -v "$c" >/dev/null || missing+=("$p"); done
    if [ ${#missing[@]} -gt 0 ]; then
        c=$(printf '%s\n' "${missing[@]}" | sort -u | tr '\n' ' '); c=${c% }
        die "missing package(s): $c   (try: apt-get install -y $c)"
    fi
}
netns_possible() { ip link help >/dev/null 2>&1; unshare -n -u -m -p -i --fork --mount-proc --propagation private true 2>/dev/null && ip link add "$BR" type bridge 2>/dev/null && ip link del "$BR"; }

settings() {
    NODES=${SLURM_UP_NODES:-3} CPUS=${SLURM_UP_CPUS:-8} MEM=${SLURM_UP_MEM:-64000} GPUS=${SLURM_UP_GPUS:-4} GPU_TYPE=${SLURM_UP_GPU_TYPE:-}
    TIMEOUT=${SLURM_UP_TIMEOUT:-10} MESSAGE=${SLURM_UP_MESSAGE:-5} KILLWAIT=${SLURM_UP_KILLWAIT:-5} REQUEUE=${SLURM_UP_REQUEUE:-5} SSHD=${SLURM_UP_SSHD:-0}
    CGROUP=${SLURM_UP_CGROUP:-auto} PRIVATE=${SLURM_UP_PRIVATE:-} MODE=${SLURM_UP_MODE:-auto}
    local h; h=$(printf %s "$D" | cksum); h=${h%% *}
    ID=$(printf %06x $((h % 16777216)))
    NET=${SLURM_UP_NET:-10.$((200 + h % 50)).$((h / 50 % 250))}
    CG=/sys/fs/cgroup/freezer BR=su$ID PORT=$((20000 + h % 10000))
}
save_settings() { declare -p NODES CPUS MEM GPUS GPU_TYPE TIMEOUT MESSAGE KILLWAIT REQUEUE SSHD CGROUP PRIVATE MODE ID NET BR PORT CG | sed 's/^declare --/declare -g/' >"$D/settings"; }
load_settings() { [ -r "$D/settings" ] || die "no cluster in $D (SLURM_UP_DIR); start one with: $0 up"; . "$D/settings"; }
nodes() { local i; for ((i = 1; i <= NODES; i++)); do echo "n$i"; done; }
known() { [[ ${1:-} =~ ^n[1-9][0-9]*$ ]] && [ "${1#n}" -le "$NODES" ] || die "no such node: '${1:-}' (nodes: n1 to n$NODES)"; }
addr()  { if [ "$MODE" = flat ]; then echo 127.0.0.1; else echo "$NET.${1#n}"; fi; }

# ---- files --------------------------------------------------------------------------------------------------
write_files() {
    local n i host ctl; host=$(hostname -s 2>/dev/null || hostname); ctl=127.0.0.1; [ "$MODE" = flat ] || ctl=$NET.254
    mkdir -p "$D"/{pids,log,munge,ctld,spool,dev,ssh,run}; rm -rf "$D"/ctld/* "$D"/spool/* "$D"/log/*; chmod 755 "$D" "$D/munge"
    for n in $(nodes); do mkdir -p "$D/spool/$n"; done
    [ -s "$D/munge/key" ] || { (umask 077; head -c 128 /dev/urandom >"$D/munge/key"); }
    { echo "127.0.0.1 localhost"; echo "::1 localhost"; [ "$MODE" = flat ] && echo "127.0.0.1 $host" || echo "$ctl $host"
      for n in $(nodes); do echo "$(addr "$n") $n"; done; } >"$D/hosts"
    # no name server answers inside a node: make lookups fail at once instead of after 10 s
    printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n' >"$D/resolv.conf"
    { cat <<CONF
ClusterName=up$ID
SlurmctldHost=$host($ctl)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/sock,cred_expire=$REQUEUE
CredType=cred/munge
StateSaveLocation=$D/ctld
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
ProctrackType=proctrack/$([ "$CGROUP" = yes ] && echo cgroup || echo linuxproc)
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.txt
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimitsExcept=MEMLOCK
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SlurmdTimeout=$TIMEOUT
KillWait=$KILLWAIT
MessageTimeout=$MESSAGE
TCPTimeout=$(((MESSAGE + 1) / 2))
MinJobAge=3600
CONF
      [ "$MODE" = flat ] || echo "CommunicationParameters=NoCtldInAddrAny"
      [ "$GPUS" = 0 ] || echo "GresTypes=gpu"
      for n in $(nodes); do
          if [ "$MODE" = flat ]; then echo -n "NodeName=$n NodeHostname=$host NodeAddr=127.0.0.1 Port=$((PORT + ${n#n}))"
          else echo -n "NodeName=$n NodeHostname=$n NodeAddr=$(addr "$n") Port=6818"; fi
          echo " Sockets=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM$([ "$GPUS" -gt 0 ] && echo " Gres=gpu:${GPU_TYPE:+$GPU_TYPE:}$GPUS")"
      done
      echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1"
      echo "PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF"
      printf '%s\n' "${SLURM_UP_EXTRA:-}"
    } >"$D/slurm.conf"
    rm -f "$D/cgroup.conf"; [ "$CGROUP" = no ] || printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$D/cgroup.conf"
    rm -f "$D"/dev/gpu*; : >"$D/gres.conf"
    if [ "$GPUS" -gt 0 ]; then
        for ((i = 0; i < GPUS; i++)); do ln -s /dev/null "$D/dev/gpu$i"; done  # slurmd wants character devices
        { echo "AutoDetect=off"; echo "Name=gpu ${GPU_TYPE:+Type=$GPU_TYPE }File=$D/dev/gpu[0-$((GPUS - 1))]"; } | sed 's/\[0-0\]/0/' >"$D/gres.conf"
    fi
    { echo "export SLURM_CONF=$D/slurm.conf SLURM_UP_DIR=$D"; [ "$SSHD" = 0 ] || echo "export PDSH_RCMD_TYPE=ssh"; } >"$D/env.sh"
    rm -f "$D/ssh/sshd_config"
    if [ "$SSHD" = 1 ]; then
        [ -s "$D/ssh/id" ] || ssh-keygen -q -t ed25519 -N '' -f "$D/ssh/id"
        [ -s "$D/ssh/host" ] || ssh-keygen -q -t ed25519 -N '' -f "$D/ssh/host"
        cp "$D/ssh/id.pub" "$D/ssh/authorized_keys"
        cat >"$D/ssh/sshd_config" <<CONF
Port 22
HostKey $D/ssh/host
AuthorizedKeysFile $D/ssh/authorized_keys
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
MaxStartups 100
Subsystem sftp internal-sftp
CONF
        cat >"$D/ssh/ssh_config" <<CONF
Host *
  IdentityFile $D/ssh/id
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ConnectTimeout 5
CONF
    fi
    cat >"$D/node-init" <<'CONF'
# pid 1 of a node (bash reaps orphans of the node's processes)
hostname "$1"; mount --bind "$2/hosts" /etc/hosts; mount --bind "$2/resolv.conf" /etc/resolv.conf; mount -t tmpfs -o mode=1777 tmpfs /dev/shm
for d in $3; do mkdir -p "$d" && mount -t tmpfs -o mode=1777 tmpfs "$d"; done
[ ! -s "$2/ssh/sshd_config" ] || mount --bind "$2/ssh/ssh_config" /etc/ssh/ssh_config
[ ! -e "$2/cgroup.conf" ] || mount --bind "/sys/fs/cgroup/freezer/$4/$1" /sys/fs/cgroup/freezer
: >"$2/run/ready.$1"
while :; do sleep 1000000 & wait $!; done
CONF
}

with_hosts() {  # run a command here, in a mount namespace whose /etc/hosts (and ssh settings) know the nodes
    if [ "$MODE" = flat ]; then "$@"; return; fi
    ${EXEC:-} unshare -m --propagation private sh -c 'mount --bind "$0/hosts" /etc/hosts; [ ! -s "$0/ssh/sshd_config" ] || mount --bind "$0/ssh/ssh_config" /etc/ssh/ssh_config; exec "$@"' "$D" "$@"
}

# ---- nodes --------------------------------------------------------------------------------------------------
in_node() { local n=$1 p; shift; if [ "$MODE" = flat ]; then "$@"; else p=$(pid_of "node.$n") || die "node $n is not running"; nsenter -t "$p" -n -u -m -p -i -- sh -c 'cd "$0" 2>/dev/null || cd /; exec "$@"' "$PWD" "$@"; fi; }
slurmd_start() {
    rm -f "$D/run/slurmd.$1.pid"
    in_node "$1" env SLURM_CONF="$D/slurm.conf" slurmd -N "$1" -f "$D/slurm.conf" </dev/null >>"$D/log/slurmd.$1.out" 2>&1 9>&- || die "slurmd $1 did not start: $(tail -n 3 "$D/log/slurmd.$1.out" "$D/log/slurmd.$1.log" 2>/dev/null)"
    if [ "$MODE" = flat ]; then await_pidfile "slurmd.$1" "$D/run/slurmd.$1.pid" || die "slurmd $1 wrote no pid file"; fi
}
outer_pid() {  # outer_pid NODE COMMAND: our pid of that command inside the node's pid namespace
    local init ns p c; init=$(pid_of "node.$1") || return 1; ns=$(readlink "/proc/$init/ns/pid")
    for p in /proc/[0-9]*; do
        p=${p#/proc/}; { read -r c <"/proc/$p/comm"; } 2>/dev/null || continue
        if [ "$c" = "$2" ] && [ "$(readlink "/proc/$p/ns/pid" 2>/dev/null)" = "$ns" ] && starttime "$p" >/dev/null; then echo "$p"; return 0; fi
    done; return 1
}
node_start() {
    local n=$1 i up p=
    if [ "$MODE" != flat ]; then
        rm -f "$D/run/ready.$n"; [ "$CGROUP" = no ] || mkdir -p "$CG/$BR/$n"
        setsid unshare -n -u -m -p -i --fork --kill-child --mount-proc --propagation private \
            bash "$D/node-init" "$n" "$D" "$PRIVATE" "$BR" </dev/null >"$D/log/node.$n.out" 2>&1 9>&- &
        up=$!
        for ((i = 0; i < 100; i++)); do
            if [ -e "$D/run/ready.$n" ]; then p=$(cat "/proc/$up/task/$up/children" 2>/dev/null || true); p=${p%% *}; [ -z "$p" ] || break; fi
            sleep 0.02
        done
        [ -n "$p" ] && remember "node.$n" "$p" || die "node $n did not start: $(cat "$D/log/node.$n.out")"
        ip link del "v$ID${n#n}" 2>/dev/null || true
        # a fixed hardware address, so that the other nodes' ARP entries stay right when the node is booted again
        ip link add "v$ID${n#n}" type veth peer name eth0 address "$(printf '02:%s:%s:%s:00:%02x' "${ID:0:2}" "${ID:2:2}" "${ID:4:2}" "${n#n}")" netns "$p"
        ip link set "v$ID${n#n}" master "$BR" up
        nsenter -t "$p" -n sh -c "ip link set lo up; ip addr add $(addr "$n")/24 dev eth0; ip link set eth0 up; ip route add default via $NET.254"
        if [ "$SSHD" = 1 ]; then in_node "$n" sh -c "mkdir -p /run/sshd && exec $(command -v sshd) -f $D/ssh/sshd_config -E $D/log/sshd.$n.log -o PidFile=$D/run/sshd.$n.pid" </dev/null 9>&- || die "sshd on $n did not start"; fi
    fi
    slurmd_start "$n"
}
node_crash() {  # the network goes first: as in a power failure, peers get no FIN and no RST
    if [ "$MODE" = flat ]; then stop "slurmd.$1" KILL 2; else ip link del "v$ID${1#n}" 2>/dev/null || true; thaw "$1"; stop "node.$1" KILL 2; fi
}
thaw() { local f; [ "$CGROUP" = no ] || for f in $(find "$CG/$BR/$1" -name freezer.state 2>/dev/null); do echo THAWED >"$f" 2>/dev/null || true; done; }
sinfo_states() { SLURM_CONF=$D/slurm.conf timeout 10 sinfo -h -N -p main -o '%N %T' 2>/dev/null; }
healthy() {
    local n; alive munged && alive slurmctld || return 1
    for n in $(nodes); do
        if [ "$MODE" = flat ]; then alive "slurmd.$n" || return 1; else outer_pid "$n" slurmd >/dev/null || return 1; fi
    done
    [ "$(sinfo_states | grep -c -E ' (idle|mixed|allocated|completing)$' || true)" = "$NODES" ]
}

# ---- sub-commands -------------------------------------------------------------------------------------------
do_down() {
    local f i; [ -d "$D/pids" ] || return 0
    for f in "$D"/pids/slurmd.* "$D"/pids/node.*; do [ -e "$f" ] || continue; f=${f##*/}; case $f in node.*) thaw "${f#node.}"; stop "$f" KILL 2 ;; *) stop "$f" TERM 3 ;; esac; done
    stop slurmctld TERM 5; stop munged TERM 3
    [ "$MODE" != flat ] || kill_steps
    if [ "$MODE" != flat ]; then  # a dead namespace releases its link only some time later
        for f in $(nodes); do ip link del "v$ID${f#n}" 2>/dev/null || true; done
        [ "$CGROUP" = no ] || for ((i = 0; i < 40; i++)); do find "$CG/$BR" -depth -type d -exec rmdir {} + 2>/dev/null || true; [ -e "$CG/$BR" ] || break; sleep 0.05; done
        ip link del "$BR" 2>/dev/null || true
    fi
    rm -f "$D/settings"
}
kill_steps() {  # flat only: jobs outlive their slurmd; kill every process started by one of our slurmds
    local p e
    for p in /proc/[0-9]*; do
        p=${p#/proc/}; [ "$p" != $$ ] || continue
        if [ "$(cat "/proc/$p/comm" 2>/dev/null)" = slurmstepd ]; then
            if ls -l "/proc/$p/fd" 2>/dev/null | grep -qF " $D/log/slurmd."; then kill -s KILL "$p" 2>/dev/null || true; fi
        else
            e=$({ tr '\0' '\n' <"/proc/$p/environ"; } 2>/dev/null) || continue
            if grep -qxF "SLURM_CONF=$D/slurm.conf" <<<"$e" && grep -q '^SLURMD_NODENAME=' <<<"$e"; then kill -s KILL "$p" 2>/dev/null || true; fi
        fi
    done
}
do_up() {
    local t0 n; t0=$(date +%s%N)
    [ "$(id -u)" = 0 ] || die "must run as root"
    [ ${#D} -le 60 ] || die "SLURM_UP_DIR is too long (${#D} > 60 characters: it holds unix sockets): $D"
    case $D in /*) ;; *) die "SLURM_UP_DIR must be an absolute path: $D" ;; esac
    case $D in *[!A-Za-z0-9/._-]*) die "SLURM_UP_DIR may hold only letters, digits and / . _ -: $D" ;; esac
    mkdir -p "$D"; exec 9>"$D/lock"; flock -w 60 9 || die "another cluster.sh holds $D/lock"
    if [ -r "$D/settings" ] && (load_settings; healthy); then info "already up in $D (its settings are unchanged)"; return 0; fi
    if [ -r "$D/settings" ]; then (load_settings; do_down); fi
    settings; check_host
    if [ "$MODE" = auto ]; then if netns_possible; then MODE=netns; else MODE=flat; info "note: namespaces are not permitted here; using flat mode (all nodes share this host's name, address and ports)"; fi; fi
    case $MODE in netns|flat) ;; *) die "SLURM_UP_MODE must be netns, flat or auto" ;; esac
    [ "$NODES" -ge 1 ] && [ "$NODES" -le 200 ] || die "SLURM_UP_NODES must be 1 to 200"
    if [ "$CGROUP" = auto ]; then CGROUP=no; if [ "$MODE" = netns ] && [ -e "$CG/cgroup.procs" ] && mkdir -p "$CG/$BR" 2>/dev/null; then CGROUP=yes; fi; fi
    [ "$CGROUP" = no ] || { [ "$MODE" = netns ] && [ -e "$CG/cgroup.procs" ]; } || die "SLURM_UP_CGROUP=yes needs netns mode and a cgroup v1 freezer at $CG"
    write_files; save_settings
    trap 'rc=$?; if [ $rc != 0 ]; then tail -n 5 "$D"/log/*.log >&2 2>/dev/null || true; do_down; fi; exit $rc' EXIT
    if [ "$MODE" = netns ]; then
        ip link add "$BR" type bridge 2>/dev/null || { ip link del "$BR"; ip link add "$BR" type bridge; }
        ip addr add "$NET.254/24" dev "$BR"; ip link set "$BR" up
    fi
    rm -f "$D"/run/*.pid "$D"/munge/{sock,sock.lock,pid}
    munged --force --key-file="$D/munge/key" --socket="$D/munge/sock" --pid-file="$D/munge/pid" --log-file="$D/log/munged.log" --seed-file="$D/munge/seed" 2>>"$D/log/munged.out" 9>&- || die "munged did not start: $(cat "$D/log/munged.out")"
    await_pidfile munged "$D/munge/pid" || die "munged wrote no pid file"
    # slurmctld listens only on the address of this machine's name in its own /etc/hosts
    with_hosts env SLURM_CONF="$D/slurm.conf" slurmctld -c -f "$D/slurm.conf" >"$D/log/slurmctld.out" 2>&1 9>&- || die "slurmctld did not start: $(tail -n 3 "$D/log/slurmctld.out")"
    await_pidfile slurmctld "$D/run/slurmctld.pid" || die "slurmctld wrote no pid file; see $D/log/slurmctld.log"
    for n in $(nodes); do node_start "$n"; done
    until [ "$(sinfo_states | grep -c ' idle$' || true)" = "$NODES" ]; do
        alive slurmctld || die "slurmctld ended; see $D/log/slurmctld.log"
        [ $((($(date +%s%N) - t0) / 1000000000)) -lt "${SLURM_UP_WAIT:-30}" ] || die "nodes not idle after ${SLURM_UP_WAIT:-30} s: $(sinfo_states | xargs)"
        sleep 0.1
    done
    info "up: $NODES nodes ($MODE, $CPUS CPUs, $GPUS fake GPUs each) in $((($(date +%s%N) - t0) / 1000000)) ms; now run:  . $D/env.sh"
}
do_status() {
    local d n bad=0 states; load_settings
    for d in munged slurmctld; do alive $d && echo "$d running, pid $(pid_of $d)" || { echo "$d NOT RUNNING"; bad=1; }; done
    states=$(sinfo_states || true)
    for n in $(nodes); do
        local p; if [ "$MODE" = flat ]; then p=$(pid_of "slurmd.$n" || true); else p=$(outer_pid "$n" slurmd || true); fi
        echo "$n $(addr "$n") slurmd ${p:-NOT-RUNNING} state $(echo "$states" | awk -v n="$n" '$1==n{print $2}')"; [ -n "$p" ] || bad=1
    done
    healthy || bad=1; return $bad
}

cmd=${1:-}; [ $# -eq 0 ] || shift
case $cmd in
up)     do_up ;;
down)   if [ -r "$D/settings" ]; then exec 9>"$D/lock"; flock -w 60 9 || die "another cluster.sh holds $D/lock"; load_settings; do_down; info "down"; else info "nothing is up in $D"; fi ;;
status) do_status ;;
env)    load_settings; cat "$D/env.sh" ;;
bridge) load_settings; echo "$BR" ;;
run)    load_settings; [ $# -gt 0 ] || die "run what?"; . "$D/env.sh"
        EXEC="exec" with_hosts "$@" ;;
exec)   load_settings; known "${1:-}"; n=$1; shift; [ $# -gt 0 ] || die "run what?"; . "$D/env.sh"; in_node "$n" "$@" ;;
crash)  load_settings; known "${1:-}"; node_crash "$1"
        [ "${2:-}" != down ] || SLURM_CONF=$D/slurm.conf scontrol update NodeName="$1" State=DOWN Reason=crash ;;
boot)   load_settings; known "${1:-}"; if [ "$MODE" != flat ] && alive "node.$1"; then die "node $1 is running"; fi; node_start "$1" ;;
link)   load_settings; known "${1:-}"; [ "$MODE" != flat ] || die "link needs netns mode"; case ${2:-} in up|down) ip link set "v$ID${1#n}" "$2" ;; *) die "link NODE up|down" ;; esac ;;
slurmd) load_settings; known "${1:-}"; case ${2:-} in
            kill)  if [ "$MODE" = flat ]; then stop "slurmd.$1" KILL 2; else p=$(outer_pid "$1" slurmd) || die "no slurmd on $1"; kill -s KILL "$p"; fi ;;
            start) slurmd_start "$1" ;;
            *) die "slurmd NODE kill|start" ;; esac ;;
help|-h|--help) usage ;;
*)      usage >&2; exit 2 ;;
esac
