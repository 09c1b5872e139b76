"""The part of bench/startup that runs in the world of tests/compat, as an ordinary user."""

import json
import shutil
import statistics
import subprocess
import sys
import time

RNET = "/mnt/bin/rnet"
ROOTFS = "/mnt/rootfs"
PODMAN = ["podman", "--log-level=error", "--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=file"]
PODMAN_RUN = ["run", "--rm", "--cgroups=disabled", "--rootfs", ROOTFS, "true"]
# By what they give: a network, none of their own, or just namespaces.
TOOLS = {
    "rnet run /": [RNET, "run", "/", "true"],
    "rnet run ROOTFS": [RNET, "run", ROOTFS, "true"],
    "podman run, slirp4netns": PODMAN + PODMAN_RUN[:1] + ["--network=slirp4netns"] + PODMAN_RUN[1:],
    "podman run, no network": PODMAN + PODMAN_RUN[:1] + ["--network=none"] + PODMAN_RUN[1:],
    "crun run, no network": ["crun", "run", "--bundle", "bundle", "box"],
    "runc run, no network": ["runc", "run", "--bundle", "bundle", "box"],
    "bwrap, no network": ["bwrap", "--unshare-all", "--bind", ROOTFS, "/", "--proc", "/proc", "--dev", "/dev", "true"],
    "unshare, no network": ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork",
                            "--mount-proc", "true"],
}


def make_bundle():
    """A bundle of the same root, as an OCI runtime takes it."""
    subprocess.run(["mkdir", "bundle"], check=True)
    subprocess.run(["runc", "spec", "--rootless"], cwd="bundle", check=True)
    with open("bundle/config.json", encoding="utf-8") as file:
        config = json.load(file)
    config["process"].update(terminal=False, args=["true"])
    config["root"] = {"path": ROOTFS, "readonly": False}
    config["linux"]["namespaces"].append({"type": "network"})
    with open("bundle/config.json", "w", encoding="utf-8") as file:
        json.dump(config, file)


def seconds(argv):
    """How long a command takes; ends the program if it fails."""
    start = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    took = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(argv)}: status {done.returncode}: {done.stderr}")
    return took


def main(rounds):
    tools = {name: argv for name, argv in TOOLS.items() if argv[0] == RNET or shutil.which(argv[0])}
    if any(argv[0] in ("crun", "runc") for argv in tools.values()):
        make_bundle()
    for argv in tools.values():
        seconds(argv)
    samples = {name: [] for name in tools}
    for turn in range(rounds):
        order = list(tools)
        for name in order[turn % len(order):] + order[:turn % len(order)]:
            samples[name].append(seconds(tools[name]) * 1000)
    first = statistics.median(samples["rnet run /"])
    print(f"{'start and end of `true`':<28}{'median ms':>10}{'range ms':>16}{'over `rnet run /`':>20}")
    for name, taken in samples.items():
        middle = statistics.median(taken)
        spread = f"{min(taken):.1f} - {max(taken):.1f}"
        print(f"{name:<28}{middle:>10.1f}{spread:>16}{middle / first:>20.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
