"""bench/compare, put together."""

import json
import os
import sys
import time

from . import cells, chart, install, machine, options as command_line, report, space, tools

# A sample that others disturbed is taken again so often.
RETRIES = 2
# The exit status after Ctrl-C, by the shell's convention.
INTERRUPTED = 130
# How long to wait for others to be done before that.
QUIET_SECONDS = 5


def main(argv):
    """Returns the exit status: 0; 1 if nothing could be measured; 130 after Ctrl-C; 3 if the machine was too busy to compare."""
    options = command_line.parse(argv)
    if options.inside:
        return _inside(options, json.loads(options.inside))
    if options.list:
        for cell in cells.chosen(options):
            print(f"{cell.name:40} {cell.group}")
        return 0
    try:
        paths, notes = install.programs(options)
    except install.Missing as missing:
        print(f"bench/compare: {missing}", file=sys.stderr)
        return 1
    if options.out:
        os.makedirs(options.out, exist_ok=True)
    plan = {"paths": paths, "notes": notes, "facts": machine.describe(paths)}
    return space.enter([os.path.realpath(sys.argv[0])] + argv, plan)


def _inside(options, plan):
    results = report.Results(options, plan["facts"], plan["notes"])
    interrupted = False
    try:
        place = space.Space(plan)
        if place.files < space.FILES:
            results.notes.append(f"at most {place.files} open files per process here; some tools take two per flow")
        _measure(options, place, results)
    except KeyboardInterrupt:
        interrupted = True
        results.notes.append("interrupted: what follows is not complete")
    print(results.table())
    if options.out:
        results.write(options.out)
        chart.write(results, options.out)
    return INTERRUPTED if interrupted else results.status()


def _measure(options, place, results):
    chosen = cells.chosen(options)
    order = [tool for tool in options.tools if tool in ("veth", "host") or command_line.program_of(tool) in place.paths]
    for turn in range(options.rounds):
        for number, cell in enumerate(chosen):
            # Rotated, so that no tool always follows the same one.
            shift = (turn + number) % max(1, len(order))
            for tool in order[shift:] + order[:shift]:
                if cell.only and tool not in cell.only:
                    continue
                _progress(f"round {turn + 1}/{options.rounds}  cell {number + 1}/{len(chosen)}  {cell.name}  {tool}")
                _sample(options, place, results, cell, tool, turn)
    _progress("")
    if place.far_kind == "relay":
        results.notes.append("no netem in this kernel: the far links are a relay of ours, the same for every tool")


def _sample(options, place, results, cell, tool, turn):
    """One sample, taken again if others were busy meanwhile."""
    for attempt in range(1 + RETRIES):
        settled = machine.settle(results.facts)
        watch = machine.Watch()
        bench = cells.Bench(place, tool, options.seconds, options.quick)
        values, failure = {}, None
        try:
            values = cell.sample(bench)
        except (tools.Failure, RuntimeError, OSError, ValueError) as error:
            failure = str(error)
        finally:
            bench.close()
        others = watch.others_percent()
        quiet = settled and others <= options.busy_limit
        if quiet or options.force or attempt == RETRIES:
            break
        results.repeated += 1
        time.sleep(QUIET_SECONDS if not options.quick else 1)
    results.add(cell, tool, turn, values, failure, others, quiet or options.force)


def _progress(line):
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    elif line:
        print(line, file=sys.stderr, flush=True)
