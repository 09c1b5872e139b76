"""Asks for a router (RFC 4861) and prints the prefix, flags, DNS servers and domains (RFC 8106) of its answer."""
import socket, struct

IFNAME = next(name for _, name in socket.if_nameindex() if name != "lo")
icmp = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
icmp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
icmp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(IFNAME))
icmp.settimeout(5)
icmp.sendto(struct.pack(">BBHI", 133, 0, 0, 0), ("ff02::2", 0))
while True:
    message, peer = icmp.recvfrom(2000)
    if message[0] == 134:
        break
print("router", peer[0].split("%")[0], "lifetime", struct.unpack(">H", message[6:8])[0])
print("managed", message[5] >> 7, "other", message[5] >> 6 & 1)
options = message[16:]
while options:
    kind, length = options[0], options[1] * 8
    if kind == 3:
        prefix = socket.inet_ntop(socket.AF_INET6, options[16:32])
        flags = options[3]
        print(f"prefix {prefix}/{options[2]} on-link {flags >> 7} autonomous {flags >> 6 & 1}")
    if kind == 5:
        print("mtu", struct.unpack(">I", options[4:8])[0])
    if kind == 25:
        for at in range(8, length, 16):
            print("dns", socket.inet_ntop(socket.AF_INET6, options[at : at + 16]))
    if kind == 31:
        wire, labels = options[8:length], []
        while wire:
            label, wire = wire[1 : 1 + wire[0]].decode(), wire[1 + wire[0] :]
            if label:
                labels.append(label)
            elif labels:
                print("search", ".".join(labels))
                labels = []
    options = options[length:]
