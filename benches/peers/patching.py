"""torch's chain from 8-bit pictures to embedded patches: to float, scaled, normalised, to bf16, conv2d (conv3d for two frames), + position.

The best of the chain as it is written, as a graph, with each picture's channels last, and with patches cut out for a matrix product instead:
for conv3d in bf16 cuDNN has no good algorithm (transformers #45750).
"""

import torch
import torch.nn.functional as F

from common import Bench, arguments


def as_linear(x, weight, bias, frames, patch):
    """What the convolution is, as its patches do not overlap: [N, 3, H, W] to [N, width, H / patch, W / patch]."""
    x = x[..., : x.shape[2] // patch * patch, : x.shape[3] // patch * patch]
    x = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 1, 3, 5)
    if frames > 1:
        x = x[:, :, :, :, None].expand(-1, -1, -1, -1, frames, -1, -1)
    return F.linear(x.flatten(3), weight.flatten(1), bias).permute(0, 3, 1, 2)


def chain(bench, shape, pictures, side, channels_last=False, linear=False):
    patch, frames, merge, width = (shape[key] for key in ("patch", "frames", "merge", "width"))
    across = side // patch
    # [N, H, W, 3], as decoders leave them.
    pixels = bench.integers(0, 256, pictures, side, side, 3, dtype=torch.uint8)
    mean, deviation = (torch.full((1, 3, 1, 1), 0.5, device=bench.device) for _ in range(2))
    kernel = (frames, patch, patch) if frames > 1 else (patch, patch)
    weight, bias = bench.random(width, 3, *kernel), bench.random(width)
    position = bench.random(across * across, width) if shape["position"] else None
    if channels_last and frames == 1:
        weight = weight.to(memory_format=torch.channels_last)

    def run():
        x = pixels.permute(0, 3, 1, 2)
        if not channels_last:
            x = x.contiguous()
        x = ((x.float() * (1 / 255) - mean) / deviation).to(torch.bfloat16)
        if linear:
            x = as_linear(x, weight, bias, frames, patch)
        elif frames > 1:
            x = x[:, :, None].expand(-1, -1, frames, -1, -1)
            x = F.conv3d(x, weight, bias, stride=kernel)[:, :, 0]
        else:
            x = F.conv2d(x, weight, bias, stride=kernel)
        if merge > 1:
            x = x.unflatten(2, (across // merge, merge)).unflatten(4, (across // merge, merge)).permute(0, 2, 4, 3, 5, 1)
            x = x.reshape(pictures, across * across, width)
        else:
            x = x.flatten(2).transpose(1, 2)
        return x.contiguous() if position is None else x + position

    return run


def main():
    args = arguments(__doc__)
    bench = Bench(args)
    torch.backends.cudnn.benchmark = True
    for shape in bench.shapes("patch_embed"):
        pictures, side = shape["pictures"], shape["side"]
        if args.quick:
            pictures, side = 1, 2 * shape["patch"]
        ways = {
            "as linear": lambda: chain(bench, shape, pictures, side, linear=True),
            "channels first": lambda: chain(bench, shape, pictures, side),
            "channels last": lambda: chain(bench, shape, pictures, side, channels_last=True),
        }
        bench.measure(shape, ways)
    bench.finish()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
