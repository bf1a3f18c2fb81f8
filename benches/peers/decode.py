"""transformers' greedy generate on a text model of SmolVLM-500M's shape with random weights, one sequence: tokens a second.

The row's bytes are those of the weights that a token reads, its time is that of a token.
"""

import time

import torch

from common import Bench, arguments

PROMPT, NEW = 256, 128


def main():
    args = arguments(__doc__)
    from transformers import LlamaConfig, LlamaForCausalLM

    bench = Bench(args)
    sizes = dict(hidden_size=960, num_attention_heads=15, num_key_value_heads=5, intermediate_size=2560)
    layers, vocabulary, prompt, new = 32, 49280, PROMPT, NEW
    if args.quick:
        sizes = dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64)
        layers, vocabulary, prompt, new = 2, 128, 4, 4
    config = LlamaConfig(**sizes, num_hidden_layers=layers, vocab_size=vocabulary, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).to(device=bench.device, dtype=torch.bfloat16).eval()
    read = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    ids = torch.randint(0, vocabulary, (1, prompt), device=bench.device)
    settings = dict(do_sample=False, pad_token_id=0, eos_token_id=None)

    def seconds(new_tokens):
        if bench.cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        model.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, **settings)
        if bench.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds(new)
    # The prompt's part cancels out.
    best = min((seconds(new) - seconds(1)) / (new - 1) for _ in range(1 if args.quick else 3))
    shape = {"op": "decode", "name": "SmolVLM-500M, 1 sequence", "bytes": 2 * read, "flops": 2 * read}
    bench.row(shape, max(best, 1e-9) * 1e6, f"generate, {1 / max(best, 1e-9):.1f} tokens/s")
    print(f"torch:decode: {1 / max(best, 1e-9):.1f} tokens/s", flush=True)
    bench.finish()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
