"""The examples that the notebooks start from: a profile of the demo pair, reports of runs by it, and one timeline.

Made with the very commands that users type, on held-out texts that the profile did not record. Files are then made
small and portable: folders become names, numbers have five digits, and no file keeps a text.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.models import print_header
from planner.contracts.base import write_atomically
from planner.contracts.profile import Profile
from planner.contracts.report import Report
from planner.contracts.timeline import chrome_trace, spans_of_trace
from planner.timelines import round_starts_s
from profiles import demo_folder, heldout_texts

LINK = "emulated:300MB/s"
DEVICE_MEMORY = "13MiB"
PROFILE_S = 200
PROMPT_CHARS = 320
NUM_RECORDINGS = 8  # of each domain, the text's and the draft's
DIGITS = 5
MOST_TRACED_ROUNDS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: which held-out text it goes on with, over which link, and how it drafts."""

    name: str
    domain: str
    text_idx: int
    kind: str
    link: str = LINK
    new_tokens: int = 64
    has_trace: bool = False


RUNS = (
    Run(name="code-none", domain="code", text_idx=0, kind="none", new_tokens=40),
    Run(name="code-chain", domain="code", text_idx=1, kind="chain"),
    Run(name="code-tree", domain="code", text_idx=2, kind="tree", has_trace=True),
    Run(name="code-ngram", domain="code", text_idx=3, kind="ngram"),
    Run(name="code-hybrid", domain="code", text_idx=4, kind="hybrid"),
    Run(name="prose-chain", domain="prose", text_idx=0, kind="chain"),
    Run(name="prose-tree", domain="prose", text_idx=1, kind="tree"),
    Run(name="prose-disk-none", domain="prose", text_idx=2, kind="none", link="disk:cached", new_tokens=40),
    Run(name="prose-disk-chain", domain="prose", text_idx=3, kind="chain", link="disk:cached"),
)


def main() -> None:
    """Measure the profile, or take one that is there, and write profile, reports and timeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("notebooks/examples"))
    parser.add_argument("--profile", type=Path, help="a whole profile of the demo pair, instead of measuring one")
    options = parser.parse_args()
    print_header("examples of the notebooks", demo_folder("target"))
    (options.out / "reports").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        profile = options.profile or measured_profile(Path(folder))
        write(options.out / "profile.json", shrunk_profile(Profile.read(profile)).model_dump_json())
        for run in RUNS:
            write(options.out / "reports" / f"{run.name}.json", report_of(run, profile, options.out, Path(folder)))


def measured_profile(folder: Path) -> Path:
    """What `planner profile` measures within minutes, beside the link that most runs take."""
    path = folder / "profile.json"
    seconds = ("--max-seconds", str(PROFILE_S))
    call("planner", "profile", "--threads", "1", "--link", LINK, *seconds, "--fresh", "--force", "--out", str(path))
    return path


def report_of(run: Run, profile: Path, out: Path, folder: Path) -> str:
    """The report of a run as JSON, without its text; the timeline of its first rounds is written beside."""
    texts = [entry.text for entry in heldout_texts("evaluation") if entry.domain == run.domain]
    prompt = folder / "prompt.txt"
    prompt.write_text(texts[run.text_idx][:PROMPT_CHARS], encoding="utf-8")
    trace = folder / "trace.json"
    printed = call(
        *("runtime", "generate", "--json", "--file", str(prompt), "--max-tokens", str(run.new_tokens)),
        *("--profile", str(profile), "--link", run.link, "--draft-kind", run.kind),
        *("--device-memory", DEVICE_MEMORY, "--threads", "1"),
        *(("--trace", str(trace)) if run.has_trace else ()),
    )
    if run.has_trace:
        write_atomically(out / "trace.json", first_rounds(trace, f"runtime generate, {run.name}"))
    report = Report.parse(printed.encode(), run.name)
    print(f"{run.name:18} {report.generated_tokens_per_s or 0.0:6.2f} tok/s, {report.num_rounds} rounds", flush=True)
    return report.model_copy(update={"text": ""}).model_dump_json()


def first_rounds(trace: Path, label: str) -> str:
    """The timeline up to a few rounds after the prompt."""
    spans = spans_of_trace(trace.read_bytes(), str(trace))
    starts_s = round_starts_s(spans)
    end_s = starts_s[MOST_TRACED_ROUNDS] if len(starts_s) > MOST_TRACED_ROUNDS else float("inf")
    return chrome_trace([span for span in spans if span.stop_s <= end_s], label) + "\n"


def shrunk_profile(profile: Profile) -> Profile:
    """The profile with the first recordings of each domain, none of them with its text."""
    kept = []
    num_seen: dict[tuple[str, str | None], int] = {}
    for entry in profile.acceptance:
        key = (entry.domain, entry.fingerprint)
        num_seen[key] = num_seen.get(key, 0) + 1
        if num_seen[key] <= NUM_RECORDINGS:
            kept.append(entry.model_copy(update={"text": None}))
    return profile.model_copy(update={"acceptance": tuple(kept)})


def write(path: Path, content: str) -> None:
    """Write the JSON without the folder that the models lie in here, its numbers rounded."""
    portable = content.replace(str(demo_folder("target").parent), "demo")
    rounded = json.loads(portable, parse_float=lambda digits: float(f"{float(digits):.{DIGITS}g}"))
    write_atomically(path, json.dumps(rounded, separators=(",", ":")) + "\n")
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


def call(command: str, *arguments: str) -> str:
    """What a command of ours prints. Raises: CalledProcessError; its own words are on stderr."""
    script = Path(sys.executable).parent / command
    return subprocess.run([script, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
