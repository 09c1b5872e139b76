"""idle_flows.py COUNT ADDR IDLE_PORT ECHO_PORT: prints the median round trip, in microseconds, of an echo before
and after it has opened COUNT connections that then stay silent; then waits for the end of its input."""
import resource, socket, statistics, sys, time

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
count, addr, idle_port, echo_port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
echo = socket.create_connection((addr, echo_port))
echo.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def round_trip():
    start = time.perf_counter()
    echo.sendall(b"x")
    if echo.recv(1) != b"x":
        sys.exit("the echo has ended")
    return (time.perf_counter() - start) * 1e6


def median():
    return int(statistics.median(round_trip() for _ in range(1000)))


median()
print("before", median(), flush=True)
idle = [socket.create_connection((addr, idle_port), timeout=30) for _ in range(count)]
time.sleep(1)
print("after", median(), flush=True)
sys.stdin.read()
