"""connect.py SECONDS ADDR PORT [ADDR PORT]...: tries each and prints `ADDR PORT RESULT MILLISECONDS`."""
import errno, socket, sys, time

limit = float(sys.argv[1])
for addr, port in zip(sys.argv[2::2], sys.argv[3::2]):
    family = socket.AF_INET6 if ":" in addr else socket.AF_INET
    stream = socket.socket(family)
    stream.settimeout(limit)
    start = time.monotonic()
    try:
        stream.connect((addr, int(port)))
        # A connection that the gateway takes and then drops is no connection.
        stream.settimeout(0.2)
        try:
            result = "reset" if stream.recv(1) == b"" else "connected"
        except socket.timeout:
            result = "connected"
    except socket.timeout:
        result = "silence"
    except OSError as error:
        result = errno.errorcode.get(error.errno, str(error))
    print(addr, port, result, int((time.monotonic() - start) * 1000), flush=True)
    stream.close()
