"""`python -m profiles.models.generate`: write the shape of every model in configs.json, without its weights.

A model is built on the meta device from the sizes that its config.json publishes; its tensors are named as the
checkpoint names them. Tensors that a checkpoint holds beside the decoder (a vision tower, multi-token prediction) are
left out, as ModelShape leaves them out. DeepSeek-V3 is published in fp8; its shape is that of the same weights in bf16.
"""

import json
import sys
from pathlib import Path

from planner.contracts.base import write_atomically
from planner.contracts.model_shape import ModelShape
from planner.contracts.safetensors_header import TensorEntry

FOLDER = Path(__file__).parent
_BF16_BYTES = 2


def read_configs() -> dict[str, dict[str, object]]:
    """The published configuration fields of each model, by the model's name in the catalogue."""
    configs = json.loads((FOLDER / "configs.json").read_text(encoding="utf-8"))
    return {name: entry["config"] for name, entry in configs.items()}


def shape_of(name: str, config: dict[str, object]) -> ModelShape:
    """The shape of the decoder that a configuration describes."""
    entries = _checkpoint_tensors(config)
    return ModelShape.from_tensors(name, f"catalogue:{name}", config, entries, stored_dtype="bf16")


def text_of(shape: ModelShape) -> str:
    """A shape as JSON with one line a layer, so that a difference can be read."""
    fields = shape.model_dump(mode="json")
    layers = ",\n".join(f"    {json.dumps(layer)}" for layer in fields.pop("layers"))
    head = json.dumps(fields, indent=2).removesuffix("\n}")
    return f'{head},\n  "layers": [\n{layers}\n  ]\n}}\n'


def main() -> int:
    """Write all shapes; the exit code of the command."""
    for name, config in read_configs().items():
        write_atomically(FOLDER / f"{name}.json", text_of(shape_of(name, config)))
        print(name, file=sys.stderr)
    return 0


def _checkpoint_tensors(config: dict[str, object]) -> list[TensorEntry]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    fields = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **fields))
    tied = set(model.all_tied_weights_keys)  # a checkpoint stores them once, under the other name
    named = {name: parameter for name, parameter in model.named_parameters(remove_duplicate=False) if name not in tied}
    named |= {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    # transformers fuses experts into one parameter; the checkpoint holds each for itself.
    return [
        TensorEntry(
            name=name,
            dtype="BF16",
            shape=tuple(tensor.shape),
            file=FOLDER,
            offset_bytes=0,
            num_bytes=tensor.numel() * _BF16_BYTES,
        )
        for name, tensor in revert_weight_conversion(model, named).items()
    ]


if __name__ == "__main__":
    sys.exit(main())
