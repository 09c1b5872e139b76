# shellcheck shell=bash
# The API socket of slirp4netns, and the ports that are published by it.
# shellcheck disable=SC2034 # run reads it
original=slirp4netns

unlike slirp4netns a_missing_protocol_is_an_error "it crashes, and the network is gone"
unlike slirp4netns a_port_beyond_65535_is_an_error "it publishes another port, the number modulo 65536"
unlike slirp4netns a_conflict_has_its_cause "it says that it failed, and no more"
unlike slirp4netns a_silent_client_holds_up_nobody "it serves one client after the other"
unlike slirp4netns ipv6_can_be_published "it knows IPv4 only"
unlike slirp4netns the_list_has_the_manuals_shape "it leaves out what its manual promises"
unlike slirp4netns a_closed_guest_port_refuses_the_client "it accepts first, and asks the guest afterwards"
unlike slirp4netns a_file_in_the_place_of_the_socket_is_kept "it removes whatever is there"
unlike slirp4netns a_client_from_the_closed_loopback_is_answered "it drops the answer as one to the host's loopback"

# api REQUEST: prints the reply, as rootlesskit and podman ask for it.
api() {
    timeout 10 python3 - "$1" <<'PYTHON'
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect("/mnt/home/api")
client.sendall(sys.argv[1].encode() + b"\n")
client.shutdown(socket.SHUT_WR)
print(client.makefile().read(), end="")
PYTHON
}

# add PROTOCOL HOST_ADDRESS HOST_PORT GUEST_PORT [MORE]
add() {
    api "{\"execute\": \"add_hostfwd\", \"arguments\": {\"proto\": \"$1\", \"host_addr\": \"$2\", \"host_port\": $3,
        \"guest_addr\": \"${5:-}\", \"guest_port\": $4}}"
}

# network OPTION...: a configured guest with an API socket.
network() {
    space
    start -c --api-socket /mnt/home/api "$@" "$SPACE" tap0
}

play_a_port_is_added_listed_and_removed() {
    network
    is "$(add tcp 127.0.0.1 8080 80)" '{"return":{"id":1}}'
    is "$(add udp "" 8080 80)" '{"return":{"id":2}}'
    is "$(api '{"execute": "list_hostfwd"}' | jq -S -c .entries)" "[$(entry 1 tcp 127.0.0.1),$(entry 2 udp 0.0.0.0)]"
    answers 10.0.2.100 80 hello in_space
    has "$(asks 127.0.0.1 8080)" hello
    is "$(api '{"execute": "remove_hostfwd", "arguments": {"id": 1}}')" '{"return":{}}'
    has "$(refuses asks 127.0.0.1 8080)" refused
    is "$(add tcp 127.0.0.1 8080 80)" '{"return":{"id":3}}'
    has "$(asks 127.0.0.1 8080)" hello
}

# entry ID PROTOCOL HOST_ADDRESS: of the list.
entry() {
    printf '{"guest_addr":"10.0.2.100","guest_port":80,"host_addr":"%s","host_port":8080,"id":%s,"proto":"%s"}' "$3" "$1" "$2"
}

play_the_list_has_the_manuals_shape() {
    network
    add tcp 127.0.0.1 8080 80
    is "$(api '{"execute": "list_hostfwd"}' | jq -r '.return.entries[0].id')" 1
}

play_mistakes_are_told_in_the_same_words() {
    network
    has "$(api 'nonsense')" '{"error":{"desc":"bad request: cannot parse JSON'
    has "$(api '[]')" 'bad request: json_object() failed'
    has "$(api '{}')" 'bad request: no execute found'
    has "$(api '{"execute": "dance"}')" 'bad request: unknown execute'
    has "$(add sctp 127.0.0.1 8080 80)" 'bad request: add_hostfwd: bad arguments.proto'
    has "$(add tcp nowhere 8080 80)" 'bad request: add_hostfwd: bad arguments.host_addr'
    has "$(add tcp 127.0.0.1 0 80)" 'bad request: add_hostfwd: bad arguments.host_port'
    has "$(add tcp 127.0.0.1 8080 80 nobody)" 'bad request: add_hostfwd: bad arguments.guest_addr'
    has "$(add tcp 127.0.0.1 8080 '"80"')" 'bad request: add_hostfwd: bad arguments.guest_port'
    has "$(api '{"execute": "remove_hostfwd", "arguments": {}}')" 'bad request: remove_hostfwd: bad arguments.id'
    has "$(api '{"execute": "remove_hostfwd", "arguments": {"id": 7}}')" 'remove_hostfwd: bad arguments.id'
    has "$(api "$(printf ' %.0s' {1..4095})")" 'bad request: too large message'
}

play_a_missing_protocol_is_an_error() {
    network
    has "$(api '{"execute": "add_hostfwd", "arguments": {"host_port": 8080, "guest_port": 80}}')" \
        'add_hostfwd: bad arguments.proto'
    in_space ping -c 1 -W 5 10.0.2.2
}

play_a_port_beyond_65535_is_an_error() {
    network
    has "$(add tcp 127.0.0.1 80808 80)" 'add_hostfwd: bad arguments.host_port'
}

play_a_conflict_is_an_error() {
    network
    answers 127.0.0.1 8080 mine
    has "$(add tcp 127.0.0.1 8080 80)" 'bad request: add_hostfwd: slirp_add_hostfwd failed'
    has "$(add tcp 127.0.0.1 8081 80)" '{"return":{"id":'
    has "$(add tcp 127.0.0.1 8081 80)" 'bad request: add_hostfwd: slirp_add_hostfwd failed'
}

play_a_conflict_has_its_cause() {
    network
    answers 127.0.0.1 8080 mine
    has "$(add tcp 127.0.0.1 8080 80)" 'in use'
    has "$(add tcp 127.0.0.1 8080 80)" 'python3'
}

play_the_client_keeps_its_address() {
    network
    answers 10.0.2.100 80 hello in_space
    add tcp 0.0.0.0 8080 80
    is "$(asks 192.0.2.2 8080)" "hello 192.0.2.2"
    is "$(asks 127.0.0.1 8080)" "hello 10.0.2.2"
    in_space python3 /mnt/guest/udp.py serve 81 >served &
    becomes grep -q ready served
    add udp 0.0.0.0 8081 81
    python3 /mnt/guest/udp.py echo 192.0.2.2 8081 100
    has "$(<served)" "client 192.0.2.2"
}

play_ports_work_in_the_sandbox() {
    network --enable-sandbox --enable-seccomp --disable-host-loopback
    answers 10.0.2.100 80 hello in_space
    add tcp 0.0.0.0 8080 80
    is "$(asks 192.0.2.2 8080)" "hello 192.0.2.2"
}

play_ipv6_can_be_published() {
    network --enable-ipv6
    answers 10.0.2.100 80 hello in_space
    has "$(add tcp ::1 8080 80)" '{"return":{"id":1}}'
    has "$(add tcp 2001:db8:1::2 8080 80)" '{"return":{"id":2}}'
    has "$(asks ::1 8080)" hello
    has "$(asks 2001:db8:1::2 8080)" hello
    answers fd00::100 80 six in_space
    add tcp 2001:db8:1::2 8086 80 fd00::100
    is "$(asks 2001:db8:1::2 8086)" "six 2001:db8:1::2"
}

play_a_silent_client_holds_up_nobody() {
    network
    python3 -c '
import socket, time
client = socket.socket(socket.AF_UNIX)
client.connect("/mnt/home/api")
print("connected", flush=True)
time.sleep(1000)' >silent &
    becomes grep -q connected silent
    is "$(add tcp 127.0.0.1 8080 80)" '{"return":{"id":1}}'
}

play_a_closed_guest_port_refuses_the_client() {
    network
    add tcp 127.0.0.1 8080 80
    # One that hears the end as a reset, and not as an orderly one.
    has "$(refuses asks 127.0.0.1 8080)" reset
    is "$(python3 /mnt/guest/connect.py 5 127.0.0.1 8080 | cut -d' ' -f3)" ECONNRESET
}

play_a_client_from_the_closed_loopback_is_answered() {
    network --disable-host-loopback
    in_space python3 /mnt/guest/udp.py serve 81 >served &
    becomes grep -q ready served
    add udp 127.0.0.1 8081 81
    timeout 10 python3 /mnt/guest/udp.py echo 127.0.0.1 8081 100
}

play_many_clients_connect_at_once() {
    network
    in_space python3 /mnt/guest/serve.py 80 >served &
    becomes grep -q ready served
    add tcp 127.0.0.1 8080 80
    timeout 30 python3 - <<'PYTHON'
import socket
clients = []
for _ in range(400):
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", 8080))
    clients.append(client)
for client in clients:
    client.setblocking(True)
    client.settimeout(3)
    client.sendall(b"hello")
    assert client.recv(5) == b"hello"
PYTHON
}

play_the_socket_is_gone_after_an_orderly_end() {
    mkfifo life
    sleep 1000 >life &
    local writer=$!
    space
    start -c -e 8 --api-socket /mnt/home/api "$SPACE" tap0 8<life
    test -S /mnt/home/api
    kill "$writer"
    ends "$HELPER" 0
    [ ! -e /mnt/home/api ] || fail "it is still there"
}

play_a_file_in_the_place_of_the_socket_is_kept() {
    space
    echo precious >/mnt/home/api
    has "$(refuses "$PROGRAM" -c --api-socket /mnt/home/api "$SPACE" tap0)" /mnt/home/api
    is "$(</mnt/home/api)" precious
}

play_an_old_socket_is_replaced() {
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("/mnt/home/api")'
    network
    is "$(add tcp 127.0.0.1 8080 80)" '{"return":{"id":1}}'
}
