"""A loaded target and draft that generate text, one request at a time, and report what was measured."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from transformers import PreTrainedTokenizerBase

from planner.contracts.errors import BadInputError, UsageError
from planner.contracts.plan import Plan
from planner.contracts.report import FinishReason, Report
from runtime.cached import CachedModel
from runtime.clock import RoundClock
from runtime.decode import Sampling, decode_rounds, prefill
from runtime.draft.corpus import Corpus
from runtime.draft.of_plan import Drafters
from runtime.draft.steps import draft_model
from runtime.host import MemoryGauge
from runtime.model import StreamedModel
from runtime.progress import Progress, progress_of
from runtime.report import RunRecord, build_report
from runtime.sampling import SamplingSettings
from runtime.self_check import verify_run
from runtime.tokenizer import TextStream, encode_prompt, end_tokens
from runtime.trace import Trace

_LOGIT_BYTES = 12  # of one logit at its widest: as computed, and as the planner counts it
_MOST_SCORED_ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to continue, how, and when to stop."""

    prompt: str | Sequence[int]
    max_tokens: int
    sampling: SamplingSettings
    stop: tuple[str, ...]
    is_chat: bool | None  # None: where the tokenizer has a chat template
    system: str | None
    verify: bool


@dataclass(frozen=True, slots=True)
class Token:
    """One token, and the text that became final with it.

    `token_id` is None for text that was held back until an end token, which is not given out itself.
    """

    token_id: int | None
    text: str


class Engine:
    """Target, draft and tokenizer, in the memory and over the link that the plan states. Close it, or use `with`."""

    def __init__(
        self,
        plan: Plan,
        target: StreamedModel,
        draft: StreamedModel | None,
        tokenizer: PreTrainedTokenizerBase,
        gauge: MemoryGauge,
        trace: Trace | None = None,
        *,
        corpus: Corpus | None = None,
        draft_may_fail: bool = False,
    ) -> None:
        self.plan = plan
        self.tokenizer = tokenizer
        self.gauge = gauge
        self.trace = trace
        self.target = CachedModel(target, plan.context_tokens, plan.tree_nodes)
        self.draft = None
        if draft is not None:
            self.draft = draft_model(draft, _draft_context(plan, draft), plan.draft_nodes, plan.draft_pass_nodes)
        for role, model in (("target", self.target), ("draft", self.draft)):
            if plan.draft.kind != "none" and model is not None and not model.can_roll_back:
                raise cannot_roll_back(role, model.streamed.model.config.model_type)
        self.drafters = Drafters(
            plan=plan,
            draft=self.draft,
            vocab_size=self.target.streamed.vocab_size,
            corpus=corpus,
            may_fail=draft_may_fail,
        )
        self.end_tokens = end_tokens(target.model, tokenizer)
        self.in_caches: Generation | None = None  # whose tokens the caches hold

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        sampling: SamplingSettings | None = None,
        stop: Sequence[str] = (),
        is_chat: bool | None = None,
        system: str | None = None,
        verify: bool = False,
    ) -> "Generation":
        """An iterator over the tokens that follow the prompt; its `report()` tells what was measured.

        Raises: BadInputError, where the prompt does not fit the plan's context.
        """
        return Generation(
            self,
            Request(
                prompt=prompt,
                max_tokens=max_tokens,
                sampling=sampling or SamplingSettings(),
                stop=tuple(stop),
                is_chat=is_chat,
                system=system,
                verify=verify,
            ),
        )

    def close(self) -> None:
        """End all threads and give back memory and files."""
        self.target.streamed.close()
        if self.draft is not None:
            self.draft.streamed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Generation:
    """One request under way. Iterate it once; `report()` holds at any time, also after an error or an interrupt."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine = engine
        self._request = request
        self._prompt = self._encode(request)
        self._sampling = Sampling(request.sampling)
        self._record = RunRecord(prompt_tokens=len(self._prompt), seed=self._sampling.seed)
        self._text = TextStream(engine.tokenizer, self._prompt, request.stop)
        self._emitted: list[int] = []

    def __iter__(self) -> Iterator[Token]:
        engine, request, record = self._engine, self._request, self._record
        engine.in_caches = self
        engine.target.reset()
        if engine.draft is not None:
            engine.draft.reset()
        started_s = time.perf_counter()
        try:
            first = prefill(engine.target, self._prompt, self._sampling, engine.plan.prefill_chunk_tokens)
            record.prompt_s = time.perf_counter() - started_s
            started_s = time.perf_counter()
            yield from self._decode(first)
            record.generated_s = time.perf_counter() - started_s
            if request.verify and self._emitted:
                record.verify = verify_run(
                    engine.target, self._prompt, self._emitted, request.sampling, self._num_scored_rows()
                )
        except Exception:
            record.finish_reason = "error"
            raise
        finally:
            if record.generated_s == 0.0:
                record.generated_s = time.perf_counter() - started_s

    def report(self) -> Report:
        """Predicted beside measured, up to now."""
        engine, record = self._engine, self._record
        replaced = engine.target.streamed.replaced_files()
        warnings = [f"{name} was replaced during the run; it went on with the old one" for name in replaced]
        record.warnings += [warning for warning in warnings if warning not in record.warnings]
        record.memory = engine.gauge.peaks()
        return build_report(engine.plan, engine.target.streamed.link.label, record)

    def progress(self) -> Progress:
        """Where the run is, for another thread to show."""
        return progress_of(self._engine.plan, self._engine.target, self._record)

    def _encode(self, request: Request) -> list[int]:
        if isinstance(request.prompt, str):
            tokens = encode_prompt(
                self._engine.tokenizer, request.prompt, is_chat=request.is_chat, system=request.system
            )
        else:
            tokens = list(request.prompt)
        check_prompt_fits(len(tokens), self._engine.plan.context_tokens)
        vocab_size = self._engine.target.streamed.vocab_size
        strangers = [token for token in tokens if not 0 <= token < vocab_size]
        if strangers:
            raise BadInputError(
                f"the prompt holds the token {strangers[0]}",
                why=f"the model knows the tokens 0 to {vocab_size - 1}",
                remedy="encode the prompt with the model's own tokenizer",
            )
        return tokens

    def _decode(self, first: int) -> Iterator[Token]:
        """The first token, then rounds, until something ends the text."""
        engine, request, record = self._engine, self._request, self._record
        drafter = engine.drafters.drafter(self._sampling, record.warnings.append)
        context = [*self._prompt, first]
        yield from self._emit((first,))
        if self._is_finished():
            return
        for entry in decode_rounds(
            engine.target,
            drafter,
            context,
            self._sampling,
            max_tokens=request.max_tokens - 1,
            clock=RoundClock(engine.trace),
        ):
            record.rounds.append(entry)
            yield from self._emit(entry.tokens)
            if self._is_finished():
                return

    def _emit(self, tokens: Sequence[int]) -> Iterator[Token]:
        for token in tokens:
            is_end = token in self._engine.end_tokens
            text = "" if is_end else self._text.push(token)
            if not is_end:
                self._emitted.append(token)
                self._record.generated_tokens += 1
            self._record.finish_reason = self._finish_reason(is_end)
            if self._is_finished():
                text += self._text.finish()
            self._record.text += text
            if text or not is_end:
                yield Token(None if is_end else token, text)
            if self._is_finished():
                return
            if self._engine.in_caches is not self:
                raise UsageError(
                    "this text cannot go on",
                    why="another one was begun on the same engine, which holds one at a time",
                    remedy="read a text to its end before the next, or load another engine",
                )

    def _finish_reason(self, is_end: bool) -> FinishReason:
        """What ends the text with the token emitted last; "interrupted" while nothing does."""
        if is_end or self._text.is_stopped:
            return "stop"
        if len(self._emitted) >= self._request.max_tokens:
            return "length"
        is_full = len(self._prompt) + len(self._emitted) >= self._engine.plan.context_tokens
        return "context" if is_full else "interrupted"

    def _is_finished(self) -> bool:
        return self._record.finish_reason != "interrupted"

    def _num_scored_rows(self) -> int:
        """Rows of logits that fit into what the plan has for activations."""
        plan, vocab_size = self._engine.plan, self._engine.target.streamed.vocab_size
        return max(2, min(_MOST_SCORED_ROWS, plan.memory.activations_bytes // (vocab_size * _LOGIT_BYTES)))


def check_prompt_fits(num_tokens: int, context_tokens: int) -> None:
    """Raises: BadInputError, where a prompt of so many tokens leaves no room in the context for a token after it."""
    if not 0 < num_tokens < context_tokens:
        raise BadInputError(
            f"the prompt of {num_tokens} tokens cannot be continued",
            why=f"the context is {context_tokens} tokens, the new ones included",
            remedy="shorten the prompt, or plan with a larger --ctx-size",
        )


def _draft_context(plan: Plan, draft: StreamedModel) -> int:
    return min(plan.context_tokens, int(draft.model.config.max_position_embeddings))


def cannot_roll_back(role: str, model_type: str) -> BadInputError:
    """The error for a draft with a model whose state cannot forget rejected tokens."""
    return BadInputError(
        f"the {role}, a {model_type}, cannot speculate",
        why="its layers keep a recurrent state, which cannot be rolled back to before a rejected token",
        remedy="run it with --no-spec, or use a model with attention in every layer",
    )
