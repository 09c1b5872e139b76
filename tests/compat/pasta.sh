# shellcheck shell=bash
# pasta(1) as its callers know it: the command lines of podman 6, buildah and rootlesskit 3, what they check afterwards,
# and what people type. Debian's pasta is of 2023 and does not know all of it.
# shellcheck disable=SC2034 # run reads it
original=pasta

unlike pasta podmans_command_line_is_quiet_and_quick "version 2023-03 has no --map-guest-addr"
unlike pasta the_hosts_own_address_is_reached_but_not_its_loopback "version 2023-03 has no --map-guest-addr"
unlike pasta names_are_resolved_over_udp_and_tcp "version 2023-03 has no --map-guest-addr"
unlike pasta the_end_of_the_path_is_the_end_and_frees_its_ports "version 2023-03 has no --map-guest-addr"
unlike pasta ten_restarts_in_a_row_find_their_port_free "version 2023-03 keeps the mount of the namespace busy"
unlike pasta rootlesskits_command_line_works "version 2023-03 has no --host-lo-to-ns-lo"
unlike pasta rootlesskits_question_is_answered "version 2023-03 has no --host-lo-to-ns-lo"
unlike pasta a_mapping_may_be_switched_off "version 2023-03 has no --map-host-loopback"
unlike pasta a_port_in_use_is_told_in_the_words_that_are_looked_for "version 2023-03 does not say which option"
unlike pasta buildahs_path_below_proc_works "version 2023-03 stays when the process of the path has ended"
unlike pasta what_is_sent_to_the_loopback_before_the_end_arrives "it ends with the command, and what it still held is lost"
unlike pasta frames_are_recorded "version 2023-03 does not come to an end there"
unlike pasta ranges_and_translations_reach_the_guest "version 2023-03 accepts before its guest listens and holds on"

# A network namespace under a name, as podman has it: bound to the file $NETNS, in namespaces whose process is $KEEPER.
podmans_space() {
    NETNS=/mnt/run/netns-1
    : >"$NETNS"
    # shellcheck disable=SC2016
    unshare --user --map-root-user --mount --propagation=private --net sh -c \
        'mount --bind /proc/self/ns/net "$1" && touch "$1.ready" && exec sleep 1000' sh "$NETNS" &
    KEEPER=$!
    becomes test -e "$NETNS.ready"
}

# in_podman COMMAND...: runs it like podman's children: root of the user namespace, in the host's network namespace.
in_podman() { nsenter --target "$KEEPER" --user --mount --preserve-credentials "$@"; }

# in_guest COMMAND...
in_guest() { nsenter --target "$KEEPER" --user --net --preserve-credentials "$@"; }

# podmans OPTION...: podman 6 starts it; the time that it takes to release both streams is bounded.
podmans() {
    in_podman timeout 20 "$PROGRAM" --config-net "$@" --dns-forward 169.254.1.1 -u none -T none -U none --no-map-gw \
        --quiet --netns "$NETNS" --map-guest-addr 169.254.1.2 2>&1
}

play_podmans_command_line_is_quiet_and_quick() {
    podmans_space
    # Command substitution ends when nobody holds the streams any more, as podman's reading does.
    is "$(podmans -t 127.0.0.1/5044-5044:5045-5045)" ""
    has "$(in_guest ip -4 addr show wan)" "192.0.2.2/24"
    has "$(in_guest ip -6 addr show wan)" "2001:db8:1::2/64"
    has "$(in_guest ip link show wan)" "mtu 65520"
    has "$(in_guest ip link show lo)" "LOOPBACK,UP"
    has "$(in_guest ip route)" "default via 192.0.2.1 dev wan"
    has "$(in_guest ip -6 route)" "default via 2001:db8:1::1 dev wan"
    answers 0.0.0.0 5045 guest in_guest
    has "$(asks 127.0.0.1 5044)" guest
    refuses asks 192.0.2.2 5044 >/dev/null
}

play_the_hosts_own_address_is_reached_but_not_its_loopback() {
    podmans_space
    podmans -t none
    answers 192.0.2.2 7001 host
    answers 127.0.0.1 7002 loopback
    has "$(asks 169.254.1.2 7001 in_guest)" host
    refuses asks 169.254.1.2 7002 in_guest >/dev/null
    refuses asks 192.0.2.1 7002 in_guest >/dev/null
}

play_names_are_resolved_over_udp_and_tcp() {
    resolver 192.0.2.2 yes
    tcp_resolver 192.0.2.2 yes
    podmans_space
    podmans -t none
    is "$(in_guest dig +short +time=5 +tries=1 @169.254.1.1 any.test TXT)" '"yes"'
    is "$(in_guest dig +tcp +short +time=5 +tries=1 @169.254.1.1 any.test TXT)" '"yes"'
}

# The same as resolver, over TCP.
tcp_resolver() {
    python3 - "$1" "$2" <<'PYTHON' &
import socket, struct, sys
address, text = sys.argv[1], sys.argv[2].encode()
server = socket.create_server((address, 53))
record = b"\xc0\x0c" + struct.pack(">HHIHB", 16, 1, 0, len(text) + 1, len(text)) + text
while True:
    client, _ = server.accept()
    with client:
        length = client.recv(2, socket.MSG_WAITALL)
        if len(length) < 2:
            continue
        query = client.recv(struct.unpack(">H", length)[0], socket.MSG_WAITALL)
        end = query.index(b"\0", 12) + 5
        answer = query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0) + query[12:end] + record
        client.sendall(struct.pack(">H", len(answer)) + answer)
PYTHON
    becomes dig +tcp +short +time=1 +tries=1 "@$1" any.test TXT
}

play_the_end_of_the_path_is_the_end_and_frees_its_ports() {
    podmans_space
    podmans -t 5044-5044:5045-5045 --pid /mnt/run/pid
    local pid tries
    pid=$(<"/mnt/run/pid")
    # As podman tears down: unmounted, unlinked, and the next one wants the port at once.
    in_podman umount "$NETNS"
    rm "$NETNS"
    for tries in {1..20}; do
        gone "$pid" && break
        sleep 0.05
    done
    gone "$pid" || fail "still there after a second"
    python3 -c 'import socket; socket.create_server(("0.0.0.0", 5044))'
}

play_ten_restarts_in_a_row_find_their_port_free() {
    local turn
    for turn in {1..10}; do
        podmans_space
        in_podman timeout 20 "$PROGRAM" --config-net -t 5044-5044:5045-5045 -u none -T none -U none --no-map-gw --quiet \
            --netns "$NETNS"
        in_podman umount "$NETNS"
        rm "$NETNS" "$NETNS.ready"
        kill "$KEEPER"
    done
}

play_a_port_in_use_is_told_in_the_words_that_are_looked_for() {
    answers 0.0.0.0 5044 taken
    podmans_space
    local said
    said=$(refuses in_podman "$PROGRAM" --config-net -t 5044-5044:5045-5045 -u none -T none -U none --netns "$NETNS")
    has "$said" "5044"
    has "$said" "-t 5044-5044:5045-5045"
}

play_an_unknown_option_is_told_in_getopts_words() {
    has "$(refuses "$PROGRAM" --map-guest-addrx 169.254.1.2)" "unrecognized option '--map-guest-addrx'"
    local status=0
    "$PROGRAM" --bogus >/dev/null 2>&1 || status=$?
    is "$status" 1
}

play_mistakes_are_told_in_the_same_words() {
    told() {
        local words=$1
        shift
        has "$(refuses "$PROGRAM" "$@")" "$words"
    }
    told "Invalid MTU: 5" --mtu 5 -- true
    told "Invalid address: 1.2.3" -a 1.2.3 -- true
    told "Invalid netmask: 33" -n 33 -- true
    told "Invalid gateway address: 1.2" -g 1.2 -- true
    told "Invalid port specifier 70000" -t 70000 -- true
    told "Invalid port specifier 80-82:90-91" -t 80-82:90-91 -- true
    told "Specific ports cannot be specified together with all/none/auto" -t none -t 80 -- true
    told "'all' port forwarding is only allowed for passt" -t all -- true
    told "Options ipv4-only and ipv6-only are mutually exclusive" -4 -6 -- true
    told "Both --netns and PID or command given" --netns /x 5
    told "ambiguous; possibilities: '--mtu' '--mac-addr'" --m 5
}

play_version_is_one_line_of_success() {
    has "$("$PROGRAM" --version)" "pasta "
    has "$("$PROGRAM" --help 2>&1)" "--config-net"
}

play_rootlesskits_question_is_answered() {
    "$PROGRAM" --host-lo-to-ns-lo --version
}

play_rootlesskits_command_line_works() {
    space
    timeout 20 "$PROGRAM" --stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 \
        --gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=none --udp-ports=none \
        --host-lo-to-ns-lo "$SPACE" 2>&1 | cat
    has "$(in_space ip -4 addr show tap0)" "10.0.2.100/24"
    has "$(in_space ip route)" "default via 10.0.2.2 dev tap0"
    answers 192.0.2.2 7001 hello
    has "$(asks 192.0.2.2 7001 in_space)" hello
    kill "$SPACE"
    becomes none_running pasta
}

play_buildahs_path_below_proc_works() {
    space
    timeout 20 "$PROGRAM" --config-net -t none -u none -T none -U none --no-map-gw --quiet --userns "/proc/$SPACE/ns/user" \
        --netns "/proc/$SPACE/ns/net" 2>&1 | cat
    has "$(in_space ip -4 addr show wan)" "192.0.2.2/24"
    kill "$SPACE"
    becomes none_running pasta
}

play_a_command_runs_as_root_of_its_own_namespaces() {
    local said status=0
    # shellcheck disable=SC2016
    said=$("$PROGRAM" --config-net -t none -u none -T none -U none -- \
        sh -c 'id -u; cat /proc/self/uid_map; ip -4 -o addr show wan; ls -d /proc/1; exit 7' 2>&1) || status=$?
    is "$status" 7
    has "$said" "192.0.2.2/24"
    has "$said" "$(printf '         0      %5d          1' "$(id -u)")"
}

play_without_a_command_a_login_shell_runs() {
    local said
    said=$(SHELL=/bin/bash "$PROGRAM" --config-net -t none -u none -T none -U none 2>&1 <<<'shopt login_shell; exit 3') ||
        is "$?" 3
    has "$(xargs <<<"$said")" "login_shell on"
}

play_the_gateway_is_the_hosts_loopback() {
    answers 127.0.0.1 7002 loopback
    has "$("$PROGRAM" --config-net -t none -u none -T none -U none -- bash -c 'cat </dev/tcp/192.0.2.1/7002')" loopback
}

play_a_mapping_may_be_switched_off() {
    answers 127.0.0.1 7002 loopback
    local said
    # An option that is not known would be refused, too.
    said=$("$PROGRAM" --config-net --map-host-loopback none -t none -u none -T none -U none -- \
        bash -c 'timeout 5 cat </dev/tcp/192.0.2.1/7002 || echo closed' 2>/dev/null)
    is "$said" closed
}

play_addresses_and_the_gateway_may_be_given() {
    local said
    said=$("$PROGRAM" --config-net -4 -a 192.0.2.77 -n 24 -g 192.0.2.9 -m 1400 -I myname -t none -u none -T none -U none -- \
        sh -c 'ip addr show myname; ip route' 2>&1)
    has "$said" "192.0.2.77/24"
    has "$said" "mtu 1400"
    has "$said" "default via 192.0.2.9 dev myname"
    lacks "$said" "2001:db8"
}

play_ranges_and_translations_reach_the_guest() {
    space
    "$PROGRAM" --config-net -t 192.0.2.2/6001-6002:7001-7002 -t 6003,6005-6007,~6006 -u none -T none -U none "$SPACE"
    local port
    for port in 7001 7002 6003 6005 6007; do answers 0.0.0.0 "$port" "guest-$port" in_space; done
    has "$(asks 192.0.2.2 6001)" guest-7001
    has "$(asks 192.0.2.2 6002)" guest-7002
    has "$(asks 127.0.0.1 6003)" guest-6003
    has "$(asks 127.0.0.1 6005)" guest-6005
    has "$(asks ::1 6007)" guest-6007
    refuses asks 127.0.0.1 6006 >/dev/null
    refuses asks 127.0.0.1 6001 >/dev/null
}

play_ports_of_the_guests_loopback_lead_to_the_hosts() {
    answers 127.0.0.1 7002 loopback
    answers ::1 7002 loopback6
    has "$("$PROGRAM" --config-net -t none -u none -T 7001:7002 -U none -- bash -c 'cat </dev/tcp/127.0.0.1/7001')" \
        "loopback 127.0.0.1"
    has "$("$PROGRAM" --config-net -t none -u none -T 7001:7002 -U none -- bash -c 'cat </dev/tcp/::1/7001')" \
        "loopback6 ::1"
    space
    timeout 20 "$PROGRAM" --config-net -t none -u none -T 7002 -U none "$SPACE"
    has "$(asks 127.0.0.1 7002 in_space)" "loopback 127.0.0.1"
    refuses asks 127.0.0.1 7003 in_space >/dev/null
}

# Whether anybody may listen on a TCP port of the host.
is_free() { python3 -c 'import socket, sys; socket.create_server(("0.0.0.0", int(sys.argv[1])))' "$1"; }

unlike pasta what_the_guest_listens_on_is_published_for_as_long "version 2023-03 looks only at its start"
play_what_the_guest_listens_on_is_published_for_as_long() {
    space
    timeout 20 "$PROGRAM" --config-net "$SPACE"
    in_space python3 - 7001 <<'PYTHON' &
import os, socket, sys
with socket.create_server(("0.0.0.0", int(sys.argv[1]))) as server:
    server.settimeout(0.1)
    while not os.path.exists("enough"):
        try:
            client, peer = server.accept()
        except TimeoutError:
            continue
        with client:
            client.sendall(b"guest\n")
PYTHON
    becomes asks 192.0.2.2 7001
    is "$(asks 192.0.2.2 7001)" guest
    touch enough
    becomes is_free 7001
}

unlike pasta what_the_guest_listens_on_is_published_at_a_chosen_address "version 2023-03 has no ADDR/auto"
play_what_the_guest_listens_on_is_published_at_a_chosen_address() {
    space
    timeout 20 "$PROGRAM" --config-net -t 192.0.2.3/auto -u none -T none -U none "$SPACE"
    answers 0.0.0.0 7001 guest in_space
    becomes asks 192.0.2.3 7001
    has "$(asks 192.0.2.3 7001)" guest
    refuses asks 127.0.0.1 7001 >/dev/null
}

unlike pasta datagram_ports_of_the_guest_are_published_too "version 2023-03 looks only at its start"
play_datagram_ports_of_the_guest_are_published_too() {
    space
    timeout 20 "$PROGRAM" --config-net "$SPACE"
    mirrors 0.0.0.0 7005 in_space
    becomes comes_back 192.0.2.2 7005 hello
}

play_what_the_host_listens_on_is_offered_at_the_guests_loopback() {
    answers 127.0.0.1 7002 host
    has "$("$PROGRAM" --config-net -- bash -c 'cat </dev/tcp/127.0.0.1/7002')" \
        "host 127.0.0.1"
}

unlike pasta what_the_host_listens_on_later_is_offered_too "version 2023-03 looks only at its start"
play_what_the_host_listens_on_later_is_offered_too() {
    space
    timeout 20 "$PROGRAM" --config-net -t none -u none -T auto -U none "$SPACE"
    answers 127.0.0.1 7003 later
    becomes asks 127.0.0.1 7003 in_space
}

unlike pasta a_port_is_not_led_back_where_it_comes_from "version 2023-03 looks only at its start"
play_a_port_is_not_led_back_where_it_comes_from() {
    space
    timeout 20 "$PROGRAM" --config-net -t 7006 -u none -T auto -U none "$SPACE"
    # What has begun later is offered, so the host's ports have been looked at by then.
    answers 127.0.0.1 7007 host
    becomes asks 127.0.0.1 7007 in_space
    # It is free in the guest.
    answers 0.0.0.0 7006 guest in_space
    has "$(asks 192.0.2.2 7006)" guest
}

play_datagrams_of_the_guests_loopback_lead_to_the_hosts() {
    mirrors 127.0.0.1 7004
    becomes comes_back 127.0.0.1 7004 hello
    space
    timeout 20 "$PROGRAM" --config-net -t none -u none -T none -U 7003:7004 "$SPACE"
    becomes comes_back 127.0.0.1 7003 hello in_space
    refuses comes_back 127.0.0.1 7004 hello in_space >/dev/null
}

unlike pasta ports_are_bound_to_addresses_that_may_come "version 2023-03 has no --freebind"
play_ports_are_bound_to_addresses_that_may_come() {
    space
    has "$(refuses "$PROGRAM" -t 192.0.2.77/7001 -u none -T none -U none "$SPACE")" "Cannot assign requested address"
    timeout 20 "$PROGRAM" --freebind -t 192.0.2.77/7001 -u 2001:db8::77/7001 -T none -U none "$SPACE"
    has "$(ss -ltnH)" 192.0.2.77:7001
    has "$(ss -lunH)" "[2001:db8::77]:7001"
}

play_a_descriptor_names_the_namespace() {
    answers 127.0.0.1 7002 loopback
    space
    timeout 20 "$PROGRAM" --config-net -t none -u none -T 7002 -U none --userns "/proc/$SPACE/ns/user" \
        --netns /proc/self/fd/5 5<"/proc/$SPACE/ns/net"
    has "$(asks 127.0.0.1 7002 in_space)" "loopback 127.0.0.1"
}

play_what_is_sent_to_the_loopback_before_the_end_arrives() {
    # Nothing is taken before the command has filled all buffers on the way, and then most of it after its end.
    python3 -c 'import os, socket, time
listener = socket.create_server(("127.0.0.1", 7002)); open("listens", "w")
stream = listener.accept()[0]
while not os.path.exists("filled"): time.sleep(0.01)
slowly = lambda: (time.sleep(0.002), stream.recv(1 << 16))[1]
print(len(b"".join(iter(slowly, b""))))' >count &
    local reader=$!
    becomes test -e listens
    # shellcheck disable=SC2016
    "$PROGRAM" --config-net -t none -u none -T 7002 -U none -- sh -c 'python3 -c "$1" && touch filled' sh \
        'import select, socket
stream = socket.create_connection(("127.0.0.1", 7002)); stream.setblocking(False); sent = 0
while select.select([], [stream], [], 0.5)[1]: sent += stream.send(b"w" * 65536)
open("sent", "w").write(str(sent))'
    wait "$reader"
    is "$(cat count)" "$(cat sent)"
}

play_streams_are_released_with_ports_of_the_guests_loopback_too() {
    space
    is "$(timeout 20 "$PROGRAM" --config-net --quiet -t none -u none -T 7002 -U none "$SPACE" 2>&1)" ""
}

unlike pasta loopback_clients_appear_as_the_guest_itself "version 2023-03 has no --no-splice"
play_loopback_clients_appear_as_the_guest_itself() {
    space
    timeout 20 "$PROGRAM" --config-net -t 6001 -u none -T none -U none "$SPACE"
    answers 0.0.0.0 6001 guest in_space
    has "$(asks 127.0.0.1 6001)" "guest 192.0.2.2"
    kill "$SPACE"
    becomes none_running pasta
    space
    timeout 20 "$PROGRAM" --config-net --no-splice -t 6001 -u none -T none -U none "$SPACE"
    answers 0.0.0.0 6001 guest in_space
    has "$(asks 127.0.0.1 6001)" "guest 192.0.2.1"
}

unlike pasta servers_of_the_guests_loopback_are_followed_if_they_are_reached "version 2023-03 has no --host-lo-to-ns-lo"
play_servers_of_the_guests_loopback_are_followed_if_they_are_reached() {
    space
    timeout 20 "$PROGRAM" --config-net --host-lo-to-ns-lo -u none -T none -U none "$SPACE"
    answers 127.0.0.1 7001 private in_space
    becomes asks 127.0.0.1 7001
    has "$(asks 127.0.0.1 7001)" "private 127.0.0.1"
}

unlike pasta the_guests_loopback_is_reached_if_asked_for "version 2023-03 has no --host-lo-to-ns-lo"
play_the_guests_loopback_is_reached_if_asked_for() {
    space
    timeout 20 "$PROGRAM" --config-net --host-lo-to-ns-lo -t 6001 -u none -T none -U none "$SPACE"
    answers 127.0.0.1 6001 private in_space
    has "$(asks 127.0.0.1 6001)" "private 127.0.0.1"
    has "$(asks ::1 6001)" "private 127.0.0.1"
    refuses asks 192.0.2.2 6001 >/dev/null
}

play_frames_are_recorded() {
    "$PROGRAM" --config-net --pcap frames -t none -u none -T none -U none -- bash -c 'echo >/dev/tcp/192.0.2.1/9' || true
    is "$(head -c 4 frames | od -An -tx4 | tr -d ' ')" a1b2c3d4
    [ "$(wc -c <frames)" -gt 100 ] || fail "only a header"
}

play_a_log_file_is_kept() {
    space
    "$PROGRAM" --config-net --log-file log -t none -u none -T none -U none "$SPACE"
    has "$(head -n 1 log)" pasta
}

# Ports of a running network. Debian's pasta has neither -c nor pesto; these are played with rnet alone.

# pesto ARGUMENT...
pesto() {
    [ "$UNDER_TEST" = rnet ] || fail "there is no pesto"
    timeout 20 bash -c 'exec -a pesto "$@"' bash "$PROGRAM" "$@"
}

# changeable OPTION...: a network for a new space whose ports can be changed at $SOCKET.
changeable() {
    SOCKET=$PWD/control
    space
    timeout 20 "$PROGRAM" --config-net -T none -U none -c control "$@" "$SPACE"
}

# echoes PORT TEXT: a UDP server in the space that answers every datagram with TEXT.
echoes() {
    in_space python3 - "$1" "$2" <<'PYTHON' &
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", int(sys.argv[1])))
while True:
    _, peer = server.recvfrom(2048)
    server.sendto(sys.argv[2].encode(), peer)
PYTHON
    becomes in_space grep -qi ":$(printf %04x "$1") " /proc/self/net/udp
}

# sends ADDRESS PORT: prints what a UDP server answers; an error if it does not.
sends() {
    python3 - "$1" "$2" <<'PYTHON'
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(2)
client.connect((sys.argv[1], int(sys.argv[2])))
client.send(b"?")
print(client.recv(2048).decode())
PYTHON
}

NO_RULES="Inbound forwarding rules (HOST): none"
NO_PESTO="version 2023-03 has no pesto"

unlike pasta ports_are_added_and_deleted_as_podman_does "$NO_PESTO"
play_ports_are_added_and_deleted_as_podman_does() {
    changeable -t none -u none
    is "$(pesto "$SOCKET")" "$NO_RULES"
    in_space ip addr add 10.89.0.2/32 dev lo
    answers 10.89.0.2 80 container in_space
    local turn
    for turn in {1..5}; do
        is "$(pesto -A -t 192.0.2.2/8080:10.89.0.2/80 "$SOCKET")" ""
        # What is there is no mistake.
        is "$(pesto -A -t 192.0.2.2/8080:10.89.0.2/80 "$SOCKET")" ""
        has "$(asks 192.0.2.2 8080)" container
        has "$(pesto -s "$SOCKET")" "TCP [192.0.2.2]:8080 => [10.89.0.2]:80"
        is "$(pesto -D -t 192.0.2.2/8080:10.89.0.2/80 "$SOCKET")" ""
        refuses asks 192.0.2.2 8080 >/dev/null
    done
    is "$(pesto -s "$SOCKET")" "$NO_RULES"
    has "$(refuses pesto -D -t 192.0.2.2/8080:10.89.0.2/80 "$SOCKET")" "it is not there"
}

unlike pasta added_ports_are_reached_over_tcp_and_udp "$NO_PESTO"
play_added_ports_are_reached_over_tcp_and_udp() {
    changeable -t none -u none
    answers 0.0.0.0 7001 stream in_space
    echoes 7002 datagram
    pesto --add --tcp-ports 6001-6002:7001-7002 -u 6002:7002 "$SOCKET"
    local address
    for address in 127.0.0.1 192.0.2.2; do
        has "$(asks "$address" 6001)" stream
        is "$(sends "$address" 6002)" datagram
    done
    has "$(asks 127.0.0.1 6001)" "stream 192.0.2.2"
    has "$(asks ::1 6001)" "stream 192.0.2.2"
    pesto -D -u 6002:7002 "$SOCKET"
    refuses sends 127.0.0.1 6002 >/dev/null
    has "$(asks 127.0.0.1 6001)" stream
}

unlike pasta plain_ports_replace_all_and_clear_removes_all "$NO_PESTO"
play_plain_ports_replace_all_and_clear_removes_all() {
    changeable -t 6001 -u 6001
    answers 0.0.0.0 6001 first in_space
    answers 0.0.0.0 6002 second in_space
    has "$(pesto -t 6001:6002 -t 6003:6001 -s "$SOCKET")" "TCP [*]:6001 => 6002"
    has "$(asks 127.0.0.1 6001)" second
    has "$(asks 127.0.0.1 6003)" first
    lacks "$(pesto "$SOCKET")" UDP
    is "$(pesto -s -C HOST "$SOCKET")" "$NO_RULES"
    refuses asks 127.0.0.1 6001 >/dev/null
}

unlike pasta a_change_that_fails_changes_nothing "$NO_PESTO"
play_a_change_that_fails_changes_nothing() {
    answers 0.0.0.0 6002 taken
    changeable -t 6001 -u none
    answers 0.0.0.0 6001 guest in_space
    local said
    said=$(refuses pesto -A -t 6003,6002 "$SOCKET")
    has "$said" ":6002"
    has "$said" "Address already in use"
    has "$(refuses pesto -t 6003,6002 "$SOCKET")" "Address already in use"
    has "$(refuses pesto -A -t 6001:7000 "$SOCKET")" "TCP [*]:6001 => 6001 is there"
    has "$(refuses pesto -A -T 80 "$SOCKET")" "cannot be changed while the network runs"
    is "$(pesto "$SOCKET" | grep -c =)" 1
    has "$(asks 127.0.0.1 6001)" guest
}

unlike pasta the_control_socket_goes_with_the_network "$NO_PESTO"
play_the_control_socket_goes_with_the_network() {
    changeable -t none -u none
    has "$(refuses "$PROGRAM" --config-net -t none -u none -T none -U none -c control true)" "in use"
    kill "$SPACE"
    becomes test ! -e "$SOCKET"
    has "$(refuses pesto "$SOCKET")" "cannot reach the network at $SOCKET"
}
