"""Digests of every tensor of the tiny checkpoints, read by the safetensors package.

Writes tiny_digests.json: model -> common tensor name -> [shape, sha256 of the fp32 bytes].
Usage: make_tiny_digests.py TINY_DIR > tiny_digests.json
"""
import glob
import hashlib
import json
import os
import sys

import torch
from safetensors import safe_open


def parts(name, tensor, config):
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    q = config["num_attention_heads"] * head_dim
    kv = config["num_key_value_heads"] * head_dim
    if "qkv_proj" in name:
        for module, piece in zip("qkv", torch.split(tensor, [q, kv, kv])):
            yield name.replace("qkv_proj", module + "_proj"), piece
    elif "gate_up_proj" in name:
        for module, piece in zip(("gate", "up"), torch.chunk(tensor, 2)):
            yield name.replace("gate_up_proj", module + "_proj"), piece
    elif "block_sparse_moe" in name:
        name = name.replace("block_sparse_moe", "mlp")
        for old, new in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
            name = name.replace(f".{old}.", f".{new}.")
        yield name, tensor
    else:
        yield name, tensor


digests = {}
for model in sorted(d for d in os.listdir(sys.argv[1]) if os.path.isdir(os.path.join(sys.argv[1], d))):
    directory = os.path.join(sys.argv[1], model)
    config = json.load(open(os.path.join(directory, "config.json")))
    digests[model] = {}
    for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
        with safe_open(path, "pt") as file:
            for stored in file.keys():
                for name, tensor in parts(stored, file.get_tensor(stored), config):
                    data = tensor.float().contiguous().numpy().tobytes()
                    digests[model][name] = [list(tensor.shape), hashlib.sha256(data).hexdigest()]
print(json.dumps(digests, indent=0))
