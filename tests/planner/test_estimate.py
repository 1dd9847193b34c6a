"""Estimated profiles against arithmetic by hand: the roofline, links, experts, and what is refused."""

import pytest

from planner.contracts.errors import BadInputError
from planner.contracts.machine import Machine, MachineDevice, MachineLink, Quantity
from planner.contracts.model_shape import LayerShape, ModelShape, TensorGroup
from planner.contracts.plan import CudaLink, DiskLink, Dtype
from planner.contracts.profile import AcceptanceCurve, Profile
from planner.estimate import LINK_SIZES_BYTES, TOKENS, EstimatedLink, estimated_profile
from planner.timing import Timing


def quantity(value: float) -> Quantity:
    return Quantity(value=value, kind="datasheet", source="the test")


DEVICE = MachineDevice(
    name="cuda:0",
    memory_bytes=quantity(12 * 2**30),
    memory_bytes_per_s=quantity(100e9),
    matmul_flops_per_s=quantity(10e12),
)
DISK = MachineLink(kind="disk_to_host", bytes_per_s=quantity(4e9), latency_s=quantity(1e-4))
MACHINE = Machine(
    name="box",
    devices=(DEVICE,),
    host_memory_bytes=quantity(64 * 2**30),
    host_memory_bytes_per_s=quantity(50e9),
    host_matmul_flops_per_s=quantity(1e12),
    links=(MachineLink(kind="host_to_device", bytes_per_s=quantity(20e9), latency_s=quantity(1e-5)), DISK),
)
CPU = Machine(
    name="cpu-box",
    devices=(DEVICE.model_copy(update={"name": "cpu"}),),
    host_memory_bytes=quantity(64 * 2**30),
    host_memory_bytes_per_s=quantity(50e9),
    links=(DISK,),
)


def shape_of(*layers: LayerShape, num_experts: int = 0, experts_per_token: int = 0) -> ModelShape:
    return ModelShape(
        name="m",
        fingerprint="m" * 32,
        model_type="llama",
        stored_dtype="bf16",
        hidden_size=1000,
        intermediate_size=1000,
        vocab_size=8000,
        num_heads=10,
        key_values_per_token=1000,
        query_values_per_token=1000,
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        max_context_tokens=8192,
        is_tied=True,
        layers=layers,
        embedding_params=8_000_000,
        head_params=8_000_000,
        rest=(),
    )


def layer_of(num_params: int = 100_000_000, *, window_tokens: int | None = None) -> LayerShape:
    attention = TensorGroup(num_params=num_params // 4, count=1, part="attention")
    mlp = TensorGroup(num_params=3 * num_params // 4, count=1, part="mlp")
    return LayerShape(
        tensors=(attention, mlp), kind="sliding" if window_tokens else "full", window_tokens=window_tokens
    )


def estimate(
    machine: Machine = MACHINE,
    target: ModelShape | None = None,
    *drafts: ModelShape,
    link: EstimatedLink | None = None,
    dtype: Dtype = "bf16",
) -> Profile:
    return estimated_profile(machine, target or shape_of(layer_of()), drafts, (), dtype=dtype, link=link)


def test_few_tokens_wait_for_the_weights() -> None:
    timing = Timing(estimate(), CudaLink())
    # 200 MB of weights and 2 kB of cache at 85 % of 100 GB/s
    assert timing.layer_s(0, 1, 0) == pytest.approx(200.002e6 / 85e9)
    # 1025 tokens of cache, 2 kB each, are 2.05 MB more
    assert timing.layer_s(0, 1, 1024) == pytest.approx(202.05e6 / 85e9)


def test_many_tokens_wait_for_the_products() -> None:
    # 2 x 512 x 100e6 flops, and 4 x 512 x 512 x 1000 of attention, at 60 % of 10 TFLOPS
    assert Timing(estimate(), CudaLink()).layer_s(0, 512, 0) == pytest.approx((102.4e9 + 1.048576e9) / 6e12)


def test_small_layers_wait_for_their_launches() -> None:
    # 2 MB take 24 us; transformers launches a layer in 600 us
    small = estimate(MACHINE, shape_of(layer_of(1_000_000)))
    assert Timing(small, CudaLink()).layer_s(0, 1, 0) == pytest.approx(600e-6)


def test_the_cpu_beside_a_device_computes_from_its_own_memory() -> None:
    # 200.002 MB at 80 % of 50 GB/s, after 100 us of dispatch
    time_s = Timing(estimate(), CudaLink()).layer_s(0, 1, 0, processor="host")
    assert time_s == pytest.approx(100e-6 + 200.002e6 / 40e9)


def test_a_cpu_alone_is_the_device() -> None:
    profile = estimate(CPU)
    assert {entry.processor for entry in profile.compute} == {"device"}
    assert {entry.link for entry in profile.links} == {"host_memory", "disk:direct", "disk:cached"}
    assert {entry.part for entry in profile.memory} == {"host_overhead", "draft_host_overhead"}
    # of the device's own 100 GB/s, 80 %
    assert Timing(profile, DiskLink()).layer_s(0, 1, 0) == pytest.approx(100e-6 + 200.002e6 / 80e9)


def test_only_the_experts_that_tokens_touch_are_read() -> None:
    tensors = (
        TensorGroup(num_params=20_000_000, count=1, part="attention"),
        TensorGroup(num_params=25_000_000, count=4, part="expert"),
    )
    moe = shape_of(LayerShape(tensors=tensors, kind="full"), num_experts=4, experts_per_token=1)
    timing = Timing(estimate(MACHINE, moe), CudaLink())
    # one of four experts: 20e6 + 25e6 parameters; two tokens touch 4 (1 - (3/4)^2) = 1.75 of them
    assert timing.layer_s(0, 1, 0) == pytest.approx((2 * 45e6 + 2e3) / 85e9)
    assert timing.layer_s(0, 2, 0) == pytest.approx((2 * (20e6 + 1.75 * 25e6) + 4e3) / 85e9)


def test_a_window_bounds_what_is_read_of_the_cache() -> None:
    timing = Timing(estimate(MACHINE, shape_of(layer_of(), layer_of(window_tokens=512))), CudaLink())
    # 4096 + 1 tokens against 512 + 1, 2 kB each
    assert timing.layer_s(0, 1, 4096) == pytest.approx((200e6 + 4097 * 2e3) / 85e9)
    assert timing.layer_s(1, 1, 4096) == pytest.approx((200e6 + 513 * 2e3) / 85e9)


def test_parts_of_a_layer_add_up_to_it() -> None:
    profile = estimate()
    times_s = {
        entry.unit: entry.duration_s.median
        for entry in profile.compute
        if entry.processor == "device" and (entry.num_tokens, entry.context_tokens) == (8, 1024)
    }
    assert times_s["attention"] + times_s["mlp"] == pytest.approx(times_s["layer"])


def test_head_chunks_are_priced_by_their_rows() -> None:
    timing = Timing(estimate(CPU), DiskLink())
    # 8000 rows of 1000 in bf16 are 16 MB; an eighth of them 2 MB; 5 us of dispatch each
    assert timing.head_s(8000, 1) == pytest.approx(5e-6 + 16e6 / 80e9)
    assert timing.head_s(1000, 1) == pytest.approx(5e-6 + 2e6 / 80e9)


def test_a_copy_takes_its_latency_and_its_bytes() -> None:
    timing = Timing(estimate(), CudaLink())
    for num_bytes in LINK_SIZES_BYTES:
        assert timing.copy_s(num_bytes) == pytest.approx(1e-5 + num_bytes / 20e9)
    assert timing.read_s(2**20) == pytest.approx(1e-4 + 2**20 / 4e9)


def test_a_draft_pass_is_its_layers_and_its_head() -> None:
    draft = shape_of(layer_of(), layer_of()).model_copy(update={"fingerprint": "d" * 32})
    timing = Timing(estimate(MACHINE, None, draft), CudaLink())
    # two layers, 16 MB of head at 85 GB/s, 1 ms of everything else, 0.1 ms to pick
    expected_s = 2 * 200.002e6 / 85e9 + 16e6 / 85e9 + 1e-3 + 1e-4
    assert timing.draft_pass_s("d" * 32, 1, 0) == pytest.approx(expected_s)


def test_layers_of_one_shape_are_listed_once() -> None:
    profile = estimate(MACHINE, shape_of(*[layer_of()] * 3, layer_of(window_tokens=512)))
    assert {entry.index for entry in profile.compute if entry.unit == "layer"} == {0, 3}


def test_every_time_covers_all_tokens_and_contexts() -> None:
    profile = estimate()
    layers = [entry for entry in profile.compute if entry.unit == "layer" and entry.processor == "host"]
    assert {(entry.num_tokens, entry.context_tokens) for entry in layers} == {
        (num_tokens, context_tokens) for num_tokens in TOKENS for context_tokens in (0, 1024, 4096, 8192)
    }


def test_quartiles_are_wider_where_less_is_known() -> None:
    profile = estimate()
    (copy,) = (entry for entry in profile.links if entry.link == "cuda" and entry.num_bytes == 2**20)
    assert copy.duration_s.p75 / copy.duration_s.median == pytest.approx(1.10)
    assert profile.compute[0].duration_s.p25 / profile.compute[0].duration_s.median == pytest.approx(0.80)


def test_a_faster_link_is_never_slower() -> None:
    fast = MACHINE.links[0].model_copy(update={"bytes_per_s": quantity(40e9)})
    faster = MACHINE.model_copy(update={"links": (fast, DISK)})
    pairs = zip(estimate(faster).links, estimate().links, strict=True)
    assert all(quick.duration_s.median <= slow.duration_s.median for quick, slow in pairs)


def test_an_estimate_says_that_it_is_one_and_survives_its_file() -> None:
    curve = AcceptanceCurve(
        target="m", draft="d", domain="code", survival=(0.8,), is_same_pair=False, source="of another pair"
    )
    profile = estimated_profile(MACHINE, shape_of(layer_of()), (), (curve,), dtype="bf16", link="cuda")
    assert (profile.kind, profile.machine_fingerprint) == ("estimated", "catalogue:box")
    assert any("of another pair" in note for note in profile.notes)
    assert Profile.model_validate_json(profile.to_json()) == profile


def test_a_missing_number_is_named() -> None:
    blind = MACHINE.model_copy(update={"devices": (DEVICE.model_copy(update={"matmul_flops_per_s": None}),)})
    with pytest.raises(BadInputError, match=r"box lacks devices\.0\.matmul_flops_per_s"):
        estimate(blind)
    with pytest.raises(BadInputError, match="lacks host_matmul_flops_per_s"):
        estimate(MACHINE.model_copy(update={"host_matmul_flops_per_s": None}))
    slow = MACHINE.links[0].model_copy(update={"latency_s": None})
    with pytest.raises(BadInputError, match=r"lacks links\.0\.latency_s"):
        estimate(MACHINE.model_copy(update={"links": (slow, DISK)}))


def test_a_link_that_the_machine_lacks_is_refused() -> None:
    with pytest.raises(BadInputError, match="cpu-box lacks the link cuda"):
        estimate(CPU, link="cuda")
    with pytest.raises(BadInputError, match="does not hold the target"):
        estimate(CPU.model_copy(update={"host_memory_bytes": quantity(1e6)}), link="disk:cached")


def test_speeds_of_32_bits_are_not_guessed_from_those_of_16() -> None:
    with pytest.raises(BadInputError, match="lacks its speed in fp32"):
        estimate(dtype="fp32")
