# shellcheck shell=bash
# Containers of crun and runc, and of podman with them, whose network comes through OCI hooks.
# shellcheck disable=SC2034 # run reads it
original=

RNET=/mnt/bin/rnet
# What a container of these tests finds of its network, one thing a line.
PROBE='ip -o -4 addr show tap0; ip route; nslookup name.test 10.0.2.3 2>&1; nc 192.0.2.3 7000 </dev/null'

# bundle DIRECTORY COMMAND [ANNOTATION=VALUE...]: a bundle as a runtime's `spec --rootless` makes it, with a network of its
# own and rnet's hooks. crun throws away what hooks say, unless it is told where to put it.
bundle() {
    rm -rf "$1" && mkdir "$1"
    (cd "$1" && runc spec --rootless)
    python3 - "$RNET" "$@" <<'PYTHON'
import json, sys
rnet, directory, command, *annotations = sys.argv[1:]
path = directory + "/config.json"
config = json.load(open(path))
config["process"].update(terminal=False, args=["/bin/sh", "-c", command])
config["root"] = {"path": "/mnt/rootfs", "readonly": False}
namespaces = [name for name in config["linux"]["namespaces"] if name["type"] != "network"]
config["linux"]["namespaces"] = namespaces + [{"type": "network"}]
config["annotations"] = dict(pair.split("=", 1) for pair in annotations)
config["annotations"]["run.oci.hooks.stderr"] = "/mnt/home/hook-said"
hook = {"path": rnet, "args": ["rnet", "oci-hook"], "env": ["XDG_RUNTIME_DIR=/mnt/run"]}
config["hooks"] = {stage: [hook] for stage in ("createRuntime", "createContainer", "poststop")}
json.dump(config, open(path, "w"))
PYTHON
}

# edit BUNDLE CODE: changes a bundle's `config`.
edit() {
    python3 -c 'import json, sys
path = sys.argv[1] + "/config.json"
config = json.load(open(path))
exec(sys.argv[2])
json.dump(config, open(path, "w"))' "$@"
}

# nothing_left: no process of rnet, and no network's directory.
nothing_left() {
    becomes none_running rnet
    becomes test -z "$(ls /mnt/run/rnet 2>/dev/null)"
}

# probe RUNTIME: a container of its own can speak to the world, and leaves nothing.
probe() {
    local said
    names &
    answers 192.0.2.3 7000 hello
    bundle b "$PROBE; exit 7"
    said=$(timeout 20 "$1" run --bundle b box 2>&1) && fail "status 0: $said"
    has "$said" "10.0.2.100/24"
    has "$said" "default via 10.0.2.2"
    has "$said" "192.0.2.77"
    has "$said" "hello 192.0.2."
    nothing_left
}

# names: a DNS server that knows one name.
names() {
    python3 - <<'PYTHON'
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("192.0.2.2", 53))
while True:
    query, client = server.recvfrom(512)
    end = query.index(0, 12) + 5
    is_a = query[end - 4:end - 2] == b"\0\1"
    head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + bytes(4)
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\xc0\0\x02\x4d" if is_a else b""
    server.sendto(head + query[12:end] + answer, client)
PYTHON
}

# published RUNTIME: a published port of a container that was created and started apart, which is then killed.
published() {
    local runtime=$1
    bundle b 'echo inside | nc -l -p 80; sleep 1000' io.rnet.publish=8080:80 io.rnet.mtu=1500 io.rnet.no-ipv6=true
    timeout 20 "$runtime" create --bundle b box </dev/null >said 2>&1 || fail "$(<said)"
    [ -S /mnt/run/rnet/box/control ] || fail "no control socket"
    has "$("$RNET" port ls box)" 80
    "$runtime" start box
    becomes_text inside asks 127.0.0.1 8080
    timeout 20 "$runtime" kill box KILL
    becomes none_running rnet
    "$runtime" delete --force box
    nothing_left
}

# refused RUNTIME WORDS [ANNOTATION...]: the container is not made, and the message says why.
refused() {
    local runtime=$1 words=$2 said
    shift 2
    bundle b "touch /tmp/has-run" "$@"
    : >hook-said
    said=$(refuses "$runtime" run --bundle b box) || fail "$said"
    has "$said$(<hook-said)" "$words"
    [ ! -e /mnt/rootfs/tmp/has-run ] || fail "the container ran"
    "$runtime" delete --force box 2>/dev/null || true
    nothing_left
}

play_runc_has_a_network() { needs runc && probe runc; }
play_crun_has_a_network() { needs crun runc && probe crun; }
play_runc_publishes_until_killed() { needs runc && published runc; }
play_crun_publishes_until_killed() { needs crun runc && published crun; }

play_runc_tells_mistakes() {
    needs runc
    refused runc "'80:0' for 'io.rnet.publish <PORTS>'" io.rnet.publish=80:0
    refused runc "io.rnet.detach: there is no such option" io.rnet.detach=true
}

play_crun_tells_mistakes() {
    needs crun runc
    refused crun "'80:0' for 'io.rnet.publish <PORTS>'" io.rnet.publish=80:0
}

play_port_in_use_is_a_conflict() {
    needs crun runc
    answers 192.0.2.2 8080 taken
    refused runc "pid " io.rnet.publish=192.0.2.2:8080:80
    refused crun "pid " io.rnet.publish=192.0.2.2:8080:80
}

play_host_network_is_refused() {
    needs runc
    bundle b "true"
    edit b 'config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "network"]'
    has "$(refuses runc run --bundle b box)" "own network namespace"
    nothing_left
}

play_crun_needs_the_hook_inside() {
    needs crun runc
    bundle b "true"
    edit b 'del config["hooks"]["createContainer"]'
    refuses crun run --bundle b box
    has "$(<hook-said)" "at the stage createContainer too"
    crun delete --force box 2>/dev/null || true
    nothing_left
}

play_poststop_forgives_a_dead_server() {
    needs runc
    bundle b "sleep 1000"
    timeout 20 runc create --bundle b box </dev/null >said 2>&1 || fail "$(<said)"
    kill -KILL "$(running rnet)"
    becomes none_running rnet
    [ -d /mnt/run/rnet/box ] || fail "the place is gone already"
    runc delete --force box
    nothing_left
}

play_poststop_again_is_no_failure() {
    echo '{"ociVersion": "1.0.2", "id": "box", "status": "stopped", "bundle": "/nowhere"}' >state
    "$RNET" oci-hook <state
    "$RNET" oci-hook poststop <state
    has "$(refuses "$RNET" oci-hook createRuntime <state)" "/nowhere/config.json"
    has "$(refuses "$RNET" oci-hook </dev/null)" "state on standard input"
}

play_poststop_leaves_networks_of_others() {
    space
    "$RNET" attach --name box --detach "$SPACE"
    echo '{"ociVersion": "1.0.2", "id": "box", "status": "stopped", "bundle": "/nowhere"}' >state
    "$RNET" oci-hook poststop <state
    "$RNET" port ls box
    kill "$SPACE"
    nothing_left
}

play_poststop_of_another_bundle_leaves_the_network() {
    needs runc
    bundle b "sleep 1000"
    timeout 20 runc create --bundle b box </dev/null >said 2>&1 || fail "$(<said)"
    echo '{"ociVersion": "1.0.2", "id": "box", "status": "stopped", "bundle": "/nowhere"}' >state
    "$RNET" oci-hook poststop <state
    "$RNET" port ls box
    sed -i "s|/nowhere|$PWD/b|" state
    "$RNET" oci-hook poststop <state
    nothing_left
    runc delete --force box
}

# with_hooks ARGUMENT...: podman with the hook of the documentation, whose word is `word`.
with_hooks() {
    mkdir -p hooks.d
    sed "s/[$]WORD/word/; s|/usr/bin/rnet|$RNET|" /mnt/docs/hooks.d/rnet.json >hooks.d/rnet.json
    podman --hooks-dir "$PWD/hooks.d" "$@"
}

podman_probe() {
    local runtime=$1 said
    names &
    answers 192.0.2.3 7000 hello
    said=$(with_hooks --runtime "$runtime" run --rm --network none --annotation io.rnet.word.publish=8080:80 \
        --rootfs /mnt/rootfs sh -c "$PROBE" 2>&1) || fail "$said"
    has "$said" "10.0.2.100/24"
    has "$said" "192.0.2.77"
    has "$said" "hello 192.0.2."
    nothing_left
}

play_podman_publishes_by_annotation() {
    needs podman crun
    with_hooks --runtime crun run -d --name box --network none --annotation io.rnet.word.publish=8080:80 \
        --annotation io.rnet.word.mtu=1500 --rootfs /mnt/rootfs sh -c 'echo inside | nc -l -p 80; sleep 1000' >/dev/null
    becomes_text inside asks 127.0.0.1 8080
    with_hooks kill box >/dev/null
    becomes none_running rnet
    with_hooks rm -f box >/dev/null
    nothing_left
}

play_an_image_gives_itself_no_network() {
    local container said
    needs podman buildah crun
    tar -C /mnt/rootfs -c . | podman import - plain >/dev/null 2>&1
    container=$(buildah --isolation chroot from --pull-never localhost/plain)
    buildah config --annotation io.rnet.mtu=1500 --annotation "io.rnet.\$WORD.mtu=1500" "$container"
    buildah commit -q "$container" greedy >/dev/null
    said=$(with_hooks --runtime crun run --rm --network none greedy ip link 2>&1)
    has "$said" "lo:"
    lacks "$said" "tap0"
    said=$(with_hooks --runtime crun run --rm --network none --annotation io.rnet.word.no-ipv6=true greedy ip link 2>&1)
    has "$said" "mtu 65520"
}

play_podman_with_crun_and_hooks() { needs podman crun && podman_probe crun; }
play_podman_with_runc_and_hooks() { needs podman runc && podman_probe runc; }
