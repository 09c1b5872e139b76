# shellcheck shell=bash
# Namespaces of bubblewrap and unshare(1), by the settings that docs/compat.md names.
# shellcheck disable=SC2034 # run reads it
original=

RNET=/mnt/bin/rnet

play_bubblewrap_waits_for_its_network() {
    needs bwrap
    answers 192.0.2.3 7000 hello
    mkfifo info block
    bwrap --unshare-net --ro-bind /mnt/rootfs / --dev /dev --info-fd 7 --block-fd 8 \
        sh -c 'ip route; nc 192.0.2.3 7000 </dev/null' 7>info 8<>block >said &
    local sandbox=$!
    timeout 20 "$RNET" attach --bwrap-info-fd 3 --detach 3<info && echo >block
    wait "$sandbox"
    has "$(<said)" "default via 10.0.2.2"
    has "$(<said)" "hello 192.0.2."
    becomes none_running rnet
}

# served ATTACH_ARGUMENT...: a network for $SPACE carries both ways, and ends with the namespace.
served() {
    answers 192.0.2.3 7000 hello
    timeout 20 "$RNET" attach --detach -p 8080:80 "$@"
    has "$(asks 192.0.2.3 7000 in_space)" "hello 192.0.2."
    answers 10.0.2.100 80 inside in_space
    has "$(asks 192.0.2.2 8080)" "inside 192.0.2.2"
    kill "$SPACE"
    becomes none_running rnet
    becomes test -z "$(ls /mnt/run/rnet)"
}

play_unshare_by_process() { space && served "$SPACE"; }
play_unshare_by_path() { space && served --netns "/proc/$SPACE/ns/net"; }

play_unshare_with_a_bound_path() {
    # shellcheck disable=SC2016 # expands inside
    unshare --user --map-root-user --mount bash -euc '. /mnt/compat/lab.sh
        answers 192.0.2.3 7000 hello
        touch box && unshare --net=box true
        timeout 20 /mnt/bin/rnet attach --netns box --detach
        has "$(asks 192.0.2.3 7000 nsenter --net=box)" "hello 192.0.2."
        umount box && rm box
        becomes none_running rnet'
}
