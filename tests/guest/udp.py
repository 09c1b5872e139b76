"""udp.py serve PORT: prints `client ADDR` per datagram and sends it back.
udp.py reflect PORT: prints `ready` and sends every datagram back.
udp.py blast ADDR PORT COUNT SIZE...: from each of four sockets numbered datagrams of the sizes in turn, as many at once
as a socket's queue is sure to hold; all must come back, whole and in order. Prints how many did.
udp.py volley ADDR PORT: sends many datagrams of one size at once and prints the error that comes back.
udp.py echo ADDR PORT BYTES: sends one datagram, which must come back.
udp.py send ADDR PORT: sends one datagram and prints the error that comes back, or `silence` after 2 s."""
import errno, os, socket, sys


def open_for(addr):
    return socket.socket(socket.AF_INET6 if ":" in addr else socket.AF_INET, socket.SOCK_DGRAM)


mode = sys.argv[1]
if mode == "serve":
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.bind(("::", int(sys.argv[2])))
    print("ready", flush=True)
    while True:
        data, peer = server.recvfrom(1 << 16)
        print("client", peer[0].removeprefix("::ffff:"), flush=True)
        server.sendto(data, peer)
if mode == "reflect":
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("", int(sys.argv[2])))
    print("ready", flush=True)
    while True:
        server.sendto(*server.recvfrom(1 << 16))
addr, port = sys.argv[2], int(sys.argv[3])


def numbered(number, size):
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


if mode == "blast":
    came, count, sizes = 0, int(sys.argv[4]), [int(size) for size in sys.argv[5:]]
    window = min(25, 25000 // max(sizes))
    clients = [open_for(addr) for _ in range(4)]
    for client in clients:
        client.connect((addr, port))
        client.settimeout(10)
        # A burst would overflow the queue of a neighbour that is still being looked for; and of several workers it is
        # the first answer that decides which one gets the rest.
        client.send(bytes(max(sizes)))
        client.recv(1 << 16)
    for first in range(0, count, window):
        numbers = range(first, min(first + window, count))
        sent = [[numbered(n, sizes[(n + at) % len(sizes)]) for n in numbers] for at in range(len(clients))]
        for client, datagrams in zip(clients, sent):
            for datagram in datagrams:
                client.send(datagram)
        for client, datagrams in zip(clients, sent):
            for datagram in datagrams:
                if (got := client.recv(1 << 16)) != datagram:
                    sys.exit(f"sent {len(datagram)} bytes, got {len(got)}: {datagram[:4]} {got[:4]}")
                came += 1
    print(came)
    sys.exit()
client = open_for(addr)
if mode == "echo":
    client.settimeout(10)
    sent = os.urandom(int(sys.argv[4]))
    client.sendto(sent, (addr, port))
    got, peer = client.recvfrom(1 << 16)
    print("same" if got == sent else f"differs: {len(got)} bytes", peer[0])
else:
    client.settimeout(2)
    # Else Linux keeps all but "port unreachable" to itself (IP_RECVERR, IPV6_RECVERR).
    level, option = (socket.IPPROTO_IPV6, 25) if ":" in addr else (socket.IPPROTO_IP, 11)
    client.setsockopt(level, option, 1)
    client.connect((addr, port))
    try:
        for _ in range(50 if mode == "volley" else 1):
            client.send(b"?" * 100)
        print("answer", client.recv(100))
    except socket.timeout:
        print("silence")
    except OSError as error:
        print(errno.errorcode[error.errno])
