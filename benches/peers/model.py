"""transformers + peft on the checkpoint, adapter and batch that `mpa bench model --train --write DIR` left: greedy decoding and steps of LoRA.

Usage: python3 model.py DIR --csv peers.csv [--commit ID] [--device cuda|cpu] [--dtype bf16|f32] [--steps N] [--what decode|step|pictures]...
Rows have the names of mpa's. `pictures` is what the paper's code does with each batch of pictures: an annotation with `generate`, then an answer with
another call, which sees the pictures again (compare `mpa bench engine`). A step is forward, backward, clipping and AdamW, the vision tower's forward
included, with and without gradient checkpointing; `bytes` is the most memory that torch had in use. The losses that are printed are of the same data and
weights as mpa's: side by side they should agree, in bf16 but for what adapters lose that are bf16 too.
"""

import argparse
import gc
import json
import os
import time

import torch
import torch.nn.functional as F

from common import Bench


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--csv", required=True)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "f32"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--what", action="append", choices=["decode", "step", "pictures"])
    args = parser.parse_args()
    args.quick = False
    args.torch_dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[args.dtype]
    return args


def pictures(folder, pixels, ids):
    """What the model takes for pixels [B, N, 3, H, W]: themselves, or, for Qwen2-VL, patches in squares of merge x merge and their grids."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    if config["model_type"] != "qwen2_vl":
        return {"pixel_values": pixels}
    vision = config["vision_config"]
    side, merge, frames = vision["patch_size"], vision["spatial_merge_size"], vision["temporal_patch_size"]
    pixels = pixels.flatten(0, 1)
    count, _, height, width = pixels.shape
    rows, cols = height // side, width // side
    cut = pixels.reshape(count, 3, rows // merge, merge, side, cols // merge, merge, side).permute(0, 2, 5, 3, 6, 1, 4, 7)
    cut = cut.unsqueeze(6).expand(*[-1] * 6, frames, -1, -1).reshape(count * rows * cols, -1)
    grid = torch.tensor([[1, rows, cols]] * count, device=pixels.device)
    return {"pixel_values": cut, "image_grid_thw": grid, "mm_token_type_ids": (ids == config["image_token_id"]).int()}


def as_linear(conv):
    """cuDNN has no good algorithm in bf16 for Qwen2-VL's Conv3d, whose input is one patch each (transformers #45750). Its `fusion_config` does the
    same, but for one model in a process."""
    conv.forward = lambda x: F.linear(x.flatten(1), conv.weight.flatten(1), conv.bias)


def load(args, device):
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    with open(os.path.join(args.folder, "bench.json"), encoding="utf-8") as file:
        facts = json.load(file)
    batch = load_file(os.path.join(args.folder, "batch.safetensors"))
    inputs = {"input_ids": batch["ids"].long().to(device), "attention_mask": torch.ones_like(batch["ids"]).long().to(device)}
    if "pixels" in batch:
        inputs |= pictures(args.folder, batch["pixels"].to(device, args.torch_dtype), inputs["input_ids"])
    model = AutoModelForImageTextToText.from_pretrained(args.folder, dtype=args.torch_dtype, attn_implementation="sdpa").to(device)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d):
            as_linear(module)
    return facts, model, inputs, batch["labels"].long().to(device)


class Timer:
    def __init__(self, cuda):
        self.cuda = cuda

    def seconds(self, run):
        if self.cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began


# Tokens of an answer, as src/bench/engine.rs has it.
ANSWER = 5
# Pictures that the paper's code has in a call: those rows are mpa's peers, others have names of their own.
PAPERS = 8


def generation(bench, args):
    """Greedy `generate` of so many tokens. The prompt is the batch up to its first target."""
    facts, model, inputs, labels = load(args, bench.device)
    prompt = int((labels[0] != -100).nonzero()[0])
    inputs = {key: value[:, :prompt] if key in ("input_ids", "attention_mask", "mm_token_type_ids") else value for key, value in inputs.items()}
    settings = dict(do_sample=False, pad_token_id=1, eos_token_id=None)

    def run(tokens):
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, **settings)

    return facts, inputs["input_ids"].shape[0], run


def pictures_a_second(bench, timer, args):
    facts, batch, run = generation(bench, args)
    new = facts["load"]["new"]
    run(new)
    seconds = min(timer.seconds(lambda: (run(new), run(ANSWER))) for _ in range(args.steps)) / batch
    name = facts["name"].replace(f"batch {batch}", f"{new} tokens") + ("" if batch == PAPERS else f", batch {batch}")
    bench.row({"op": "picture", "name": name, "bytes": 0, "flops": 0}, seconds * 1e6, f"generate, batch {batch}", args.dtype)
    memory = f", at most {torch.cuda.max_memory_allocated() >> 20} MiB in use" if bench.cuda else ""
    print(f"torch: {1 / seconds:.2f} pictures/s, batch {batch}, {new} + {ANSWER} tokens{memory}", flush=True)


def decode(bench, timer, args):
    """A prompt's part cancels out."""
    facts, batch, run = generation(bench, args)
    new = facts["load"]["new"]
    run(new)
    first = min(timer.seconds(lambda: run(1)) for _ in range(args.steps))
    step = (min(timer.seconds(lambda: run(new)) for _ in range(args.steps)) - first) / (new - 1)
    for op, seconds in (("first_token", first), ("decode", step)):
        bench.row({"op": op, "name": facts["name"], "bytes": 0, "flops": 0}, seconds * 1e6, "generate", args.dtype)
    rate = batch / step
    print(f"torch: first token after {first * 1e3:.1f} ms, decoding {rate:.1f} tokens/s ({step * 1e3:.2f} ms a step)", flush=True)


def train(bench, timer, args, checkpointing):
    from peft import PeftModel

    facts, base, inputs, labels = load(args, bench.device)
    # In the base's type: in f32, as peft would have them, with autocast or without, they take more memory and more kernels.
    model = PeftModel.from_pretrained(base, os.path.join(args.folder, "adapter"), is_trainable=True, autocast_adapter_dtype=False)
    if checkpointing:
        # After peft, which would add hooks that make embeddings and pictures ask for gradients, and the frozen vision tower be run backwards; so does
        # this, but what one call adds, one takes away. A checkpoint that is not reentrant needs none.
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.disable_input_require_grads()
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=facts["lr"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []

    def step():
        loss = model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())

    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    step()
    seconds = min(timer.seconds(step) for _ in range(args.steps))
    peak = torch.cuda.max_memory_allocated() if bench.cuda else 0
    op = "lora_step_recompute" if checkpointing else "lora_step"
    rate = inputs["input_ids"].numel() / seconds
    bench.row({"op": op, "name": facts["name"], "bytes": peak, "flops": 0}, seconds * 1e6, f"peft, {rate:.0f} tokens/s", args.dtype)
    told = " ".join(f"{float(loss):.4f}" for loss in losses)
    print(f"torch:{op}: {seconds:.3f} s a step, {rate:.0f} tokens/s, at most {peak >> 20} MiB in use; losses {told}", flush=True)


def free(bench):
    """A model is in cycles: without this it would count into the next one's peak."""
    gc.collect()
    if bench.cuda:
        torch.cuda.empty_cache()


def main():
    args = arguments()
    bench = Bench(args, flush=False)
    timer = Timer(bench.cuda)
    what = args.what or ["decode", "step"]
    if "decode" in what:
        decode(bench, timer, args)
        free(bench)
    if "pictures" in what:
        pictures_a_second(bench, timer, args)
        free(bench)
    if "step" in what:
        for checkpointing in (False, True):
            train(bench, timer, args, checkpointing)
            free(bench)
    bench.finish()


if __name__ == "__main__":
    main()
