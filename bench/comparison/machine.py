"""What the measurement ran on, and whether others were using it."""

import glob
import os
import platform
import subprocess
import time

SETTLE_SECONDS = 30
TICK = os.sysconf("SC_CLK_TCK")
# The tools that say their version, and the distribution's package of each.
PACKAGE = {"rnet": None, "slirp4netns": "slirp4netns", "pasta": "passt"}


def describe(paths):
    """Facts about the machine and the programs, for the report."""
    facts = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "congestion_control": _first_line("/proc/sys/net/ipv4/tcp_congestion_control"),
        # Not to be seen from inside the private namespaces.
        "tcp_pages_limit": int(_first_line("/proc/sys/net/ipv4/tcp_mem").split()[0]),
        "load": list(os.getloadavg()),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": {},
    }
    for tool, package in PACKAGE.items():
        if tool in paths:
            facts["versions"][tool] = _version(paths[tool], package)
    return facts


def _first_line(path):
    with open(path, encoding="ascii") as file:
        return file.readline().strip()


def _processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"


def _version(path, package):
    """What the program says, and its package's version: not every package's program knows its own."""
    version = _ask([path, "--version"])
    packaged = package and path.startswith("/usr/bin/") and _ask(["dpkg-query", "-W", "-f", "${Version}", package])
    return f"{version} (package {packaged})" if packaged else version


def _ask(argv):
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter(done.stdout.splitlines()), "")


def settle(facts):
    """Waits until the kernel has got back the memory of connections that ended: beyond a limit it throttles all
    others. Returns whether it has."""
    end = time.monotonic() + SETTLE_SECONDS
    while _tcp_pages() > facts["tcp_pages_limit"] / 4:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _tcp_pages():
    """Pages that TCP holds on this machine, in all namespaces."""
    with open("/proc/net/sockstat", encoding="ascii") as file:
        fields = next(line for line in file if line.startswith("TCP:")).split()
    return int(fields[fields.index("mem") + 1])


class Watch:
    """Measures how much of the machine others used since it was made.

    Ours is everything in this PID namespace. Softirq time is left out on both sides: it belongs to whoever is
    interrupted, which says nothing about whose packet it was.
    """

    def __init__(self):
        self._start = time.monotonic()
        self._all = _busy_seconds()
        self._ours = _our_seconds()

    def others_percent(self):
        """Share of all cores' time, 0 to 100."""
        others = (_busy_seconds() - self._all) - (_our_seconds() - self._ours)
        span = (time.monotonic() - self._start) * os.cpu_count()
        return max(0.0, min(100.0, others * 100 / span)) if span else 0.0


def _busy_seconds():
    """user, nice, system and steal time of all cores."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(word) for word in file.readline().split()[1:]]
    return (fields[0] + fields[1] + fields[2] + fields[7]) / TICK


def processes():
    """Number and fields after the name (proc_pid_stat(5), from the state on) of every process of this PID namespace."""
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                yield int(path.split("/")[2]), file.read().rpartition(")")[2].split()
        except OSError:
            continue


def _our_seconds():
    """Time of every process of this PID namespace and of those that they have waited for."""
    total = sum(int(field) for _, fields in processes() for field in fields[11:15])
    return total / TICK
