# shellcheck shell=bash
# What podman's own tests ask of pasta(1), without podman and without pictures of containers: addresses, routes, names,
# every way of writing a port over both families, and transfers of all sizes. The host's own address, which the guest
# has too, is the way over the link (`tap`); loopback is the way past it.
# shellcheck disable=SC2034 # run reads it
original=pasta

unlike pasta the_last_name_and_address_of_the_interface_count "version 2023-03 refuses a second one"
unlike pasta ports_of_an_interface_are_those_of_all_its_addresses "version 2023-03 wants an address before the interface"

# guest OPTION...: a new space with a network like the host's, as podman asks for it.
guest() {
    space
    timeout 20 "$PROGRAM" --config-net "$@" -T none -U none --no-map-gw --quiet "$SPACE"
    # Version 2023-03 leaves the check for duplicates to the guest.
    becomes_text "" in_space ip -6 addr show tentative
}

# closed: options of a guest without any port.
closed=(-t none -u none)

# destination 4|6 tap|loopback: the address and the interface of the host where a guest's ports are.
destination() {
    case $1$2 in
    4tap) echo 192.0.2.2 wan ;;
    6tap) echo 2001:db8:1::2 wan ;;
    4loopback) echo 127.0.0.1 lo ;;
    6loopback) echo ::1 lo ;;
    esac
}

# delivers TRANSPORT ADDRESS BYTES "PORT..." "PORT...": what is sent to the host's ports arrives at the guest's.
delivers() {
    local transport=$1 address=$2 bytes=$3 from=$4 to=$5 receiver sent
    rm -f received
    # shellcheck disable=SC2086 # lists of ports
    in_space python3 /mnt/guest/delivery.py receive "$transport" $to >received &
    receiver=$!
    becomes grep -q ready received
    # shellcheck disable=SC2086
    sent=$(timeout 40 python3 /mnt/guest/delivery.py send "$transport" "$address" "$bytes" $from)
    wait "$receiver"
    is "$(grep -v ready received)" "$sent"
}

# option TRANSPORT: how its ports are published; the other one has none.
option() { [ "$1" = tcp ] && echo -u none -t || echo -t none -u; }

# forwards TRANSPORT 4|6 tap|loopback: a byte for each port arrives, whichever way the port is written.
forwards() {
    local address interface from=() to=() options=() first last spec host guest option
    read -r address interface <<<"$(destination "$2" "$3")"
    read -r -a option <<<"$(option "$1")"
    while read -r spec host guest; do
        options+=("${option[2]}" "$spec")
        IFS=- read -r first last <<<"$host"
        mapfile -t -O ${#from[@]} from < <(seq "$first" "${last:-$first}")
        IFS=- read -r first last <<<"$guest"
        mapfile -t -O ${#to[@]} to < <(seq "$first" "${last:-$first}")
    done <<TABLE
5001-5001:5001-5001            5001      5001
5011-5013:5011-5013            5011-5013 5011-5013
5021-5021:6021-6021            5021      6021
5031-5033:6031-6033            5031-5033 6031-6033
$address/5041-5041:5041-5041   5041      5041
$address/5051-5053:6051-6053   5051-5053 6051-6053
$address%$interface/5061:5061  5061      5061
$address%$interface/5071:6071  5071      6071
TABLE
    guest "${option[@]:0:2}" "${options[@]}"
    delivers "$1" "$address" 1 "${from[*]}" "${to[*]}"
}

# transfers TRANSPORT 4|6 tap|loopback: all sizes arrive as they were sent.
transfers() {
    local address bytes large=10485760
    # A quarter of the usual wmem_default, in one datagram.
    [ "$1" = tcp ] || large=53248
    read -r address _ <<<"$(destination "$2" "$3")"
    # shellcheck disable=SC2046 # two words
    guest $(option "$1") 5001-5003:6001-6003
    for bytes in 1 2048 65000 "$large"; do
        delivers "$1" "$address" "$bytes" 5001 6001
    done
    delivers "$1" "$address" 2048 "5001 5002 5003" "6001 6002 6003"
}

for transport in tcp udp; do
    for family in 4 6; do
        for way in tap loopback; do
            eval "play_${transport}_v${family}_ports_by_${way}() { forwards $transport $family $way; }"
            eval "play_${transport}_v${family}_transfers_by_${way}() { transfers $transport $family $way; }"
        done
    done
done
unset transport family way

play_ports_of_an_interface_are_those_of_all_its_addresses() {
    guest -u none -t %wan/5001:6001
    delivers tcp 192.0.2.2 1 5001 6001
    delivers tcp 192.0.2.3 1 5001 6001
    delivers tcp 2001:db8:1::2 1 5001 6001
    refuses asks 127.0.0.1 5001 >/dev/null
}

play_addresses_routes_and_interface_are_the_hosts() {
    guest "${closed[@]}"
    has "$(in_space ip -4 addr show wan)" "inet 192.0.2.2/24"
    has "$(in_space ip -6 addr show wan)" "inet6 2001:db8:1::2/64"
    has "$(in_space ip -4 route)" "default via 192.0.2.1 dev wan"
    has "$(in_space ip -6 route)" "default via 2001:db8:1::1 dev wan"
    has "$(in_space ip link show wan)" "mtu 65520"
    has "$(in_space ip link show lo)" "LOOPBACK,UP"
}

# What is given for one family leaves the other alone.
play_addresses_of_either_family_may_be_given() {
    guest "${closed[@]}" -a 192.0.2.77
    has "$(in_space ip -4 addr show wan)" "inet 192.0.2.77/24"
    has "$(in_space ip -6 addr show wan)" "inet6 2001:db8:1::2/64"
    guest "${closed[@]}" -a 2001:db8:1::77
    has "$(in_space ip -4 addr show wan)" "inet 192.0.2.2/24"
    has "$(in_space ip -6 addr show wan)" "inet6 2001:db8:1::77/64"
    lacks "$(in_space ip -6 addr show wan)" "2001:db8:1::2/"
}

play_gateways_of_both_families_may_be_given() {
    guest "${closed[@]}" -a 192.0.2.1 -g 192.0.2.254 -a 2001:db8:1::1 -g 2001:db8:1::ffff
    has "$(in_space ip -4 route)" "default via 192.0.2.254 dev wan"
    has "$(in_space ip -6 route)" "default via 2001:db8:1::ffff dev wan"
}

play_an_mtu_may_be_given() {
    guest "${closed[@]}" -m 1280
    has "$(in_space ip link show wan)" "mtu 1280"
}

# The last of what is said twice counts, as with podman's configuration and its command line.
play_the_last_name_and_address_of_the_interface_count() {
    guest "${closed[@]}" -I myname --ns-mac-addr 9a:dd:31:ea:92:98 -I other --ns-mac-addr aa:bb:cc:dd:ee:ff
    has "$(in_space ip link show other)" "link/ether aa:bb:cc:dd:ee:ff"
}

play_names_are_resolved_by_the_address_that_was_asked_for() {
    resolver 192.0.2.2 yes
    guest "${closed[@]}" --dns-forward 198.51.100.1
    is "$(in_space dig +short +time=5 +tries=1 @198.51.100.1 any.test TXT)" '"yes"'
    refuses in_space dig +short +time=1 +tries=1 @198.51.100.2 any.test TXT >/dev/null
}

# dhcp: what a client is given; an error if nothing.
dhcp() {
    # shellcheck disable=SC2016
    leased '$ip/$mask via $router mtu $mtu dns $dns' mtu
}

play_dhcp_gives_what_the_host_has() {
    bare
    has "$(dhcp)" "192.0.2.2/24 via 192.0.2.1 mtu 65520"
}

play_routers_are_announced_with_the_hosts_prefix() {
    bare
    local said
    said=$(in_space python3 /mnt/guest/router_solicit.py)
    has "$said" "prefix 2001:db8:1::/64 on-link 1 autonomous 1"
    has "$said" "mtu 65520"
}

# stations: the families of which somebody answers on the link.
stations() {
    ! in_space busybox arping -q -f -c 2 -w 2 -I wan 192.0.2.1 || echo 4
    ! in_space python3 /mnt/guest/router_solicit.py >/dev/null 2>&1 || echo 6
}

# global 4|6: the guest's addresses and routes of a family beside loopback.
global() {
    in_space ip "-$1" -o addr show scope global
    in_space ip "-$1" route show | grep -v ^fe80 || true
}

play_without_ipv6_nothing_of_it_is_there() {
    resolver 192.0.2.2 yes
    guest -4 -t 5001:6001 -u none --dns-forward 198.51.100.1
    has "$(global 4)" "inet 192.0.2.2/24"
    is "$(global 6)" ""
    delivers tcp 127.0.0.1 1 5001 6001
    refuses asks ::1 5001 >/dev/null
    is "$(in_space dig +short +time=5 +tries=1 @198.51.100.1 any.test TXT)" '"yes"'
    bare -4
    is "$(stations)" 4
}

play_without_ipv4_nothing_of_it_is_there() {
    resolv_conf "nameserver 2001:db8:1::2"
    resolver 2001:db8:1::2 yes
    guest -6 -t 5001:6001 -u none --dns-forward 2001:db8:1::53
    has "$(global 6)" "inet6 2001:db8:1::2/64"
    is "$(global 4)" ""
    delivers tcp ::1 1 5001 6001
    refuses asks 127.0.0.1 5001 >/dev/null
    is "$(in_space dig +short +time=5 +tries=1 @2001:db8:1::53 any.test TXT)" '"yes"'
    bare -6
    is "$(stations)" 6
    refuses dhcp >/dev/null
}
