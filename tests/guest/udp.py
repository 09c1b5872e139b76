"""udp.py serve PORT: prints `client ADDR` per datagram and sends it back.
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
addr, port = sys.argv[2], int(sys.argv[3])
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
        client.send(b"?")
        print("answer", client.recv(100))
    except socket.timeout:
        print("silence")
    except OSError as error:
        print(errno.errorcode[error.errno])
