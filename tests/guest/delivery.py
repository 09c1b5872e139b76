"""delivery.py receive tcp|udp PORT...: prints `ready`, then for each port how many bytes it got, and their digest.
delivery.py send tcp|udp ADDRESS BYTES PORT...: sends so many bytes, others to each port; prints what must arrive.

A datagram is one, whatever its size, and an empty one ends its port.
"""
import hashlib, socket, sys

PATIENCE_S = 20


def text(number, size):
    return hashlib.shake_128(str(number).encode()).digest(size)


def told(data):
    return f"{len(data)} {hashlib.md5(data).hexdigest()}"


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listen(kind, port):
    """On both families; the guest may have but one."""
    for address in ("::", "0.0.0.0"):
        try:
            server = socket.socket(family(address), kind)
            if ":" in address:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            break
        except OSError:
            continue
    server.settimeout(PATIENCE_S)
    if kind == socket.SOCK_STREAM:
        server.listen()
    return server


def gather(kind, server):
    """What the one client of a port sends."""
    if kind == socket.SOCK_DGRAM:
        return b"".join(iter(lambda: server.recv(1 << 16), b""))
    client, _ = server.accept()
    with client:
        client.settimeout(PATIENCE_S)
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def receive(kind, ports):
    servers = [listen(kind, int(port)) for port in ports]
    print("ready", flush=True)
    # In the order in which they are sent.
    for server in servers:
        print(told(gather(kind, server)), flush=True)


def send(kind, address, size, ports):
    for number, port in enumerate(ports):
        data = text(number, int(size))
        with socket.socket(family(address), kind) as client:
            client.settimeout(PATIENCE_S)
            client.connect((address, int(port)))
            client.sendall(data)
            if kind == socket.SOCK_DGRAM:
                client.send(b"")
        print(told(data), flush=True)


mode, transport, *rest = sys.argv[1:]
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[transport]
if mode == "receive":
    receive(kind, rest)
else:
    send(kind, rest[0], rest[1], rest[2:])
