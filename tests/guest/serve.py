"""serve.py PORT [COUNT]: a TCP server on both families; per connection prints `client ADDR`, then echoes until the
client is done and closes. Ends after COUNT connections. All are served at once."""
import resource, socket, sys, threading

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
threading.stack_size(64 << 10)


def echo(stream):
    with stream:
        try:
            while data := stream.recv(1 << 16):
                stream.sendall(data)
        except OSError as error:
            print("lost", error, flush=True)


port, count = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else -1
try:
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
except OSError:
    listener = socket.create_server(("0.0.0.0", port), backlog=4096)
print("ready", flush=True)
clients = []
while count != len(clients):
    stream, peer = listener.accept()
    print("client", peer[0].removeprefix("::ffff:"), flush=True)
    clients.append(threading.Thread(target=echo, args=(stream,), daemon=count < 0))
    clients[-1].start()
