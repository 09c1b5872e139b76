# shellcheck shell=bash
# slirp4netns(1) as its callers know it: arguments, address plan, life and death.
# shellcheck disable=SC2034,SC2154 # run reads the one, lab.sh sets the others
original=slirp4netns

unlike slirp4netns raw_frames_do_not_reach_the_closed_loopback "its check sees the address before the translation"
unlike slirp4netns a_tap_may_be_passed_by_its_descriptor "version 1.2 has no tapfd"
unlike slirp4netns a_name_for_the_tap_is_optional "version 1.2 wants it"
unlike slirp4netns the_sandbox_works_with_a_path "it enters the user namespace of a process, and a path has none"
unlike slirp4netns ipv6_is_there_at_once "its guest waits for an advertisement"
unlike slirp4netns bess_ends_with_its_guest "it waits, though no other guest can come"
unlike rnet a_broadcast_reaches_the_loopback "a broadcast is nobody's address"
unlike rnet several_stations_get_leases "a network has one guest, who always gets the same address"
unlike rnet sigterm_is_the_end_by_a_signal "rnet ends in order, with status 0"

play_version_and_help_are_what_callers_look_for() {
    local help option
    has "$("$PROGRAM" --version)" "SLIRP_CONFIG_VERSION_MAX: "
    has "$("$PROGRAM" -v)" "slirp4netns version 1."
    help=$("$PROGRAM" --help)
    for option in disable-host-loopback mtu enable-sandbox enable-seccomp cidr outbound-addr enable-ipv6 api-socket \
        netns-type; do
        has "$help" "--$option"
    done
}

play_mistakes_are_told_in_the_same_words() {
    local said
    told() {
        local words=$1
        shift
        said=$(refuses "$PROGRAM" "$@")
        has "$said" "$words"
    }
    told "MTU must be a positive integer (< 65522)" --mtu=65522 1 tap0
    told "invalid CIDR: foo" --cidr=foo 1 tap0
    told "invalid network address: 300.0.2.0" --cidr=300.0.2.0/24 1 tap0
    told "prefix length needs to be 1-25" --cidr=10.0.2.0/26 1 tap0
    told "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24" --cidr=10.0.2.100/24 1 tap0
    told "PID must be a positive integer" zero tap0
    told "slirp4netns: unrecognized option '--bogus'" --bogus 1 tap0
    told "slirp4netns: option '--en' is ambiguous; possibilities: '--enable-ipv6' '--enable-sandbox' '--enable-seccomp'" \
        --en 1 tap0
    told "slirp4netns: option '--mtu' requires an argument" --mtu
    told "--macaddr cannot be specified when --configure or -c is not specified" --macaddress=0e:d4:18:d9:38:fb 1 tap0
    told "--target-type must be either \"netns\" or \"bess\"" --target-type=x 1 tap0
    told "--configure conflicts with --target-type=bess" --target-type=bess -c /s
    told "[OPTION]... PID|PATH"
    told "No such file or directory" --netns-type=path /nothing tap0
    told "" 99999 tap0
}

play_configure_brings_address_mtu_and_route() {
    space
    start -c "$SPACE" tap7
    has "$(in_space ip -4 addr show tap7)" "10.0.2.100/24"
    has "$(in_space ip link show tap7)" "mtu 1500"
    has "$(in_space ip link show lo)" "LOOPBACK,UP"
    has "$(in_space ip route)" "default via 10.0.2.2 dev tap7"
}

play_options_are_interleaved_and_shortened() {
    space
    start --conf "$SPACE" --mt 1400 tap11 --cid 10.9.0.0/16 --macaddress 0e:d4:18:d9:38:fb
    has "$(in_space ip -4 addr show tap11)" "10.9.0.100/16"
    has "$(in_space ip link show tap11)" "mtu 1400"
    has "$(in_space ip link show tap11)" "0e:d4:18:d9:38:fb"
}

play_the_largest_and_small_mtus_work() {
    local mtu
    answers 192.0.2.2 7001 hello
    for mtu in 65521 1280 576 300; do
        space
        start -c --mtu=$mtu "$SPACE" tap0
        has "$(in_space ip link show tap0)" "mtu $mtu"
        has "$(asks 192.0.2.2 7001 in_space)" hello
    done
}

play_without_configure_only_the_tap_is_made() {
    space
    start "$SPACE" tap0
    is "$(in_space ip -4 addr show tap0 | grep inet || true)" ""
    lacks "$(in_space ip link show lo)" "LOOPBACK,UP"
}

play_a_name_for_the_tap_is_optional() {
    space
    start -c "$SPACE"
    has "$(in_space ip -4 addr show tap0)" "10.0.2.100/24"
}

play_too_many_words_are_a_warning() {
    space
    start -c "$SPACE" tap0 more
    has "$(in_space ip -4 addr show tap0)" "10.0.2.100/24"
}

play_a_persistent_tap_is_taken_over() {
    space
    in_space ip tuntap add name tap0 mode tap
    in_space ip link set tap0 up
    start --mtu 65520 "$SPACE" tap0
    in_space sh -c 'ip link set lo up; ip link set tap0 mtu 65520; ip addr add 10.0.2.100/24 dev tap0
        ip route add default via 10.0.2.2'
    answers 192.0.2.2 7001 hello
    has "$(asks 192.0.2.2 7001 in_space)" "hello 192.0.2.2"
}

play_a_namespace_is_found_by_path() {
    space
    start -c --netns-type=path --userns-path="/proc/$SPACE/ns/user" "/proc/$SPACE/ns/net" tap0
    has "$(in_space ip -4 addr show tap0)" "10.0.2.100/24"
}

play_a_namespace_is_found_by_descriptor() {
    space
    exec 7<"/proc/$SPACE/ns/net" 8<"/proc/$SPACE/ns/user"
    start -c --userns-path=/proc/self/fd/8 --netns-type=path /proc/self/fd/7 tap0
    has "$(in_space ip -4 addr show tap0)" "10.0.2.100/24"
}

play_a_tap_may_be_passed_by_its_descriptor() {
    space
    rm -f ready && mkfifo ready
    # Opens a TAP there, and starts the program as its user with that as descriptor 5.
    in_space python3 -c '
import fcntl, os, struct, sys
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454ca, struct.pack("16sH14x", b"tap0", 0x1002))
os.dup2(tap, 5)
os.execvp(sys.argv[1], sys.argv[1:])' "$PROGRAM" -r 9 --netns-type=tapfd 5 9>ready >said 2>&1 &
    [ "$(timeout 20 cat ready)" = 1 ] || fail "not ready: $(<said)"
    in_space ip link set tap0 up
    in_space ip addr add 10.0.2.100/24 dev tap0
    in_space ping -c 1 -W 5 10.0.2.2
}

# bess: starts it for a guest that asks who has 10.0.2.2, prints the station that answers, and goes.
bess() {
    mkfifo ready
    cat ready >told &
    "$PROGRAM" --target-type=bess -r 9 /mnt/home/bess 9>ready >said 2>&1 &
    HELPER=$!
    becomes test -S /mnt/home/bess
    timeout 10 python3 - <<'PYTHON'
import socket
frames = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
frames.connect("/mnt/home/bess")
me, mine = bytes.fromhex("02aabbccddee"), socket.inet_aton("10.0.2.100")
frames.send(b"\xff" * 6 + me + bytes.fromhex("08060001080006040001") + me + mine + bytes(6) + socket.inet_aton("10.0.2.2"))
frames.settimeout(5)
while True:
    answer = frames.recv(65535)
    if answer[12:14] == b"\x08\x06" and answer[20:22] == b"\0\2":
        print(socket.inet_ntoa(answer[28:32]), answer[:6] == me)
        break
PYTHON
}

play_bess_serves_who_connects() {
    bess >answer
    is "$(<answer)" "10.0.2.2 True"
    # Its reader may not have come to it yet.
    becomes_text 1 cat told
}

play_bess_ends_with_its_guest() {
    bess
    becomes gone "$HELPER"
}

play_dhcp_begins_at_15() {
    space
    start "$SPACE" tap0
    in_space ip link set tap0 up
    has "$(in_space timeout 10 busybox udhcpc -i tap0 -n -q -f -s /bin/true 2>&1)" "lease of 10.0.2.15 obtained"
}

play_several_stations_get_leases() {
    space
    start "$SPACE" tap0
    in_space ip link set tap0 up
    in_space timeout 10 busybox udhcpc -i tap0 -n -q -f -s /bin/true
    in_space ip link set tap0 down
    in_space ip link set tap0 address 02:00:00:00:00:99 up
    has "$(in_space timeout 10 busybox udhcpc -i tap0 -n -q -f -s /bin/true 2>&1)" "lease of 10.0.2.16 obtained"
}

play_any_address_of_the_network_may_be_used() {
    space
    start "$SPACE" tap0
    in_space sh -c 'ip link set tap0 up; ip addr add 10.0.2.77/24 dev tap0; ip route add default via 10.0.2.2'
    answers 192.0.2.2 7001 hello
    has "$(asks 192.0.2.2 7001 in_space)" "hello 192.0.2.2"
    in_space ping -c 1 -W 5 10.0.2.3
}

play_a_closed_port_is_refused() {
    space
    start -c "$SPACE" tap0
    has "$(in_space python3 /mnt/guest/connect.py 5 192.0.2.2 7009)" "ECONNREFUSED"
}

play_the_hosts_loopback_is_open_through_the_gateway() {
    space
    start -c "$SPACE" tap0
    answers 127.0.0.1 7001 hello
    has "$(asks 10.0.2.2 7001 in_space)" "hello 127.0.0.1"
}

play_a_broadcast_reaches_the_loopback() {
    space
    start -c "$SPACE" tap0
    python3 /mnt/guest/udp.py serve 7002 >served &
    becomes grep -q ready served
    in_space python3 -c '
import socket
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
client.sendto(b"x", ("255.255.255.255", 7002))'
    in_space ping -c 1 -W 5 10.0.2.2
    has "$(<served)" client
}

play_the_closed_loopback_is_unreachable_and_the_gateway_answers_pings() {
    space
    start -c --disable-host-loopback "$SPACE" tap0
    answers 127.0.0.1 7001 hello
    has "$(refuses asks 10.0.2.2 7001 in_space)" "Network is unreachable"
    in_space ping -c 1 -W 5 10.0.2.2
    in_space ping -c 1 -W 5 10.0.2.3
}

play_raw_frames_do_not_reach_the_closed_loopback() {
    space
    start -c --disable-host-loopback "$SPACE" tap0
    python3 /mnt/guest/serve.py 7001 >served &
    becomes grep -q ready served
    is "$(in_space python3 /mnt/guest/raw_syn.py 7001)" sent
    # Whatever it lets through is there by now.
    in_space ping -c 2 -W 5 10.0.2.2
    lacks "$(<served)" client
}

play_the_source_address_can_be_chosen() {
    answers 192.0.2.2 7001 hello
    space
    start -c --outbound-addr=192.0.2.3 "$SPACE" tap0
    has "$(asks 192.0.2.2 7001 in_space)" "hello 192.0.2.3"
    space
    start -c --outbound-addr=wan "$SPACE" tap0
    has "$(asks 192.0.2.2 7001 in_space)" "hello 192.0.2.2"
    refuses "$PROGRAM" --outbound-addr=nothing0 "$SPACE" tap1
}

play_ipv6_comes_by_advertisement() {
    answers 2001:db8:1::2 7001 hello
    space
    start -c -6 "$SPACE" tap0
    becomes asks 2001:db8:1::2 7001 in_space
    has "$(asks 2001:db8:1::2 7001 in_space)" "hello 2001:db8:1::2"
    becomes in_space sh -c 'ip -6 addr show dev tap0 dynamic | grep fd00:'
}

play_ipv6_is_there_at_once() {
    answers 2001:db8:1::2 7001 hello
    space
    start -c -6 "$SPACE" tap0
    has "$(asks 2001:db8:1::2 7001 in_space)" "hello 2001:db8:1::2"
}

play_it_ends_with_its_exit_descriptor() {
    space
    mkfifo life
    sleep 1000 >life &
    local writer=$!
    start -c -e 8 "$SPACE" tap0 8<life
    in_space ip addr show tap0
    kill "$writer"
    ends "$HELPER" 0
}

play_what_is_written_to_the_exit_descriptor_does_not_count() {
    space
    mkfifo life
    (echo words && exec sleep 1000) >life &
    start -c -e 8 "$SPACE" tap0 8<life
    in_space ping -c 1 -W 5 10.0.2.2
    ! gone "$HELPER" || fail "it has ended"
}

play_an_exit_descriptor_that_is_closed_has_hung_up() {
    space
    timeout 10 "$PROGRAM" -c -e 77 "$SPACE" tap0
}

play_sigterm_is_the_end_by_a_signal() {
    space
    start -c "$SPACE" tap0
    kill "$HELPER"
    ends "$HELPER" 143
}

play_it_outlives_its_target() {
    space
    start -c "$SPACE" tap0
    kill "$SPACE"
    becomes gone "$SPACE"
    sleep 0.3
    ! gone "$HELPER" || fail "it has ended"
}

play_the_sandbox_shows_etc_and_run_alone() {
    space
    start -c --enable-sandbox "$SPACE" tap0
    sandboxed
}

play_the_sandbox_works_with_a_path() {
    space
    start -c --enable-sandbox --netns-type=path --userns-path="/proc/$SPACE/ns/user" "/proc/$SPACE/ns/net" tap0
    sandboxed
}

# What a sandboxed $HELPER can do, and what not.
sandboxed() {
    local at="/proc/$HELPER/root"
    is "$(ls "$at" | sort | xargs)" "etc run"
    has "$(grep CapEff "/proc/$HELPER/status")" "0000000000000"
    lacks "$(grep CapBnd "/proc/$HELPER/status")" ffffff
    in_space ping -c 1 -W 5 192.0.2.2
    has "$(grep NoNewPrivs "/proc/$HELPER/status")" 1
    answers 192.0.2.2 7001 hello
    has "$(asks 192.0.2.2 7001 in_space)" "hello 192.0.2.2"
}

play_a_new_resolver_is_followed_in_the_sandbox() {
    resolver 127.0.0.1 old
    resolver 127.0.0.2 new
    resolv_conf "nameserver 127.0.0.1"
    space
    start -c --enable-sandbox --enable-seccomp "$SPACE" tap0
    has "$(in_space dig +short +time=2 @10.0.2.3 any.test TXT)" old
    resolv_conf "nameserver 127.0.0.2"
    becomes finds new
}

finds() { in_space dig +short +time=1 +tries=1 @10.0.2.3 any.test TXT | grep -q "$1"; }

play_forbidden_system_calls_are_filtered() {
    space
    start -c --enable-seccomp "$SPACE" tap0
    has "$(grep ^Seccomp: "/proc/$HELPER/status")" 2
    answers 192.0.2.2 7001 hello
    has "$(asks 192.0.2.2 7001 in_space)" "hello 192.0.2.2"
}

play_dns_reaches_the_hosts_resolver() {
    resolver 127.0.0.1 here
    resolv_conf "nameserver 127.0.0.1"
    space
    start -c --disable-host-loopback "$SPACE" tap0
    has "$(in_space dig +short +time=2 @10.0.2.3 any.test TXT)" here
    has "$(in_space python3 /mnt/guest/connect.py 5 10.0.2.3 80)" ENETUNREACH
}

play_dns_can_be_switched_off() {
    resolver 127.0.0.1 here
    resolv_conf "nameserver 127.0.0.1"
    space
    start -c --disable-dns "$SPACE" tap0
    refuses in_space dig +time=2 +tries=1 @10.0.2.3 any.test TXT
}
