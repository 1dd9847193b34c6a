"""A draft's passes of few tokens, each a step of fixed width over memory that never moves, so that a device can replay
it without Python.

Inputs, mask, keys, values and logits are allocated once for the widest step and sliced. A pass of T tokens is a step of
the next larger width: the rows beyond T repeat the last token, and write their keys to the last place, which is hidden
until a token of its own is put there. Longer passes, such as a prompt's, go the ordinary way over the same cache.

Shapes: W rows of a step (its width), T of them wanted, P places for keys, N nodes of a tree so far, V vocabulary.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from planner.contracts.errors import SelfCheckError
from runtime.cached import CachedModel
from runtime.draft.step_memory import ALIGN_PLACES, StepMemory
from runtime.draft.step_runner import CapturedSteps, EagerSteps, Step, StepRunner, host_reads
from runtime.kv_cache import KvCache
from runtime.model import StreamedModel
from runtime.tree_mask import GrowingTree

WIDTHS = (1, 2, 4, 8, 16, 32, 64)

_HOST_ROPES = ("dynamic", "longrope")  # look at the largest position on the host

MakeRunner = Callable[[Step, Sequence[int]], StepRunner]


class SteppedModel(CachedModel):
    """A cached model whose passes of at most `most_rows` tokens are steps, where its forward allows it.

    The logits of a step are overwritten by the next one.
    """

    def __init__(
        self,
        streamed: StreamedModel,
        context_tokens: int,
        most_nodes: int = 0,
        *,
        most_rows: int = WIDTHS[-1],
        make_runner: MakeRunner | None = None,
    ) -> None:
        """`make_runner` None: steps are recorded on a CUDA device, and run by Python elsewhere.

        Raises: BadInputError, where trees are wanted of a model that cannot run over them.
        """
        super().__init__(streamed, context_tokens, most_nodes)
        self._steps: StepMemory | None = None
        self._runner: StepRunner | None = None
        self._is_tainted = False
        self._why_no_steps = _why_not(self, self._cache)
        if self._why_no_steps is None:
            self._open(WIDTHS[: 1 + bisect_left(WIDTHS, min(most_rows, WIDTHS[-1]))], make_runner)

    @property
    def why_no_steps(self) -> str | None:
        """Why every pass goes the ordinary way; None where short ones are steps."""
        return self._why_no_steps

    def reset(self) -> None:
        """Forget the whole sequence; the memory is kept where it can be."""
        super().reset()
        if self._is_tainted:
            self._wipe()

    @torch.inference_mode()
    def _open(self, widths: Sequence[int], make_runner: MakeRunner | None) -> None:
        logits_1V = super()._pass([0], 1)  # the cache takes its memory
        self._cache.drop_all()
        device = self.streamed.link.device
        steps = StepMemory(self.streamed.model, self._cache, widths, logits_1V, device=device)
        reads = host_reads(steps.step)
        if reads:
            self._why_no_steps = f"its forward makes the host wait for values ({', '.join(reads)})"
            return
        make_runner = make_runner or (CapturedSteps if device.type == "cuda" else EagerSteps)
        try:
            self._runner = make_runner(steps.step, widths)
        except RuntimeError as error:  # of the device; the ordinary way asks less of it
            self._why_no_steps = f"the device could not record them: {str(error).splitlines()[0]}"
            return
        self._steps = steps

    def _pass(self, tokens: Sequence[int], num_rows: int) -> Tensor:
        num_seen, num_tokens = self.num_seen, len(tokens)
        steps = self._steps_for(num_tokens)
        if steps is None or num_seen + num_tokens > self.context_tokens:
            return super()._pass(tokens, num_rows)
        width = steps.width_of(num_tokens)
        steps.mask.show_chain(num_seen, num_tokens, width)
        return self._step(steps, tokens, range(num_seen, num_seen + num_tokens), width)[-num_rows:]

    def _tree_pass(self, tokens: Sequence[int], tree: GrowingTree) -> Tensor:
        num_tokens = len(tokens)
        steps = self._steps_for(num_tokens)
        if steps is None:
            return super()._tree_pass(tokens, tree)
        width = steps.width_of(num_tokens)
        steps.mask.show_tree(self.num_seen, tree.hidden_from(len(tree) - num_tokens), width)
        return self._step(steps, tokens, [self.num_seen + depth for depth in tree.depths[-num_tokens:]], width)

    def _steps_for(self, num_tokens: int) -> StepMemory | None:
        """The steps, where one of them can take so many tokens more."""
        steps = self._steps
        if steps is None or self._is_tainted or num_tokens > steps.widths[-1]:
            return None
        num_needed = self._cache.num_kept + num_tokens + (num_tokens not in steps.widths)
        return steps if num_needed <= steps.num_places else None

    def _step(self, steps: StepMemory, tokens: Sequence[int], positions: Sequence[int], width: int) -> Tensor:
        """The logits (T, V) after each of the tokens."""
        assert self._runner is not None
        steps.fill(tokens, positions, self._cache.num_kept, width)
        self._runner.run(width)
        self._cache.advance(len(tokens))
        return steps.logits_WV[: len(tokens)]

    def _check(self, logits_TV: Tensor) -> None:
        try:
            super()._check(logits_TV)
        except SelfCheckError:
            self._is_tainted = True  # what is no number would spoil a step from a hidden place too
            raise

    @torch.inference_mode()
    def _wipe(self) -> None:
        self._cache.wipe()
        self._is_tainted = False


def draft_model(streamed: StreamedModel, context_tokens: int, most_nodes: int, pass_nodes: int) -> CachedModel:
    """A draft's model whose passes over at most `pass_nodes` tokens take the faster way on its device.

    Steps on a CUDA device. Not on a CPU, where attention to the whole context takes more than Python does: with 128 of
    2048 tokens in the cache a step of a 2-layer draft took 14 to 43 % longer.

    Raises: BadInputError, where trees are wanted of a model that cannot run over them.
    """
    if streamed.link.device.type == "cuda":
        return SteppedModel(streamed, context_tokens, most_nodes, most_rows=pass_nodes)
    return CachedModel(streamed, context_tokens, most_nodes)


def _why_not(model: CachedModel, cache: KvCache) -> str | None:
    """Why the short passes of a model cannot be steps, as far as its configuration tells."""
    if model.why_no_trees is not None:
        return model.why_no_trees
    if any(window is not None for window in cache.windows):
        return "layers with a sliding window move what they keep"
    if any(unit.placement == "streamed" for unit in model.streamed.plan.units):
        return "its weights travel"
    rope = getattr(model.streamed.model.config, "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type") in _HOST_ROPES:
        return f"its rotary embedding ({rope['rope_type']}) depends on the largest position"
    if model.context_tokens + model.most_nodes < ALIGN_PLACES:
        return f"its context has fewer than {ALIGN_PLACES} places"
    return None
