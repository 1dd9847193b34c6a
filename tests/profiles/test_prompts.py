"""The texts that ship: of every domain, with their licences, and never the same for profiling and for evaluation."""

from pathlib import Path

import profiles
from profiles import PROMPT_DOMAINS, domain_prompts, heldout_texts
from runtime.measure.prompts import read_prompts


def test_every_domain_has_sixteen_different_prompts_of_some_length() -> None:
    prompts = domain_prompts()
    for domain in PROMPT_DOMAINS:
        texts = {prompt.text for prompt in prompts if prompt.domain == domain}
        assert len(texts) == 16
        assert all(len(text.strip()) >= 32 for text in texts)


def test_prompt_files_are_what_the_command_reads_as_prompts() -> None:
    folder = Path(profiles.__file__).parent / "prompts"
    for domain in PROMPT_DOMAINS:
        assert {prompt.domain for prompt in read_prompts(folder / f"{domain}.jsonl")} == {domain}


def test_licences_and_sources_lie_beside_the_prompts() -> None:
    folder = Path(profiles.__file__).parent / "prompts"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for name in (*(f"{domain}.jsonl" for domain in PROMPT_DOMAINS), *(file.name for file in folder.glob("*.LICENSE"))):
        assert f"`{name}`" in readme


def test_no_heldout_text_is_both_profiled_and_evaluated() -> None:
    profiled, evaluated = heldout_texts("profile"), heldout_texts("evaluation")
    assert not {entry.text for entry in profiled} & {entry.text for entry in evaluated}
    for domain in ("code", "prose"):
        counts = [sum(entry.domain == domain for entry in part) for part in (profiled, evaluated)]
        assert counts[0] - counts[1] in (0, 1)
    assert len(profiled) + len(evaluated) == 41
