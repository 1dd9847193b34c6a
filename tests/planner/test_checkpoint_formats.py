from pathlib import Path

import pytest

from planner.contracts.checkpoint_formats import (
    foreign_file_error,
    refuse_foreign_folder,
    refuse_quantised_config,
    refuse_quantised_tensors,
    weight_file_names,
)
from planner.contracts.errors import BadInputError
from planner.contracts.safetensors_header import TensorEntry

FOLDER = Path("models", "some-model")


def tensors(names: list[str], *, dtype: str = "BF16", shape: tuple[int, ...] = (2, 2)) -> dict[str, TensorEntry]:
    file = FOLDER / "model.safetensors"
    return {
        name: TensorEntry(name=name, dtype=dtype, shape=shape, file=file, offset_bytes=64, num_bytes=8)
        for name in names
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.Q4_K_M.gguf", "holds GGUF weights"),
        ("MODEL.GGUF", "holds GGUF weights"),
        ("pytorch_model.bin", "holds pickle weights"),
        ("model.safetensors", "is a file\n(.|\n)*give its folder"),
    ],
)
def test_a_file_is_named_by_its_format(name: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        raise foreign_file_error(FOLDER / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model-Q4_K_M.gguf", "holds GGUF weights(.|\n)*without '-GGUF'"),
        ("pytorch_model.bin", "holds pickle weights(.|\n)*save_pretrained(.|\n)*safe_serialization=True"),
        ("pytorch_model-00001-of-00002.bin", "holds pickle weights"),
        ("consolidated.00.pth", "holds pickle weights"),
        ("model.pt", "holds pickle weights"),
        ("model.onnx", "holds ONNX weights"),
        ("onnx", "holds ONNX weights"),
        ("tf_model.h5", "holds TensorFlow weights"),
        ("flax_model.msgpack", "holds Flax weights"),
        ("openvino_model.xml", "holds OpenVINO weights"),
        ("README.md", "holds no weights"),
        ("training_args.bin", "holds no weights"),
        ("adapter_model.safetensors", "holds no weights"),
    ],
)
def test_a_folder_without_safetensors_is_refused_by_what_it_holds(name: str, message: str) -> None:
    with pytest.raises(BadInputError, match=f"^{FOLDER} {message}"):
        refuse_foreign_folder(FOLDER, ["config.json", name])
    if "safetensors" not in name:
        refuse_foreign_folder(FOLDER, ["config.json", "model.safetensors", name])


def test_an_adapter_is_refused_unless_it_lies_beside_its_model() -> None:
    with pytest.raises(BadInputError, match=r"is an adapter(.|\n)*merge the adapter"):
        refuse_foreign_folder(FOLDER, ["adapter_config.json", "adapter_model.safetensors"])
    refuse_foreign_folder(FOLDER, ["adapter_config.json", "config.json", "model.safetensors"])


def test_a_diffusers_pipeline_is_refused() -> None:
    with pytest.raises(BadInputError, match="diffusers pipeline"):
        refuse_foreign_folder(FOLDER, ["model_index.json", "model.safetensors", "config.json"])


@pytest.mark.parametrize(("name", "method"), [("quantize_config.json", "gptq"), ("quant_config.json", "awq")])
def test_a_legacy_quantisation_file_is_refused(name: str, method: str) -> None:
    with pytest.raises(BadInputError, match=f"quantised with {method}\n.* has a {name}"):
        refuse_foreign_folder(FOLDER, ["config.json", "model.safetensors", name])


def test_second_copies_and_adapters_are_not_the_weights() -> None:
    names = ["a.safetensors", "adapter_model.safetensors", "consolidated.safetensors", "config.json"]
    assert weight_file_names(names) == ["a.safetensors"]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"quant_method": "awq"}, "awq\n(.|\n)*without '-AWQ'"),
        ({"quant_method": "gptq", "bits": 4}, "gptq\n(.|\n)*without '-GPTQ-Int4'"),
        ({"quant_method": "fp8"}, r"fp8\n(.|\n)*FineGrainedFP8Config\(dequantize=True\)"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8\n(.|\n)*without '-FP8'"),
        ({"quant_method": "mxfp4"}, r"mxfp4\n(.|\n)*Mxfp4Config\(dequantize=True\)"),
        ({"quant_method": "bitsandbytes"}, r"bitsandbytes\n(.|\n)*model.dequantize\(\)"),
        ({"load_in_4bit": True}, "bitsandbytes\n"),
        ({"load_in_8bit": True}, "bitsandbytes\n"),
        ({"quant_method": "compressed-tensors"}, r"compressed-tensors\n(.|\n)*CompressedTensorsConfig\(dequantize"),
        ({"quant_method": "aqlm"}, "aqlm\n"),
        ({"quant_method": "hqq"}, "hqq\n"),
        ({"quant_method": "quanto"}, "quanto\n"),
        ({"quant_method": "torchao"}, "torchao\n"),
        ({"quant_method": "NewMethod"}, "newmethod\n(.|\n)*use the bf16 or fp16 original"),
        ({"quant_method": "\x1b[2J"}, r"'\\x1b\[2J'\n"),
        ({"group_size": 64, "bits": 4}, "mlx\n"),
        ({}, "an unnamed method\n"),
        ("int4", "'int4'\n"),
    ],
)
def test_a_quantised_config_is_refused_by_its_method(block: object, message: str) -> None:
    for config in ({"quantization_config": block}, {"text_config": {"quantization_config": block}}):
        with pytest.raises(BadInputError, match=f"quantised with {message}"):
            refuse_quantised_config(FOLDER, config)


def test_quantisation_under_another_key_is_refused() -> None:
    with pytest.raises(BadInputError, match="quantised with compressed-tensors"):
        refuse_quantised_config(FOLDER, {"compression_config": {"format": "pack-quantized"}})
    with pytest.raises(BadInputError, match="quantised with mlx"):
        refuse_quantised_config(FOLDER, {"quantization": {"group_size": 64, "bits": 4}})


def test_a_config_without_quantisation_is_let_through() -> None:
    refuse_quantised_config(FOLDER, {"quantization_config": None, "quantization": "none", "text_config": {"n": [1]}})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["l.q_proj.qweight", "l.q_proj.qzeros"], "gptq or awq\n.*'l.q_proj.qweight'"),
        (["l.weight", "l.weight_scale_inv"], "fp8\n"),
        (["l.weight", "l.weight.absmax"], "bitsandbytes\n"),
        (["l.weight", "l.weight.quant_map"], "bitsandbytes\n"),
        (["l.weight", "l.SCB"], "bitsandbytes\n"),
        (["mlp.experts.down_proj_blocks", "mlp.experts.down_proj_scales"], "mxfp4\n"),
        (["l.weight_packed", "l.weight_shape"], "compressed-tensors\n"),
        (["l.weight", "l.weight_scale"], "fp8 or compressed-tensors\n"),
        (["l.codes", "l.codebooks"], "aqlm\n"),
    ],
)
def test_tensor_names_give_quantised_weights_away(names: list[str], message: str) -> None:
    with pytest.raises(BadInputError, match=f"quantised with {message}"):
        refuse_quantised_tensors(FOLDER, tensors(names))


@pytest.mark.parametrize(
    ("dtype", "method"),
    [("F8_E4M3", "fp8"), ("F8_E5M2", "fp8"), ("I8", "int8"), ("U8", "bitsandbytes"), ("U32", "mlx")],
)
def test_weights_stored_in_few_bits_are_refused(dtype: str, method: str) -> None:
    with pytest.raises(BadInputError, match=f"quantised with {method}\n.*'l.weight' is stored as {dtype}"):
        refuse_quantised_tensors(FOLDER, tensors(["l.weight"], dtype=dtype))


def test_masks_counters_and_lone_halves_of_a_pair_are_no_quantised_weights() -> None:
    refuse_quantised_tensors(FOLDER, tensors(["h.0.attn.bias"], dtype="U8", shape=(1, 1, 8, 8)))
    refuse_quantised_tensors(FOLDER, tensors(["norm.num_batches_tracked"], dtype="I64", shape=()))
    refuse_quantised_tensors(FOLDER, tensors(["x.codes", "y.codebooks", "z_blocks"]))
