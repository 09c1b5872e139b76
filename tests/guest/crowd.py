"""crowd.py SOCKETS ADDR PORT...: that many UDP sockets, each of which sends to all the ports, a large datagram (in
fragments at MTU 1500) and a small one to each. Every port answers with who asked it and how long the datagram was.
Prints `answers N`, and a line for each socket that was not one and the same to all."""
import socket, sys

count, addr, ports = int(sys.argv[1]), sys.argv[2], list(map(int, sys.argv[3:]))
clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
answers = 0
for number, client in enumerate(clients):
    client.settimeout(10)
    seen, lengths = set(), []
    for port in ports:
        for size in (4000, 40):
            client.sendto(b"?" * size, (addr, port))
            who, length = client.recv(100).decode().split()
            seen.add(who)
            lengths.append(int(length))
            answers += 1
    if len(seen) != 1 or lengths != [4000, 40] * len(ports):
        print("socket", number, "was", seen, lengths)
print("answers", answers)
