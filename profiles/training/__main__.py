"""`python -m profiles.training`: train a pair like the demo pair on this machine's Python.

Standard output carries the final scores only; progress goes to standard error.
"""

import argparse
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profiles.training.corpus import Corpus
    from profiles.training.evaluate import DomainScore

BAD_INPUT = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, save and score a pair; the exit code of the command."""
    parser = _parser()
    options = parser.parse_args(arguments)
    out: Path = options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        parser.error(f"--out {out} already holds something: name a new or an empty folder")

    # Imported late: `--help` must not wait for torch.
    from profiles.training.corpus import CorpusError
    from profiles.training.evaluate import score_pair
    from profiles.training.recipe import FULL, QUICK, with_choices
    from profiles.training.tokenizer import VocabularyError
    from profiles.training.train import train_pair

    recipe = with_choices(
        QUICK if options.quick else FULL,
        target_steps=options.target_steps,
        draft_steps=options.draft_steps,
        seed=options.seed,
    )
    try:
        train_pair(_corpus(options.docs), recipe, out)
    except (CorpusError, VocabularyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(_table(score_pair(out)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m profiles.training", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new or empty folder for the pair")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FOLDER",
        help="reStructuredText sources of Python's documentation: Doc/ of CPython's source release",
    )
    parser.add_argument("--target-steps", type=_positive, metavar="N", help="default 3470: 14.2 M tokens")
    parser.add_argument("--draft-steps", type=_positive, metavar="N", help="default 900: 7.4 M tokens")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default 0; same seed, same pair")
    parser.add_argument("--quick", action="store_true", help="a trial of seconds on a little text; the pair is useless")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} steps: at least 1 is needed")
    return number


def _corpus(docs: Path | None) -> "Corpus":
    from profiles.training.corpus import collect_code, collect_prose, split

    documents = collect_code(Path(sysconfig.get_path("stdlib")))
    if docs is None:
        print("no --docs: prose is left out, the pair learns code only", file=sys.stderr)
    else:
        documents += collect_prose(docs)
    return split(documents)


def _table(scores: "Sequence[DomainScore]") -> str:
    head = f"{'held-out':<9}{'tokens':>9}{'target nats':>13}{'draft nats':>12}{'same first choice':>19}"
    rows = (
        f"{score.domain:<9}{score.num_tokens:>9,}{score.target_loss_nats:>13.3f}"
        f"{score.draft_loss_nats:>12.3f}{score.agreement_frac:>19.3f}"
        for score in scores
    )
    return "\n".join((head, *rows))


if __name__ == "__main__":
    sys.exit(main())
