"""How each tool gives a guest its network. A guest is a parked process that the load generator joins.

Every class has `start(space, mtu)`, which returns a ready `Guest`. `ready` and `first` of the tools that have a
process measure their start: they return seconds.
"""

import functools
import glob
import json
import os
import select
import socket
import subprocess
import time

from .options import WORKERS
from .space import FAR, NEAR, ROOM, VETH_GUEST, VETH_HOST, run, until

# The published port: the same number on the host and in the guest.
PORT = 5002
# The two guests of a network, in the first that rnet takes.
PAIR = ("10.89.0.10", "10.89.0.11")
API_SOCKET = f"{ROOM}/run/slirp4netns.sock"


class Guest:
    """A running guest, and the processes that it takes."""

    def __init__(self, space, processes, helper=None, pid=None, owner=True):
        self._space = space
        self._processes = processes
        self.helper = helper
        self._pid = pid
        self._owner = owner
        # Where its published port is found by a client on the host, and by one on the remote machine.
        self.loopback = "127.0.0.1"
        self.outside = NEAR[0]

    def inside(self, argv):
        """A command in the guest's network."""
        if self._pid is None:
            return argv
        if not self._owner:
            return ["nsenter", "-t", str(self._pid), "-n"] + argv
        join = ["nsenter", "-t", str(self._pid), "-U", "-n", "--preserve-credentials"]
        return self._space.as_user(join + argv)

    def stop(self):
        """Ends everything that was started for it."""
        for process in reversed(self._processes):
            self._space.stop(process)

    def cpu_seconds(self):
        """What the helper has used so far: its threads' time on a core, which does not come in ticks."""
        total = 0
        for path in glob.glob(f"/proc/{self.helper}/task/*/schedstat"):
            with open(path, encoding="ascii") as file:
                total += int(file.read().split()[0])
        return total / 1e9

    def resident_bytes(self):
        """The helper's resident memory."""
        with open(f"/proc/{self.helper}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Failure(Exception):
    """A tool that did not do what a cell needs."""


class Rnet:
    """`rnet run` of a directory with the load generator in it."""

    def __init__(self, workers="auto"):
        self._workers = ["--workers", str(workers)]

    def _argv(self, space, mtu, words):
        publish = ["-p", f"{PORT}:{PORT}", "-p", f"{PORT}:{PORT}/udp"]
        return space.as_user([space.paths["rnet"], "run", "-q", "--mtu", str(mtu)] + self._workers + publish
                             + [f"{ROOM}/rootfs", "/load"] + words)

    def start(self, space, mtu):
        return _start_parent(space, self._argv(space, mtu, ["park"]))

    def pair(self, space, mtu):
        """Two containers of a network with a name. The helper is the gateway that they share."""
        rnet = space.paths["rnet"]
        create = space.as_user([rnet, "network", "create", "pair", "--mtu", str(mtu)])
        # It may be there from the sample before.
        subprocess.run(create, env=space.environment(), capture_output=True)

        def start(name, ip):
            argv = [rnet, "run", "-q", "--rm", "--net", "pair", "--name", name, "--ip", ip, f"{ROOM}/rootfs", "/load", "park"]
            return _start_parent(space, space.as_user(argv))

        server, client = start("server", PAIR[0]), start("client", PAIR[1])
        gateway = until(lambda: _process_of([b"rnet", b"network", b"serve", b"pair"]), "the gateway")
        server.helper = client.helper = gateway
        return server, client, PAIR[0]

    def ready(self, space):
        return _time_to_line(space, self._argv(space, 65520, ["mark"]))

    def first(self, space, to):
        return _time_to_line(space, self._argv(space, 65520, ["first", to]))


class Pasta:
    """pasta with a command, which it runs in new namespaces."""

    def _argv(self, space, mtu, words):
        ports = ["-t", str(PORT), "-u", str(PORT), "-T", "none", "-U", "none"]
        return space.as_user([space.paths["pasta"], "--config-net", "--no-map-gw", "-q", "-m", str(mtu)] + ports
                             + ["--", space.load] + words)

    def start(self, space, mtu):
        return _start_parent(space, self._argv(space, mtu, ["park"]))

    def ready(self, space):
        return _time_to_line(space, self._argv(space, 65520, ["mark"]))

    def first(self, space, to):
        return _time_to_line(space, self._argv(space, 65520, ["first", to]))


class Slirp4netns:
    """unshare(1) makes the namespaces, slirp4netns joins them, ports are published through its API."""

    def _attach(self, space, mtu, words, **output):
        """The guest's process, slirp4netns, and the end of its ready pipe."""
        guest = space.start(space.as_user(["unshare", "--user", "--map-root-user", "--net", space.load] + words),
                            **output)
        until(lambda: _program(guest.pid) == "load", "the guest")
        ready, told = os.pipe()
        argv = [space.paths["slirp4netns"], "--configure", f"--mtu={mtu}", f"--ready-fd={told}",
                f"--api-socket={API_SOCKET}", str(guest.pid), "tap0"]
        if os.path.exists(API_SOCKET):
            os.unlink(API_SOCKET)
        helper = space.start(space.as_user(argv), pass_fds=(told,), stderr=subprocess.PIPE)
        os.close(told)
        return guest, helper, ready

    @staticmethod
    def _wait(helper, ready):
        readable, _, _ = select.select([ready], [], [], 10)
        told = os.read(ready, 1) if readable else b""
        os.close(ready)
        if told != b"1":
            helper.kill()
            raise Failure(f"slirp4netns does not start: {complaint(helper)}")

    def start(self, space, mtu):
        guest, helper, ready = self._attach(space, mtu, ["park"])
        self._wait(helper, ready)
        for transport in ("tcp", "udp"):
            forward = {"proto": transport, "host_addr": "0.0.0.0", "host_port": PORT,
                       "guest_addr": "10.0.2.100", "guest_port": PORT}
            _ask(API_SOCKET, {"execute": "add_hostfwd", "arguments": forward})
        return Guest(space, [guest, helper], helper.pid, guest.pid)

    def ready(self, space):
        start = time.monotonic()
        guest, helper, ready = self._attach(space, 65520, ["park"])
        try:
            self._wait(helper, ready)
            return time.monotonic() - start
        finally:
            space.stop(guest)
            space.stop(helper)

    def first(self, space, to):
        start = time.monotonic()
        guest, helper, ready = self._attach(space, 65520, ["first", to], stdout=subprocess.PIPE, text=True)
        os.close(ready)
        try:
            _line(guest)
            return time.monotonic() - start
        finally:
            space.stop(guest)
            space.stop(helper)


class Veth:
    """What root would do: a veth pair and routing, no translation and no process.

    The guest has an address for each way to the remote machine, so that answers come back the way the questions
    went.
    """

    def start(self, space, mtu):
        process = space.start(["unshare", "--net", space.load, "park"])
        pid = process.pid
        until(lambda: _program(pid) == "load", "the guest")
        # That of the sample before goes with its namespace, which the kernel takes down in its own time.
        subprocess.run(["ip", "link", "delete", "guest0"], capture_output=True)
        run(f"ip link add guest0 mtu {mtu} type veth peer name guest1 mtu {mtu} netns {pid}")
        run(f"ip address add {VETH_HOST}/24 dev guest0")
        run("ip link set guest0 up")
        run("ip link set lo up", pid)
        for address in VETH_GUEST.values():
            run(f"ip address add {address}/24 dev guest1", pid)
        run("ip link set guest1 up", pid)
        run(f"ip route add default via {VETH_HOST} src {VETH_GUEST['near']}", pid)
        for link, (_, remote) in FAR.items():
            run(f"ip route add {remote} via {VETH_HOST} src {VETH_GUEST[link]}", pid)
        guest = Guest(space, [process], pid=pid, owner=False)
        guest.loopback = guest.outside = VETH_GUEST["near"]
        return guest


    def pair(self, space, mtu):
        """Two guests at a bridge."""
        subprocess.run(["ip", "link", "delete", "pair"], capture_output=True)
        run(f"ip link add pair mtu {mtu} type bridge")
        run("ip link set pair up")

        def start(number):
            process = space.start(["unshare", "--net", space.load, "park"])
            pid = process.pid
            until(lambda: _program(pid) == "load", "the guest")
            subprocess.run(["ip", "link", "delete", f"pair{number}"], capture_output=True)
            run(f"ip link add pair{number} mtu {mtu} type veth peer name guest1 mtu {mtu} netns {pid}")
            run(f"ip link set pair{number} master pair up")
            run("ip link set lo up", pid)
            run(f"ip address add {PAIR[number]}/24 dev guest1", pid)
            run("ip link set guest1 up", pid)
            return Guest(space, [process], pid=pid, owner=False)

        return start(0), start(1), PAIR[0]


class Host:
    """No guest at all: the same programs on the host itself."""

    def start(self, space, mtu):
        return Guest(space, [])


ALL = {"rnet": Rnet, "slirp4netns": Slirp4netns, "pasta": Pasta, "veth": Veth, "host": Host}
ALL.update({name: functools.partial(Rnet, workers) for name, workers in WORKERS.items()})


def _program(pid):
    """The name of the program that a process runs."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _processes(is_meant):
    """The ids of processes whose words of command are meant."""
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if is_meant(words):
            yield int(path.split("/")[2])


def _process_of(argv):
    """The id of the process with these words, None if there is none."""
    return next(_processes(lambda words: words[:-1] == argv), None)


def parked():
    """The process ids of parked load generators."""
    return set(_processes(lambda words: words[0].endswith(b"/load") and words[1:2] == [b"park"]))


def _start_parent(space, argv):
    """A tool that starts the guest's process itself."""
    there = parked()
    helper = space.start(argv, stderr=subprocess.PIPE)

    def came():
        if helper.poll() is not None:
            raise Failure(f"did not start: {complaint(helper)}")
        return next(iter(parked() - there), None)

    try:
        pid = until(came, "the guest")
    except (Failure, RuntimeError):
        space.stop(helper)
        raise
    return Guest(space, [helper], helper.pid, pid)


def _time_to_line(space, argv):
    start = time.monotonic()
    process = space.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _line(process)
        return time.monotonic() - start
    finally:
        space.stop(process)


def _line(process):
    readable, _, _ = select.select([process.stdout], [], [], 10)
    if not readable or process.stdout.readline().strip() != "begin":
        process.kill()
        raise Failure(complaint(process) or "no answer from the guest")


def complaint(process):
    """What a process that has ended said of its end: its first line with an error, else its last."""
    process.wait()
    text = process.stderr.read() if process.stderr else ""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    lines = text.strip().splitlines()
    return next((line for line in lines if "error" in line), lines[-1] if lines else "")


def _ask(path, request):
    with socket.socket(socket.AF_UNIX) as api:
        api.settimeout(5)
        api.connect(path)
        api.sendall(json.dumps(request).encode())
        api.shutdown(socket.SHUT_WR)
        answer = json.loads(api.recv(4096))
    if "error" in answer:
        raise Failure(f"slirp4netns refuses a port: {answer['error']}")
