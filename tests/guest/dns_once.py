"""dns_once.py COUNT ADDR: that many DNS queries, each from a socket of its own; prints how many were answered."""
import socket, struct, sys, time

count, server = int(sys.argv[1]), (sys.argv[2], 53)
question = b"\4once\4test\0" + struct.pack(">HH", 1, 1)
answered = 0
for number in range(count):
    for attempt in range(3):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(2)
            client.sendto(struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + question, server)
            try:
                answered += client.recv(600)[:2] == struct.pack(">H", number)
                break
            except socket.timeout:
                pass
print("answered", answered, flush=True)
sys.stdin.read()
