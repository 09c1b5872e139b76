"""Calls CNI plugins one after another, as the specification's section 3 has a runtime do it.

usage: chain.py COMMAND CONFIGURATION_LIST CONTAINER NETNS IFNAME [RUNTIME_CONFIG]

The result of ADD is kept in the file CONTAINER-IFNAME.result, where CHECK and DEL look for it. Prints what the last plugin
printed. A plugin that fails ends it with what that printed, and status 1.
"""

import json
import os
import subprocess
import sys

DIRECTORIES = "/mnt/cni/bin:/usr/lib/cni"


def main():
    command, path, container, netns, ifname, *rest = sys.argv[1:]
    wishes = json.loads(rest[0]) if rest else {}
    network = json.load(open(path))
    kept = f"{container}-{ifname}.result"
    previous = json.load(open(kept)) if os.path.exists(kept) and command != "ADD" else None
    plugins = network["plugins"]
    answer = ""
    for plugin in reversed(plugins) if command == "DEL" else plugins:
        configuration = {**plugin, "cniVersion": network["cniVersion"], "name": network["name"]}
        able = [name for name, on in plugin.get("capabilities", {}).items() if on]
        given = {name: wish for name, wish in wishes.items() if name in able}
        configuration.update({"runtimeConfig": given} if given else {})
        configuration.update({name: wish for name, wish in wishes.items() if name.startswith("cni.dev/")})
        configuration.update({"prevResult": previous} if previous else {})
        answer = call(plugin["type"], configuration, command, container, netns, ifname)
        if command == "ADD":
            previous = json.loads(answer)
    if command == "ADD":
        json.dump(previous, open(kept, "w"))
    print(answer, end="")


def call(kind, configuration, command, container, netns, ifname):
    places = [os.path.join(directory, kind) for directory in DIRECTORIES.split(":")]
    program = next(place for place in places if os.path.exists(place))
    environment = {
        **os.environ,
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": netns,
        "CNI_IFNAME": ifname,
        "CNI_PATH": DIRECTORIES,
    }
    done = subprocess.run([program], input=json.dumps(configuration), env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        print(done.stdout, end="")
        sys.exit(1)
    return done.stdout


main()
