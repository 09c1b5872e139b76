"""The command line."""

import argparse

TOOLS = ("rnet", "slirp4netns", "pasta", "veth", "host")
# Variants of rnet, measured when asked for: with so many workers.
WORKERS = {"rnet-1": 1, "rnet-2": 2, "rnet-4": 4}
PEERS = ("slirp4netns", "pasta")


def parse(argv):
    """Returns the options; ends the program if they make no sense."""
    parser = argparse.ArgumentParser(prog="bench/compare", description=(
        "Measures rnet beside slirp4netns, pasta, a rootful veth and the bare host, interleaved and repeated."))
    parser.add_argument("--rnet", metavar="PATH", help="default: built from this tree")
    parser.add_argument("--slirp4netns", metavar="PATH", help="default: the installed one")
    parser.add_argument("--pasta", metavar="PATH", help="default: the installed one")
    parser.add_argument("--load", metavar="PATH", help="the load generator; default: built from this tree")
    parser.add_argument("--tools", metavar="A,B", help=f"only these of {', '.join([*TOOLS, *WORKERS])}")
    parser.add_argument("--only", metavar="PATTERN", help="only cells whose name matches this regular expression")
    parser.add_argument("--list", action="store_true", help="name the cells and measure nothing")
    parser.add_argument("--quick", action="store_true", help="one round of one second per cell, fewer cells")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="samples per cell and tool (5; quick: 1)")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of a sample (3; quick: 1)")
    parser.add_argument("--out", metavar="DIR", help="write CSV, JSON and SVG files there")
    parser.add_argument("--busy-limit", type=float, default=10.0, metavar="PERCENT",
                        help="share of the machine that others may use during a sample (10)")
    parser.add_argument("--force", action="store_true", help="keep samples of a busy machine, and say so")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (1.0 if options.quick else 3.0)
    options.tools = options.tools.split(",") if options.tools else list(TOOLS)
    for tool in options.tools:
        if tool not in TOOLS and tool not in WORKERS:
            parser.error(f"no tool {tool!r}")
    return options


def program_of(tool):
    """The name of the program that a tool is a way to run."""
    return "rnet" if tool in WORKERS else tool


def _positive(word):
    number = int(word)
    if number < 1:
        raise ValueError(word)
    return number

