# shellcheck shell=bash
# What pasta(1) tells a guest that configures itself: DHCP, DHCPv6 and router advertisements, with names or without; and
# by which station it does.
# shellcheck disable=SC2034 # run reads it
original=pasta

# names: what a DHCP client hears about names.
names() {
    # shellcheck disable=SC2016
    leased 'dns $dns search $search' search
}

# informed, advertised: the same of DHCPv6, and of the router.
informed() { in_space python3 /mnt/guest/dhcpv6_inform.py; }
advertised() { in_space python3 /mnt/guest/router_solicit.py | grep -E "^(dns|search)"; }

play_the_hosts_servers_and_domains_are_told_if_asked_for() {
    resolv_conf "nameserver 192.0.2.53
nameserver 2001:db8:1::53
search host.example lan"
    bare --dhcp-dns --dhcp-search
    is "$(names)" "dns 192.0.2.53 search host.example lan"
    local all=$'dns 2001:db8:1::53\nsearch host.example\nsearch lan'
    is "$(informed)" "$all"
    is "$(advertised)" "$all"
}

play_servers_and_domains_may_be_given() {
    bare --dhcp-dns --dhcp-search -D 198.51.100.1 -D 198.51.100.2 -D 2001:db8::5 -D 2001:db8::6 -S given.example
    is "$(names)" "dns 198.51.100.1 198.51.100.2 search given.example"
    local all=$'dns 2001:db8::5\ndns 2001:db8::6\nsearch given.example'
    is "$(informed)" "$all"
    is "$(advertised)" "$all"
}

play_nothing_about_names_is_told_unasked() {
    resolv_conf "nameserver 192.0.2.53
nameserver 2001:db8:1::53
search host.example"
    bare --dns-forward 198.51.100.1 -D 198.51.100.2 -S given.example
    is "$(names)" "dns  search "
    is "$(informed)" ""
    refuses advertised >/dev/null
}

play_a_server_on_the_hosts_loopback_is_told_as_the_gateway() {
    resolv_conf "nameserver 127.0.0.1"
    resolver 127.0.0.1 yes
    bare --dhcp-dns
    is "$(names)" "dns 192.0.2.1 search "
    in_space ip addr add 192.0.2.2/24 dev wan
    is "$(in_space dig +short +time=5 +tries=1 @192.0.2.1 any.test TXT)" '"yes"'
}

# route: what a DHCP client hears about the way to a router.
route() {
    # shellcheck disable=SC2016
    leased '$ip/$mask via $router, $staticroutes' staticroutes
}

unlike pasta a_router_outside_the_subnet_comes_with_the_way_to_it "version 2023-03 does not tell the way"
play_a_router_outside_the_subnet_comes_with_the_way_to_it() {
    bare -a 192.0.2.2 -n 32 -g 198.51.100.1
    is "$(route)" "192.0.2.2/32 via 198.51.100.1, 198.51.100.1/32 0.0.0.0 0.0.0.0/0 198.51.100.1"
    bare
    is "$(route)" "192.0.2.2/24 via 192.0.2.1, "
}

play_addresses_are_had_by_dhcpv6() {
    bare
    has "$(in_space python3 /mnt/guest/router_solicit.py)" "managed 1"
    bare --no-dhcpv6
    refuses informed >/dev/null
}

play_the_gateways_station_may_be_chosen() {
    bare -M 0e:d4:18:d9:38:fb
    in_space ip addr add 192.0.2.2/24 dev wan
    has "$(in_space busybox arping -f -c 2 -w 2 -I wan 192.0.2.1)" "[0e:d4:18:d9:38:fb]"
    answers 192.0.2.3 7002 host
    has "$(asks 192.0.2.3 7002 in_space)" host
    in_space ip -6 route add 2001:db8:1::1 dev wan
    in_space ping -6 -c 1 -W 1 2001:db8:1::1 >/dev/null 2>&1 || true
    has "$(in_space ip -6 neigh show 2001:db8:1::1)" "0e:d4:18:d9:38:fb"
}

unlike pasta neighbors_are_found_without_router_advertisements "it answers no neighbor either"
play_neighbors_are_found_without_router_advertisements() {
    answers :: 7002 host
    space
    timeout 20 "$PROGRAM" --config-net -t none -u none -T none -U none --quiet --no-ndp "$SPACE"
    becomes_text "" in_space ip -6 addr show tentative
    has "$(asks 2001:db8:1::1 7002 in_space)" host
}

play_routers_are_silent_if_they_shall_be() {
    bare --no-ndp
    refuses advertised >/dev/null
    bare --no-ra
    refuses advertised >/dev/null
}

unlike pasta encrypted_queries_reach_the_server "version 2023-03 forwards port 53 over UDP alone"
play_encrypted_queries_reach_the_server() {
    answers 192.0.2.2 853 encrypted
    mirrors 192.0.2.2 853
    space
    timeout 20 "$PROGRAM" --config-net -t none -u none -T none -U none --dns-forward 198.51.100.1 "$SPACE"
    has "$(asks 198.51.100.1 853 in_space)" encrypted
    becomes comes_back 198.51.100.1 853 hello in_space
    refuses asks 198.51.100.1 80 in_space >/dev/null
}
