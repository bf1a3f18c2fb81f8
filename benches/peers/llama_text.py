"""llama.cpp on a Llama checkpoint folder, for cpu_text.py: the folder's weights as GGUF (python3 llama_text.py FOLDER DTYPE), and how long prompts
and steps take."""

import ctypes
import json
import os
import sys
import time

QUANTISED = {"int8": "Q8_0", "bf16": "BF16", "f32": "F32"}
# The checkpoint's names and GGUF's.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
# Tokens of 8 prompts of 8 tokens, or of one of 512, with what is written behind them.
CONTEXT = 1024


def path(folder, dtype):
    return os.path.join(folder, f"{dtype}.gguf")


def renamed(name):
    plain = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in plain:
        return plain[name]
    _, _, layer, module = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{NAMES[module]}.weight"


def interleaved(weight, heads):
    """A head's rows as GGUF has them: those that rope turns together side by side."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write(folder, dtype):
    import gguf
    import numpy
    from safetensors import safe_open

    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    heads, kv_heads, width = config["num_attention_heads"], config["num_key_value_heads"], config["hidden_size"]
    kind = gguf.GGMLQuantizationType[QUANTISED[dtype]]
    writer = gguf.GGUFWriter(path(folder, dtype), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    with safe_open(os.path.join(folder, "model.safetensors"), "pt") as tensors:
        for name in tensors.keys():
            weight = tensors.get_tensor(name).float().numpy()
            if "q_proj" in name or "k_proj" in name:
                weight = interleaved(weight, heads if "q_proj" in name else kv_heads)
            weight = numpy.ascontiguousarray(weight)
            if weight.ndim == 1:
                writer.add_tensor(renamed(name), weight)
            else:
                writer.add_tensor(renamed(name), gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(folder, dtype, threads):
    """A function of (batch, tokens, new): seconds to the first tokens, and of a step."""
    import llama_cpp as llama

    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(path(folder, dtype).encode(), llama.llama_model_default_params())
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = CONTEXT, CONTEXT, 512, 8
    settings.n_threads = settings.n_threads_batch = threads
    settings.kv_unified = True
    context = llama.llama_init_from_model(model, settings)
    if not context:
        raise SystemExit("llama.cpp: no context")
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(CONTEXT, 0, 1)

    def decode(tokens):
        """`tokens`: (id, position, sequence, whether its logits are wanted); returns the best next token of those."""
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if llama.llama_decode(context, batch) != 0:
            raise SystemExit("llama.cpp: llama_decode failed")
        best = []
        for i in (i for i, token in enumerate(tokens) if token[3]):
            logits = llama.llama_get_logits_ith(context, i)
            values = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * vocabulary)).contents
            best.append(memoryview(values).cast("B").cast("f"))
        import numpy

        return [int(numpy.frombuffer(logits, dtype=numpy.float32).argmax()) for logits in best]

    def seconds(count, tokens, new):
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        began = time.perf_counter()
        ids = lambda s, t: (s * tokens + t) % 1000 + 50
        last = decode([(ids(s, t), t, s, t == tokens - 1) for s in range(count) for t in range(tokens)])
        for step in range(new - 1):
            last = decode([(last[s], tokens + step, s, True) for s in range(count)])
        return time.perf_counter() - began

    def times(count, tokens, new):
        seconds(count, tokens, new)
        first = min(seconds(count, tokens, 1) for _ in range(2))
        return first, (min(seconds(count, tokens, new) for _ in range(2)) - first) / (new - 1)

    return times


if __name__ == "__main__":
    write(*sys.argv[1:])
