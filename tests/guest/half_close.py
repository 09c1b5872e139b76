"""half_close.py first|second ADDR PORT: each end sends its part and ends that direction, one after the other.
half_close.py serve PORT: the second end, for one client."""
import socket, sys

BIG = b"0123456789abcdef" * 65536


def first(stream):
    stream.sendall(BIG)
    stream.shutdown(socket.SHUT_WR)
    return b"".join(iter(lambda: stream.recv(1 << 16), b""))


def second(stream):
    got = b"".join(iter(lambda: stream.recv(1 << 16), b""))
    stream.sendall(BIG)
    stream.shutdown(socket.SHUT_WR)
    return got


if sys.argv[1] == "serve":
    listener = socket.create_server(("", int(sys.argv[2])))
    print("ready", flush=True)
    stream, play = listener.accept()[0], second
else:
    stream = socket.create_connection((sys.argv[2], int(sys.argv[3])), timeout=20)
    play = {"first": first, "second": second}[sys.argv[1]]
print("complete" if play(stream) == BIG else "damaged")
