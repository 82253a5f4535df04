#!/usr/bin/env python3
"""Draws what traffic_shift_test wrote as an SVG, with nothing but the standard library.

  ISOTHERM_TRAFFIC_SHIFT_CSV=shift.csv build/tests/traffic_shift_test
  tools/plot_traffic_shift.py shift.csv docs/images/traffic-shift.svg

The CSV has a line a request: plan (static, live, best), traffic (chat, book), tokens served by its
end and the share of its activations that were hot. Dots are requests, lines their means over the
last 400 tokens.
"""
import argparse
import csv
import sys

WIDTH, HEIGHT = 860, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 56, 56
WINDOW = 400  # tokens
STYLES = {
    "static": ("#b4552d", "static: the chat profile's plan"),
    "live": ("#1f6f8b", "live: follows the traffic"),
}
BEST = "#555555"


def read(path):
    curves = {}
    with open(path, newline="") as file:
        last = {}
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            plan, tokens = row["plan"], int(row["tokens"])
            curves.setdefault(plan, []).append(
                {"traffic": row["traffic"], "end": tokens, "start": last.get(plan, 0),
                 "share": float(row["hit_share"])})
            last[plan] = tokens
    for needed in ("static", "live", "best"):
        if not curves.get(needed):
            sys.exit(f"{path}: has no line of the plan '{needed}'; write it with traffic_shift_test")
    return curves


def mean(points):
    weight = sum(p["end"] - p["start"] for p in points)
    return sum(p["share"] * (p["end"] - p["start"]) for p in points) / weight


def smooth(points):
    """(tokens, share) at each request's end: the mean over the window before it, of its traffic."""
    out = []
    for i, point in enumerate(points):
        part = [p for p in points[: i + 1]
                if p["traffic"] == point["traffic"] and p["end"] > point["end"] - WINDOW]
        out.append((point["end"], mean(part)))
    return out


def draw(curves):
    switch = max(p["end"] for p in curves["live"] if p["traffic"] == "chat")
    # The first point of `best` begins where the book text does.
    curves["best"][0]["start"] = switch
    best = mean(curves["best"])
    end = max(p["end"] for name in STYLES for p in curves[name])
    shares = [p["share"] for name in STYLES for p in curves[name]] + [best]
    low = max(0.0, int(min(shares) * 20 - 0.5) / 20)
    high = min(1.0, int(max(shares) * 20 + 1.5) / 20)

    def x(tokens):
        return LEFT + (WIDTH - LEFT - RIGHT) * tokens / end

    def y(share):
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - share) / (high - low)

    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="16">Share of activations computed by hot neurons, '
        "20 % of the neurons hot</text>",
    ]
    share = low
    while share <= high + 1e-9:
        svg.append(f'<line x1="{LEFT}" y1="{y(share):.1f}" x2="{WIDTH - RIGHT}" y2="{y(share):.1f}" '
                   'stroke="#e4e4e4"/>')
        svg.append(f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">'
                   f"{100 * share:.0f} %</text>")
        share += 0.05
    for tokens in range(0, end + 1, 1000):
        svg.append(f'<text x="{x(tokens):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">'
                   f"{tokens:,}</text>")
        svg.append(f'<line x1="{x(tokens):.1f}" y1="{HEIGHT - BOTTOM}" x2="{x(tokens):.1f}" '
                   f'y2="{HEIGHT - BOTTOM + 5}" stroke="#888"/>')
    svg.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">'
               "tokens served</text>")
    svg.append(f'<line x1="{x(switch):.1f}" y1="{TOP}" x2="{x(switch):.1f}" '
               f'y2="{HEIGHT - BOTTOM}" stroke="#888" stroke-dasharray="2 3"/>')
    svg.append(f'<text x="{x(switch) - 8:.1f}" y="{TOP + 14}" text-anchor="end" fill="#666">chat'
               "</text>")
    svg.append(f'<text x="{x(switch) + 8:.1f}" y="{TOP + 14}" fill="#666">book text</text>')
    for factor, dashes, label in ((1.0, "7 4", "best static plan for the book text"),
                                  (0.95, "2 4", "95 % of it")):
        at = y(best * factor)
        svg.append(f'<line x1="{x(switch):.1f}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" '
                   f'stroke="{BEST}" stroke-dasharray="{dashes}"/>')
        svg.append(f'<text x="{x(switch) + 8:.1f}" y="{at - 5:.1f}" fill="{BEST}" '
                   f'font-size="11">{label}</text>')
    for i, (name, (colour, label)) in enumerate(STYLES.items()):
        for p in curves[name]:
            svg.append(f'<circle cx="{x(p["end"]):.1f}" cy="{y(p["share"]):.1f}" r="1.6" '
                       f'fill="{colour}" fill-opacity="0.35"/>')
        line = " ".join(f"{x(t):.1f},{y(s):.1f}" for t, s in smooth(curves[name]))
        svg.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.2"/>')
        legend = LEFT + 250 * i
        svg.append(f'<line x1="{legend}" y1="41" x2="{legend + 26}" y2="41" stroke="{colour}" '
                   'stroke-width="2.2"/>')
        svg.append(f'<text x="{legend + 32}" y="45">{label}</text>')
    svg.append("</svg>")
    return "\n".join(svg) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", help="what traffic_shift_test wrote")
    parser.add_argument("svg", help="the picture to write")
    args = parser.parse_args()
    picture = draw(read(args.csv))
    with open(args.svg, "w") as file:
        file.write(picture)


if __name__ == "__main__":
    main()
