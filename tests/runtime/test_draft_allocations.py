"""After a first round of every length, drafting keeps no memory that it had not before, however the lengths switch.

Counted are torch's storages that outlive a round, the addresses of all that a drafter holds, and the heap of the
process; what comes and goes within a round is not.
"""

import ctypes
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from test_draft_steps import opened, tensors_of
from tiny_models import VOCAB_SIZE, TinyModel
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from planner.contracts.plan import RankPath
from runtime.cached import CachedModel
from runtime.draft.base import Drafter
from runtime.draft.costs import Costs
from runtime.draft.model import ChainDrafter
from runtime.draft.ngram import NgramDrafter
from runtime.draft.steps import SteppedModel
from runtime.draft.tree import TreeDrafter
from runtime.model import StreamedModel
from runtime.proposal import Proposal, Verdict
from runtime.sampling import SamplingSettings, Uniforms

pytestmark = pytest.mark.usefixtures("one_thread")

CONTEXT_TOKENS = 480
MOST_NODES = 64
TIERS = (1, 3, 7, 15)
LENGTHS = (15, 1, 3, 15, 7, 1, 7, 3)  # every tier after each of the others but one
LONG_RUN = (15, 1, 3, 1, 7, 1, 3, 1)
NUM_ROUNDS = 200
MOST_TRACED_BYTES = 400_000  # 300 more tokens in two lists, and what Python keeps for itself
MOST_HEAP_BYTES = 2 * 2**20  # tracemalloc's own books among them

MakeModel = Callable[[StreamedModel], CachedModel]
MakeDrafter = Callable[[CachedModel], Drafter]


# --- drafters ---


def plain(streamed: StreamedModel) -> CachedModel:
    return CachedModel(streamed, CONTEXT_TOKENS, MOST_NODES)


def stepped(streamed: StreamedModel) -> CachedModel:
    model = SteppedModel(streamed, CONTEXT_TOKENS, MOST_NODES)
    assert model.why_no_steps is None
    return model


def chain_drafter(model: CachedModel, temperature: float = 0.0, kind: type[ChainDrafter] = ChainDrafter) -> Drafter:
    return kind(
        model,
        SamplingSettings(temperature=temperature),
        Uniforms(1),
        vocab_size=VOCAB_SIZE,
        chunk_tokens=32,
        draft_len=TIERS[-1],
        tiers=TIERS,
    )


def tree_drafter(
    model: CachedModel, temperature: float = 0.0, ngram: NgramDrafter | None = None, paths: Sequence[RankPath] = ()
) -> Drafter:
    return TreeDrafter(
        model,
        SamplingSettings(temperature=temperature),
        Uniforms(1),
        vocab_size=VOCAB_SIZE,
        chunk_tokens=32,
        num_nodes=24,
        max_depth=TIERS[-1],
        pass_nodes=8,
        ngram=ngram,
        paths=paths,
    )


def static_drafter(model: CachedModel) -> Drafter:
    chain_of_first = [(0,) * depth for depth in range(1, TIERS[-1] + 1)]
    return tree_drafter(model, paths=[*chain_of_first, (1,), (0, 1)])


def hybrid_drafter(model: CachedModel) -> Drafter:
    copies = NgramDrafter(
        num_nodes=24,
        max_depth=TIERS[-1],
        min_match_tokens=1,
        costs=Costs.free(),
        corpus=None,
        vocab_size=VOCAB_SIZE,
    )
    return tree_drafter(model, ngram=copies)


MODELS: dict[str, MakeModel] = {"plain": plain, "stepped": stepped}
DRAFTERS: dict[str, MakeDrafter] = {
    "chain": chain_drafter,
    "sampled chain": partial(chain_drafter, temperature=1.0),
    "tree": tree_drafter,
}
TREES: dict[str, MakeDrafter] = {"tree": tree_drafter, "static tree": static_drafter, "hybrid": hybrid_drafter}
ALL = DRAFTERS | TREES
EVERY_MODEL = pytest.mark.parametrize("make_model", MODELS.values(), ids=MODELS)
EVERY_DRAFTER = pytest.mark.parametrize("make_drafter", DRAFTERS.values(), ids=DRAFTERS)
EVERY_KIND = pytest.mark.parametrize("make_drafter", ALL.values(), ids=ALL)


class Workspaces(ChainDrafter):
    """A fault: a buffer of its own for each tier, made anew whenever the tier switches."""

    workspace_KV = torch.zeros(0, VOCAB_SIZE)

    def propose(self, context: Sequence[int], max_depth: int) -> Proposal:
        proposal = super().propose(context, max_depth)
        if len(proposal.tokens) != self.workspace_KV.shape[0]:
            self.workspace_KV = torch.zeros(len(proposal.tokens), VOCAB_SIZE)
        return proposal


class TorchHoarder(ChainDrafter):
    """A fault: half a MiB of every round stays."""

    def propose(self, context: Sequence[int], max_depth: int) -> Proposal:
        self.__dict__.setdefault("hoard", []).append(torch.ones(2**19, dtype=torch.uint8))
        return super().propose(context, max_depth)


class NumpyHoarder(ChainDrafter):
    """A fault: 4 KiB of every round stay."""

    def propose(self, context: Sequence[int], max_depth: int) -> Proposal:
        self.__dict__.setdefault("hoard", []).append(np.ones(2**12, dtype=np.uint8))
        return super().propose(context, max_depth)


# --- rounds ---


class Rounds:
    """Rounds of one drafter in which the target accepts one token and none by turns."""

    def __init__(self, drafter: Drafter, max_tokens: int = CONTEXT_TOKENS - TIERS[-1]) -> None:
        self.drafter = drafter
        self.drafted: set[int] = set()  # lengths
        self._context = [3, 1, 4, 1, 5]
        self._max_tokens = max_tokens
        self._num_accepted = 0

    def run(self, max_depth: int) -> None:
        """One round."""
        assert len(self._context) < self._max_tokens
        proposal = self.drafter.propose(self._context, max_depth)
        self.drafted.add(max(proposal.depths))
        self._num_accepted = 1 - self._num_accepted
        verdict = Verdict(tuple(range(self._num_accepted)), 11)
        self.drafter.observe(proposal, verdict)
        self._context += [*(proposal.tokens[node] for node in verdict.path), verdict.next_token]


@contextmanager
def warm_rounds(folder: Path, make_model: MakeModel, make_drafter: MakeDrafter) -> Iterator[Rounds]:
    """Rounds of which each length has run before, the longest with and without an accepted token."""
    with opened(folder) as streamed:
        rounds = Rounds(make_drafter(make_model(streamed)))
        for length in (*LENGTHS, *reversed(LENGTHS)):
            rounds.run(length)
        yield rounds


# --- counts ---


class Storages(TorchDispatchMode):
    """The storages that operations allocate while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: list[StorageWeakRef] = []

    @property
    def num_alive(self) -> int:
        """Those that somebody still holds."""
        self._made = [storage for storage in self._made if not storage.expired()]
        return len({storage.cdata for storage in self._made})

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        output = func(*args, **(kwargs or {}))
        read = {tensor.untyped_storage().data_ptr() for tensor in tensors_of((args, kwargs or {}))}
        for tensor in tensors_of(output):
            if tensor.untyped_storage().data_ptr() not in read:
                self._made.append(StorageWeakRef(tensor.untyped_storage()))
        return output


def num_kept(rounds: Rounds, lengths: Sequence[int]) -> list[int]:
    """Of rounds of these lengths: storages that are alive after each, and were not before the first."""
    kept = []
    with Storages() as storages:
        for length in lengths:
            rounds.run(length)
            kept.append(storages.num_alive)
    return kept


def addresses(root: object) -> set[int]:
    """Where the memory lies of all tensors and arrays that an object of ours holds, the model's weights left out."""
    found: set[int] = set()
    reached: set[int] = set()
    left = [root]
    while left:
        value = left.pop()
        if id(value) in reached or isinstance(value, StreamedModel):
            continue
        reached.add(id(value))
        if isinstance(value, Tensor):
            found.add(value.untyped_storage().data_ptr())
        elif isinstance(value, np.ndarray):
            found.add(value.ctypes.data)
        elif isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, (list, tuple, set)):
            left += value
        elif type(value).__module__.startswith(("runtime.", __name__)):
            left += getattr(value, "__dict__", {}).values()
            slots = chain.from_iterable(getattr(kind, "__slots__", ()) for kind in type(value).__mro__)
            left += [getattr(value, slot) for slot in slots if hasattr(value, slot)]
    return found


class HeapInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def heap_bytes() -> int:
    """Bytes that malloc has handed out; the size of the process hides what fills the room of earlier tests."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = HeapInfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def growth_bytes(rounds: Rounds) -> tuple[int, int]:
    """Bytes that Python and numpy, and malloc's heap, hold more after `NUM_ROUNDS` rounds."""
    tracemalloc.start()
    heap, (traced, _) = heap_bytes(), tracemalloc.get_traced_memory()
    try:
        for length in islice(cycle(LONG_RUN), NUM_ROUNDS):
            rounds.run(length)
        return tracemalloc.get_traced_memory()[0] - traced, heap_bytes() - heap
    finally:
        tracemalloc.stop()


# --- claims ---


@EVERY_KIND
@EVERY_MODEL
def test_no_storage_outlives_a_round(make_model: MakeModel, make_drafter: MakeDrafter, tiny_model: TinyModel) -> None:
    with warm_rounds(tiny_model("llama", "fp64"), make_model, make_drafter) as rounds:
        assert set(num_kept(rounds, LENGTHS)) == {0}
        assert rounds.drafted == set(TIERS) or make_drafter in TREES.values()
        assert rounds.drafted >= {1, 3}


@EVERY_MODEL
def test_rows_of_a_sampled_tree_live_until_the_next_one(make_model: MakeModel, tiny_model: TinyModel) -> None:
    make_drafter = partial(tree_drafter, temperature=1.0)
    with warm_rounds(tiny_model("llama", "fp64"), make_model, make_drafter) as rounds:
        kept = num_kept(rounds, (15, 15, 1, 15, 15, 1))
        assert max(kept) <= TIERS[-1]  # a storage for the rows of each pass
        assert kept[2] == kept[5]


@EVERY_KIND
@EVERY_MODEL
def test_all_that_a_drafter_holds_stays_where_it_is(
    make_model: MakeModel, make_drafter: MakeDrafter, tiny_model: TinyModel
) -> None:
    with warm_rounds(tiny_model("llama", "fp64"), make_model, make_drafter) as rounds:
        before = addresses(rounds.drafter)
        assert len(before) >= 6  # keys and values of three layers at least
        for length in LENGTHS:
            rounds.run(length)
            assert addresses(rounds.drafter) == before


@pytest.mark.slow
@EVERY_DRAFTER
@EVERY_MODEL
def test_memory_is_flat_while_lengths_switch(
    make_model: MakeModel, make_drafter: MakeDrafter, tiny_model: TinyModel
) -> None:
    with warm_rounds(tiny_model("llama", "fp64"), make_model, make_drafter) as rounds:
        traced_bytes, grown_heap_bytes = growth_bytes(rounds)
        assert traced_bytes < MOST_TRACED_BYTES
        assert grown_heap_bytes < MOST_HEAP_BYTES


# --- would these tests see a fault? ---


def test_a_buffer_made_anew_for_a_tier_would_be_seen(tiny_model: TinyModel) -> None:
    make_drafter = partial(chain_drafter, kind=Workspaces)
    with warm_rounds(tiny_model("llama", "fp64"), stepped, make_drafter) as rounds:
        before = addresses(rounds.drafter)
        assert set(num_kept(rounds, LENGTHS)[1:]) == {1}
        assert addresses(rounds.drafter) != before


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "place"), [(NumpyHoarder, 0), (TorchHoarder, 1)])
def test_memory_that_grows_would_be_seen(kind: type[ChainDrafter], place: int, tiny_model: TinyModel) -> None:
    make_drafter = partial(chain_drafter, kind=kind)
    with warm_rounds(tiny_model("llama", "fp64"), plain, make_drafter) as rounds:
        assert growth_bytes(rounds)[place] > (MOST_TRACED_BYTES, MOST_HEAP_BYTES)[place]
