# shellcheck shell=bash
# shellcheck disable=SC2016 # what expands, expands inside
# Containers with more ids than the caller's: users, groups, and a Debian whose apt and dpkg work. The maps are made by
# the host's newuidmap and newgidmap.
# shellcheck disable=SC2034 # run reads it
original=

RNET=/mnt/bin/rnet
ROOT=/mnt/rootfs

# run_in OPTION...: `rnet run`, given up on after a while.
run_in() { /usr/bin/timeout 30 "$RNET" run "$@"; }

# people_inside: the container's own users.
people_inside() {
    printf 'root:x:0:0::/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n' >"$ROOT/etc/passwd"
    printf 'root:x:0:\nwww:x:34:\nlog:x:4:web\n' >"$ROOT/etc/group"
}

play_subordinate_ids_follow_the_caller() {
    needs newuidmap newgidmap
    said=$(run_in --userns=auto "$ROOT" sh -c 'id -u; chown 5:6 /root && stat -c %u:%g /root
        grep "^devpts /dev/pts " /proc/mounts | grep -o "gid=[0-9]*"; tail -qn 1 /proc/self/[ug]id_map | tr -s " "')
    is "$said" "0
5:6
gid=3000004
 1 3000000 65536
 1 3000000 65536"
    is "$(stat -c %u:%g "$ROOT/root")" 3000004:3000005
}

play_command_is_a_user_of_the_container() {
    needs newuidmap newgidmap
    people_inside
    is "$(run_in --user web "$ROOT" sh -c 'id; echo $HOME; grep CapEff /proc/self/status')" \
        "uid=33(web) gid=34(www) groups=4(log)
/var/www
CapEff:	0000000000000000"
    is "$(run_in --init -u 33:log -e HOME=/x "$ROOT" sh -c 'id; echo $HOME')" "uid=33(web) gid=4(log)
/x"
    has "$(refuses run_in --user nobody-here "$ROOT" true)" "/etc/passwd of the container has no 'nobody-here'"
}

play_command_of_another_user_ends_by_signals_and_with_rnet() {
    needs newuidmap newgidmap
    "$RNET" run --user 33 "$ROOT" sleep 600 &
    becomes running_as 3000032 sleep
    kill "$!"
    local status=0
    wait "$!" || status=$?
    is "$status" 143
    "$RNET" run --user 33 "$ROOT" sleep 600 &
    becomes running_as 3000032 sleep
    kill -KILL "$!"
    becomes none_running sleep
}

# running_as UID NAME: such a process runs as that user.
running_as() {
    local pid
    for pid in $(running "$2"); do
        [ "$(stat -c %u "/proc/$pid")" != "$1" ] || return 0
    done
    return 1
}

play_kept_id_is_the_callers() {
    needs newuidmap newgidmap
    mkdir shared
    is "$(run_in --userns=keep-id -v ./shared:/shared "$ROOT" sh -c 'id -u; touch /shared/mine')" "$(id -u)"
    is "$(stat -c %u shared/mine)" "$(id -u)"
    is "$(run_in --userns=keep-id --user 0 "$ROOT" id -u)" 0
}

play_maps_are_given_by_hand() {
    needs newuidmap newgidmap
    is "$(run_in --uidmap 0:3000000:10 --uidmap "10:$(id -u):1" "$ROOT" awk '{ print $1, $2, $3 }' /proc/self/uid_map)" \
        "0 3000000 10
10 $(id -u) 1"
    has "$(refuses run_in --uidmap 0:0:1 "$ROOT" true)" "host's user ids 0: not yours to map"
    has "$(refuses run_in --uidmap 0:3065000:1000 "$ROOT" true)" "3000000 to 3065535"
    has "$(refuses run_in --user 33 --userns=single "$ROOT" true)" "--userns=auto"
}

play_one_id_is_mapped_where_no_more_can_be() {
    has "$(PATH=/mnt/bin run_in --userns=auto "$ROOT" id -u 2>&1)" "newuidmap is not installed"
    is "$(PATH=/mnt/bin run_in --userns=auto "$ROOT" wc -l /proc/self/uid_map 2>/dev/null)" "1 /proc/self/uid_map"
    has "$(PATH=/mnt/bin refuses run_in --uidmap 0:3000000:10 "$ROOT" true)" "uidmap"
}

play_copy_of_the_host_has_all_ids() {
    needs newuidmap newgidmap
    is "$(run_in --userns=auto / sh -c 'touch "$HOME/x" /etc/x && chown 33:33 "$HOME/x" /etc/x && stat -c %u "$HOME/x" /etc/x')" \
        "33
33"
    [ ! -e /mnt/home/x ] || fail "a write came through"
}

# debian DIRECTORY: a Debian of apt, dpkg and what their programs load, from this one's files.
debian() {
    local tree=$1 file
    mkdir -p "$tree"/{usr/{bin,sbin,lib,lib64},etc/apt/{preferences,apt.conf}.d,usr/share,proc,sys,dev,run,root,tmp} \
        "$tree"/var/{lib/apt/lists/partial,cache/apt/archives/partial,lib/dpkg/info,log}
    for file in bin sbin lib lib64; do ln -s "usr/$file" "$tree/$file"; done
    local programs=(/bin/{sh,rm,cat,chown,chmod,stat,tar} /usr/bin/{dpkg,dpkg-deb,dpkg-split,apt-get,diff,gzip}
        /sbin/{ldconfig,start-stop-daemon} /usr/lib/apt/methods/{file,copy,store})
    { printf '%s\n' "${programs[@]}" && ldd "${programs[@]}" | grep -o '/[^ :]* ' | tr -d ' '; } | sort -u |
        tar -chPf - -T - | tar -C "$tree" -xPf - --transform='s,^/,,' --keep-directory-symlink
    printf '%s\n' root:x:0:0::/root:/bin/sh games:x:5:60::/:/bin/sh _apt:x:42:65534::/:/bin/sh >"$tree/etc/passwd"
    printf '%s\n' root:x:0: games:x:60: nogroup:x:65534: >"$tree/etc/group"
    echo 'deb [trusted=yes] file:/packages ./' >"$tree/etc/apt/sources.list"
    cp -r /usr/share/dpkg "$tree/usr/share/"
    touch "$tree/var/lib/dpkg/status" "$tree/var/lib/dpkg/available"
}

# package NAME: a package in ./packages whose files belong to others.
package() {
    mkdir -p "build/$1/DEBIAN" "build/$1/var/games/$1" packages
    printf '%s\n' "Package: $1" Version:\ 1 Architecture:\ all 'Maintainer: Nobody <n@example.org>' Description:\ none \
        >"build/$1/DEBIAN/control"
    printf '#!/bin/sh\nset -e\nchown games:games /var/games/%s\nchmod 2755 /var/games/%s\n' "$1" "$1" \
        >"build/$1/DEBIAN/postinst"
    chmod 755 "build/$1/DEBIAN/postinst"
    dpkg-deb --root-owner-group -b "build/$1" "packages/$1.deb" >/dev/null
}

play_apt_and_dpkg_work_in_a_debian() {
    needs newuidmap newgidmap apt-get dpkg-deb start-stop-daemon
    debian tree
    package scores
    package board
    { cat build/scores/DEBIAN/control && printf '%s\n' Filename:\ ./scores.deb "Size: $(stat -c %s packages/scores.deb)" \
        "SHA256: $(sha256sum <packages/scores.deb | cut -d ' ' -f 1)"; } >packages/Packages
    run_in --userns=auto --overlay=./layer -v ./packages:/packages:ro tree sh -euc '
        apt-get update && apt-get install -y scores && dpkg -i /packages/board.deb' >said 2>&1 || fail "$(<said)"
    is "$(run_in --userns=auto --overlay=./layer tree stat -c '%u:%g %a' /var/games/scores /var/games/board)" "5:60 2755
5:60 2755"
    is "$(stat -c %u layer/upper/var/games/board)" 3000004
    # What belongs to others is removed by whoever has their ids.
    run_in --userns=auto -v ./layer:/layer "$ROOT" rm -rf /layer/upper /layer/work
}
