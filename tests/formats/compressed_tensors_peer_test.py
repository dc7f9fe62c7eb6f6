"""What lathe writes, compressed-tensors and transformers read as the same numbers.

    compressed_tensors_peer_test.py WRITE_COMPRESSED_EXAMPLES

Runs the program, opens each model with both libraries and compares every quantized weight with the
one that lathe decodes from it. Exit code 77 (skipped) where the libraries are not installed
(support/peer.py). Made with compressed-tensors 0.20.0,
transformers 5.23.0, torch 2.15.0.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
import peer  # noqa: E402

with peer.libraries():
    import torch
    import transformers
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.transform import TransformConfig, TransformFactory
    from compressed_tensors.utils.match import is_match
    from safetensors.torch import load_file


def load_tensors(model_path):
    tensors = {}
    index = json.loads((model_path / "model.safetensors.index.json").read_text())
    for name in sorted(set(index["weight_map"].values())):
        tensors.update(load_file(model_path / name))
    assert set(tensors) == set(index["weight_map"]), "index and files disagree"
    return tensors


def decode_with_library(model_path, modules):
    """{module: weight} by the library's own compressors, from the files and the configuration."""
    config = json.loads((model_path / "config.json").read_text())["quantization_config"]
    transforms = config.pop("transform_config")
    quantization = QuantizationConfig.model_validate(config)
    if transforms:
        transforms = TransformConfig.model_validate(transforms)
    tensors = load_tensors(model_path)
    decoded = {}
    for module in modules:
        linear = torch.nn.Linear(1, 1)
        schemes = [scheme for scheme in quantization.config_groups.values()
                   if is_match(module, linear, scheme.targets, quantization.ignore)]
        assert len(schemes) == 1, f"{module} is targeted by {len(schemes)} groups"
        scheme = schemes[0]
        compressor = BaseCompressor.get_value_from_registry(scheme.format)
        state = {name[len(module) + 1:]: tensor for name, tensor in tensors.items()
                 if name.startswith(module + ".") and not name.endswith("_input.weight")}
        stored = set(compressor.compression_param_names(scheme))
        assert stored <= set(state), f"{module}: lacks {stored - set(state)}"
        decoded[module] = compressor.decompress(state, scheme)["weight"]
    assert not is_match("lm_head", torch.nn.Linear(1, 1), ["Linear"], quantization.ignore)
    return decoded, transforms, tensors


def check_transforms(transforms, tensors, modules):
    """The stored rotation is the matrix that the library builds for the scheme."""
    for name, scheme in transforms.config_groups.items():
        online, offline = scheme.apply
        assert (online.location, offline.location) == ("input", "weight_input")
        factory = TransformFactory.from_scheme(scheme, name=name)
        for module in modules:
            tensor = tensors.get(f"{module}.{name}_input.weight")
            if tensor is None:
                continue
            linear = torch.nn.Linear(tensor.shape[0], 1)
            built = factory.create_transform(linear, online).weight
            assert torch.equal(built.to(torch.float32), tensor.to(torch.float32)), module
    rotated = [m for m in modules if any(f"{m}.{n}_input.weight" in tensors
                                         for n in transforms.config_groups)]
    assert rotated == modules, "a module without its rotation"


def largest_difference(actual, expected):
    return ((actual.double() - expected.double()).abs() /
            expected.double().abs().clamp_min(1e-30)).max().item()


def main(program):
    transformers.logging.set_verbosity_error()  # it lists tensors that it does not use
    failures = 0
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([program, directory], check=True)
        for model_path in sorted(p for p in Path(directory).iterdir() if p.is_dir()):
            expected = load_file(f"{model_path}.decoded.safetensors")
            modules = sorted(expected)
            decoded, transforms, tensors = decode_with_library(model_path, modules)
            if transforms:
                check_transforms(transforms, tensors, modules)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                model_path, dtype=torch.bfloat16,
                quantization_config=transformers.CompressedTensorsConfig(dequantize=True))
            loaded = dict(model.named_parameters())
            rows = {"library": 0.0, "transformers": 0.0}
            for module in modules:
                # The libraries decode to the dtype of the scales, or to bf16.
                for reader, weight in (("library", decoded[module]),
                                       ("transformers", loaded[module + ".weight"].detach())):
                    target = expected[module].to(weight.dtype)
                    rows[reader] = max(rows[reader], largest_difference(weight, target))
            verdict = "ok" if max(rows.values()) == 0 else "FAILED"
            failures += verdict != "ok"
            print(f"{model_path.name:16} largest relative difference: library "
                  f"{rows['library']:.2e} ({decoded[modules[0]].dtype}), "
                  f"transformers {rows['transformers']:.2e}  {verdict}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
