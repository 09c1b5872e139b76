# shellcheck shell=bash
# podman and buildah, rootless, with the program as their network.
# shellcheck disable=SC2034 # run reads it
original=slirp4netns

unlike slirp4netns a_port_in_use_has_its_cause "it says that it failed, and no more"

# pod OPTION...: podman with a storage of its own. Containers have the busybox as their root.
pod() {
    needs podman crun newuidmap
    [ -e /mnt/home/containers.conf ] || cat >/mnt/home/containers.conf <<CONF
[engine]
network_cmd_path = "$PROGRAM"
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[containers]
cgroups = "disabled"
CONF
    CONTAINERS_CONF=/mnt/home/containers.conf podman --log-level=error --storage-driver=vfs "$@"
}

# box OPTION... -- COMMAND...: a container that runs to its end.
box() {
    local options=()
    while [ "$1" != -- ]; do options+=("$1") && shift; done
    shift
    pod run --rm "${options[@]}" --rootfs /mnt/rootfs "$@"
}

# serve OPTION...: a container `web` that says hello to whoever connects to its port 8000 (0x1f40), with the end of their
# address as the kernel lists it.
serve() {
    # shellcheck disable=SC2016
    local hello='echo "hello $(cat /proc/net/tcp /proc/net/tcp6 | sed -n "s/^ .*:1F40 .*\(.\{8\}\):.... 01 .*/\1/p")"'
    pod run --detach --name web "$@" --rootfs /mnt/rootfs nc -ll -p 8000 -e sh -c "$hello" >/dev/null
}

play_a_plain_container_has_a_network() {
    answers 192.0.2.2 7001 hello
    local seen
    seen=$(box --network=slirp4netns -- sh -c \
        'ip -4 addr show tap0; ip link show tap0; cat /etc/resolv.conf; nc -w 5 192.0.2.2 7001 </dev/null')
    has "$seen" "10.0.2.100/24"
    has "$seen" "mtu 65520"
    has "$seen" "nameserver 10.0.2.3"
    has "$seen" "hello 192.0.2.2"
    becomes none_running slirp4netns
}

play_options_reach_it() {
    answers 192.0.2.2 7001 hello
    answers 127.0.0.1 7002 loopback
    local seen
    seen=$(box --network=slirp4netns:cidr=10.9.0.0/24,mtu=1400,allow_host_loopback=true,outbound_addr=192.0.2.3,enable_ipv6=false \
        -- sh -c 'ip -4 addr show tap0; ip link show tap0; ip -6 addr show tap0 scope global
            nc -w 5 192.0.2.2 7001 </dev/null; nc -w 5 10.9.0.2 7002 </dev/null')
    has "$seen" "10.9.0.100/24"
    has "$seen" "mtu 1400"
    lacks "$seen" "fd00:"
    has "$seen" "hello 192.0.2.3"
    has "$seen" "loopback "
}

play_the_hosts_loopback_is_closed() {
    answers 127.0.0.1 7002 loopback
    lacks "$(box --network=slirp4netns -- sh -c 'nc -w 5 10.0.2.2 7002 </dev/null' 2>&1 || true)" loopback
}

play_a_port_keeps_its_clients_address() {
    serve --network=slirp4netns:port_handler=slirp4netns -p 18080-18082:8000-8002
    becomes asks 192.0.2.2 18080
    is "$(asks 192.0.2.2 18080)" "hello 020200C0"
    pod rm -f -t 0 web >/dev/null
    becomes none_running slirp4netns
}

play_a_port_works_by_rootlesskits_forwarder() {
    serve --network=slirp4netns -p 127.0.0.1:18080:8000
    becomes asks 127.0.0.1 18080
    pod rm -f -t 0 web >/dev/null
    becomes none_running slirp4netns
    becomes none_running rootlessport
}

play_a_bridge_network_leads_out() {
    answers 192.0.2.2 7001 hello
    pod network create net1 >/dev/null
    local seen
    seen=$(box --network=net1 -- sh -c 'ip -4 addr show eth0; nc -w 5 192.0.2.2 7001 </dev/null')
    has "$seen" "inet 10."
    has "$seen" "hello 192.0.2.2"
    becomes none_running slirp4netns
}

play_a_port_in_use_is_an_error() {
    answers 0.0.0.0 18080 mine
    refuses serve --network=slirp4netns:port_handler=slirp4netns -p 18080:8000 >said
    has "$(<said)" "slirp_add_hostfwd failed"
    pod rm -f -t 0 web >/dev/null
    becomes none_running slirp4netns
}

play_a_port_in_use_has_its_cause() {
    answers 0.0.0.0 18080 mine
    has "$(refuses serve --network=slirp4netns:port_handler=slirp4netns -p 18080:8000)" "in use"
}

play_a_failing_start_shows_why() {
    has "$(refuses box --network=slirp4netns:cidr=10.0.2.100/24 -- true)" "10.0.2.0/24"
}

play_a_container_is_restarted_ten_times() {
    local count
    serve --network=slirp4netns:port_handler=slirp4netns -p 18080:8000
    for count in {1..10}; do
        becomes asks 127.0.0.1 18080
        pod restart -t 0 web >/dev/null
    done
    becomes asks 127.0.0.1 18080
    pod stop -t 0 web >/dev/null
    becomes none_running slirp4netns
    refuses asks 127.0.0.1 18080
}

play_a_user_is_kept() {
    has "$(box --network=slirp4netns --userns=keep-id -- ip -4 addr show tap0)" "10.0.2.100/24"
}

play_buildah_runs_with_it() {
    needs buildah
    answers 192.0.2.2 7001 hello
    local box seen
    bud() { buildah --storage-driver=vfs "$@"; }
    box=$(bud from scratch)
    bud copy "$box" /mnt/rootfs / >/dev/null
    seen=$(bud run --isolation rootless --cgroupns host "$box" -- sh -c \
        'ip -4 addr show tap0; nc -w 5 192.0.2.2 7001 </dev/null')
    has "$seen" "10.0.2.100/24"
    has "$seen" "hello 192.0.2.2"
    becomes none_running slirp4netns
}
