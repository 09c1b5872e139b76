"""What is measured: the list of cells, and how one sample of a cell is taken of one tool.

A cell yields a few metrics per sample, by the names in METRICS. A sample has a fresh guest and a fresh server, so
that nothing is left over from the one before.
"""

import json
import re
import select
import subprocess
import time

from . import tools
from .space import FAR, NEAR, ROOM

SERVER_PORT = 5001
# Where the server tells its counts.
COUNTS = f"{ROOM}/run/counts.sock"
BIG, USUAL = 65520, 1500
PACED = 20_000
# How often a start is timed in one sample.
STARTS, STARTS_QUICK = 10, 5
# A link with a delay needs longer to show its speed.
FAR_FACTOR = 3
# What a load program may take beyond its window.
GRACE_SECONDS = 20
IDLE_SECONDS = 90

# Unit, and whether more is better.
METRICS = {
    "rate": ("Gbit/s", True),
    "cpu/GB": ("s", False),
    "p50": ("us", False),
    "p99": ("us", False),
    "cpu/100k": ("s", False),
    "per second": ("1/s", True),
    "packets": ("1/s", True),
    "loss": ("%", False),
    "open": ("flows", True),
    "opening": ("1/s", True),
    "memory/flow": ("KiB", False),
    "memory": ("MiB", False),
    "after load": ("MiB", False),
    "ready": ("ms", False),
    "first byte": ("ms", False),
}


class Cell:
    """One thing to measure. `sample(bench)` returns {metric: value}."""

    def __init__(self, name, group, sample, quick=True, only=None):
        self.name = name
        self.group = group
        self.sample = sample
        self.quick = quick
        # The tools that it means something for; None is all.
        self.only = only


class Bench:
    """What a sample is taken with: one tool, one space, a length."""

    def __init__(self, space, tool, seconds, quick):
        self.space = space
        self.tool = tools.ALL[tool]()
        self.seconds = seconds
        self.quick = quick
        self._started = []

    def guest(self, mtu=BIG):
        """A fresh guest, ended with the sample."""
        guest = self.tool.start(self.space, mtu)
        self._started.append(guest.stop)
        return guest

    def pair(self):
        """Two fresh guests of one network, and the address of the first."""
        server, client, address = self.tool.pair(self.space, BIG)
        self._started += [server.stop, client.stop]
        return server, client, address

    def serve_remote(self):
        """A server on the remote machine."""
        self._serve(self.space.in_remote([self.space.load, "serve", str(SERVER_PORT), COUNTS]))

    def serve_guest(self, guest):
        """A server in the guest, at its published port."""
        self._serve(guest.inside([self.space.load, "serve", str(tools.PORT), COUNTS]))

    def _serve(self, argv):
        server = self.space.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._started.append(lambda: self.space.stop(server))
        readable, _, _ = select.select([server.stdout], [], [], GRACE_SECONDS)
        if not readable or server.stdout.readline().strip() != "ready":
            server.kill()
            raise tools.Failure(f"the server does not start: {tools.complaint(server)}")

    def hold(self, argv):
        """Starts a load program that holds what it has opened, and returns what it said then."""
        process = self.space.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True)
        self._started.append(lambda: self.space.stop(process))
        return _Conversation(process, None, IDLE_SECONDS).run()[0]

    def load(self, argv, guest, seconds=None):
        """Runs a load program; what it said, and how many cores the helper used in its window."""
        process = self.space.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            return _Conversation(process, guest, (seconds or self.seconds) + GRACE_SECONDS).run()
        finally:
            self.space.stop(process)

    def close(self):
        """Ends everything that the sample started."""
        for stop in reversed(self._started):
            stop()
        self._started.clear()


class _Conversation:
    """Reads a load program's lines, and the helper's clock at those that open and close the window."""

    def __init__(self, process, guest, patience):
        self._process = process
        self._guest = guest if guest and guest.helper else None
        self._end = time.monotonic() + patience

    def _clock(self):
        return (self._guest.cpu_seconds(), time.monotonic()) if self._guest else None

    def run(self):
        begin = end = None
        while True:
            line = self._line()
            if line == "begin":
                begin = self._clock()
            elif line == "end":
                end = self._clock()
            else:
                if end is None:
                    end = self._clock()
                return json.loads(line), _cores(begin, end)

    def _line(self):
        patience = max(0, self._end - time.monotonic())
        readable, _, _ = select.select([self._process.stdout], [], [], patience)
        line = self._process.stdout.readline().strip() if readable else ""
        if line:
            return line
        if not readable:
            self._process.kill()
            raise tools.Failure("no result in time")
        said = self._process.stderr.read().strip().splitlines()
        raise tools.Failure(said[-1] if said else "the load program ended without a word")


def _cores(begin, end):
    """The share of a core between two looks at a clock: the lines that ask for them are not exactly on time."""
    if begin is None or end is None:
        return None
    return (end[0] - begin[0]) / (end[1] - begin[1])


def every():
    """All cells, in the order of the report."""
    found = []
    for mtu in (USUAL, BIG):
        for direction in ("out", "in", "both"):
            for streams in (1, 8, 64):
                quick = streams == 1 or (streams == 8 and direction != "both")
                found.append(Cell(f"tcp-{direction}-mtu{mtu}-x{streams}", f"TCP through the link, MTU {mtu}",
                                  _stream(direction, mtu, streams), quick))
    for client in ("loopback", "remote"):
        for mtu in (USUAL, BIG):
            for direction, way in (("out", "to-guest"), ("in", "from-guest")):
                for streams in (1, 8):
                    found.append(Cell(f"published-{client}-{way}-mtu{mtu}-x{streams}", "TCP to a published port",
                                      _published(client, direction, mtu, streams), mtu == BIG and streams == 1))
    for transport in ("tcp", "udp"):
        found.append(Cell(f"rr-{transport}-out", "Round trips", _round_trip(transport)))
        for client in ("loopback", "remote"):
            found.append(Cell(f"rr-{transport}-published-{client}", "Round trips",
                              _round_trip_published(transport, client)))
    found.append(Cell("crr-out", "Connections per second", _connects()))
    for client in ("loopback", "remote"):
        found.append(Cell(f"crr-published-{client}", "Connections per second", _connects_published(client)))
    for direction in ("out", "in"):
        for size in (64, 1400, 8000, "64-1400"):
            found.append(Cell(f"udp-{direction}-{size}", "UDP as fast as it goes", _flood(direction, size, 0)))
    for direction in ("out", "in"):
        found.append(Cell(f"udp-{direction}-1400-paced", f"UDP at {PACED} per second",
                          _flood(direction, 1400, PACED)))
    for flows in (1000, 10_000):
        found.append(Cell(f"idle-{flows}", "Beside idle flows", _idle(flows)))
    for direction, streams in (("out", 1), ("out", 8), ("both", 8)):
        found.append(Cell(f"between-{direction}-x{streams}", "TCP between two containers of a network",
                          _between(direction, streams), streams == 1, only=("rnet", "veth")))
    found.append(Cell("between-rr-tcp", "TCP between two containers of a network", _between_round_trip,
                      only=("rnet", "veth")))
    found.append(Cell("memory", "Memory", _memory, only=("rnet", "slirp4netns", "pasta")))
    found.append(Cell("start", "Start", _start, only=("rnet", "slirp4netns", "pasta")))
    for link, address in (("20ms", FAR["slow"][1]), ("20ms-1%loss", FAR["lossy"][1])):
        for direction in ("out", "in"):
            found.append(Cell(f"far-{link}-{direction}", "A slow and a lossy far side", _far(address, direction)))
    return found


def _remote(address=NEAR[1]):
    return f"{address}:{SERVER_PORT}"


def _stream_metrics(said, cores):
    rate = (said["out_bps"] + said["in_bps"]) / 1e9
    return {"rate": rate, **_per_gigabyte(rate, cores)}


def _per_gigabyte(rate, cores):
    """CPU seconds per GB, of a helper that used so many cores for so many Gbit/s."""
    return {} if cores is None or not rate else {"cpu/GB": cores * 8 / rate}


def _stream(direction, mtu, streams):
    def sample(bench):
        bench.serve_remote()
        guest = bench.guest(mtu)
        argv = [bench.space.load, "stream", _remote(), COUNTS, direction, str(streams), str(bench.seconds)]
        return _stream_metrics(*bench.load(guest.inside(argv), guest))

    return sample


def _between(direction, streams):
    def sample(bench):
        server, client, address = bench.pair()
        bench.serve_guest(server)
        argv = [bench.space.load, "stream", f"{address}:{tools.PORT}", COUNTS, direction, str(streams),
                str(bench.seconds)]
        return _stream_metrics(*bench.load(client.inside(argv), client))

    return sample


def _between_round_trip(bench):
    server, client, address = bench.pair()
    bench.serve_guest(server)
    argv = [bench.space.load, "rr", f"{address}:{tools.PORT}", "tcp", str(bench.seconds)]
    return _latency_metrics(*bench.load(client.inside(argv), client))


def _from(bench, guest, client):
    """How a client of the published port starts, and where it finds it."""
    if client == "loopback":
        return (lambda argv: argv), f"{guest.loopback}:{tools.PORT}"
    return bench.space.in_remote, f"{guest.outside}:{tools.PORT}"


def _published(client, direction, mtu, streams):
    def sample(bench):
        guest = bench.guest(mtu)
        bench.serve_guest(guest)
        place, address = _from(bench, guest, client)
        argv = [bench.space.load, "stream", address, COUNTS, direction, str(streams), str(bench.seconds)]
        return _stream_metrics(*bench.load(place(argv), guest))

    return sample


def _latency_metrics(said, cores):
    if not said["count"]:
        raise tools.Failure("no request was answered")
    metrics = {"p50": said["p50_us"], "p99": said["p99_us"]}
    if cores is not None:
        metrics["cpu/100k"] = cores * 1e5 / said["per_second"]
    return metrics


def _round_trip(transport):
    def sample(bench):
        bench.serve_remote()
        guest = bench.guest()
        argv = [bench.space.load, "rr", _remote(), transport, str(bench.seconds)]
        return _latency_metrics(*bench.load(guest.inside(argv), guest))

    return sample


def _round_trip_published(transport, client):
    def sample(bench):
        guest = bench.guest()
        bench.serve_guest(guest)
        place, address = _from(bench, guest, client)
        argv = [bench.space.load, "rr", address, transport, str(bench.seconds)]
        return _latency_metrics(*bench.load(place(argv), guest))

    return sample


def _connect_metrics(said, cores):
    return {"per second": said["per_second"], **_latency_metrics(said, cores)}


def _connects():
    def sample(bench):
        bench.serve_remote()
        guest = bench.guest()
        argv = [bench.space.load, "crr", _remote(), str(bench.seconds)]
        return _connect_metrics(*bench.load(guest.inside(argv), guest))

    return sample


def _connects_published(client):
    def sample(bench):
        guest = bench.guest()
        bench.serve_guest(guest)
        place, address = _from(bench, guest, client)
        argv = [bench.space.load, "crr", address, str(bench.seconds)]
        return _connect_metrics(*bench.load(place(argv), guest))

    return sample


def _flood(direction, size, per_second):
    def sample(bench):
        bench.serve_remote()
        guest = bench.guest()
        argv = [bench.space.load, "udp", _remote(), COUNTS, direction, str(size), str(per_second), str(bench.seconds)]
        said, cores = bench.load(guest.inside(argv), guest)
        rate = said["bps"] / 1e9
        metrics = {"loss": said["loss_percent"], **_per_gigabyte(rate, cores)}
        if not per_second:
            metrics = {"rate": rate, "packets": said["per_second"], **metrics}
        return metrics

    return sample


def _idle(flows):
    def sample(bench):
        bench.serve_remote()
        guest = bench.guest()
        before = guest.resident_bytes() if guest.helper else None
        said = bench.hold(guest.inside([bench.space.load, "idle", _remote(), str(flows)]))
        if said["open"] < flows:
            raise tools.Failure(f"only {said['open']} of {flows} flows opened: {said['failure']}")
        metrics = {"opening": flows / said["seconds"]}
        if before is not None:
            metrics["memory/flow"] = (guest.resident_bytes() - before) / flows / 1024
        argv = [bench.space.load, "rr", _remote(), "tcp", str(bench.seconds)]
        return {**_latency_metrics(*bench.load(guest.inside(argv), guest)), **metrics}

    return sample


def _memory(bench):
    bench.serve_remote()
    guest = bench.guest()
    idle = guest.resident_bytes()
    argv = [bench.space.load, "stream", _remote(), COUNTS, "both", "8", str(bench.seconds)]
    bench.load(guest.inside(argv), guest)
    return {"memory": idle / 2**20, "after load": guest.resident_bytes() / 2**20}


def _start(bench):
    bench.serve_remote()
    times = range(STARTS_QUICK if bench.quick else STARTS)
    ready = sorted(bench.tool.ready(bench.space) for _ in times)
    first = sorted(bench.tool.first(bench.space, _remote()) for _ in times)
    return {"ready": ready[len(ready) // 2] * 1e3, "first byte": first[len(first) // 2] * 1e3}


def _far(address, direction):
    def sample(bench):
        bench.space.far()
        bench.serve_remote()
        guest = bench.guest()
        seconds = bench.seconds * FAR_FACTOR
        argv = [bench.space.load, "stream", _remote(address), COUNTS, direction, "1", str(seconds)]
        return _stream_metrics(*bench.load(guest.inside(argv), guest, seconds))

    return sample


def chosen(options):
    """The cells that the options ask for."""
    pattern = re.compile(options.only or "")
    return [cell for cell in every() if pattern.search(cell.name) and (cell.quick or not options.quick)]
