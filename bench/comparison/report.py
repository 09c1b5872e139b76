"""Medians, spreads and ratios of the samples; as a table, CSV and JSON."""

import csv
import json
import os
import statistics

from .cells import METRICS
from .options import PEERS

# Share of a row's samples that must be undisturbed.
ENOUGH = 0.5
# The exit status of a comparison that was refused.
BUSY = 3


class Results:
    """Everything that was measured."""

    def __init__(self, options, facts, notes):
        self.options = options
        self.facts = facts
        self.notes = list(notes)
        self.repeated = 0
        self.samples = []
        self._groups = {}

    def add(self, cell, tool, turn, values, failure, others, kept):
        """Takes one sample of a cell."""
        self._groups[cell.name] = cell.group
        self.samples.append({
            "cell": cell.name, "group": cell.group, "tool": tool, "round": turn, "values": values,
            "failure": failure, "others_percent": round(others, 1), "kept": kept,
        })

    def tools(self):
        """The measured tools, in the order of the command line."""
        return [tool for tool in self.options.tools if any(s["tool"] == tool for s in self.samples)]

    def rows(self):
        """One per cell and metric: what each tool got, and the ratio of rnet over the best peer."""
        found = []
        for cell, group in self._groups.items():
            of_cell = [sample for sample in self.samples if sample["cell"] == cell]
            for metric in METRICS:
                if any(metric in sample["values"] for sample in of_cell):
                    found.append(self._row(cell, group, metric, of_cell))
        return found

    def _row(self, cell, group, metric, samples):
        unit, more_is_better = METRICS[metric]
        tools, busy = {}, False
        for tool in self.tools():
            of_tool = [sample for sample in samples if sample["tool"] == tool]
            values = [s["values"][metric] for s in of_tool if s["kept"] and metric in s["values"]]
            if of_tool and sum(s["kept"] for s in of_tool) < len(of_tool) * ENOUGH:
                busy = True
            if values:
                tools[tool] = {"median": statistics.median(values), "spread_percent": _spread(values),
                               "samples": len(values)}
        row = {"cell": cell, "group": group, "metric": metric, "unit": unit, "more_is_better": more_is_better,
               "tools": tools, "busy": busy, "best_peer": None, "ratio": None}
        peers = {tool: tools[tool]["median"] for tool in PEERS if tool in tools}
        if peers:
            best = (max if more_is_better else min)(peers, key=peers.get)
            row["best_peer"] = best
            if not busy and "rnet" in tools and peers[best]:
                row["ratio"] = tools["rnet"]["median"] / peers[best]
        return row

    def failures(self):
        """What did not work, once per cell, tool and reason."""
        seen = {}
        for sample in self.samples:
            if sample["failure"]:
                key = (sample["cell"], sample["tool"], sample["failure"])
                seen[key] = seen.get(key, 0) + 1
        return [f"{cell}: {tool}: {why}" + (f" ({times} times)" if times > 1 else "")
                for (cell, tool, why), times in seen.items()]

    def status(self):
        """The exit status."""
        if not any(sample["values"] for sample in self.samples):
            return 1
        return BUSY if any(row["busy"] for row in self.rows()) else 0

    def table(self):
        """The whole report as text."""
        tools = self.tools()
        lines = self._head()
        width = max([len(sample["cell"]) for sample in self.samples] + [4]) + 2
        title = f"{'':{width}}{'':20}" + "".join(f"{tool:>16}" for tool in tools) + "  rnet / best peer"
        group = None
        for row in self.rows():
            if row["group"] != group:
                group = row["group"]
                lines += ["", group, title]
            cells = "".join(f"{_cell(row['tools'].get(tool)):>16}" for tool in tools)
            wish = "+" if row["more_is_better"] else "-"
            lines.append(f"{row['cell']:{width}}{row['metric'] + ', ' + row['unit']:18}{wish} {cells}  {_ratio(row)}")
        lines += ["", "+ more is better, - less is better; median, and half the range in percent of it"]
        failures = self.failures()
        if failures:
            lines += ["", "did not work:"] + [f"  {failure}" for failure in failures]
        return "\n".join(lines)

    def _head(self):
        facts = self.facts
        versions = [version or tool for tool, version in facts["versions"].items()]
        versions.append(f"TCP congestion control {facts['congestion_control']}")
        lines = [
            f"{facts['time']}  Linux {facts['kernel']} {facts['machine']}, {facts['cores']} cores, {facts['processor']}",
            ", ".join(versions),
            f"load at the start {' '.join(f'{load:.2f}' for load in facts['load'])}; {self.options.rounds} rounds of "
            f"{self.options.seconds:g} s; others used {self._others()} of the machine",
        ]
        if self.repeated:
            lines.append(f"{self.repeated} samples were taken again because others were busy")
        if any(row["busy"] for row in self.rows()):
            lines.append("NOT COMPARED where it says busy: others used more than "
                         f"{self.options.busy_limit:g} % of the machine; --force compares all the same")
        elif self.options.force and any(s["others_percent"] > self.options.busy_limit for s in self.samples):
            lines.append("FORCED: others were using the machine; these figures test the tool, nothing else")
        return lines + self.notes

    def _others(self):
        shares = [sample["others_percent"] for sample in self.samples] or [0]
        return f"{statistics.median(shares):.0f} % (at most {max(shares):.0f} %)"

    def write(self, directory):
        """results.json, samples.csv and table.txt."""
        settings = {name: value for name, value in vars(self.options).items() if name != "inside"}
        whole = {"facts": self.facts, "settings": settings, "notes": self.notes, "rows": self.rows(),
                 "failures": self.failures(), "samples": self.samples}
        with open(os.path.join(directory, "results.json"), "w", encoding="utf-8") as file:
            json.dump(whole, file, indent=1)
            file.write("\n")
        with open(os.path.join(directory, "table.txt"), "w", encoding="utf-8") as file:
            file.write(self.table() + "\n")
        with open(os.path.join(directory, "samples.csv"), "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["cell", "metric", "unit", "tool", "round", "value", "others_percent", "kept"])
            for sample in self.samples:
                for metric, value in sample["values"].items():
                    rows.writerow([sample["cell"], metric, METRICS[metric][0], sample["tool"], sample["round"],
                                   f"{value:.6g}", sample["others_percent"], int(sample["kept"])])


def _spread(values):
    """Half the range in percent of the median."""
    middle = statistics.median(values)
    return (max(values) - min(values)) * 50 / middle if middle else 0.0


def number(value):
    """Three digits, or the whole number."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _cell(got):
    if got is None:
        return "-"
    spread = f" ±{got['spread_percent']:.0f}%" if got["samples"] > 1 else ""
    return number(got["median"]) + spread


def _ratio(row):
    if row["busy"]:
        return "busy"
    if row["ratio"] is None:
        return ""
    return f"{row['ratio']:.2f} of {row['best_peer']}"
