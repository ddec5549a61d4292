"""Draw a record of seconds against a baseline as a bar chart, one SVG without dependencies."""

import math
from typing import Any

LEFT, RIGHT, ROW = 290, 480, 34


def svg(record: dict[str, Any]) -> str:
    """Return a chart of processor seconds, logarithmic: efface's bar over the baseline's, for every case with both."""
    cases = [case for case in record["cases"] if "baseline_cpu_seconds" in case]
    low = math.floor(math.log10(min(case["cpu_seconds"] for case in cases)))
    high = math.ceil(math.log10(max(case["baseline_cpu_seconds"] for case in cases)))

    def x(seconds: float) -> float:
        return LEFT + (math.log10(seconds) - low) / (high - low) * RIGHT

    bottom = 50 + ROW * len(cases)
    parts = []
    for power in range(low, high + 1):
        at = x(10**power)
        label = f"{10**power:,} s" if power >= 0 else f"{10**power:g} s"
        parts.append(f'<line x1="{at:.0f}" y1="34" x2="{at:.0f}" y2="{bottom}" stroke="#8884"/>')
        parts.append(f'<text x="{at:.0f}" y="26" text-anchor="middle">{label}</text>')
    for i, case in enumerate(cases):
        y = 44 + ROW * i
        parts.append(f'<text x="{LEFT - 10}" y="{y + 17}" text-anchor="end">{case["case"]}</text>')
        for key, dy, color in (("cpu_seconds", 0, "#2a7f9e"), ("baseline_cpu_seconds", 13, "#b9b2a6")):
            parts.append(
                f'<rect x="{LEFT}" y="{y + dy}" width="{x(case[key]) - LEFT:.1f}" height="11" fill="{color}"/>'
            )
        ratio = f"{case['ratio']:,.0f}×" if case["ratio"] >= 10 else f"{case['ratio']:.1f}×"
        parts.append(f'<text x="{x(case["baseline_cpu_seconds"]) + 6:.0f}" y="{y + 23}">{ratio}</text>')
    host = f"{record['host']['cpu']}, {record['threads']} thread"
    note = f"processor seconds of efface (blue) and of the baseline (grey); {host}"
    parts.append(f'<text x="{LEFT}" y="{bottom + 22}">{note}</text>')
    size = f'width="{LEFT + RIGHT + 70}" height="{bottom + 36}"'
    style = 'font-family="sans-serif" font-size="13" fill="#777"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(parts) + "\n</svg>\n"
