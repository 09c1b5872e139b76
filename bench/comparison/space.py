"""The place where everything happens: private namespaces that vanish with their last process.

The program runs itself again as the first process of new mount, network and PID namespaces (and a user
namespace, if it is not root). Its network namespace is the fake host, where the tools run as an ordinary user.
The remote machine is another one, at the other end of a veth pair; further links to it are slow or lossy.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

from . import machine

# Tools and guests run as this user, who needs no entry in /etc/passwd, if the program was started as root.
USER = 65533
# Mounted over /mnt in the private mount namespace: programs, the guest's root, sockets.
ROOM = "/mnt"
# The host's and the remote machine's addresses on each link between them.
NEAR = ("10.77.0.1", "10.77.0.2")
FAR = {"slow": ("10.78.0.1", "10.78.0.2"), "lossy": ("10.79.0.1", "10.79.0.2")}
# The link of the rootful veth: the host's address, and the guest's by the link to the remote machine.
VETH_HOST = "10.80.0.1"
VETH_GUEST = {"near": "10.80.0.2", "slow": "10.80.0.3", "lossy": "10.80.0.4"}
# Each way.
DELAY_MS = 10
LOSS_PERCENT = 1
FILES = 65536
WAIT_SECONDS = 10


def enter(argv, plan):
    """Runs the program again inside; returns its exit status."""
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    plan = dict(plan, root=os.geteuid() == 0)
    inside = ["setpriv", "--pdeathsig", "KILL"] + unshare + [sys.executable] + argv + ["--inside", json.dumps(plan)]
    child = subprocess.Popen(inside)

    def stop(*_):
        child.kill()
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            # The terminal has told the inside as well, which prints what it has and ends.
            continue


class Space:
    """The namespaces, seen from inside the fake host."""

    def __init__(self, plan):
        self.root = plan["root"]
        self._running = []
        self.files = _raise_file_limit()
        _furnish(plan["paths"])
        self.load = f"{ROOM}/bin/load"
        self.paths = {name: f"{ROOM}/bin/{name}" for name in plan["paths"]}
        os.makedirs(f"{ROOM}/run")
        if self.root:
            os.chown(f"{ROOM}/run", USER, USER)
        self.remote_pid = self.start(["unshare", "--net", "sleep", "infinity"]).pid
        until(lambda: _namespace(self.remote_pid) != _namespace(os.getpid()), "the remote namespace")
        self._wire()
        self.far_kind = None

    def as_user(self, argv):
        """A command of the ordinary user."""
        if not self.root:
            return argv
        return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] + argv

    def in_remote(self, argv):
        """A command on the remote machine."""
        return ["nsenter", "-t", str(self.remote_pid), "-n"] + argv

    @staticmethod
    def environment():
        """What programs are started with."""
        return {"PATH": os.environ["PATH"], "HOME": f"{ROOM}/run", "XDG_RUNTIME_DIR": f"{ROOM}/run"}

    def start(self, argv, **more):
        """Starts a process that lives until `stop`, or the end of the space."""
        settings = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        settings.update(more)
        process = subprocess.Popen(argv, env=self.environment(), **settings)
        self._running.append(process)
        return process

    def stop(self, process):
        """Ends a process, gently if it allows that, and what it leaves behind."""
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
        self._running.remove(process)
        self._sweep()

    def _sweep(self):
        """Ends orphans: not every tool takes its guest and its own processes along."""
        ours = {process.pid for process in self._running}
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            strays = [pid for pid in _children() if pid not in ours]
            if not strays:
                return
            for pid in strays:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def far(self):
        """Makes the slow and the lossy link, once."""
        if self.far_kind is None:
            kind = "netem" if has_netem() else "relay"
            for name, addresses in FAR.items():
                loss = LOSS_PERCENT if name == "lossy" else 0
                if kind == "netem":
                    _netem(name, self.remote_pid, addresses, loss)
                else:
                    self._relay(name, addresses, loss)
                run(f"ip route add {VETH_GUEST[name]} via {addresses[0]}", self.remote_pid)
            self.far_kind = kind

    def _wire(self):
        run("ip link set lo up")
        run("ip link set lo up", self.remote_pid)
        # Routes between the guest of the rootful veth and the remote machine.
        _set("ip_forward", "1")
        # Ports for 10,000 flows of each tool, one after the other within a minute.
        _set("ip_local_port_range", "10000 65000")
        _set("tcp_tw_reuse", "1")
        run(f"ip link add near0 type veth peer name near1 netns {self.remote_pid}")
        _address("near", self.remote_pid, NEAR)
        run(f"ip route add default via {NEAR[1]}")
        run(f"ip route add default via {NEAR[0]}", self.remote_pid)

    def _relay(self, name, addresses, loss):
        """A link with a process in it, for kernels without netem."""
        relay = [self.load, "relay", f"{name}0", f"{name}1", str(DELAY_MS * 1000), str(loss)]
        process = self.start(relay, stdout=subprocess.PIPE, text=True)
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError("the delaying relay does not start: is there a /dev/net/tun?")
        run(f"ip link set {name}1 netns {self.remote_pid}")
        _address(name, self.remote_pid, addresses)


def _raise_file_limit():
    """The same generous limit on open files for everyone; what it could be raised to."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, max(hard, FILES)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _furnish(paths):
    """Puts the programs where the ordinary user can run them, and opens the TUN device to him."""
    run(f"mount -t tmpfs -o mode=755 tmpfs {ROOM}")
    os.makedirs(f"{ROOM}/bin")
    for name, path in paths.items():
        shutil.copy(path, f"{ROOM}/bin/{name}")
        if os.path.exists(path + ".avx2"):
            shutil.copy(path + ".avx2", f"{ROOM}/bin/{name}.avx2")
    _guest_root(f"{ROOM}/rootfs", paths["load"])
    try:
        os.mknod(f"{ROOM}/tun", 0o020666, os.makedev(10, 200))
        os.chmod(f"{ROOM}/tun", 0o666)
        run(f"mount --bind {ROOM}/tun /dev/net/tun")
    except (OSError, RuntimeError):
        # Not root, or no device there: what the machine has must do.
        pass


def _guest_root(root, load):
    """A root filesystem with the load generator and the libraries that it needs."""
    os.makedirs(root)
    shutil.copy(load, f"{root}/load")
    listing = subprocess.run(["ldd", load], capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S+) \(0x", listing):
        os.makedirs(root + os.path.dirname(library), exist_ok=True)
        shutil.copy(library, root + library)
    for directory, _, files in os.walk(root):
        for path in [directory] + [os.path.join(directory, file) for file in files]:
            if os.geteuid() == 0 and not os.path.islink(path):
                try:
                    os.chown(path, USER, USER)
                except OSError:
                    return


def has_netem():
    """Whether the kernel can delay packets."""
    probe = subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"],
                           capture_output=True) if shutil.which("tc") else None
    if probe is None or probe.returncode != 0:
        return False
    run("tc qdisc del dev lo root")
    return True


def _netem(name, remote, addresses, loss):
    run(f"ip link add {name}0 type veth peer name {name}1 netns {remote}")
    _address(name, remote, addresses)
    for device, pid in ((f"{name}0", None), (f"{name}1", remote)):
        # A loss is to hit one packet, not 64 KiB of them.
        run(f"ip link set dev {device} gso_max_segs 1", pid)
        run(f"tc qdisc add dev {device} root netem delay {DELAY_MS}ms loss {loss}% limit 10000", pid)


def _address(name, remote, addresses):
    for device, pid, address in ((f"{name}0", None, addresses[0]), (f"{name}1", remote, addresses[1])):
        run(f"ip address add {address}/24 dev {device}", pid)
        run(f"ip link set {device} up", pid)


def run(line, pid=None):
    """Runs a command, in the network namespace of `pid` if given; raises with what it said."""
    prefix = ["nsenter", "-t", str(pid), "-n"] if pid else []
    done = subprocess.run(prefix + line.split(), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{line}: {done.stderr.strip()}")


def _set(name, value):
    """An IPv4 setting of the fake host, which is this process's network namespace."""
    with open(f"/proc/sys/net/ipv4/{name}", "w", encoding="ascii") as file:
        file.write(value)


def until(condition, what):
    """Waits for `condition`; returns what it returned."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.0005)
    raise RuntimeError(f"{what} did not come within {WAIT_SECONDS} s")


def _children():
    """The processes whose parent is this one, the first of its PID namespace; orphans are among them."""
    return [pid for pid, fields in machine.processes() if int(fields[1]) == os.getpid()]


def _namespace(pid):
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return _namespace(os.getpid())
