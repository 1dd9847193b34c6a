"""Tokens and text: prompts, end tokens, text that appears piece by piece, stop strings, and whether two models agree.

Text is given out only when it is final: never half a character, never the start of a stop string.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from planner.contracts.errors import BadInputError, UsageError
from planner.contracts.untrusted_files import shown

_REPLACEMENT = "\ufffd"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; code in the folder is never run.

    Raises: BadInputError, where there is none or it is damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exceptions for what it cannot parse
        raise BadInputError(
            f"the tokenizer in {folder} cannot be read",
            why=(str(error).strip().splitlines() or [type(error).__name__])[0],
            remedy="download tokenizer.json and tokenizer_config.json of the model again",
        ) from error


def check_same_tokens(target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase) -> None:
    """A draft proposes token ids, so both must mean the same by each. Padded tables and added tokens do no harm.

    Raises: BadInputError, naming the first id that they disagree on.
    """
    target_tokens = {index: token for token, index in target.get_vocab().items()}
    draft_tokens = {index: token for token, index in draft.get_vocab().items()}
    added = set(target.added_tokens_decoder) | set(draft.added_tokens_decoder)
    for index in sorted(target_tokens.keys() | draft_tokens.keys()):
        mine, theirs = target_tokens.get(index), draft_tokens.get(index)
        if mine != theirs and not (index in added and None in (mine, theirs)):
            raise BadInputError(
                "the draft has another tokenizer than the target",
                why=f"token {index} is {mine!r} in the target and {theirs!r} in the draft",
                remedy="use a draft of the target's own family, or --no-spec",
            )


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All tokens that end a text: of the generation settings, the configuration and the tokenizer."""
    ends: set[int] = set()
    for value in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        tokens = value if isinstance(value, list | tuple) else () if value is None else (value,)
        if not all(isinstance(token, int) for token in tokens):
            raise BadInputError(
                "the model does not say which tokens end a text",
                why=f"eos_token_id is {shown(value)}",
                remedy="download config.json and generation_config.json of the model again",
            )
        ends.update(tokens)
    return frozenset(ends)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, *, is_chat: bool | None, system: str | None
) -> list[int]:
    """The prompt's tokens: as a chat turn where the tokenizer has a chat template (or `is_chat` says so), else as is.

    Raises: UsageError, where a chat is asked of a tokenizer without a template; BadInputError, where nothing is left.
    """
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if (is_chat or system is not None) and not has_template:
        raise UsageError(
            "this model cannot chat",
            why="its tokenizer has no chat template",
            remedy="leave out --chat and --system, and write the prompt as the text to continue",
        )
    if has_template and is_chat is not False:
        turns = [] if system is None else [{"role": "system", "content": system}]
        turns.append({"role": "user", "content": prompt})
        text = _chat_text(tokenizer, turns)
        tokens = tokenizer.encode(text, add_special_tokens=False)
    else:
        tokens = tokenizer.encode(prompt)
    if not tokens and tokenizer.bos_token_id is not None:
        tokens = [tokenizer.bos_token_id]
    if not tokens:
        raise BadInputError("the prompt is empty", why="it holds no token", remedy="give a prompt of some text")
    return list(tokens)


def _chat_text(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # the template is a program of the model's authors, and fails as it likes
        raise BadInputError(
            "the model's chat template refused the prompt",
            why=(str(error).strip().splitlines() or [type(error).__name__])[0],
            remedy="leave out --system, or use --raw and write the prompt as the text to continue",
        ) from error


class TextStream:
    """Turns tokens into text as they come, ending at a stop string; holds back what is not final yet."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_tokens: Sequence[int], stop: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt_tokens[-_CONTEXT_TOKENS:])
        self._start = 0  # tokens before it only give context to the decoder
        self._decoded = len(self._tokens)  # tokens before it have been turned into text
        self._stop = tuple(text for text in stop if text)
        self._held_back = ""
        self.is_stopped = False

    def push(self, token: int) -> str:
        """The text that is final with this token; empty while a character or a possible stop string is incomplete."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._start : self._decoded])
        after = self._decode(self._tokens[self._start :])
        if after.endswith(_REPLACEMENT):
            return ""
        self._start, self._decoded = self._decoded, len(self._tokens)
        return self._release(self._held_back + after[len(before) :])

    def finish(self) -> str:
        """What was held back, once no token follows."""
        before = self._decode(self._tokens[self._start : self._decoded])
        rest = self._held_back + self._decode(self._tokens[self._start :])[len(before) :]
        self._start = self._decoded = len(self._tokens)
        self._held_back = ""
        return "" if self.is_stopped else rest

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self, text: str) -> str:
        found = [position for position in map(text.find, self._stop) if position >= 0]
        if found:
            self.is_stopped = True
            self._held_back = ""
            return text[: min(found)]
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held_back = text[len(text) - num_held :]
        return text[: len(text) - num_held]


_CONTEXT_TOKENS = 8


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that is a start of the stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def printable(text: str) -> str:
    """The text without control characters other than line feed and tab, safe to send to a terminal."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")
