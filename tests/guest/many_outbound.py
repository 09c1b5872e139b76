"""many_outbound.py COUNT ADDR PORT: that many connections at once, each of which echoes its number."""
import resource, socket, sys

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
count, target = int(sys.argv[1]), (sys.argv[2], int(sys.argv[3]))
streams = [socket.create_connection(target, timeout=30) for _ in range(count)]
for number, stream in enumerate(streams):
    stream.sendall(b"%08d" % number)
for number, stream in enumerate(streams):
    echoed = b""
    while len(echoed) < 8:
        piece = stream.recv(8 - len(echoed))
        if not piece:
            sys.exit(f"connection {number} was closed after {echoed}")
        echoed += piece
    if int(echoed) != number:
        sys.exit(f"connection {number} echoed {echoed}")
print("served", len(streams))
