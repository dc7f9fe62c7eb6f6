"""Small random models, each as a Hugging Face directory and as a GGUF file.

The GGUF side applies what llama.cpp's converter does (rows of Llama's Q and K interleaved, 1 added
to Gemma's norms, experts stacked, Phi-3's projections left fused), written here from its
description, so that the reader's undoing is checked against numbers that never saw it.
Usage: make_small_gguf.py OUT   (gguf 0.19.0, transformers 5.23.0)
"""
import os
import sys

import numpy as np
import torch
from gguf import GGUFWriter, TokenType
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3MoeConfig,
)

SIZES = dict(vocab_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
             num_attention_heads=2, num_key_value_heads=1, pad_token_id=0,
             bos_token_id=1, eos_token_id=2, dtype="float32", tie_word_embeddings=False)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.25, 1.5, 1.5, 1.75, 2.0], "long_factor": [1.0, 1.5, 2.0, 4.0, 6.0, 8.0],
            "original_max_position_embeddings": 32}
MODELS = {
    "llama": ("llama", LlamaConfig(**SIZES, max_position_embeddings=131072, rope_parameters=LLAMA3)),
    "qwen2": ("qwen2", Qwen2Config(**SIZES | {"tie_word_embeddings": True}, max_position_embeddings=64,
                                   rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
                                                    "original_max_position_embeddings": 16})),
    "gemma3": ("gemma3", Gemma3TextConfig(**SIZES | dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=7, tie_word_embeddings=True), head_dim=8,
        query_pre_attn_scalar=8, sliding_window=8, max_position_embeddings=64,
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}})),
    "phi3": ("phi3", Phi3Config(**SIZES, max_position_embeddings=128, original_max_position_embeddings=32,
                                rope_parameters=LONGROPE, sliding_window=40)),
    "qwen3moe": ("qwen3moe", Qwen3MoeConfig(**SIZES, head_dim=16, num_experts=3, num_experts_per_tok=2,
                                            moe_intermediate_size=16, norm_topk_prob=True,
                                            max_position_embeddings=64,
                                            rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    "mixtral": ("llama", MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2,
                                       max_position_embeddings=64)),
}
NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm", "self_attn.qkv_proj": "attn_qkv",
         "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up", "mlp.gate": "ffn_gate_inp"}
GEMMA = NAMES | {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
                 "post_feedforward_layernorm": "post_ffw_norm"}


def interleave(weight, heads):
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama3_divisors(rope, head_dim):
    freqs = rope["rope_theta"] ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    out = []
    for wavelength in 2 * np.pi / freqs:
        smooth = (rope["original_max_position_embeddings"] / wavelength - 1.0) / 3.0
        smooth = min(max(smooth, 0.0), 1.0)
        out.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(out, dtype=np.float32)


def write_gguf(path, arch, config, state):
    w = GGUFWriter(path, arch)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    w.add_rope_freq_base(full["rope_theta"])
    if arch in ("gemma3", "qwen3moe"):
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    if arch == "llama":
        w.add_rope_dimension_count(head_dim)
    if arch == "phi3":
        w.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
        w.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        w.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], dtype=np.float32))
        w.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], dtype=np.float32))
    if full["rope_type"] == "llama3":
        w.add_tensor("rope_freqs.weight", llama3_divisors(rope, head_dim))
    if full["rope_type"] in ("linear", "yarn"):
        w.add_string(f"{arch}.rope.scaling.type", full["rope_type"])
        w.add_rope_scaling_factor(full["factor"])
        if full["rope_type"] == "yarn":
            w.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
    if arch in ("gemma3", "phi3"):
        w.add_sliding_window(config.sliding_window)
    if hasattr(config, "num_local_experts"):
        w.add_expert_count(config.num_local_experts)
        w.add_expert_used_count(config.num_experts_per_tok)
        if arch == "qwen3moe":
            w.add_expert_feed_forward_length(config.moe_intermediate_size)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list([f"t{i}" for i in range(24)])
    w.add_token_types([TokenType.NORMAL] * 24)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)

    names = GEMMA if arch == "gemma3" else NAMES
    for hf, tensor in state.items():
        value = tensor.float().numpy()
        if arch == "gemma3" and "norm" in hf:
            value = value + np.float32(1)
        if hf == "model.embed_tokens.weight":
            w.add_tensor("token_embd.weight", value)
        elif hf == "model.norm.weight":
            w.add_tensor("output_norm.weight", value)
        elif hf == "lm_head.weight":
            if not config.tie_word_embeddings:
                w.add_tensor("output.weight", value)
        else:
            _, _, layer, rest = hf.split(".", 3)
            if rest == "mlp.experts.gate_up_proj":
                half = value.shape[1] // 2
                w.add_tensor(f"blk.{layer}.ffn_gate_exps.weight", np.ascontiguousarray(value[:, :half]))
                w.add_tensor(f"blk.{layer}.ffn_up_exps.weight", np.ascontiguousarray(value[:, half:]))
                continue
            if rest == "mlp.experts.down_proj":
                w.add_tensor(f"blk.{layer}.ffn_down_exps.weight", value)
                continue
            module, kind = rest.rsplit(".", 1)
            if arch == "llama" and module.endswith("q_proj"):
                value = interleave(value, config.num_attention_heads)
            if arch == "llama" and module.endswith("k_proj"):
                value = interleave(value, config.num_key_value_heads)
            w.add_tensor(f"blk.{layer}.{names[module]}.{kind}", np.ascontiguousarray(value))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


for name, (arch, config) in MODELS.items():
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        # Multiples of 2^-8 below 4: exact in fp32 whatever is added to them and taken away again.
        parameter.data.copy_(torch.randint(-1024, 1024, parameter.shape) / 256)
    directory = os.path.join(sys.argv[1], name)
    model.save_pretrained(directory)
    for extra in os.listdir(directory):
        if extra not in ("config.json", "model.safetensors"):
            os.remove(os.path.join(directory, extra))
    write_gguf(directory + ".gguf", arch, config, model.state_dict())
