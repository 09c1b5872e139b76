# shellcheck shell=bash
# Limits by cgroup v2, on a kernel whose cgroups are ours: user-mode Linux (Debian's package user-mode-linux) runs as a
# program of the ordinary user, with the controllers cpu, io, memory and pids. A cgroup that belongs to the user is what
# systemd would delegate.
# shellcheck disable=SC2016,SC2034 # what expands, expands inside; run reads the original's name
original=

RNET=/mnt/bin/rnet
ROOT=/mnt/rootfs
KERNEL=/usr/bin/linux.uml
MODULES=/usr/lib/uml/modules

# machine: runs the script on standard input as the user in the cgroup /user/d of a machine that is started for it, with rnet
# as /bin/rnet and a busybox in /box; prints what it says.
machine() {
    needs "$KERNEL"
    local root=$PWD/machine
    cp -r /mnt/rootfs "$root"
    cp -r /mnt/rootfs "$root/box"
    mkdir -p "$root/modules"
    find "$MODULES" -name overlay.ko -exec cp {} "$root/modules/" \;
    # shellcheck disable=SC2046 # one word for each library
    cp --parents -L $(ldd /mnt/bin/rnet | grep -o '/[^ ]*') "$root"
    cp /mnt/bin/rnet "$root/bin/rnet"
    grep player /etc/passwd >>"$root/etc/passwd"
    grep player /etc/group >>"$root/etc/group"
    { echo 'set -u; cd /home; D=/sys/fs/cgroup/user/d' && cat; } >"$root/script"
    mkdir -p "$root/home"
    cat >"$root/init" <<'INIT'
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
insmod /modules/overlay.ko
ip link set lo up
cd /sys/fs/cgroup
echo "+memory +pids +cpu +io" >cgroup.subtree_control
mkdir user
echo "+memory +pids +cpu" >user/cgroup.subtree_control
mkdir user/d
chown player user/d user/d/cgroup.procs user/d/cgroup.subtree_control user/d/cgroup.threads
mkdir -m 700 /run/player
chown player /run/player
# A shell of its own: what is left in the cgroup is seen afterwards.
sh -c 'echo $$ >user/d/cgroup.procs
    exec su player -s /bin/sh -c "XDG_RUNTIME_DIR=/run/player exec sh /script"'
echo "left: $(find user/d -mindepth 1 -type d) $(cat user/d/cgroup.procs user/d/cgroup.subtree_control)"
poweroff -f
INIT
    chmod 755 "$root/init"
    TMPDIR=$PWD timeout 50 "$KERNEL" mem=384M rootfstype=hostfs rootflags="$root" rw quiet loglevel=3 init=/init \
        con=null con0=fd:0,fd:1 </dev/null 2>uml | tr -d '\r' || true
}

play_memory_hog_is_killed() {
    said=$(machine <<'SCRIPT'
rnet run --net none --memory 100m --memory-swap 100m /box sh -c '
    cat /sys/fs/cgroup/memory.max /proc/self/cgroup
    touch /sys/fs/cgroup/x
    exec dd if=/dev/zero of=/dev/null bs=90M count=1'
echo "small: $?"
rnet run --net none --memory 100m --memory-swap 100m /box dd if=/dev/zero of=/dev/null bs=110M count=1
echo "large: $?"
rnet run -d --net none --name hog --memory 100m --memory-swap 100m /box dd if=/dev/zero of=/dev/null bs=110M count=1
echo "waited: $(rnet wait hog)"
rnet inspect hog
SCRIPT
    )
    has "$said" "104857600
0::/
"
    has "$said" "Read-only file system"
    has "$said" "small: 0"
    has "$said" "large: 137"
    has "$said" "the memory that --memory allows"
    has "$said" "waited: 137"
    has "$said" '"OOMKilled": true'
    has "$said" '"Memory": 104857600'
    has "$said" "left:  "
}

# The bomb's own shell ends as it can start no more.
play_fork_bomb_stops() {
    said=$(machine <<'SCRIPT'
rnet run --net none --pids-limit 20 /box sh -c '
    sh -c "while :; do sleep 600 & done" 2>/dev/null
    read tasks </sys/fs/cgroup/pids.current
    read limit </sys/fs/cgroup/pids.max
    echo "tasks: $tasks of $limit"'
SCRIPT
    )
    has "$said" "tasks: 19 of 20"
    has "$said" "left:  "
}

# Without a cgroup the user's processes are counted.
play_fork_bomb_stops_without_a_cgroup_too() {
    said=$(timeout 30 "$RNET" run --net none --pids-limit 20 "$ROOT" sh -c '
        sh -c "i=0; while [ \$i -lt 40 ]; do sleep 600 & i=\$((i+1)); done" 2>/dev/null
        set -- /proc/[0-9]*
        echo "processes: $#"' 2>&1)
    is "$(sed -n 's/processes: //p' <<<"$said")" 19
}

play_time_on_processors_is_limited() {
    said=$(machine <<'SCRIPT'
rnet run --net none --cpus 0.5 /box sh -c '
    read begin rest </proc/uptime
    timeout 4 sh -c "while :; do :; done"
    read end rest </proc/uptime
    awk -v begin="$begin" -v end="$end" "/usage_usec/ { print \"share:\", \$2 / 10000 / (end - begin) }
        /nr_throttled/ { print \"throttled:\", (\$2 > 0) }" /sys/fs/cgroup/cpu.stat'
SCRIPT
    )
    has "$said" "throttled: 1"
    awk '$1 == "share:" { exit !($2 >= 45 && $2 <= 55) }' <<<"$said" || fail "$said"
    has "$said" "left:  "
}

play_killed_container_leaves_nothing_for_long() {
    said=$(machine <<'SCRIPT'
rnet run --net none -m 50m /box sleep 600 &
until grep -q . $D/rnet-container-$!/cgroup.procs 2>/dev/null; do sleep 0.1; done
# Beside it others start and end.
rnet run --net none -m 50m --cpus 1 --pids-limit 50 /box grep -H . /sys/fs/cgroup/memory.max
until grep -q sleep /proc/$(cat $D/rnet-container-$!/cgroup.procs)/cmdline; do sleep 0.1; done
kill -9 $!
wait $!
echo "ended: $?"
rnet run --net none /box true
echo "after: $? $(ls -d $D/rnet-*)"
SCRIPT
    )
    has "$said" "/sys/fs/cgroup/memory.max:52428800"
    has "$said" "ended: 137"
    has "$said" "after: 0 
"
    has "$said" "left:  "
}

play_remedies_are_named_where_nothing_is_delegated() {
    said=$(refuses "$RNET" run --net none -m 50m "$ROOT" true)
    has "$said" "cannot limit the container: "
    has "$said" "hint: "
    said=$(machine <<'SCRIPT'
rnet run --net none --io-weight 50 /box true
rnet run --net none --pids-limit 99999999 /box true
SCRIPT
    )
    has "$said" "cannot write '99999999' to "
    has "$said" "left:  "
    has "$said" "the controllers io are not delegated to you"
    has "$said" "Delegate=cpu cpuset io memory pids"
}

play_use_is_shown() {
    said=$(machine <<'SCRIPT'
rnet run -d --rm --net none --name box -m 64m --pids-limit 9 --cpus 0.5 /box sh -c 'while :; do :; done & sleep 600' >id
until grep -q sleep /proc/*/cmdline; do sleep 0.1; done
rnet stats --no-stream box
rnet stats --no-stream --json
echo "further: $(rnet exec box cat /proc/self/cgroup)"
rnet rm -f box >id
SCRIPT
    )
    has "$said" "CPU %"
    has "$said" "further: 0::/
"
    use=$(grep '^\[{' <<<"$said")
    is "$(jq -c '.[] | [.Name, .MemoryLimitBytes, .Pids, .NetReceivedBytes]' <<<"$use")" '["box",67108864,2,0]'
    is "$(jq '.[] | (.CpuPercent > 30 and .CpuPercent < 60 and .MemoryBytes > 4096)' <<<"$use")" true
    has "$said" "left:  "
}
