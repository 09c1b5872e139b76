"""tap_fd.py plain|vnet RNET ADDR: makes a TAP in namespaces of its own, has rnet serve its descriptor from outside,
and sends 200000 bytes to the echo server at ADDR port 7000 from inside. Prints `echoed 200000`."""
import ctypes, fcntl, os, socket, struct, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 2, 0x1000, 0x4000
kind, rnet, addr = sys.argv[1:4]
outside, inside = socket.socketpair()


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def guest():
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        sys.exit(os.strerror(ctypes.get_errno()))
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"0 {uid} 1")
    write("/proc/self/gid_map", f"0 {gid} 1")
    tap = os.open("/dev/net/tun", os.O_RDWR)
    flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if kind == "vnet" else 0)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"eth0", flags))
    for line in ["link set eth0 up mtu 1500", "addr add 10.0.2.100/24 dev eth0", "route add default via 10.0.2.2"]:
        subprocess.run(["ip", *line.split()], check=True)
    socket.send_fds(inside, [b"x"], [tap])
    inside.recv(1)
    stream = socket.create_connection((addr, 7000), timeout=10)
    sent, got = b"x" * 200000, 0
    if os.fork() == 0:
        stream.sendall(sent)
        os._exit(0)
    while got < len(sent):
        data = stream.recv(1 << 16)
        if not data:
            break
        got += len(data)
    print("echoed", got, flush=True)


if os.fork() == 0:
    guest()
    os._exit(0)
_, (tap,), _, _ = socket.recv_fds(outside, 1, 1)
ready, said = os.pipe()
command = [rnet, "attach", "--mtu", "1500", "--tap-fd", str(tap), "--ready-fd", str(said)]
process = subprocess.Popen(command, pass_fds=[tap, said])
os.close(tap)
os.read(ready, 1)
outside.send(b"x")
os.wait()
process.terminate()
