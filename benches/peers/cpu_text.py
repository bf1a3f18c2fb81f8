"""mpa, llama.cpp and transformers on a CPU, side by side: SmolLM2-135M's shape (the text tower of SmolVLM-256M), random weights, tokens a second.

Usage: python3 cpu_text.py MPA [--rounds N] [--threads N] [--dtype int8|bf16|f32]... [--quick]
MPA is the binary. llama.cpp takes part if python3 has llama_cpp and gguf (pip install llama-cpp-python gguf); its int8 is Q8_0.
Each round starts every contestant once, one after the other, so that what else the machine does falls on all of them; medians over the
rounds are printed, with the largest resident memory. Prompts are of 512 tokens (prefill, and decoding behind them), or of 8 (decoding, alone and 8 at once).
The first run of a process is not timed; then the faster of two is taken.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

# Name: prompts, tokens of each, tokens to decode.
LOADS = {"prefill 512": (1, 512, 33), "decode": (1, 8, 65), "8 sequences": (8, 8, 33)}
COLUMNS = ["prefill 512", "decode", "decode at 512", "8 sequences", "RSS MiB"]
# Tokens that the template of the shape puts around words.
AROUND = 4


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mpa")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", action="append", choices=["int8", "bf16", "f32"])
    parser.add_argument("--quick", action="store_true", help="one round of few tokens: shows that it runs, measures nothing")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rounds = 1
        LOADS.update({name: (batch, min(tokens, 16), 3) for name, (batch, tokens, _) in LOADS.items()})
    return args


def rates(measure):
    """`measure(batch, tokens, new)`: seconds to the first tokens, and of a step."""
    out = {}
    for name, (batch, tokens, new) in LOADS.items():
        first, step = measure(batch, tokens, new)
        if name == "prefill 512":
            out[name] = tokens / first
            out["decode at 512"] = 1 / step
        else:
            out[name] = batch / step
    return out


def transformers(folder, dtype, threads):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    kind = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, attn_implementation="sdpa").eval()

    def measure(batch, tokens, new):
        ids = torch.arange(batch * tokens).reshape(batch, tokens) % 1000 + 50
        settings = dict(attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=1, eos_token_id=None)

        def seconds(count):
            began = time.perf_counter()
            with torch.inference_mode():
                model.generate(input_ids=ids, max_new_tokens=count, min_new_tokens=count, **settings)
            return time.perf_counter() - began

        seconds(new)
        first = min(seconds(1) for _ in range(2))
        return first, (min(seconds(new) for _ in range(2)) - first) / (new - 1)

    return rates(measure)


def llama_cpp(folder, dtype, threads):
    import llama_text

    return rates(llama_text.measure(folder, dtype, threads))


WORKERS = {"llama.cpp": llama_cpp, "transformers": transformers}


def run(command, threads):
    """What it prints, and the most memory it had in MiB."""
    env = dict(os.environ, RAYON_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"failed: {' '.join(command)}")
        out.seek(0)
        return out.read().decode(), usage.ru_maxrss / 1024


def quantised(folder):
    return os.path.join(folder, "int8")


def once(args, contestant, dtype, folder):
    if contestant in WORKERS:
        command = [sys.executable, __file__, args.mpa, "--worker", contestant, folder, "--dtype", dtype, "--threads", str(args.threads)]
        out, memory = run(command + ["--quick"] * args.quick, args.threads)
        return dict(json.loads(out.splitlines()[-1]), **{"RSS MiB": memory})
    peak = 0

    def measure(batch, tokens, new):
        nonlocal peak
        sizes = ["--tiles", "0", "--batch", batch, "--words", tokens - AROUND, "--new", new, "--runs", 2]
        kind = ["--model", quantised(folder)] if dtype == "int8" else ["--model", folder, "--dtype", dtype]
        command = [args.mpa, "--backend", "cpu", "-q", "--json", "bench", "model", *kind]
        out, memory = run(command + [str(size) for size in sizes], args.threads)
        peak = max(peak, memory)
        answering = json.loads(out)["answering"]
        if answering["prompt_tokens"] != batch * tokens:
            sys.exit(f"a prompt of {answering['prompt_tokens']} tokens, expected {batch * tokens}")
        return answering["first_token"], answering["decode_step"]

    return dict(rates(measure), **{"RSS MiB": peak})


def main():
    args = arguments()
    dtypes = args.dtype or ["int8", "bf16", "f32"]
    if args.worker:
        name, folder = args.worker
        print(json.dumps(WORKERS[name](folder, dtypes[0], args.threads)))
        return
    missing = [name for name in ("llama_cpp", "gguf", "torch", "transformers") if importlib.util.find_spec(name) is None]
    names = ["mpa"] + ["llama.cpp"] * (not {"llama_cpp", "gguf"} & set(missing)) + ["transformers"] * (not {"torch", "transformers"} & set(missing))
    if missing:
        print(f"python3 has no {', '.join(missing)}: contestants are {', '.join(names)}", file=sys.stderr)
    contestants = [(name, dtype) for dtype in dtypes for name in names if (name, dtype) != ("transformers", "int8")]
    results = {contestant: [] for contestant in contestants}
    with tempfile.TemporaryDirectory() as folder:
        write = [args.mpa, "--backend", "cpu", "-q", "bench", "model", "--shape", "smollm2-135m", "--tiles", "0", "--write", folder]
        run(write, args.threads)
        run([args.mpa, "-q", "quantize", "--model", folder, "--parts", "text+head", "--out", quantised(folder)], args.threads)
        if "llama.cpp" in names:
            for dtype in dtypes:
                # In a process of its own: the memory that this one once had would count for those it starts.
                script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "llama_text.py")
                run([sys.executable, script, folder, dtype], args.threads)
        for _ in range(args.rounds):
            for contestant in contestants:
                results[contestant].append(once(args, *contestant, folder))
    print(f"| {args.threads} threads, medians of {args.rounds} | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for (name, dtype), rounds in results.items():
        cells = [f"{statistics.median(r[column] for r in rounds):.0f}" for column in COLUMNS]
        print(f"| {name} {dtype} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
