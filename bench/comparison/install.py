"""Gets the programs together: peers from the distribution, rnet and the load generator from this tree."""

import json
import os
import pwd
import shutil
import subprocess

from .options import program_of

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What each package is needed for.
PACKAGES = {"slirp4netns": "slirp4netns", "passt": "pasta", "iproute2": "ip", "util-linux": "nsenter"}
APT_SECONDS = 300


class Missing(Exception):
    """A program without which nothing can be measured."""


def programs(options):
    """Paths by name: `load` and each tool that can be measured; and why the others cannot."""
    os.environ["PATH"] = os.environ.get("PATH", "") + ":" + SYSTEM_PATH
    notes = _install(options)
    for needed in ("ip", "nsenter", "unshare", "setpriv"):
        if not shutil.which(needed):
            raise Missing(f"{needed} is needed: install iproute2 and util-linux")
    paths = {"load": _given(options.load) or _build("--bench", "load")}
    for tool in options.tools:
        if tool in ("veth", "host"):
            continue
        name = program_of(tool)
        path = paths.get(name) or _given(getattr(options, name)) or (
            _build("--bin", "rnet") if name == "rnet" else shutil.which(name)
        )
        if path:
            paths[name] = path
        else:
            notes.append(f"{tool} is not measured: not installed; give its path or run as root with apt-get")
    return paths, notes


def _given(path):
    if path is None:
        return None
    if not os.access(path, os.X_OK):
        raise Missing(f"{path} cannot be executed")
    return os.path.realpath(path)


def _install(options):
    """Installs missing packages one by one; what cannot be had is noted."""
    given = {name for name in ("slirp4netns", "pasta") if getattr(options, name)}
    wanted = [
        package for package, program in PACKAGES.items()
        if not shutil.which(program) and program not in given
        and (program in options.tools or program in ("ip", "nsenter"))
    ]
    if not wanted:
        return []
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return [f"not installed: {', '.join(wanted)}: that takes root and apt-get"]
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    notes = []
    _quietly(apt + ["update"], environment)
    for package in wanted:
        if not _quietly(apt + ["install", "-y", "--no-install-recommends", package], environment):
            notes.append(f"apt-get could not install {package}")
    return notes


def _quietly(argv, environment):
    try:
        done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, timeout=APT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _build(kind, name):
    """Builds a target of this tree, as the user who called sudo if there was one; its path."""
    user = pwd.getpwuid(int(os.environ.get("SUDO_UID", os.getuid())))
    environment = dict(os.environ, HOME=user.pw_dir)
    environment["PATH"] += f":{user.pw_dir}/.cargo/bin"
    cargo = shutil.which("cargo", path=environment["PATH"])
    if not cargo:
        raise Missing(f"cargo is missing: install Rust, or give --{name} PATH")
    argv = [cargo, "build", "--release", "--message-format=json-render-diagnostics", kind, name]
    if os.geteuid() == 0 and user.pw_uid != 0:
        argv = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups"] + argv
    done = subprocess.run(argv, cwd=TREE, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise Missing(f"cargo could not build {name}")
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == name:
            return message["executable"]
    raise Missing(f"cargo named no file for {name}")
