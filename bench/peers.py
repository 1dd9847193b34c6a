"""A pass of a 1.9 GB bf16 model that does not fit, on the CPU: draftstream against what people use today.

Each engine runs in a process of its own over the same checkpoint on disk; passes of 1 and 8 tokens, with the page cache
warm, and cold: all files of all engines are dropped from it before every pass. Rounds over all engines are repeated,
and the ratio is that of the medians. The engines must agree on the logits. Peers that are not installed are left out
by name (`pip install -r bench/requirements.txt`).
"""

import argparse
import contextlib
import gc
import importlib.util
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.models import LARGE, drop_from_page_cache, make_checkpoint, print_header, print_json
from runtime.api import Limits, make_plan, stream
from runtime.host import process_bytes

Forward = Callable[[Tensor], Tensor]
PEERS = {
    "draftstream, 2 slots": "torch",
    "draftstream, 400MiB": "torch",
    "transformers device_map disk": "accelerate",
    "accelerate disk_offload": "accelerate",
    "diffusers group offloading": "diffusers",
    "AirLLM": "airllm",
}
WIDTHS = (1, 8)


def main() -> None:
    """Run every engine in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("/tmp/draftstream-bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = make_checkpoint(LARGE, options.models)
    if options.engine is not None:
        print_json(measure(options.engine, folder, options.passes))
        return
    print_header("peers", folder)
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for name, module in PEERS.items():
            if importlib.util.find_spec(module) is None:
                print(f"{name}: not installed, left out")
                continue
            results.setdefault(name, []).append(in_process(name, options))
    print_table(results)


def in_process(name: str, options: argparse.Namespace) -> dict[str, float]:
    """One engine's measurements, in a process of its own."""
    command = [sys.executable, "-m", "bench.peers", "--engine", name, "--models", str(options.models)]
    done = subprocess.run([*command, "--passes", str(options.passes)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(name: str, folder: Path, num_passes: int) -> dict[str, float]:
    """Median seconds of a pass by width and page cache, peak bytes of the process, and a digest of the logits."""
    noise = io.StringIO()
    with contextlib.redirect_stdout(noise), torch.inference_mode():
        forward = open_engine(name, folder)
        result: dict[str, float] = {}
        for width in WIDTHS:
            tokens = torch.arange(width)[None] + 5
            forward(tokens)
            for cache in ("warm", "cold"):
                result[f"{cache} {width}"] = statistics.median(
                    timed(forward, tokens, folder if cache == "cold" else None) for _ in range(num_passes)
                )
        result["logit"] = float(forward(tokens)[0, -1].double().norm())
    result["peak_bytes"] = process_bytes("VmHWM")
    return result


def timed(forward: Forward, tokens: Tensor, cold_folder: Path | None) -> float:
    """Seconds of one pass."""
    if cold_folder is not None:
        drop_from_page_cache(cold_folder.parent)
    gc.collect()
    start_s = time.perf_counter()
    forward(tokens)
    return time.perf_counter() - start_s


def open_engine(name: str, folder: Path) -> Forward:
    """A function from tokens (1, T) to logits (1, T, V)."""
    if name.startswith("draftstream"):
        device_memory = {"draftstream, 2 slots": "200MiB", "draftstream, 400MiB": "400MiB"}[name]
        plan = make_plan(folder, limits=Limits(device=device_memory), context_tokens=64, link="disk:cached")
        return of_model(stream(folder, plan))
    if name == "AirLLM":
        from airllm import AutoModel

        model = AutoModel.from_pretrained(
            str(folder), device="cpu", dtype=torch.bfloat16, layer_shards_saving_path=str(airllm_folder(folder).parent)
        )
        return lambda tokens: model(tokens, use_cache=False).logits
    if name == "transformers device_map disk":
        places = {f"model.layers.{index}": "disk" for index in range(LARGE.num_layers)}
        places |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
        return of_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=places))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    offload_folder = folder.parent / name.replace(" ", "-")
    if name == "accelerate disk_offload":
        from accelerate import disk_offload

        return of_model(disk_offload(model, str(offload_folder), execution_device=torch.device("cpu")))
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        model.model,
        onload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(offload_folder),
    )
    return of_model(model)


def of_model(model: PreTrainedModel) -> Forward:
    """The logits of a transformers model."""
    model.eval()
    return lambda tokens: model(tokens, use_cache=False).logits


def airllm_folder(folder: Path) -> Path:
    """Where AirLLM keeps its second copy of the weights."""
    return folder.parent / "airllm" / "splitted_model"


def print_table(results: dict[str, list[dict[str, float]]]) -> None:
    """Medians over the rounds, and each engine's ratio to draftstream with as much memory as two slots take."""
    columns = [f"{cache} {width}" for width in WIDTHS for cache in ("warm", "cold")]
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in results.items()
    }
    ours = medians["draftstream, 2 slots"]
    print("ms per pass (ratio to draftstream, 2 slots); columns: page cache, tokens in the pass")
    print(f"{'':30}" + "".join(f"{column:>18}" for column in columns) + f"{'peak of process':>18}")
    for name, row in medians.items():
        cells = "".join(f"{row[c] * 1e3:10.0f} ({row[c] / ours[c]:5.2f})" for c in columns)
        same = "" if abs(row["logit"] - ours["logit"]) <= 0.02 * ours["logit"] else "  LOGITS DIFFER"
        print(f"{name:30}{cells}{row['peak_bytes'] / 2**20:14.0f} MiB{same}")
    print_json(medians)


if __name__ == "__main__":
    main()
