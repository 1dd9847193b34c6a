"""Prompts into tokens and tokens into text, piece by piece; end tokens; whether two models mean the same by an id."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import byte_tokenizer, copy_of
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from planner.contracts.errors import BadInputError, UsageError
from profiles import demo_folder
from runtime.tokenizer import TextStream, check_same_tokens, encode_prompt, end_tokens, load_tokenizer, printable

BYTES = byte_tokenizer()
DEMO = load_tokenizer(demo_folder("target"))
TEMPLATE = (
    "{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as of Llama 2: spaces are part of tokens, unknown characters fall back to bytes, and decoding strips
    the first space."""
    pieces = ["<unk>", "▁Hello", "▁world", "▁", "He", "llo", "!", "é"]
    vocabulary = {token: index for index, token in enumerate([*pieces, *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_tokenizer(words: Sequence[str], **special: str) -> PreTrainedTokenizerFast:
    """One token per word, in the order given."""
    tokenizer = Tokenizer(models.WordLevel(vocab={word: index for index, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


METASPACE = metaspace_tokenizer()
TOKENIZERS = {"bytes": BYTES, "demo": DEMO, "metaspace": METASPACE}
EVERY_TOKENIZER = pytest.mark.parametrize("name", TOKENIZERS)


def pieces_of(
    tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int], prompt: Sequence[int] = (), stop: Sequence[str] = ()
) -> list[str]:
    """The text that each token releases, up to a stop string, and at last what was held back."""
    stream = TextStream(tokenizer, prompt, stop)
    pieces = []
    for token in tokens:
        pieces.append(stream.push(token))
        if stream.is_stopped:
            break
    return [*pieces, stream.finish()]


# --- incremental text ---


@EVERY_TOKENIZER
@given(text=st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_pieces_of_any_text_join_to_what_decoding_all_gives(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = tokenizer.encode(text)
    assert "".join(pieces_of(tokenizer, tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["bytes", "demo"])  # a byte fallback reads a damaged run otherwise once it is whole
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_pieces_of_any_tokens_join_to_what_decoding_all_gives(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    assert "".join(pieces_of(tokenizer, tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)


@EVERY_TOKENIZER
@given(prompt=st.text(min_size=1, max_size=20), text=st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_pieces_after_a_prompt_continue_it(name: str, prompt: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    before, after = tokenizer.encode(prompt), tokenizer.encode(text)
    whole = tokenizer.decode([*before, *after], skip_special_tokens=True)
    expected = whole[len(tokenizer.decode(before, skip_special_tokens=True)) :]
    assert "".join(pieces_of(tokenizer, after, before)) == expected


@pytest.mark.parametrize("text", ["é", "€", "漢", "👍", "👨‍👩‍👧", "aé€👍z", "\ud7ff", "\ue000"])
def test_character_of_several_tokens_appears_whole_with_its_last(text: str) -> None:
    tokens = BYTES.encode(text)
    pieces = pieces_of(BYTES, tokens)
    assert len(tokens) == len(text.encode()) > 1
    assert [piece for piece in pieces if piece] == list(text)
    for count, character in zip(itertools.accumulate(len(c.encode()) for c in text), text, strict=True):
        assert pieces[count - 1] == character


def test_half_a_character_at_the_end_is_shown_as_damaged_only_when_nothing_follows() -> None:
    tokens = BYTES.encode("a€")[:-1]
    assert pieces_of(BYTES, tokens) == ["a", "", "", "\ufffd"]


def test_byte_that_no_character_begins_with_does_not_hold_back_what_follows() -> None:
    stray, letter = BYTES.encode("€")[-1], BYTES.encode("b")[0]
    assert pieces_of(BYTES, [stray, letter, letter]) == ["", "\ufffdb", "b", ""]


def test_special_tokens_are_no_text() -> None:
    tokens = [*DEMO.encode("def"), DEMO.eos_token_id, *DEMO.encode(" f")]
    assert "".join(pieces_of(DEMO, tokens)) == "def f"


# --- stop strings ---


def expected_text(text: str, stop: Sequence[str]) -> str:
    """The text up to where the stop string begins that is complete first."""
    for end in range(len(text) + 1):
        starts = [end - len(entry) for entry in stop if entry and text[:end].endswith(entry)]
        if starts:
            return text[: min(starts)]
    return text


@given(text=st.text("ab\n", max_size=30), stop=st.lists(st.text("ab\n", max_size=4), max_size=3))
@settings(max_examples=300, deadline=None)
def test_text_ends_before_the_first_stop_string_wherever_tokens_end(text: str, stop: list[str]) -> None:
    assert "".join(pieces_of(BYTES, BYTES.encode(text), stop=stop)) == expected_text(text, stop)


def test_start_of_a_stop_string_is_held_back_until_it_is_decided() -> None:
    assert pieces_of(BYTES, BYTES.encode("xENx"), stop=["END"]) == ["x", "", "", "ENx", ""]
    assert pieces_of(BYTES, BYTES.encode("xENDx"), stop=["END"]) == ["x", "", "", "", ""]
    assert pieces_of(BYTES, BYTES.encode("xEE"), stop=["EEE"]) == ["x", "", "", "EE"]


def test_held_back_start_is_released_at_the_end() -> None:
    assert pieces_of(BYTES, BYTES.encode("xEN"), stop=["END"])[-1] == "EN"


def test_stop_string_within_one_token_and_across_two() -> None:
    tokenizer = word_tokenizer(["?", "ab", "cd"])
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    assert pieces_of(tokenizer, [1, 2, 1], stop=["bc"]) == ["a", "", ""]
    assert pieces_of(tokenizer, [1, 2, 1], stop=["d"]) == ["ab", "c", ""]


def test_stop_string_of_several_bytes_each_is_found() -> None:
    assert "".join(pieces_of(BYTES, BYTES.encode("a→b→→c"), stop=["→→"])) == "a→b"


def test_stop_string_begun_by_the_prompt_does_not_count() -> None:
    assert "".join(pieces_of(BYTES, BYTES.encode("D."), BYTES.encode("EN"), stop=["END"])) == "D."


def test_empty_stop_string_stops_nothing() -> None:
    assert "".join(pieces_of(BYTES, BYTES.encode("abc"), stop=["", ""])) == "abc"


# --- end tokens ---


def model_that_ends_at(config: int | list[int] | None, generation: int | list[int] | None) -> LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=16, bos_token_id=None, eos_token_id=config))
    model.generation_config = GenerationConfig(eos_token_id=generation)
    return model


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(2, [5, 6], {2, 5, 6}), (None, 7, {7}), ([3, 4], None, {3, 4}), (None, None, set()), (0, 0, {0})],
)
def test_end_tokens_are_those_of_the_configuration_and_the_generation_settings(
    config: int | list[int] | None, generation: int | list[int] | None, expected: set[int]
) -> None:
    assert end_tokens(model_that_ends_at(config, generation), BYTES) == expected


def test_end_token_of_the_tokenizer_counts_too() -> None:
    tokenizer = word_tokenizer(["?", "end"], eos_token="end")
    assert end_tokens(model_that_ends_at(None, [9]), tokenizer) == {1, 9}


# --- prompts ---


def chatting() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize(
    ("is_chat", "system", "expected"),
    [
        (None, None, "[user]hi[assistant]"),
        (True, None, "[user]hi[assistant]"),
        (None, "be brief", "[system]be brief[user]hi[assistant]"),
        (False, None, "hi"),
    ],
)
def test_prompt_becomes_a_chat_turn_where_there_is_a_template_unless_raw(
    is_chat: bool | None, system: str | None, expected: str
) -> None:
    tokenizer = chatting()
    assert tokenizer.decode(encode_prompt(tokenizer, "hi", is_chat=is_chat, system=system)) == expected


@pytest.mark.parametrize(("is_chat", "system"), [(True, None), (None, "be brief")])
def test_chat_without_a_template_is_refused(is_chat: bool | None, system: str | None) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        encode_prompt(BYTES, "hi", is_chat=is_chat, system=system)


def test_template_that_refuses_the_prompt_is_reported_with_its_reason() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(BadInputError, match="no system turns here"):
        encode_prompt(tokenizer, "hi", is_chat=None, system="be brief")


def test_start_token_comes_once_with_and_without_a_template() -> None:
    tokenizer = byte_tokenizer(["<s>"])
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", start)]
    )
    assert encode_prompt(tokenizer, "hi", is_chat=None, system=None).count(start) == 1
    tokenizer.chat_template = "<s>" + TEMPLATE
    assert encode_prompt(tokenizer, "hi", is_chat=None, system=None).count(start) == 1


def test_empty_prompt_is_the_start_token_or_refused() -> None:
    assert encode_prompt(DEMO, "", is_chat=None, system=None) == [DEMO.bos_token_id]
    with pytest.raises(BadInputError, match="prompt is empty"):
        encode_prompt(BYTES, "", is_chat=None, system=None)


# --- what goes to a terminal ---


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert printable("a\x1b[31mred\x1b]0;title\x07\rb\x00\x08\x7f") == "a[31mred]0;titleb"
    assert printable("".join(map(chr, range(0x80, 0xA0)))) == ""


def test_line_feeds_tabs_and_all_other_characters_reach_a_terminal() -> None:
    text = "def f():\n\treturn 'é漢👍 \xa0'\n"
    assert printable(text) == text


@given(st.text())
def test_printable_text_holds_no_control_character_and_stays_so(text: str) -> None:
    shown = printable(text)
    assert not {char for char in shown if ord(char) < 32 or 127 <= ord(char) < 160} - {"\n", "\t"}
    assert printable(shown) == shown


# --- whether target and draft mean the same by each id ---


def test_same_tokenizer_in_two_folders_is_accepted() -> None:
    check_same_tokens(DEMO, load_tokenizer(demo_folder("draft")))


def test_added_tokens_that_only_one_of_both_has_are_accepted() -> None:
    other = byte_tokenizer()
    other.add_tokens(["<tool>", "<think>"], special_tokens=True)
    check_same_tokens(BYTES, other)
    check_same_tokens(other, BYTES)


def merged(pairs: Sequence[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of the letters a to d with merges."""
    tokens = [*"abcd", *(first + second for first, second in pairs)]
    model = models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=list(pairs))
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))


@pytest.mark.parametrize(
    ("target", "draft", "named"),
    [
        (word_tokenizer(["a", "b", "c"]), word_tokenizer(["a", "c", "b"]), "token 1 is 'b' in the target and 'c'"),
        (word_tokenizer(["a", "b"]), word_tokenizer(["a", "b", "c"]), "token 2 is None in the target and 'c'"),
        (word_tokenizer(["a", "b", "c"]), word_tokenizer(["a", "b"]), "token 2 is 'c' in the target and None"),
        (merged([("a", "b")]), merged([("c", "d")]), "token 4 is 'ab' in the target and 'cd'"),
        (BYTES, DEMO, "token 0 is"),
    ],
    ids=["two-ids-swapped", "longer", "shorter", "other-merges", "another-family"],
)
def test_tokenizers_that_differ_are_refused_by_the_first_id(
    target: PreTrainedTokenizerFast, draft: PreTrainedTokenizerFast, named: str
) -> None:
    with pytest.raises(BadInputError, match=named):
        check_same_tokens(target, draft)


def test_added_token_that_replaces_another_of_the_target_is_refused() -> None:
    target, draft = byte_tokenizer(["<a>"]), byte_tokenizer()
    draft.add_tokens(["<b>"], special_tokens=True)
    with pytest.raises(BadInputError, match="token 256 is '<a>' in the target and '<b>'"):
        check_same_tokens(target, draft)


# --- folders ---


def damage_json(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")


def remove(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize("damage", [damage_json, remove])
def test_damaged_or_missing_tokenizer_is_refused_with_its_folder(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = copy_of(demo_folder("draft"), tmp_path / "model")
    damage(folder)
    with pytest.raises(BadInputError, match=r"tokenizer in .*model cannot be read"):
        load_tokenizer(folder)
