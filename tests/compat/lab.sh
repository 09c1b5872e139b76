# shellcheck shell=bash disable=SC2034,SC2153 # what is set here is used by the suites
# What scenarios have in common. They run under `set -e` in the world that `world` makes: $UNDER_TEST is `rnet` or the
# name of the original, $PROGRAM the program to start, and nobody else is in the world.

# fail WHY: ends the scenario.
fail() {
    echo "FAILED: $*"
    exit 1
}

# skip WHY: ends it as one that cannot be played here.
skip() {
    echo "$*"
    exit 77
}

# needs PROGRAM...: skips the scenario where one is not installed.
needs() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || skip "$program is not installed"
    done
}

# is ACTUAL EXPECTED: both are the same text.
is() { [ "$1" = "$2" ] || fail "'$1' is not '$2'"; }

# has TEXT PART: the part occurs in the text.
has() { [[ "$1" == *"$2"* ]] || fail "'$1' does not have '$2'"; }

# lacks TEXT PART: it does not.
lacks() { [[ "$1" != *"$2"* ]] || fail "'$1' has '$2'"; }

# refuses COMMAND...: it fails within its time; prints all it said.
refuses() {
    local said status=0 within=(timeout 20)
    [ "$(type -t "$1")" != function ] || within=()
    said=$("${within[@]}" "$@" 2>&1) || status=$?
    [ "$status" != 0 ] || fail "it succeeded: $* ($said)"
    [ "$status" != 124 ] || fail "it did not end: $* ($said)"
    echo "$said"
}

# becomes COMMAND...: waits until the command succeeds.
becomes() {
    local tries
    for tries in {1..200}; do
        "$@" >/dev/null 2>&1 && return
        sleep 0.05
    done
    fail "it never came true ($tries tries): $*"
}

# becomes_text TEXT COMMAND...: waits until the command prints it.
becomes_text() {
    local text=$1 tries
    shift
    for tries in {1..200}; do
        [ "$("$@" 2>/dev/null)" != "$text" ] || return 0
        sleep 0.05
    done
    fail "it never said '$text' ($tries tries): $*"
}

# gone PID: a process has ended (a zombie has).
gone() { [ ! -e "/proc/$1" ] || grep -q '^State:.[ZX]' "/proc/$1/status"; }

# running NAME: prints the ids of the processes whose first argument has that base name.
running() {
    local cmdline argv0
    for cmdline in /proc/[0-9]*/cmdline; do
        { read -r -d '' argv0 <"$cmdline"; } 2>/dev/null || continue
        [ "${argv0##*/}" != "$1" ] || basename "$(dirname "$cmdline")"
    done
}

# none_running NAME
none_running() { [ -z "$(running "$1")" ]; }

# start OPTION...: starts slirp4netns, and waits until it is ready. $HELPER is its process; what it says is in `said`.
start() {
    rm -f ready && mkfifo ready
    "$PROGRAM" --ready-fd=9 "$@" 9>ready >said 2>&1 &
    HELPER=$!
    [ "$(timeout 20 cat ready)" = 1 ] || fail "not ready: $(<said)"
}

# ends PROCESS STATUS: a child of the scenario ends by itself.
ends() {
    local status=0
    becomes gone "$1"
    wait "$1" || status=$?
    is "$status" "$2"
}

# space: makes a user and a network namespace; their process is $SPACE.
space() {
    unshare --user --map-root-user --net sleep 1000 &
    SPACE=$!
    becomes in_space test -e /proc/self
    becomes test "$(readlink "/proc/$SPACE/ns/net")" != "$(readlink /proc/self/ns/net)"
}

# in_space COMMAND...: runs it in the namespaces of $SPACE, as root there.
in_space() { nsenter --target "$SPACE" --user --net --preserve-credentials "$@"; }

# answers ADDRESS PORT TEXT [COMMAND...]: whoever connects is told TEXT and who they are; runs by COMMAND, in_space say.
answers() {
    local address=$1 port=$2 text=$3
    shift 3
    "$@" python3 - "$address" "$port" "$text" <<'PYTHON' &
import socket, sys
address, port, text = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.create_server((address, int(port)), family=family) as server:
    while True:
        client, peer = server.accept()
        with client:
            client.sendall(f"{text} {peer[0]}\n".encode())
PYTHON
    # shellcheck disable=SC2016
    becomes "$@" python3 -c 'import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)' \
        "$address" "$port"
}

# asks ADDRESS PORT [COMMAND...]: prints what a TCP server says by itself; an error if there is none.
asks() {
    local address=$1 port=$2
    shift 2
    "$@" python3 - "$address" "$port" <<'PYTHON'
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as server:
    print(server.makefile().readline(), end="")
PYTHON
}

# resolver ADDRESS TEXT: a DNS server at port 53 of the host that answers every question for TXT records with TEXT.
resolver() {
    python3 - "$1" "$2" <<'PYTHON' &
import socket, struct, sys
address, text = sys.argv[1], sys.argv[2].encode()
server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
server.bind((address, 53))
record = b"\xc0\x0c" + struct.pack(">HHIHB", 16, 1, 0, len(text) + 1, len(text)) + text
while True:
    query, peer = server.recvfrom(4096)
    end = query.index(b"\0", 12) + 5
    header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
    server.sendto(header + query[12:end] + record, peer)
PYTHON
    becomes dig +short +time=1 +tries=1 "@$1" any.test TXT
}

# resolv_conf TEXT: what the host's /etc/resolv.conf says from now on.
resolv_conf() { echo "$1" >/mnt/etc/resolv.conf; }

# mirrors ADDRESS PORT [COMMAND...]: every datagram comes back.
mirrors() {
    local address=$1 port=$2
    shift 2
    "$@" python3 - "$address" "$port" <<'PYTHON' &
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], int(sys.argv[2])))
while True:
    server.sendto(*server.recvfrom(2048))
PYTHON
}

# comes_back ADDRESS PORT TEXT [COMMAND...]: a datagram with that text comes back at once.
comes_back() {
    local address=$1 port=$2 text=$3
    shift 3
    "$@" python3 - "$address" "$port" "$text" <<'PYTHON'
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(1)
client.connect((sys.argv[1], int(sys.argv[2])))
client.send(sys.argv[3].encode())
assert client.recv(2048) == sys.argv[3].encode()
PYTHON
}

# bare OPTION...: pasta in a new space, whose interface is up and has nothing more.
bare() {
    space
    timeout 20 "$PROGRAM" -t none -u none -T none -U none --quiet "$@" "$SPACE"
    in_space ip link set wan up
    becomes_text "" in_space ip -6 addr show tentative
}

# leased TEXT OPTION: what a DHCP client hears there, as TEXT with its variables; it asks for OPTION, too. An error if
# nothing.
leased() {
    printf '#!/bin/sh\n[ "$1" != bound ] || echo "%s"\n' "$1" >script
    chmod +x script
    in_space busybox udhcpc -i wan -f -n -q -t 3 -T 1 -O "$2" -s "$PWD/script" 2>/dev/null
}
