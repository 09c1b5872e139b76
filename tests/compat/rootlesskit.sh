# shellcheck shell=bash
# rootlesskit, which rootless docker and k3s start, with the program as its network.
# shellcheck disable=SC2034 # run reads it
original=slirp4netns

# kit OPTION... -- COMMAND...: rootlesskit in the background. $KIT is its process; what it says is in `said`.
kit() {
    needs rootlesskit newuidmap
    rm -rf /mnt/home/kit
    rootlesskit --state-dir=/mnt/home/kit --net=slirp4netns --slirp4netns-binary="$PROGRAM" --copy-up=/etc \
        --disable-host-loopback "$@" >said 2>&1 &
    KIT=$!
}

# over: ends it, and nothing may stay.
over() {
    kill "$KIT"
    becomes gone "$KIT"
    becomes none_running slirp4netns
}

# child COMMAND...: runs it in the namespaces of rootlesskit's child.
child() { nsenter --target "$(cat /mnt/home/kit/child_pid)" --user --net --mount --preserve-credentials "$@"; }

# publishes PORT_DRIVER SOURCE: its port leads to the child, who sees clients of the host's address as SOURCE.
publishes() {
    kit --port-driver="$1" -p 0.0.0.0:18090:8000/tcp -- python3 -c '
import socket
with socket.create_server(("", 8000)) as server:
    while True:
        client, peer = server.accept()
        with client:
            client.sendall(f"hello {peer[0]}\n".encode())'
    becomes asks 192.0.2.2 18090
    is "$(asks 192.0.2.2 18090)" "hello $2"
    rootlessctl --socket=/mnt/home/kit/api.sock add-ports 127.0.0.1:18091:8000/tcp
    becomes asks 127.0.0.1 18091
    has "$(rootlessctl --socket=/mnt/home/kit/api.sock list-ports)" 18091
    rootlessctl --socket=/mnt/home/kit/api.sock remove-ports 2
    refuses asks 127.0.0.1 18091
    over
}

play_the_builtin_port_driver_works() { publishes builtin 127.0.0.1; }

play_the_slirp4netns_port_driver_keeps_addresses() { publishes slirp4netns 192.0.2.2; }

play_a_port_in_use_is_an_error() {
    answers 0.0.0.0 18090 mine
    kit --port-driver=slirp4netns -p 0.0.0.0:18090:8000/tcp -- sleep 100
    becomes gone "$KIT"
    has "$(<said)" "slirp_add_hostfwd failed"
    becomes none_running slirp4netns
}

play_sandbox_seccomp_and_ipv6_work_together() {
    answers 192.0.2.2 7001 hello
    answers 2001:db8:1::2 7002 six
    kit --mtu=65520 --cidr=10.7.0.0/24 --slirp4netns-sandbox=true --slirp4netns-seccomp=true --ipv6 --pidns \
        --port-driver=slirp4netns -- sleep 100
    becomes child ip -4 addr show tap0
    becomes asks 192.0.2.2 7001 child
    has "$(child ip -4 addr show tap0)" 10.7.0.100/24
    has "$(child ip link show tap0)" "mtu 65520"
    has "$(asks 192.0.2.2 7001 child)" "hello 192.0.2.2"
    becomes asks 2001:db8:1::2 7002 child
    has "$(refuses asks 10.7.0.2 7001 child)" unreachable
    over
}

play_resolv_conf_names_the_forwarder() {
    resolver 127.0.0.1 here
    resolv_conf "nameserver 127.0.0.1"
    kit --slirp4netns-sandbox=auto --slirp4netns-seccomp=auto -- sleep 100
    becomes child grep 10.0.2.3 /etc/resolv.conf
    becomes child dig +short +time=1 +tries=1 any.test TXT
    has "$(child dig +short any.test TXT)" here
    over
}
