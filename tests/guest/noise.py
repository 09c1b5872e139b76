"""noise.py FRAMES SEED: writes damaged frames onto the link: valid ones with bytes changed, cut or added, then says
`sent`."""
import random, socket, struct, sys

IFNAME = next(name for _, name in socket.if_nameindex() if name != "lo")
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind((IFNAME, 0))
source = link.getsockname()[4]
dice = random.Random(int(sys.argv[2]))

V4 = bytes.fromhex("45000028000100004006b6720a000264c6336409")
V6 = bytes.fromhex("6000000000140640fd000000000000000000000000000100" "20010db8000200000000000000000009")
TCP = bytes.fromhex("9c4000500000000100000000500200ff00000000")
UDP = bytes.fromhex("9c4000350014000000000100000100000000000000000000")
ICMP = bytes.fromhex("0800000000010001") + bytes(56)
ARP = bytes.fromhex("0001080006040001525500000001" "0a000264" "000000000000" "0a000202")
NDP = bytes.fromhex("8700000000000000fd000000000000000000000000000002")
DHCP = bytes.fromhex("0044004300fa0000") + bytes.fromhex("01010600") + bytes(232) + bytes.fromhex("63825363350101ff")
SEEDS = [(0x0800, V4 + body) for body in (TCP, UDP, ICMP, DHCP)]
SEEDS += [(0x86DD, V6 + body) for body in (TCP, UDP, NDP)] + [(0x0806, ARP)]

for _ in range(int(sys.argv[1])):
    kind, body = dice.choice(SEEDS)
    body = bytearray(body)
    for _ in range(dice.randrange(1, 5)):
        body[dice.randrange(len(body))] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
    if dice.random() < 0.3:
        del body[dice.randrange(len(body)) :]
    if dice.random() < 0.2:
        body += dice.randbytes(dice.randrange(1, 1400))
    if dice.random() < 0.3:
        body = body[:9] + bytes([dice.choice([1, 2, 6, 17, 44, 58, 60, 255])]) + body[10:]
    target = dice.choice([bytes.fromhex("52550a000202"), b"\xff" * 6, bytes.fromhex("333300000001")])
    try:
        link.send(target + source + struct.pack(">H", kind) + bytes(body))
    except OSError:
        pass  # Too short even for the kernel.
print("sent", flush=True)
sys.stdin.read()
