"""The demo pair where transfer binds: speculative over plain decoding, both streamed, on held-out code and prose.

Greedy, prompts of 128 tokens and 64 new ones (the pair is good for 256). Plain and speculative runs take turns. In bf16
a near-tie may fall otherwise in a pass of another width; the last column counts texts that are the same to the letter.
"""

import argparse
import json
import statistics

import torch

from bench.models import print_header, print_json
from planner.contracts.report import Report
from profiles import demo_folder, heldout_path
from runtime.api import Limits, load
from runtime.engine import Engine

PROMPT_TOKENS = 128
NEW_TOKENS = 64


def main() -> None:
    """Measure and print one row per domain and draft length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link", default="emulated:250MB/s")
    parser.add_argument("--device-memory", default="8MiB")
    parser.add_argument("--prompts", type=int, default=9, help="of each domain")
    parser.add_argument("--draft-lens", type=int, nargs="+", default=[2, 4, 8])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_header(f"demo pair over {options.link}, --device-memory {options.device_memory}", demo_folder("target"))
    engines = {0: open_engine(options.link, options.device_memory, None)}
    for draft_len in options.draft_lens:
        engines[draft_len] = open_engine(options.link, options.device_memory, draft_len)
    print("domain  K  tokens/round  plain tok/s  speculative tok/s  gain (median of prompts)  same text")
    rows = []
    for domain in ("code", "prose"):
        reports: dict[int, list[Report]] = {draft_len: [] for draft_len in engines}
        for tokens in prompts(domain, engines[0], options.prompts):
            for draft_len, engine in engines.items():
                reports[draft_len].append(run(engine, tokens))
        for draft_len in options.draft_lens:
            rows.append(summary(domain, draft_len, reports[0], reports[draft_len]))
    print_json(rows)
    for engine in engines.values():
        engine.close()


def open_engine(link: str, device_memory: str, draft_len: int | None) -> Engine:
    """The demo target within the budget, with the demo draft or without."""
    from runtime.api import make_plan

    plan = make_plan(
        demo_folder("target"),
        draft=None if draft_len is None else demo_folder("draft"),
        limits=Limits(device=device_memory),
        context_tokens=PROMPT_TOKENS + NEW_TOKENS,
        draft_len=draft_len or 1,
        link=link,
    )
    return load(plan=plan)


def prompts(domain: str, engine: Engine, num_prompts: int) -> list[list[int]]:
    """The first tokens of held-out texts of one domain."""
    rows = [json.loads(line) for line in heldout_path().read_text().splitlines()]
    encoded = [engine.tokenizer.encode(row["text"]) for row in rows if row["domain"] == domain]
    return [tokens[:PROMPT_TOKENS] for tokens in encoded if len(tokens) >= PROMPT_TOKENS][:num_prompts]


def run(engine: Engine, tokens: list[int]) -> Report:
    """The report of one greedy run."""
    generation = engine.generate(tokens, max_tokens=NEW_TOKENS)
    for _ in generation:
        pass
    return generation.report()


def summary(domain: str, draft_len: int, plain: list[Report], fast: list[Report]) -> dict[str, object]:
    """Print and return one row."""
    both = list(zip(plain, fast, strict=True))
    pairs = [(a.generated_tokens_per_s or 0.0, b.generated_tokens_per_s or 0.0) for a, b in both]
    num_tokens = sum(entry.num_emitted_tokens for report in fast for entry in report.rounds)
    tokens_per_round = num_tokens / sum(report.num_rounds for report in fast)
    gain = statistics.median(b / a for a, b in pairs)
    num_same = sum(a.text == b.text for a, b in both)
    plain_rate, fast_rate = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    print(
        f"{domain:6}  {draft_len}  {tokens_per_round:12.2f}  {plain_rate:11.2f}  {fast_rate:17.2f}  {gain:6.2f}"
        f"                    {num_same} of {len(plain)}"
    )
    return {"domain": domain, "draft_len": draft_len, "tokens_per_round": tokens_per_round, "gain": gain}


if __name__ == "__main__":
    main()
