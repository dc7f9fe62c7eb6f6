"""What `lathe quantize` writes for a family with names of its own, transformers loads: every tensor in its
place, and each weight near the source's.

    quantized_peer_test.py LATHE

Quantizes tiny models: those of golden/tiny ($LATHE_SHARED) and a multimodal one. Exit code 77 (skipped)
without the first, or where the libraries are not installed (support/peer.py). Made with compressed-tensors 0.20.0, transformers 5.24.0, torch 2.15.0.
"""
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
import peer  # noqa: E402

with peer.libraries():
    import compressed_tensors  # noqa: F401: transformers needs it
    import torch
    import transformers
    from safetensors.torch import load_file

# transformers 5.24.0 reads the experts of NVFP4 without their global scales: fp8 shows that they are in place.
FAMILIES = {"llama-rope-llama3": "nvfp4", "phi3": "nvfp4", "mixtral": "fp8", "gemma3-multimodal": "nvfp4"}
# Rounding to E2M1 or E4M3 moves normal numbers by 0.095 or 0.025 of their norm.
LARGEST_ERROR = {"nvfp4": 0.15, "fp8": 0.04}


def make_multimodal_gemma3(directory):
    torch.manual_seed(1)
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 256, "max_position_embeddings": 128,
            "sliding_window": 16, "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "full_attention"]}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64,
              "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4,
                                       image_token_index=250, boi_token_index=251, eoi_token_index=252)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(directory)


def names_without_parts(directory):
    """Stored modules: names up to what says which tensor of the module it is."""
    return {name.rsplit(".", 1)[0] for path in directory.glob("*.safetensors") for name in load_file(path)}


def load(directory, **options):
    architecture = json.loads((directory / "config.json").read_text())["architectures"][0]
    model, report = getattr(transformers, architecture).from_pretrained(directory, dtype=torch.float32,
                                                                        output_loading_info=True, **options)
    lost = {key: value for key, value in report.items() if value}
    assert not lost, f"{directory.name}: {lost}"
    return dict(model.named_parameters())


def check(lathe, source, out, format_name, emulate):
    flags = ["--emulate"] if emulate else []
    subprocess.run([lathe, "quantize", source, out, "--method", "rtn", "--format", format_name, *flags], check=True,
                   stdout=subprocess.DEVNULL)
    assert names_without_parts(out) == names_without_parts(source), f"{out.name}: other modules than the source's"
    options = {} if emulate else {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
    expected, loaded = load(source), load(out, **options)
    assert set(loaded) == set(expected)
    worst = max(((loaded[name] - weight).norm() / weight.norm().clamp_min(1e-9)).item()
                for name, weight in expected.items())
    assert worst < LARGEST_ERROR[format_name], f"{out.name}: a weight is {worst:.3f} off"
    print(f"{out.name:26} largest relative error of a weight {worst:.3f}")


def main(lathe):
    tiny = Path(os.environ.get("LATHE_SHARED", "/nowhere")) / "golden/tiny"
    if not tiny.exists():
        print("no golden/tiny (LATHE_SHARED)")
        return peer.SKIPPED
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")  # that the options of loading go before those of the file
    with tempfile.TemporaryDirectory() as directory:
        for family, format_name in FAMILIES.items():
            source = tiny / family
            if family == "gemma3-multimodal":
                source = Path(directory) / "source"
                make_multimodal_gemma3(source)
            for emulate in (False, True):
                name = family + ("-emulated" if emulate else "")
                check(lathe, source, Path(directory) / name, format_name, emulate)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
