"""raw_syn.py PORT: as the guest's root, writes frames with a TCP SYN, and with a UDP datagram, for PORT of every
spelling of the host's loopback straight onto the link, then says `sent`."""
import socket, struct, sys, time

port = int(sys.argv[1])
V4 = ["127.0.0.1", "127.1.2.3", "0.0.0.0", "0.0.0.1", "10.0.2.2", "10.0.2.3", "10.0.2.255", "255.255.255.255",
      "169.254.169.254", "224.0.0.1"]
V6 = ["::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1",
      "::ffff:0:127.0.0.1", "fd00::2", "fd00::3", "fe80::1", "ff02::1"]
IFNAME = next(name for _, name in socket.if_nameindex() if name != "lo")
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind((IFNAME, 0))
mac = link.getsockname()[4]


def gateway_mac():
    """From the kernel's neighbour table, after something was sent there."""
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(100):
        probe.sendto(b"", ("10.0.2.2", 9))
        for line in open("/proc/net/arp").read().splitlines()[1:]:
            fields = line.split()
            if fields[0] == "10.0.2.2" and fields[3] != "00:00:00:00:00:00":
                return bytes.fromhex(fields[3].replace(":", ""))
        time.sleep(0.05)
    sys.exit("the gateway does not answer ARP")


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def transport(protocol, pseudo, source_port):
    if protocol == 6:
        segment = struct.pack(">HHIIBBHHH", source_port, port, 1, 0, 5 << 4, 2, 65535, 0, 0)
        at = 16
    else:
        segment = struct.pack(">HHHH", source_port, port, 12, 0) + b"ping"
        at = 6
    total = checksum(pseudo + struct.pack(">IHBB", len(segment), 0, 0, protocol) + segment)
    return segment[:at] + struct.pack(">H", total or 0xFFFF) + segment[at + 2 :]


def v4(addr, protocol, source_port):
    source, target = socket.inet_aton("10.0.2.100"), socket.inet_aton(addr)
    payload = transport(protocol, source + target, source_port)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + source + target
    return b"\x08\0" + head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def v6(addr, protocol, source_port):
    source, target = socket.inet_pton(socket.AF_INET6, "fd00::100"), socket.inet_pton(socket.AF_INET6, addr)
    payload = transport(protocol, source + target, source_port)
    return b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + source + target + payload


ether = gateway_mac() + mac
for round in range(2):
    number = 20000 + 1000 * round
    for addr in V4 + V6:
        for protocol in (6, 17):
            number += 1
            link.send(ether + (v6 if ":" in addr else v4)(addr, protocol, number))
    time.sleep(0.2)
print("sent", flush=True)
