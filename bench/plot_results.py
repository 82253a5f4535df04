#!/usr/bin/env python3
"""Draws the decode rows of a result of bench/run_gpu beside other engines' figures, as SVG.

  bench/plot_results.py bench/results/2026-11-29-h200.jsonl docs/images/gpu-decode.svg
"""
import json
import sys

# Same machine kind and geometry, other days: tokens/s of PowerInfer d3ebd7c and of llama.cpp (late 2026, the
# best split found) at the same memory; None: not measured.
OTHERS = {
    "7b-8g": ("7B, 8 GiB", 28.2, 16.2),
    "7b-11g": ("7B, 11 GiB", 42.4, 30.9),
    "7b-resident": ("7B, all on the GPU", 80.0, 200.0),
    "13b-16g": ("13B, 16 GiB", 22.4, None),
    "falcon-24g": ("Falcon 40B, 24 GiB", 14.1, None),
}
COLOURS = (("Isotherm", "#2f6f9f"), ("PowerInfer", "#c98b2b"), ("llama.cpp", "#8a8f94"))


def main(source, target):
    measured = {}
    with open(source) as lines:
        for line in lines:
            row = json.loads(line)
            if row["figure"] == "decode" and row["sequences"] == 1:
                measured[row["name"]] = row["tokens_per_second"]["median"]
    rows = [(title, (measured[name], *others)) for name, (title, *others) in OTHERS.items()
            if name in measured]
    top = max(value for _, values in rows for value in values if value)
    out, y = [], 40
    for title, values in rows:
        out.append(f'<text x="150" y="{y + 26}" text-anchor="end">{title}</text>')
        for (_, colour), value in zip(COLOURS, values):
            if value is None:
                continue
            width = 420 * value / top
            out.append(f'<rect x="160" y="{y}" width="{width:.1f}" height="12" fill="{colour}"/>')
            out.append(f'<text x="{165 + width:.1f}" y="{y + 10}" font-size="11">{value:.0f}</text>')
            y += 15
        y += 14
    legend = "".join(
        f'<rect x="{160 + 110 * i}" y="14" width="12" height="12" fill="{colour}"/>'
        f'<text x="{178 + 110 * i}" y="24">{name}</text>' for i, (name, colour) in enumerate(COLOURS))
    with open(target, "w") as svg:
        svg.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {y}" font-family="sans-serif" '
                  f'font-size="13"><rect width="640" height="{y}" fill="white"/>{legend}{"".join(out)}</svg>\n')


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
