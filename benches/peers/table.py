"""Joins the rows of mpa and of its peers: python3 table.py OUT.csv ROWS.csv...   Needs no torch.

percent: the least time that bytes and FLOPs take at the best ceilings of this run (whoever reached them), as a share of mpa's median; for steps of
training, whose bytes are the memory in use, that memory as a share of the peer's.
speedup: the peer's median over mpa's. Exit code 1 if there is nothing to join.
"""

import csv
import os
import sys

COLUMNS = "op shape dtype mpa_us peer_us speedup percent goal met gpu driver commit peer peer_note".split()
# Level with the best backend; five times the chain, at 80 % of what the card allows; 0.9 times cuBLASLt's int8; ten times `generate`.
GOALS = {"attention": (1.0, 0.0), "attention_backward": (1.0, 0.0), "patch_embed": (5.0, 80.0), "gemm_int8": (0.9, 0.0), "picture": (10.0, 0.0)}
# Steps of training: so many times faster, with at most such a share of the memory.
STEPS = {"lora_step": (3.0, 40.0), "lora_step_recompute": (3.0, 40.0)}


def read(paths):
    rows = []
    for path in paths:
        if os.path.exists(path):
            with open(path, newline="", encoding="utf-8") as file:
                rows += list(csv.DictReader(file))
    return rows


def largest(rows, column, wanted):
    return max((float(row[column]) for row in rows if wanted(row)), default=0.0)


def join(rows):
    ours = [row for row in rows if ":" not in row["op"]]
    peers = {tuple(row[key] for key in ("op", "shape")): row for row in rows if ":" in row["op"]}
    bandwidth = largest(rows, "GB/s", lambda row: row["op"].split(":")[-1] == "copy") * 1e9
    flops = largest(rows, "TFLOP/s", lambda row: row["op"].split(":")[-1] == "linear") * 1e12
    for row in ours:
        us, peer = float(row["median_us"]), peers.pop(("torch:" + row["op"], row["shape"]), None)
        seconds = [float(row[key]) / rate for key, rate in (("bytes", bandwidth), ("flops", flops)) if rate]
        percent = max(seconds, default=0.0) * 1e8 / us if us else 0.0
        speedup = float(peer["median_us"]) / us if peer and us else None
        goal = GOALS.get(row["op"]) or STEPS.get(row["op"])
        met = ""
        if row["op"] in STEPS:
            percent = 100 * float(row["bytes"]) / float(peer["bytes"]) if peer and float(peer["bytes"]) else 0.0
        if goal and speedup is not None:
            enough = percent <= goal[1] if row["op"] in STEPS else percent >= goal[1]
            met = "yes" if speedup >= goal[0] and enough else "NO"
        yield {
            "op": row["op"],
            "shape": row["shape"],
            "dtype": row["dtype"],
            "mpa_us": f"{us:.1f}",
            "peer_us": f"{float(peer['median_us']):.1f}" if peer else "",
            "speedup": f"{speedup:.2f}" if speedup is not None else "",
            "percent": f"{percent:.1f}",
            "goal": f"{goal[0]:g}x" + (f", {goal[1]:g} %" if goal[1] else "") if goal else "",
            "met": met,
            **{key: row[key] for key in ("gpu", "driver", "commit")},
            "peer": peer["driver"] if peer else "",
            "peer_note": peer["note"] if peer else "",
        }
    for (op, shape), row in peers.items():
        # A peer's row that mpa has none for.
        rest = {key: row[key] for key in ("dtype", "gpu", "commit")}
        us = f"{float(row['median_us']):.1f}"
        yield {"op": op, "shape": shape, "peer_us": us, "peer": row["driver"], "peer_note": row["note"], **rest}


def show(rows):
    columns = [c for c in COLUMNS if c not in ("gpu", "driver", "commit", "peer")]
    lines = [columns] + [[row.get(column, "") for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(entry.ljust(width) for entry, width in zip(line, widths)).rstrip())


def main():
    if len(sys.argv) < 3:
        sys.exit("usage: table.py OUT.csv ROWS.csv...")
    rows = list(join(read(sys.argv[2:])))
    if not rows:
        sys.exit("table.py: no rows in " + " ".join(sys.argv[2:]))
    with open(sys.argv[1], "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    show(rows)


if __name__ == "__main__":
    main()
