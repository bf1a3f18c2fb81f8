"""Joins the rows of mpa and of its peers: python3 table.py OUT.csv ROWS.csv...   Needs no torch.

percent: the least time that bytes and FLOPs take at the best ceilings of this run (whoever reached them), the larger of both, as a share of mpa's
median; for steps of training, whose bytes are the memory in use, that memory as a share of the peer's.
speedup: the peer's median over mpa's. Exit code 1 if there is nothing to join.
"""

import csv
import os
import sys

COLUMNS = "op shape dtype mpa_us peer_us speedup percent goal met gpu driver commit peer peer_note".split()
BESIDE_BF16 = "gemm_int8, bf16"
# So many times faster than the peer (0: whatever it does), at such a percent or more.
GOALS = {
    # Level with the best backend.
    "attention": (1.0, 0.0),
    "attention_backward": (1.0, 0.0),
    # Of the chain. The percent is of what the card allows: of its matrix ceiling where the product takes longer than the bytes.
    "patch_embed": (5.0, 80.0),
    # Of torch's int8, and of cuBLASLt's bf16.
    "gemm_int8": (0.9, 0.0),
    BESIDE_BF16: (1.6, 0.0),
    # Of the copy bandwidth.
    "decode": (0.0, 85.0),
    # Of `generate`.
    "picture": (10.0, 0.0),
}
# Steps of training: so many times faster, with at most such a share of the memory.
STEPS = {"lora_step": (3.0, 40.0), "lora_step_recompute": (3.0, 40.0)}


def read(paths):
    rows = []
    for path in paths:
        if os.path.exists(path):
            with open(path, newline="", encoding="utf-8") as file:
                # A kill can leave the last one short.
                rows += [row for row in csv.DictReader(file) if row["note"] is not None]
    return rows


def largest(rows, column, wanted):
    return max((float(row[column]) for row in rows if wanted(row)), default=0.0)


def join(rows):
    ours = [row for row in rows if ":" not in row["op"]]
    peers = {(row["op"], row["shape"]): row for row in rows if ":" in row["op"]}
    # A row of ours for each of two peers.
    ours += [{**row, "op": BESIDE_BF16} for row in ours if row["op"] == "gemm_int8" and ("torch:" + BESIDE_BF16, row["shape"]) in peers]
    alone = dict(peers)
    bandwidth = largest(rows, "GB/s", lambda row: row["op"].split(":")[-1] == "copy") * 1e9
    flops = largest(rows, "TFLOP/s", lambda row: row["op"].split(":")[-1] == "linear") * 1e12
    for row in ours:
        # The peer's cache is of one kind.
        key = "torch:" + row["op"], row["shape"].removesuffix(", cache int8")
        us, peer = float(row["median_us"]), peers.get(key)
        alone.pop(key, None)
        seconds = [float(row[key]) / rate for key, rate in (("bytes", bandwidth), ("flops", flops)) if rate]
        percent = max(seconds, default=0.0) * 1e8 / us if us else 0.0
        speedup = float(peer["median_us"]) / us if peer and us else None
        goal = GOALS.get(row["op"]) or STEPS.get(row["op"])
        met = ""
        if row["op"] in STEPS:
            percent = 100 * float(row["bytes"]) / float(peer["bytes"]) if peer and float(peer["bytes"]) else 0.0
        if goal and (speedup is not None or not goal[0]):
            enough = percent <= goal[1] if row["op"] in STEPS else percent >= goal[1]
            met = "yes" if (speedup or 0.0) >= goal[0] and enough else "NO"
        yield {
            "op": row["op"],
            "shape": row["shape"],
            "dtype": row["dtype"],
            "mpa_us": f"{us:.1f}",
            "peer_us": f"{float(peer['median_us']):.1f}" if peer else "",
            "speedup": f"{speedup:.2f}" if speedup is not None else "",
            "percent": f"{percent:.1f}",
            "goal": ", ".join(f"{number:g}{unit}" for number, unit in zip(goal or (), ("x", " %")) if number),
            "met": met,
            **{key: row[key] for key in ("gpu", "driver", "commit")},
            "peer": peer["driver"] if peer else "",
            "peer_note": peer["note"] if peer else "",
        }
    for (op, shape), row in alone.items():
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
    # There is a whole one at any time.
    new = sys.argv[1] + ".new"
    with open(new, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(new, sys.argv[1])
    show(rows)


if __name__ == "__main__":
    main()
