"""A byte-level BPE tokenizer of 4,096 entries, and documents as one stream of tokens.

`<s>` is 0 and `</s>` is 1. The saved tokenizer adds neither by itself: the stream puts them around each document.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 4_096
CONTEXT_TOKENS = 2_048
BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1


class VocabularyError(ValueError):
    """Text too short to yield the vocabulary that both models are built for."""


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """The tokenizer learned from the texts.

    Raises:
        VocabularyError: the texts hold fewer merges than the vocabulary needs.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise VocabularyError(
            f"the text yields {tokenizer.get_vocab_size()} tokens, the models need {VOCAB_SIZE}: train on more text"
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer so that `AutoTokenizer.from_pretrained(folder)` loads it."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_TOKENS,
    ).save_pretrained(folder)


def encode_stream(tokenizer: Tokenizer, texts: Sequence[str], batch_texts: int = 64) -> Tensor:
    """All texts, one after the other, each between `<s>` and `</s>`: int32, one dimension."""
    parts: list[Tensor] = []
    for start in range(0, len(texts), batch_texts):
        encodings = tokenizer.encode_batch_fast(list(texts[start : start + batch_texts]), add_special_tokens=False)
        token_ids = chain.from_iterable([BOS_ID, *encoding.ids, EOS_ID] for encoding in encodings)
        parts.append(torch.tensor(list(token_ids), dtype=torch.int32))
    return torch.cat(parts)
