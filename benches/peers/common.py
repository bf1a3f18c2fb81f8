"""What the peers share: the shapes of `mpa bench ops --shapes --json`, timing as src/bench/timing.rs does it, and rows of the same columns.

Usage of each peer: python3 PEER.py --shapes shapes.json --csv peers.csv [--commit ID] [--device cuda|cpu] [--quick]
Rows are appended to the CSV; their op is that of mpa with `torch:` before it, `note` says which of several ways was the fastest.
"""

import argparse
import csv
import json
import os
import statistics
import sys
import time

import torch

COLUMNS = "op shape dtype median_us bytes flops GB/s TFLOP/s percent_of_ceiling gpu driver commit note".split()
FLUSH = 256 << 20
WARM_UP, REPEATS = 3, 30
# Microseconds of a call that is not worth repeating: torch has fallbacks that take seconds.
SLOW = 1e5


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shapes", required=True, help="what mpa bench ops --shapes --json printed")
    parser.add_argument("--csv", required=True, help="rows are appended to it")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="cut shapes, run once: shows that it runs, measures nothing")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    torch.manual_seed(0)
    return args


class Bench:
    def __init__(self, args, flush=True):
        self.args = args
        self.device = torch.device(args.device)
        self.cuda = self.device.type == "cuda"
        self.repeats = 1 if args.quick else REPEATS
        self.warm_up = 1 if args.quick else WARM_UP
        self.flush = torch.empty(FLUSH if flush and not args.quick else 4096, dtype=torch.uint8, device=self.device)
        self.failed = []
        # Its own: a capture that fails leaves the default one unusable.
        self.generator = torch.Generator(self.device).manual_seed(0)

    def shapes(self, op):
        with open(self.args.shapes, encoding="utf-8") as file:
            return [shape for shape in json.load(file)["shapes"] if shape["op"] == op]

    def random(self, *shape, dtype=torch.bfloat16):
        return (torch.rand(*shape, device=self.device, generator=self.generator) * 2 - 1).to(dtype)

    def integers(self, low, high, *shape, dtype):
        return torch.randint(low, high, shape, dtype=dtype, device=self.device, generator=self.generator)

    def once(self, run):
        """Microseconds; on a GPU queued while the cache is still being overwritten, so that the launch is not waited for."""
        half = self.flush.numel() // 2
        # A copy, as there: lines that were only written would have to be written back within the time that is taken.
        self.flush[half:].copy_(self.flush[:half])
        if not self.cuda:
            began = time.perf_counter()
            run()
            return (time.perf_counter() - began) * 1e6
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    def median_us(self, run):
        # The first call makes plans and loads code.
        self.once(run)
        us = self.once(run)
        if us > SLOW:
            return us
        for _ in range(self.warm_up - 2):
            run()
        return statistics.median(self.once(run) for _ in range(self.repeats))

    def graph(self, run):
        """The calls as one replayed graph: what torch can do at best where launches are many and short."""
        stream = torch.cuda.current_stream()
        # A backward runs on the stream of its forward, so that is the one to capture; the default one cannot be.
        if stream == torch.cuda.default_stream():
            stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        # The outer one goes back to the stream before: a capture that fails does not.
        with torch.cuda.stream(stream):
            for _ in range(self.warm_up):
                run()
            with torch.cuda.graph(graph, stream=stream):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        return graph.replay

    def best(self, ways):
        """The fastest of several ways to the same result, called and as a graph: name and microseconds. A way that cannot do it is left out."""
        times, refused = {}, []
        for name, make in ways.items():
            try:
                run = make()
                times[name] = self.median_us(run)
                # Nested tensors ask for their sizes on the way, which a graph cannot keep.
                if self.cuda and not self.args.quick and "nested" not in name and times[name] <= SLOW:
                    times[f"{name}, graph"] = self.median_us(self.graph(run))
            except Exception as error:  # noqa: BLE001: whatever torch raises means that this way is not there
                refused.append(f"{name}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__}")
                if self.cuda:
                    torch.cuda.synchronize()
        if not times:
            raise RuntimeError("; ".join(refused))
        name = min(times, key=times.get)
        return name, times[name], times, refused

    def measure(self, shape, ways, dtype="bf16"):
        """Times `ways` (or what makes them) on `shape` and writes the row of the best."""
        label = f"torch:{shape['op']}, {shape['name']}"
        try:
            name, best, times, refused = self.best(ways() if callable(ways) else ways)
        except Exception as error:  # noqa: BLE001: one shape less is better than no table
            self.failed.append(f"{label}: {error}")
            print(f"FAILED {label}: {error}", flush=True)
            return
        self.row(shape, best, name, dtype)
        each = ", ".join(f"{way} {us:.1f}" for way, us in sorted(times.items(), key=lambda item: item[1]))
        print(f"{label}: {each}" + (f" (not: {'; '.join(refused)})" if refused else ""), flush=True)

    def row(self, shape, us, note, dtype="bf16"):
        gpu = torch.cuda.get_device_name() if self.cuda else "cpu"
        row = {
            "op": "torch:" + shape["op"],
            "shape": shape["name"],
            "dtype": dtype,
            "median_us": f"{us:.3f}",
            "bytes": shape["bytes"],
            "flops": shape["flops"],
            "GB/s": f"{shape['bytes'] / us / 1e3:.2f}",
            "TFLOP/s": f"{shape['flops'] / us / 1e6:.4f}",
            "percent_of_ceiling": "",
            "gpu": gpu,
            "driver": f"torch {torch.__version__}",
            "commit": self.args.commit,
            "note": note,
        }
        new = not os.path.exists(self.args.csv)
        with open(self.args.csv, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)

    def finish(self):
        for line in self.failed:
            print(f"failed: {line}", file=sys.stderr)
        sys.exit(1 if self.failed else 0)
