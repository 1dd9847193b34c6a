"""What the README says can be pasted: its Python runs on the demo pair, its commands parse, its benchmarks start."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from profiles import demo_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BENCHMARKS = sorted(path.stem for path in (ROOT / "bench").glob("*.py") if "def main" in path.read_text())


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def with_demo_pair(text: str) -> str:
    return text.replace("./Llama-3.1-8B", str(demo_folder("target"))).replace(
        "./Llama-3.2-1B", str(demo_folder("draft"))
    )


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from runtime.api import Limits, make_plan

    load_and_iterate, stream_model = blocks("python")
    make_plan(demo_folder("target"), limits=Limits(device="8MiB"), context_tokens=128).write(tmp_path / "plan.json")
    code = with_demo_pair(load_and_iterate).replace("6GiB", "64MiB").replace('says")', 'says", max_tokens=8)')
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out) > 0
    namespace: dict[str, object] = {"runtime": sys.modules["runtime"]}
    exec(
        compile(with_demo_pair(stream_model).replace("plan.json", str(tmp_path / "plan.json")), "README.md", "exec"),
        namespace,
    )
    model = namespace["model"]
    assert type(model).__name__ == "LlamaForCausalLM"
    model.streamed.close()  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_commands_of_the_readme_run_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("import os\n")
    lines = [line for block in blocks("") for line in block.splitlines() if line.startswith(".venv/bin/")]
    assert len(lines) == 7
    for line in lines:
        command, _, out = line.partition(" > ")
        arguments = shlex.split(with_demo_pair(command).replace("6GiB", "16MiB"))
        arguments[0] = str(Path(sys.executable).parent / Path(arguments[0]).name)
        extra = {"generate": ["--max-tokens", "4"], "profile": ["--quick", "--force"]}.get(arguments[1], [])
        done = subprocess.run([*arguments, *extra], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if out:
            (tmp_path / out).write_text(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_explains_itself(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def test_every_benchmark_is_named_in_the_log() -> None:
    log = (ROOT / "docs" / "LOG.md").read_text()
    assert BENCHMARKS
    assert [name for name in BENCHMARKS if f"bench.{name}" not in log] == []
