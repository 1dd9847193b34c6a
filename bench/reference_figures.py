"""What others published against what our arithmetic makes of it: vLLM, SpecExec, and a llama.cpp discussion.

vLLM (pull request 26498, MT-Bench, drafts of 10): the mean length by its survival, by the likeliest geometric, and by
the pooled share. SpecExec (README): tokens over draft and target time. llama.cpp (discussion 10466, one RTX 4070,
everything in its memory): per pair and kind of text one hazard is fitted to the best gain at its length, and predicts
which length is best and beyond which there is no gain. Nobody published the times there; they are assumed as follows:

- a pass reads the weights once at 85 % of 504 GB/s, and takes 1 ms besides (launches, picking a token);
- weights: the target in 4.5 bits a weight, drafts in 8.5 (q8_0), parameters without the input embedding's rows;
- each further token of a verify pass takes 2 flops a weight at `--matmul-frac` of 58 TFLOPS (fp16, fp32 accumulate).
"""

import argparse
import json
from dataclasses import dataclass

from planner.acceptance import geometric_mle, geometric_tokens_per_round, pooled_share

VLLM_SURVIVAL = (0.74, 0.54, 0.41, 0.30, 0.22, 0.16, 0.12, 0.08, 0.05, 0.02)

# Nodes, draft s, target s, tokens per round, tok/s
SPECEXEC_ROWS = (
    (128, 0.206, 1.534, 6.68, 3.81),
    (256, 0.273, 1.623, 7.65, 4.01),
    (512, 0.373, 1.781, 7.99, 3.68),
)

READ_BYTES_PER_S = 0.85 * 504e9
PEAK_FLOPS_PER_S = 58e12
PASS_OVERHEAD_S = 1e-3
TARGET_BITS, DRAFT_BITS = 4.5, 8.5
LONGEST_DRAFT = 96
TOLERANCE_FRAC = 0.25  # a length within a quarter, or within one, of the published counts as hit


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPair:
    """One row of the discussion: the best gain, its length, and the longest draft that still gains."""

    pair: str
    text: str
    target_params: float
    draft_params: float
    best_gain: float
    best_len: int
    crossover: int | None
    is_beyond: bool = False  # there is still a gain at the longest length that was tried


CODER_14B = 14.0e9
PAIRS = (
    PublishedPair(
        pair="Coder-14B + 0.5B", text="code", target_params=CODER_14B, draft_params=0.49e9,
        best_gain=2.5, best_len=10, crossover=32, is_beyond=True,
    ),
    PublishedPair(
        pair="Coder-14B + 1.5B", text="code", target_params=CODER_14B, draft_params=1.54e9,
        best_gain=1.63, best_len=4, crossover=16, is_beyond=True,
    ),
    PublishedPair(
        pair="Coder-14B + 3B", text="code", target_params=CODER_14B, draft_params=3.09e9,
        best_gain=1.33, best_len=4, crossover=11,
    ),
    PublishedPair(
        pair="Coder-14B + 0.5B", text="general", target_params=CODER_14B, draft_params=0.49e9,
        best_gain=1.4, best_len=4, crossover=12,
    ),
    PublishedPair(
        pair="Coder-14B + 1.5B", text="general", target_params=CODER_14B, draft_params=1.54e9,
        best_gain=1.17, best_len=4, crossover=6,
    ),
    PublishedPair(
        pair="Coder-14B + 3B", text="general", target_params=CODER_14B, draft_params=3.09e9,
        best_gain=1.08, best_len=1, crossover=3,
    ),
    PublishedPair(
        pair="Llama-3.1-8B + 1B", text="?", target_params=7.5e9, draft_params=1.24e9,
        best_gain=1.83, best_len=5, crossover=None,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTimes:
    """Assumed seconds of a plain pass, of each further token verified, and of drafting one token."""

    plain_s: float
    further_token_s: float
    draft_token_s: float

    def gain(self, hazard: float, draft_len: int) -> float:
        """Speed with drafts of this length over the plain speed."""
        round_s = self.plain_s + draft_len * (self.further_token_s + self.draft_token_s)
        return geometric_tokens_per_round(hazard, draft_len) * self.plain_s / round_s


def main() -> None:
    """Print the three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matmul-frac", type=float, default=0.35, help="of 58 TFLOPS in a narrow pass")
    options = parser.parse_args()
    print_vllm()
    print_specexec()
    num_hits = print_llama_cpp(options.matmul_frac)
    print(json.dumps({"matmul_frac": options.matmul_frac, "llama_cpp_hits": num_hits}))


def print_vllm() -> None:
    """The mean length three ways."""
    draft_len = len(VLLM_SURVIVAL)
    print("# vLLM, K = 10: measured mean length 3.64")
    print(f"1 + sum of survival           {1 + sum(VLLM_SURVIVAL):5.2f}")
    print(f"maximum-likelihood geometric  {geometric_tokens_per_round(geometric_mle(VLLM_SURVIVAL), draft_len):5.2f}")
    print(f"pooled accepted/drafted       {geometric_tokens_per_round(pooled_share(VLLM_SURVIVAL), draft_len):5.2f}\n")


def print_specexec() -> None:
    """Its speeds from its times."""
    print("# SpecExec: tok/s = tokens per round / (draft + target)")
    print("nodes  predicted  measured   error")
    for num_nodes, draft_s, target_s, tokens_per_round, tokens_per_s in SPECEXEC_ROWS:
        predicted = tokens_per_round / (draft_s + target_s)
        error_frac = predicted / tokens_per_s - 1
        print(f"{num_nodes:5d}  {predicted:9.2f}  {tokens_per_s:8.2f}  {error_frac:+6.1%}")
    print()


def print_llama_cpp(matmul_frac: float) -> int:
    """Best length and crossover per row, predicted from one fitted hazard; returns the number of hits."""
    print(f"# llama.cpp 10466, RTX 4070, narrow passes at {matmul_frac:.0%} of peak; hit: within 25 % or 1")
    print("pair              text     hazard  best length          longest with a gain")
    num_hits = num_predictions = 0
    for row in PAIRS:
        times = times_of(row, matmul_frac)
        hazard = fitted_hazard(times, row.best_gain, row.best_len)
        start = f"{row.pair:16}  {row.text:7}"
        if hazard is None:
            num_predictions += 1 + (row.crossover is not None)
            most = times.gain(1.0, row.best_len)
            print(f"{start}  none: full acceptance would gain {most:.2f}, {row.best_gain} was published  MISS")
            continue
        best_len = max(range(1, LONGEST_DRAFT + 1), key=lambda length: times.gain(hazard, length))
        crossover = max((k for k in range(1, LONGEST_DRAFT + 1) if times.gain(hazard, k) >= 1), default=0)
        verdicts = [is_near(best_len, row.best_len)]
        shown = f"{best_len:3d} for {row.best_len:3d}   {verdict(verdicts[0])}"
        if row.crossover is not None:
            verdicts.append(crossover > row.crossover if row.is_beyond else is_near(crossover, row.crossover))
            published = f"{'> ' if row.is_beyond else ''}{row.crossover}"
            shown += f"     {crossover:3d} for {published:>4}   {verdict(verdicts[1])}"
        num_hits += sum(verdicts)
        num_predictions += len(verdicts)
        lost_frac = 1 - row.best_gain / times.gain(hazard, best_len)
        print(f"{start}    {hazard:.2f}  {shown}   (published length predicted {lost_frac:.1%} below the best)")
    print(f"{num_hits} of {num_predictions} hit\n")
    return num_hits


def times_of(row: PublishedPair, matmul_frac: float) -> PairTimes:
    """The module's assumptions for one row."""
    return PairTimes(
        plain_s=row.target_params * TARGET_BITS / 8 / READ_BYTES_PER_S + PASS_OVERHEAD_S,
        further_token_s=2 * row.target_params / (matmul_frac * PEAK_FLOPS_PER_S),
        draft_token_s=row.draft_params * DRAFT_BITS / 8 / READ_BYTES_PER_S + PASS_OVERHEAD_S,
    )


def fitted_hazard(times: PairTimes, gain: float, draft_len: int) -> float | None:
    """The hazard that yields this gain at this length, by bisection; None where even full acceptance would not."""
    if times.gain(1.0, draft_len) < gain:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if times.gain(middle, draft_len) < gain else (low, middle)
    return high


def is_near(predicted: int, published: int) -> bool:
    """Within a quarter of the published length, or within one."""
    return abs(predicted - published) <= max(1, TOLERANCE_FRAC * published)


def verdict(is_hit: bool) -> str:
    """The word for the table."""
    return "hit " if is_hit else "MISS"


if __name__ == "__main__":
    main()
