"""Small checkpoints quantized, saved and decoded again by the compressed-tensors package.

Writes OUT/NAME/{config.json,model.safetensors} for every preset scheme below and
OUT/NAME/expected.safetensors: the package's own decoded weight of two modules, fp32.
Usage: make_compressed_tensors.py OUT   (compressed-tensors 0.20.0, transformers 5.23.0)
"""
import os
import sys

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from compressed_tensors.transform import (
    TransformArgs,
    TransformConfig,
    TransformScheme,
    apply_transform_config,
)
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

MODULES = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"]
SIZES = dict(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
             num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
             pad_token_id=0, bos_token_id=1, eos_token_id=2, dtype="bfloat16")
IGNORE = ["re:.*lm_head$"]


def set_scales(module):
    """Absolute-maximum scales, as the package's min-max observers compute them."""
    args = module.quantization_scheme.weights
    weight = module.weight.data.float()
    if args.strategy == "tensor":
        groups = weight.reshape(1, 1, -1)
    elif args.strategy == "channel":
        groups = weight.reshape(weight.shape[0], 1, -1)
    else:
        groups = weight.reshape(weight.shape[0], -1, args.group_size)
    low, high = groups.amin(-1), groups.amax(-1)
    gparam = None
    if args.strategy == "tensor_group":
        gparam = generate_gparam(weight.min(), weight.max())
        module.weight_global_scale.data.copy_(gparam)
    if getattr(module, "input_global_scale", None) is not None:
        module.input_global_scale.data.fill_(2688 / 3.25)
    scale, _ = calculate_qparams(low, high, args, global_scale=gparam)
    module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))


def make(name, scheme, out, transform=False, phi3=False):
    torch.manual_seed(len(name))
    model = Phi3ForCausalLM(Phi3Config(**SIZES)) if phi3 else LlamaForCausalLM(LlamaConfig(**SIZES))
    model = model.to(torch.bfloat16)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(0, 0.05)
    if transform:
        apply = [TransformArgs(targets=["Linear"], location=location, inverse=inverse, ignore=IGNORE)
                 for location, inverse in (("input", False), ("weight_input", True))]
        apply_transform_config(model, TransformConfig(config_groups={
            "v": TransformScheme(type="hadamard", head_dim=16, apply=apply, precision=torch.bfloat16)}))
    if isinstance(scheme, str):
        scheme = preset_name_to_scheme(scheme, ["Linear"])
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=IGNORE)
    apply_quantization_config(model, config)
    for _, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is not None:
            set_scales(module)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    directory = os.path.join(out, name)
    model.save_pretrained(directory)
    compressor.update_config(directory)
    modules = ["model.layers.0.self_attn.qkv_proj"] if phi3 else MODULES
    compressor.decompress_model(model)
    expected = {m: model.get_submodule(m).weight.detach().float().contiguous() for m in modules}
    save_file(expected, os.path.join(directory, "expected.safetensors"))
    for extra in os.listdir(directory):
        if extra not in ("config.json", "model.safetensors", "expected.safetensors"):
            os.remove(os.path.join(directory, extra))
    print(name, {k: (str(v.dtype), list(v.shape)) for k, v in
                 load_file(os.path.join(directory, "model.safetensors")).items() if ".q_proj" in k or "qkv" in k})


out = sys.argv[1]
int4 = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(
    num_bits=4, type="int", strategy="group", group_size=32, symmetric=True))
fp8_tensor = QuantizationScheme(
    targets=["Linear"],
    weights=QuantizationArgs(num_bits=8, type="float", strategy="tensor", symmetric=True),
    input_activations=QuantizationArgs(num_bits=8, type="float", strategy="tensor", dynamic=True))
make("nvfp4", "NVFP4", out)
make("nvfp4-weights-only", "NVFP4A16", out)
make("nvfp4-hadamard", "NVFP4", out, transform=True)
make("nvfp4-phi3", "NVFP4", out, phi3=True)
make("mxfp4", "MXFP4", out)
make("mxfp4-weights-only", "MXFP4A16", out)
make("mxfp8", "MXFP8", out)
make("int4", int4, out)
make("int8-packed", QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(
    num_bits=8, type="int", strategy="channel", symmetric=True)), out)
make("int8", "W8A8", out)
make("fp8-channel", "FP8_DYNAMIC", out)
make("fp8-tensor", fp8_tensor, out)
