"""torch's copy bandwidth and bf16 matrix products (cuBLAS): the ceilings of the card, and the linear layers of the models."""

import torch
import torch.nn.functional as F

from common import Bench, arguments


def main():
    args = arguments(__doc__)
    bench = Bench(args)
    for shape in bench.shapes("copy"):
        size = 4096 if args.quick else shape["size"]
        source = bench.integers(0, 256, size, dtype=torch.uint8)
        target = torch.empty_like(source)
        bench.measure(shape, {"copy_": lambda: lambda: target.copy_(source)})
        del source, target
    for shape in bench.shapes("linear"):
        m, n, k = (min(shape[size], 32) if args.quick else shape[size] for size in "mnk")
        x, weight = bench.random(m, k), bench.random(n, k)
        bench.measure(shape, {"F.linear": lambda: lambda: F.linear(x, weight)})
        del x, weight
    bench.finish()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
