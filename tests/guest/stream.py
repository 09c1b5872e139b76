"""One end of a byte-exact transfer; the stream is that of tests/netns/stream.rs.

stream.py send ADDR PORT BYTES       sends the stream, then reads the count that the other end got
stream.py receive ADDR PORT BYTES    receives and checks the stream
stream.py serve PORT BYTES           serves for ever: each client sends one letter first:
                                     `s` then it sends the stream and gets the count, `r` it receives the stream
"""
import socket, sys

PERIOD, CHUNK = 65521, 1 << 18
state, period = 1, bytearray()
for _ in range(PERIOD):
    state = (state * 1103515245 + 12345) & 0x7FFFFFFF
    period.append((state >> 16) & 0xFF)
PATTERN = memoryview((bytes(period) * (2 + CHUNK // PERIOD))[: PERIOD + CHUNK])


def part(offset, size):
    return PATTERN[offset % PERIOD :][:size]


def send(stream, total):
    sent = 0
    while sent < total:
        piece = part(sent, min(CHUNK, total - sent))
        stream.sendall(piece)
        sent += len(piece)
    stream.shutdown(socket.SHUT_WR)


def receive(stream):
    got, buffer = 0, memoryview(bytearray(CHUNK))
    while size := stream.recv_into(buffer):
        if buffer[:size] != part(got, size):
            sys.exit(f"a byte between {got} and {got + size} differs")
        got += size
    return got


def main(mode, *args):
    if mode == "serve":
        port, total = map(int, args)
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        print("ready", flush=True)
        while True:
            stream, _ = listener.accept()
            if stream.recv(1) == b"s":
                stream.sendall(b"%d" % receive(stream))
            else:
                send(stream, total)
            stream.close()
    addr, port, total = args[0], int(args[1]), int(args[2])
    stream = socket.create_connection((addr, port), timeout=60)
    if mode == "send":
        send(stream, total)
        got = int(stream.makefile().read())
    else:
        got = receive(stream)
    if got != total:
        sys.exit(f"{mode}: {got} of {total} bytes")
    print(mode, got)


main(*sys.argv[1:])
