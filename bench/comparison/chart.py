"""Bar charts as SVG: one file per group of cells and metric, readable on light and dark backgrounds."""

import os
import re
from html import escape

from .report import number

COLOURS = {"rnet": "#e4572e", "slirp4netns": "#4c8bd6", "pasta": "#3fa796", "veth": "#a58bd0", "host": "#9aa0a6",
           "rnet-1": "#f0a58f", "rnet-2": "#c23b17", "rnet-4": "#8a2a10"}
# Metrics that are worth a picture.
DRAWN = ("rate", "p50", "p99", "per second", "cpu/GB", "cpu/100k", "packets", "loss", "memory/flow", "memory",
         "after load", "ready", "first byte")
WIDTH, LEFT, RIGHT = 820, 250, 70
BAR, GAP, TOP = 12, 14, 74
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #444c56 }
  .title { font-size: 16px; font-weight: 600 }
  .value { font-size: 11px }
  .rule { stroke: #8b949e; stroke-opacity: .35 }
  @media (prefers-color-scheme: dark) { text { fill: #c9d1d9 } }
"""


def write(results, directory):
    """Draws every group and metric that has figures."""
    charts = {}
    for row in results.rows():
        if row["metric"] in DRAWN and row["tools"] and not row["busy"]:
            charts.setdefault((row["group"], row["metric"]), []).append(row)
    for (group, metric), rows in charts.items():
        name = re.sub(r"[^a-z0-9]+", "-", f"{group} {metric}".lower()).strip("-")
        with open(os.path.join(directory, f"{name}.svg"), "w", encoding="utf-8") as file:
            file.write(_chart(group, metric, rows, results))


def _chart(group, metric, rows, results):
    tools = [tool for tool in results.tools() if any(tool in row["tools"] for row in rows)]
    largest = max(got["median"] for row in rows for got in row["tools"].values()) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / largest
    better = "more is better" if rows[0]["more_is_better"] else "less is better"
    parts, y = [], TOP
    for row in rows:
        present = [tool for tool in tools if tool in row["tools"]]
        middle = y + len(present) * BAR / 2 + 4
        parts.append(f'<text x="{LEFT - 10}" y="{middle:.0f}" text-anchor="end">{escape(row["cell"])}</text>')
        for tool in present:
            parts.append(_bar(tool, row["tools"][tool]["median"], y, scale))
            y += BAR
        y += GAP
    rule = f'<line class="rule" x1="{LEFT}" x2="{LEFT}" y1="{TOP - 6}" y2="{y - GAP + 6}"/>'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="10" y="24">{escape(group)}: {escape(metric)}, {escape(rows[0]["unit"])}</text>',
        _legend(tools, better),
        rule,
        *parts,
        "</svg>",
        "",
    ])


def _bar(tool, value, y, scale):
    length = max(1.0, value * scale)
    return (f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 2}" rx="1" fill="{COLOURS[tool]}"/>'
            f'<text class="value" x="{LEFT + length + 5:.1f}" y="{y + BAR - 3}">{number(value)}</text>')


def _legend(tools, better):
    parts, x = [], 10
    for tool in tools:
        parts.append(f'<rect x="{x}" y="38" width="11" height="11" rx="2" fill="{COLOURS[tool]}"/>'
                     f'<text x="{x + 16}" y="48">{tool}</text>')
        x += 34 + 8 * len(tool)
    parts.append(f'<text x="{WIDTH - 10}" y="48" text-anchor="end">median; {better}</text>')
    return "".join(parts)
