# shellcheck shell=bash
# rnet as a CNI plugin, called by the specification's own protocol, alone and in a chain with the plugins of
# containernetworking, and by podman's CNI backend.
# shellcheck disable=SC2034 # run reads it
original=

RNET=/mnt/bin/rnet
VERSION=1.1.0

# list [MEMBER...]: writes the configuration list `list`: rnet alone, with more members in JSON.
list() {
    local members
    members=$(printf ', %s' "$@")
    echo "{\"cniVersion\": \"$VERSION\", \"name\": \"net\", \"plugins\": [{\"type\": \"rnet-cni\"${*:+$members}}]}" >list
}

# cni COMMAND CONTAINER [RUNTIME_CONFIG]: calls the plugins of `list` for eth0 of $SPACE.
cni() { timeout 20 python3 /mnt/compat/chain.py "$1" list "$2" "/proc/$SPACE/ns/net" eth0 "${@:3}"; }

# plugin COMMAND CONFIGURATION [VARIABLE=VALUE...]: calls rnet alone.
plugin() {
    local configuration=$2
    timeout 20 env CNI_COMMAND="$1" CNI_CONTAINERID=box CNI_NETNS="/proc/${SPACE:-self}/ns/net" CNI_IFNAME=eth0 \
        CNI_PATH=/nowhere "${@:3}" "$RNET" cni <<<"$configuration"
}

# of JSON EXPRESSION: evaluates Python on what the JSON says, `it`.
of() { python3 -c 'import json, sys; it = json.loads(sys.argv[1]); print(eval(sys.argv[2]))' "$@"; }

# fails CODE COMMAND...: the command fails with this code; prints its answer.
fails() {
    local answer status=0
    answer=$("${@:2}") || status=$?
    is "$status $(of "$answer" 'it["code"]')" "1 $1"
    echo "$answer"
}

# nothing_left: no process of rnet, and no network's directory.
nothing_left() {
    becomes none_running rnet
    becomes none_running rnet-cni
    becomes test -z "$(ls /mnt/run/rnet 2>/dev/null)"
}

play_add_gives_a_network_and_del_takes_it() {
    local result
    space
    answers 192.0.2.3 7000 hello
    list '"mtu": 1500' '"dns": {"search": ["test"]}'
    result=$(cni ADD box)
    is "$(of "$result" 'it["cniVersion"], it["interfaces"][0]["name"], it["interfaces"][0]["mtu"]')" "('1.1.0', 'eth0', 1500)"
    is "$(of "$result" 'it["interfaces"][0]["sandbox"]')" "/proc/$SPACE/ns/net"
    is "$(of "$result" '[ip["address"] for ip in it["ips"]]')" "['10.0.2.100/24', 'fd00::100/64']"
    is "$(of "$result" 'it["dns"]')" "{'nameservers': ['10.0.2.3', 'fd00::3'], 'search': ['test']}"
    has "$(in_space ip link show eth0)" "$(of "$result" 'it["interfaces"][0]["mac"]')"
    has "$(in_space ip route)" "default via 10.0.2.2 dev eth0"
    has "$(asks 192.0.2.3 7000 in_space)" "hello 192.0.2."
    is "$(cni CHECK box)" ""
    is "$(cni DEL box)" ""
    lacks "$(in_space ip link)" eth0
    nothing_left
    is "$(cni DEL box)" ""
    list '"ipam": {"type": "host-local"}'
    is "$(cni DEL box)" ""
}

play_del_leaves_networks_of_others() {
    local net='{"cniVersion": "1.1.0", "name": "net"}'
    space
    plugin ADD "$net" CNI_CONTAINERID=a-b >/dev/null
    is "$(plugin DEL "$net" CNI_CONTAINERID=a CNI_IFNAME=b-eth0)" ""
    is "$(plugin DEL "${net/net/other}" CNI_CONTAINERID=a-b)" ""
    "$RNET" port ls a-b-eth0
    is "$(plugin DEL "$net" CNI_CONTAINERID=a-b)" ""
    nothing_left
    "$RNET" attach --name a-b-eth0 --detach "$SPACE"
    is "$(plugin DEL "$net" CNI_CONTAINERID=a-b)" ""
    "$RNET" port ls a-b-eth0
    kill "$SPACE"
    nothing_left
}

play_namesakes_have_networks_of_their_own() {
    local net='{"cniVersion": "1.1.0", "name": "net"}' first
    space && first=$SPACE
    plugin ADD "$net" CNI_CONTAINERID=a-b CNI_IFNAME=c >/dev/null
    space
    "$RNET" attach --name a-b-c-2 --detach "$SPACE"
    space
    plugin ADD "$net" CNI_CONTAINERID=a CNI_IFNAME=b-c >/dev/null
    "$RNET" port ls a-b-c-3
    has "$(in_space ip link show b-c)" "UP"
    is "$(plugin DEL "$net" CNI_CONTAINERID=a CNI_IFNAME=b-c)" ""
    refuses "$RNET" port ls a-b-c-3 >/dev/null
    "$RNET" port ls a-b-c
    SPACE=$first
    fails 100 plugin ADD "$net" CNI_CONTAINERID=a-b CNI_IFNAME=c >/dev/null
    is "$(plugin DEL "$net" CNI_CONTAINERID=a-b CNI_IFNAME=c)" ""
    refuses "$RNET" port ls a-b-c >/dev/null
}

play_a_stopped_network_is_not_waited_for_long() {
    local said
    space
    "$RNET" attach --name box --pid-file pid --detach "$SPACE"
    kill -STOP "$(cat pid)"
    said=$(refuses "$RNET" port ls box)
    has "$said" "it has not answered for 10 s"
    kill -CONT "$(cat pid)"
    "$RNET" port ls box
}

play_capabilities_count() {
    local result wish
    space
    list '"capabilities": {"portMappings": true, "ips": true, "mac": true}' '"options": {"no-ipv6": true}'
    wish='{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}],
        "ips": ["192.168.7.9/24"], "mac": "52:56:00:00:00:09"}'
    result=$(cni ADD box "$wish")
    is "$(of "$result" '[ip["address"] for ip in it["ips"]], it["interfaces"][0]["mac"]')" \
        "(['192.168.7.9/24'], '52:56:00:00:00:09')"
    has "$(in_space ip addr show eth0)" "192.168.7.9/24"
    answers 192.168.7.9 80 inside in_space
    has "$(asks 192.0.2.2 8080)" "inside"
    has "$(asks 127.0.0.1 8081)" "inside"
    refuses asks 192.0.2.2 8081
    cni DEL box "$wish"
    refuses asks 192.0.2.2 8080
    nothing_left
}

# 4 MiB take 3 s at least at 8 Mbit/s with a burst of 1 MiB.
play_bandwidth_is_limited_both_ways() {
    local wish took
    space
    list '"capabilities": {"bandwidth": true}' '"options": {"host-loopback": true}'
    wish='{"bandwidth": {"ingressRate": 8000000, "ingressBurst": 8388608, "egressRate": 8000000, "egressBurst": 8388608}}'
    cni ADD box "$wish" >/dev/null
    python3 - <<'PYTHON' &
import socket, threading
def serve(port, talk):
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            with server.accept()[0] as client:
                talk(client)
def send(client):
    client.sendall(bytes(4 << 20))
def take(client):
    left = 4 << 20
    while left:
        left -= len(client.recv(left))
    client.sendall(b"x")
threading.Thread(target=serve, args=(7001, send)).start()
serve(7002, take)
PYTHON
    becomes listened_on 7001
    becomes listened_on 7002
    took=$(timeout 30 nsenter --target "$SPACE" --user --net --preserve-credentials python3 - <<'PYTHON'
import socket, time
def timed(port, talk):
    start = time.monotonic()
    with socket.create_connection(("10.0.2.2", port)) as server:
        talk(server)
    return time.monotonic() - start
def read(server):
    left = 4 << 20
    while left:
        left -= len(server.recv(left))
def write(server):
    server.sendall(bytes(4 << 20))
    assert server.recv(1) == b"x"
print(*(timed(port, talk) >= 3 for port, talk in ((7001, read), (7002, write))))
PYTHON
)
    is "$took" "True True"
    cni DEL box "$wish"
    nothing_left
}

listened_on() { [ -n "$(ss -Hltn "sport = :$1")" ]; }

play_older_versions_are_spoken() {
    space
    for VERSION in 0.4.0 1.0.0; do
        list
        is "$(of "$(cni ADD box)" 'it["cniVersion"], it["ips"][0].get("version")')" \
            "('$VERSION', $([ $VERSION = 1.0.0 ] && echo None || echo "'4'"))"
        is "$(cni CHECK box)" ""
        cni DEL box
    done
    nothing_left
}

play_versions_are_told() {
    is "$(of "$(plugin VERSION '{"cniVersion": "1.0.0"}')" 'it["supportedVersions"]')" "['0.4.0', '1.0.0', '1.1.0']"
    ln -s "$RNET" rnet-cni
    is "$(of "$(CNI_COMMAND=VERSION ./rnet-cni --anything </dev/null)" 'it["cniVersion"]')" "1.1.0"
}

play_status_tells_whether_networks_can_be_made() {
    is "$(plugin STATUS '{"cniVersion": "1.1.0", "name": "net"}')" ""
    chmod 755 /mnt/run/rnet
    has "$(fails 50 plugin STATUS '{"cniVersion": "1.1.0", "name": "net"}')" "not a directory of this user alone"
}

play_failures_have_their_codes() {
    local net='"cniVersion": "1.1.0", "name": "net"'
    space
    has "$(fails 1 plugin ADD '{"cniVersion": "0.1.0", "name": "net"}')" "0.4.0, 1.0.0, 1.1.0"
    has "$(fails 2 plugin ADD "{$net, \"ipam\": {\"type\": \"host-local\"}}")" "ipam"
    has "$(fails 2 plugin ADD "{$net, \"runtimeConfig\": {\"cgroupPath\": \"x\"}}")" "cgroupPath"
    has "$(fails 4 plugin ADD "{$net}" CNI_IFNAME=)" "CNI_IFNAME is missing"
    has "$(fails 4 plugin WALK "{$net}")" "WALK"
    has "$(fails 6 plugin ADD "{$net")" "cannot decode"
    has "$(fails 7 plugin ADD "{$net, \"options\": {\"cidr\": \"10.0.2.0\"}}")" "'cidr <NETWORK>'"
    has "$(fails 100 plugin ADD "{$net}" CNI_NETNS=/nowhere)" "/nowhere"
    has "$(fails 100 plugin ADD "{$net}" CNI_NETNS=/proc/self/ns/net)" "own network namespace"
    answers 192.0.2.2 8080 taken
    has "$(fails 100 plugin ADD "{$net, \"options\": {\"publish\": \"8080:80\"}}")" "8080"
    lacks "$(in_space ip link)" eth0
    nothing_left
}

play_check_finds_what_is_broken() {
    space
    list
    cni ADD box >/dev/null
    in_space ip addr del 10.0.2.100/24 dev eth0
    has "$(fails 101 cni CHECK box)" "no address 10.0.2.100"
    in_space ip addr add 10.0.2.100/24 dev eth0
    is "$(cni CHECK box)" ""
    in_space ip link set eth0 address 52:56:00:00:00:0a
    has "$(fails 101 cni CHECK box)" "52:56:00:00:00:0a"
    kill -KILL "$(running rnet-cni)"
    becomes none_running rnet-cni
    has "$(fails 101 cni CHECK box)" "the network box-eth0"
    is "$(cni DEL box)" ""
    nothing_left
}

play_gc_ends_what_is_not_valid() {
    local first second other
    space && first=$SPACE
    space && second=$SPACE
    space && other=$SPACE
    list
    SPACE=$first cni ADD first >/dev/null
    SPACE=$second cni ADD second >/dev/null
    sed -i 's/"net"/"elsewhere"/' list
    SPACE=$other cni ADD other >/dev/null
    list
    cni GC any '{"cni.dev/valid-attachments": [{"containerID": "second", "ifname": "eth0"}]}'
    lacks "$(SPACE=$first in_space ip link)" eth0
    has "$(SPACE=$second in_space ip link)" eth0
    has "$(SPACE=$other in_space ip link)" eth0
    is "$(ls /mnt/run/rnet)" "other-eth0
second-eth0"
    # shellcheck disable=SC2046 # there are several
    kill -KILL $(running rnet-cni)
    cni GC any '{"cni.dev/valid-attachments": []}'
    is "$(ls /mnt/run/rnet)" "other-eth0"
}

play_ends_with_the_namespace() {
    space
    list
    cni ADD box >/dev/null
    kill "$SPACE"
    nothing_left
    is "$(cni DEL box)" ""
}

# by_path: makes the namespace /run/netns/box in a world of its own, as ip-netns(8) would.
by_path() {
    mount -t tmpfs run /run
    mkdir /run/netns
    touch /run/netns/box
    unshare --net=/run/netns/box true
}

# call COMMAND: calls the plugins of `list` for eth0 of /run/netns/box.
call() { timeout 20 python3 /mnt/compat/chain.py "$1" list box /run/netns/box eth0; }

# as_root FUNCTION [OPTION...]: goes on as root of a user namespace, with mounts of its own.
as_root() {
    # shellcheck disable=SC2016 # expands inside
    unshare --user --map-root-user --mount "${@:2}" \
        bash -c '. /mnt/compat/lab.sh && . /mnt/compat/cni.sh && set -e -u -o pipefail && "$1"' as_root "$1"
}

play_a_path_below_run_netns() { as_root path_below_run_netns; }

path_below_run_netns() {
    by_path
    list
    is "$(of "$(call ADD)" 'it["interfaces"][0]["sandbox"]')" /run/netns/box
    has "$(nsenter --net=/run/netns/box ip addr show eth0)" 10.0.2.100/24
    is "$(call CHECK)" ""
    umount /run/netns/box
    rm /run/netns/box
    nothing_left
    is "$(call DEL)" ""
}

play_a_chain_with_loopback_and_tuning() {
    [ -x /usr/lib/cni/tuning ] || skip "containernetworking-plugins is not installed"
    as_root chain_with_loopback_and_tuning --net
}

chain_with_loopback_and_tuning() {
    local result
    by_path
    cat >list <<'JSON'
{"cniVersion": "1.0.0", "name": "net", "plugins": [
  {"type": "loopback"}, {"type": "rnet-cni", "mtu": 1500}, {"type": "tuning", "sysctl": {"net.ipv4.ip_default_ttl": "63"}}]}
JSON
    result=$(call ADD)
    is "$(of "$result" '[interface["name"] for interface in it["interfaces"]]')" "['lo', 'eth0']"
    is "$(of "$result" '[(ip["address"], ip["interface"]) for ip in it["ips"]][-1]')" "('fd00::100/64', 1)"
    is "$(nsenter --net=/run/netns/box cat /proc/sys/net/ipv4/ip_default_ttl)" 63
    is "$(call CHECK)" ""
    call DEL
    nothing_left
}

play_podman_with_its_cni_backend() {
    local said
    needs podman
    [ -x /usr/lib/cni/tuning ] || skip "containernetworking-plugins is not installed"
    mkdir -p .config/cni/net.d .config/containers
    cat >.config/containers/containers.conf <<'TOML'
[network]
network_backend = "cni"
cni_plugin_dirs = ["/mnt/cni/bin", "/usr/lib/cni"]
[engine]
network_cmd_path = "/usr/bin/slirp4netns"
TOML
    cat >.config/cni/net.d/net.conflist <<'JSON'
{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "rnet-cni", "mtu": 1500, "capabilities": {"portMappings": true}}]}
JSON
    answers 192.0.2.3 7000 hello
    said=$(timeout 50 podman run --rm --network net --rootfs /mnt/rootfs \
        sh -c 'ip -4 addr show eth0; nc 192.0.2.3 7000 </dev/null' 2>&1) || fail "$said"
    # 10.0.2.0/24 is what slirp4netns has given to podman's own namespace.
    has "$said" "10.0.3.100/24"
    has "$said" "hello 192.0.2."
    becomes none_running rnet-cni

    podman run -d --name box --network net -p 8080:80 --rootfs /mnt/rootfs sh -c 'echo inside | nc -l -p 80' >/dev/null
    becomes_text inside asks 127.0.0.1 8080
    podman rm -f box >/dev/null
    becomes none_running rnet-cni
}
