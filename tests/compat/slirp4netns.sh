# shellcheck shell=bash
# slirp4netns(1) as its callers know it: arguments, address plan, life and death, and the API socket.
# shellcheck disable=SC2034 # run reads it
original=slirp4netns

# start OPTION...: starts the program, and waits until it is ready. $HELPER is its process; it says its piece in `said`.
start() {
    rm -f ready && mkfifo ready
    "$PROGRAM" --ready-fd=9 "$@" 9>ready >said 2>&1 &
    HELPER=$!
    [ "$(timeout 20 cat ready)" = 1 ] || fail "not ready: $(<said)"
}

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

play_configure_brings_address_mtu_and_route() {
    space
    start -c "$SPACE" tap7
    has "$(in_space ip -4 addr show tap7)" "10.0.2.100/24"
    has "$(in_space ip link show tap7)" "mtu 1500"
    has "$(in_space ip link show lo)" "LOOPBACK,UP"
    has "$(in_space ip route)" "default via 10.0.2.2 dev tap7"
}
