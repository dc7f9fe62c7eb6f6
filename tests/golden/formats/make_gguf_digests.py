"""Digests of some tensors of the real GGUF models, dequantized by the gguf package (0.19.0), the
conversions of the GGUF writer undone: heads > 0 interleaved rows, -1 Gemma norm.
Usage: make_gguf_digests.py MODELS_DIR OUT.json
"""
import sys,json,hashlib

import numpy as np
from gguf import GGUFReader, dequantize
def deint(w,h):
    return w.reshape(h, w.shape[0]//h//2, 2, *w.shape[1:]).swapaxes(1,2).reshape(w.shape)
P={'smollm2':[('blk.0.attn_q.weight','model.layers.0.self_attn.q_proj.weight',9),('blk.29.attn_k.weight','model.layers.29.self_attn.k_proj.weight',3),('blk.3.attn_v.weight','model.layers.3.self_attn.v_proj.weight',0),('token_embd.weight','model.embed_tokens.weight',0),('output_norm.weight','model.norm.weight',0)],
'gemma3-270m':[('blk.0.ffn_norm.weight','model.layers.0.pre_feedforward_layernorm.weight',-1),('blk.0.post_attention_norm.weight','model.layers.0.post_attention_layernorm.weight',-1),('blk.17.attn_q_norm.weight','model.layers.17.self_attn.q_norm.weight',-1),('blk.0.attn_output.weight','model.layers.0.self_attn.o_proj.weight',0),('blk.0.attn_q.weight','model.layers.0.self_attn.q_proj.weight',0),('blk.5.ffn_down.weight','model.layers.5.mlp.down_proj.weight',0)],
'qwen2.5-coder-0.5b':[('blk.0.attn_q.bias','model.layers.0.self_attn.q_proj.bias',0),('blk.11.ffn_down.weight','model.layers.11.mlp.down_proj.weight',0),('blk.23.attn_k.weight','model.layers.23.self_attn.k_proj.weight',0),('output.weight','lm_head.weight',0)]}
out={}
for m,l in P.items():
    r=GGUFReader(f'{sys.argv[1]}/{m}.gguf'); t={x.name:x for x in r.tensors}; out[m]={}
    for g,h,k in l:
        w=np.ascontiguousarray(dequantize(t[g].data,t[g].tensor_type).astype(np.float32))
        if k>0: w=np.ascontiguousarray(deint(w,k))
        if k<0: w=w-1
        out[m][h]=[list(w.shape),hashlib.sha256(w.tobytes()).hexdigest()]
json.dump(out,open(sys.argv[2],'w'),indent=0)
