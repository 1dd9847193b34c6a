"""A machine, models and a profile with round numbers, for planning by hand: equal layers, costs in milliseconds.

A layer of the target is 10 MB and takes 10 ms over a link of 1 GB/s; it computes 2 ms for one token and 0.1 ms more for
each further one. Drafting takes 3 ms a token. All layers of the target take 160 MB; embedding and head little.
"""

from planner.budget import Budget, Wishes
from planner.contracts.machine import Machine, MachineDevice, Quantity
from planner.contracts.model_shape import LayerShape, ModelShape, TensorGroup
from planner.contracts.plan import DiskLink, EmulatedLink, LinkChoice, Workload
from planner.contracts.profile import (
    AcceptanceRecording,
    ComputeMeasurement,
    DraftMeasurement,
    LinkMeasurement,
    Profile,
    Spread,
)
from planner.memory import Overheads
from planner.search import Request

MB = 10**6
NUM_LAYERS = 16
LINK = EmulatedLink(bytes_per_s=1e9)
TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512)
LAYER_PARAMS = 5 * MB  # in bf16 10 MB


def model(name: str, num_layers: int = NUM_LAYERS, layer_params: int = LAYER_PARAMS, **changes: object) -> ModelShape:
    """A decoder of equal layers with a vocabulary of 64."""
    layer = LayerShape(tensors=(TensorGroup(num_params=layer_params, count=1, part="mlp"),), kind="full")
    shape = ModelShape(
        name=name,
        fingerprint=f"fingerprint of {name}",
        model_type="llama",
        stored_dtype="bf16",
        hidden_size=64,
        intermediate_size=128,
        vocab_size=64,
        num_heads=4,
        key_values_per_token=128,
        query_values_per_token=64,
        max_context_tokens=4096,
        is_tied=False,
        layers=(layer,) * num_layers,
        embedding_params=64 * 64,
        head_params=64 * 64,
        rest=(TensorGroup(num_params=64, count=1),),
    )
    return shape.model_copy(update=changes)


TARGET = model("target")
DRAFT = model("draft", num_layers=1, layer_params=MB)


def spread(median_s: float) -> Spread:
    """A measurement without spread."""
    return Spread(p25=median_s, median=median_s, p75=median_s, num_samples=9)


def layer_s(num_tokens: int) -> float:
    """Seconds that a layer of the target computes."""
    return 2e-3 + 1e-4 * (num_tokens - 1)


def profile(ranks: tuple[int, ...] = (0, 0, 0, 1) * 16, draft_pass_s: float = 3e-3, **changes: object) -> Profile:
    """Three of four drafted tokens are right, in a row."""
    compute = [
        ComputeMeasurement(unit="layer", num_tokens=count, context_tokens=0, duration_s=spread(layer_s(count)))
        for count in TOKENS
    ]
    compute += [
        ComputeMeasurement(unit="pass", num_tokens=512, context_tokens=0, duration_s=spread(0.0)),
        ComputeMeasurement(unit="round", num_tokens=512, context_tokens=0, duration_s=spread(1e-3)),
        ComputeMeasurement(unit="head_chunk", num_rows=64, num_tokens=512, context_tokens=0, duration_s=spread(0.0)),
    ]
    made = Profile(
        kind="measured",
        created="2026-11-20T12:00:00Z",
        machine=MACHINE,
        machine_fingerprint="made up",
        versions={},
        num_threads=1,
        target=TARGET,
        drafts=(DRAFT,),
        dtype="bf16",
        links=(
            LinkMeasurement(link="disk:cached", num_bytes=MB, loaded=False, duration_s=spread(1e-3)),
            LinkMeasurement(link="disk:cached", num_bytes=10 * MB, loaded=False, duration_s=spread(10e-3)),
        ),
        compute=tuple(compute),
        draft_passes=(
            DraftMeasurement(
                fingerprint=DRAFT.fingerprint, num_tokens=512, context_tokens=0, duration_s=spread(draft_pass_s)
            ),
        ),
        acceptance=(
            AcceptanceRecording(domain="code", prompt_tokens=16, fingerprint=DRAFT.fingerprint, ranks=(0, *ranks)),
        ),
    )
    return made.model_copy(update=changes)


def request(device_bytes: int, *, link: LinkChoice = LINK, host_bytes: int = 10**12, **changes: object) -> Request:
    """A request for 64 tokens after 64, with no overhead on host or device."""
    made = Request(
        budget=Budget(device_bytes=device_bytes, host_bytes=host_bytes),
        wishes=Wishes(
            dtype="bf16",
            context_tokens=128,
            link=link,
            device="cpu",
            overheads=Overheads(host_bytes=0, draft_host_bytes=0, device_bytes=0),
        ),
        workload=Workload(prompt_tokens=64, new_tokens=64),
    )
    return made if not changes else replaced(made, **changes)


def replaced(made: Request, **changes: object) -> Request:
    """The request with other fields."""
    from dataclasses import replace

    return replace(made, **changes)  # type: ignore[arg-type]


def _quantity(value: float) -> Quantity:
    return Quantity(value=value, kind="estimated", source="made up")


MACHINE = Machine(
    name="made up",
    devices=(MachineDevice(name="cpu", memory_bytes=_quantity(1e12)),),
    host_memory_bytes=_quantity(1e12),
)
DISK = DiskLink(mode="cached")
