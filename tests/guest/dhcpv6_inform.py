"""Asks by DHCPv6 what there is beside addresses (RFC 8415 section 18.2.6) and prints servers and domains (RFC 3646)."""
import socket, struct

IFNAME = next(name for _, name in socket.if_nameindex() if name != "lo")


def domains(wire):
    labels = []
    while wire:
        length, wire = wire[0], wire[1:]
        if length:
            labels.append(wire[:length].decode())
        else:
            yield ".".join(labels)
            labels = []
        wire = wire[length:]


udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", 546))
udp.settimeout(5)
request = bytes([11, 1, 2, 3]) + struct.pack(">HHHH6s", 1, 10, 3, 1, bytes(6)) + struct.pack(">HHHH", 6, 4, 23, 24)
udp.sendto(request + struct.pack(">HHH", 8, 2, 0), ("ff02::1:2", 547, 0, socket.if_nametoindex(IFNAME)))
reply = udp.recv(2000)
assert reply[0] == 7 and reply[1:4] == request[1:4], reply
options = reply[4:]
while options:
    code, length = struct.unpack(">HH", options[:4])
    content, options = options[4 : 4 + length], options[4 + length :]
    if code == 23:
        for at in range(0, length, 16):
            print("dns", socket.inet_ntop(socket.AF_INET6, content[at : at + 16]))
    if code == 24:
        for domain in domains(content):
            print("search", domain)
