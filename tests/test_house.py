"""The rules of the house: who imports whom, what is never called, units in names, and a help that is instant."""

import ast
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

import planner
import runtime
from planner.contracts import base, machine, model_shape, performance, plan, profile, report

ROOTS = {"planner": Path(planner.__file__).parent, "runtime": Path(runtime.__file__).parent}
FILES = sorted(file for root in ROOTS.values() for file in root.rglob("*.py"))
CONTRACT_MODULES = (base, machine, model_shape, performance, plan, profile, report)

CLI_PACKAGES = ("planner.cli", "runtime.cli")
CROSSING = (*CLI_PACKAGES, "runtime.api")
HEAVY = {"torch", "transformers"}
OURS = {"planner", "runtime", "profiles"}


# --- the checker ---


@dataclass(frozen=True, slots=True)
class Import:
    """One import: the module named, whether it waits for a function to run, and whether only a type checker sees it."""

    module: str
    line: int
    is_lazy: bool
    is_for_types: bool


def module_name(file: Path) -> str:
    for package, root in ROOTS.items():
        if file.is_relative_to(root):
            parts = [package, *file.relative_to(root).with_suffix("").parts]
            return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    raise AssertionError(f"{file} is in no package of ours")


def imports_of(source: str) -> Iterator[Import]:
    """Every import of a module, function bodies included; `import_module` and `__import__` count too."""
    yield from _imports(ast.parse(source), is_lazy=False, is_for_types=False)


def _imports(node: ast.AST, *, is_lazy: bool, is_for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        line = getattr(child, "lineno", 0)
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, line, is_lazy, is_for_types)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {line}: relative imports hide who imports whom"
            for alias in child.names:
                yield Import(f"{child.module}.{alias.name}", line, is_lazy, is_for_types)
        elif isinstance(child, ast.Call) and ast.unparse(child.func).split(".")[-1] in ("import_module", "__import__"):
            yield Import(ast.unparse(child.args[0]).strip("'\""), line, is_lazy, is_for_types)
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and ast.unparse(child.test).split(".")[-1] == "TYPE_CHECKING":
            for statement in child.body:
                yield from _imports(ast.Module([statement], []), is_lazy=is_lazy, is_for_types=True)
            for statement in child.orelse:
                yield from _imports(ast.Module([statement], []), is_lazy=is_lazy, is_for_types=is_for_types)
        else:
            yield from _imports(child, is_lazy=is_lazy or is_function, is_for_types=is_for_types)


def is_within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def offences(name: str, source: str) -> list[str]:
    """What the imports of module `name` break of the rules."""
    found = []
    for entry in imports_of(source):
        top = entry.module.partition(".")[0]
        where = f"{name}:{entry.line} imports {entry.module}"
        may_cross = is_within(name, *CROSSING) and (entry.is_lazy or entry.is_for_types)
        if top in OURS and not may_cross:
            if is_within(name, "planner.contracts"):
                is_allowed = is_within(entry.module, "planner.contracts")
            elif is_within(name, "planner"):
                is_allowed = is_within(entry.module, "planner")
            else:
                is_allowed = is_within(entry.module, "planner.contracts", "runtime")
            if not is_allowed:
                found.append(f"{where}, which is not its to know")
        if is_within(name, "planner") and top in HEAVY and not (is_within(name, *CLI_PACKAGES) and entry.is_lazy):
            found.append(f"{where}, but the planner is arithmetic on plain data")
        if (
            is_within(name, *CLI_PACKAGES)
            and top in {*HEAVY, "scipy", "numpy"}
            and not (entry.is_lazy or entry.is_for_types)
        ):
            found.append(f"{where} at the top, and help must be instant")
        if is_within(name, "runtime.link") and is_within(entry.module, "runtime.checkpoint", "runtime.model"):
            found.append(f"{where}, and a link knows only a source and a slot")
    return found


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_module_imports_only_what_it_may(file: Path) -> None:
    assert offences(module_name(file), file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("planner.contracts.plan", "from planner.search import rank"),
        ("planner.contracts.plan", "def f():\n    import planner.budget"),
        ("planner.contracts.plan", "import profiles"),
        ("planner.budget", "from runtime.host import free_host_bytes"),
        ("planner.budget", "if TYPE_CHECKING:\n    from runtime.engine import Engine"),
        ("planner.budget", "def f():\n    class A:\n        def g(self):\n            import torch"),
        ("planner.budget", "f = lambda: __import__('transformers')"),
        ("planner.cli", "from runtime.api import make_plan"),
        ("runtime.engine", "from planner.budget import plan_for_budget"),
        ("runtime.engine", "def f():\n    from planner import search"),
        ("runtime.engine", "def f():\n    import importlib\n    importlib.import_module('planner.search')"),
        ("runtime.api", "import planner.budget"),
        ("runtime.api", "try:\n    from planner import budget\nexcept ImportError:\n    pass"),
        ("runtime.cli", "import torch"),
        ("runtime.link.base", "def f():\n    from runtime.model import StreamedModel"),
        ("runtime.link.base", "import runtime.checkpoint.reader"),
        ("runtime.link.base", "from runtime import model"),
    ],
)
def test_checker_sees_a_forbidden_import(name: str, source: str) -> None:
    assert len(offences(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("planner.contracts.plan", "from planner.contracts.base import Contract\nimport pydantic"),
        ("planner.budget", "import planner.placement"),
        ("planner.cli", "def f():\n    from runtime.api import make_plan\n    import torch"),
        ("runtime.engine", "from planner.contracts.plan import Plan\nimport torch\nimport runtime.decode"),
        ("runtime.api", "def f():\n    from planner.budget import Budget"),
        ("runtime.api", "if TYPE_CHECKING:\n    from planner.budget import Budget"),
        ("runtime.link.base", "from runtime.link.source import Source\nimport runtime.modelling_elsewhere"),
    ],
)
def test_checker_lets_an_allowed_import_pass(name: str, source: str) -> None:
    assert offences(name, source) == []


def test_checker_sees_every_rule_that_one_import_breaks() -> None:
    assert len(offences("planner.cli", "import torch")) == 2


def test_checker_refuses_relative_imports() -> None:
    with pytest.raises(AssertionError, match="relative"):
        offences("runtime.engine", "from . import decode")


# --- what is never called ---


def calls_of_danger(source: str) -> list[str]:
    """Calls that would run a stranger's code: pickle in any dress, eval and exec, remote code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [
                module for module in modules if module.partition(".")[0] in ("pickle", "dill", "joblib", "shelve")
            ]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "compile", "torch.load", "numpy.load", "np.load"):
                found.append(called)
            found += [
                f"{called}({keyword.arg}=...)"
                for keyword in node.keywords
                if (keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False")
                or (keyword.arg == "shell" and ast.unparse(keyword.value) != "False")
            ]
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [f"torch.{alias.name}" for alias in node.names if alias.name == "load"]
    return found


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_module_never_runs_what_a_stranger_wrote(file: Path) -> None:
    assert calls_of_danger(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "from torch import load",
        "eval(text)",
        "def f():\n    exec(text)",
        "AutoConfig.from_pretrained(folder, trust_remote_code=True)",
        "AutoConfig.from_pretrained(folder, trust_remote_code=is_trusted)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_checker_sees_what_would_run_a_strangers_code(source: str) -> None:
    assert calls_of_danger(source)


@pytest.mark.parametrize(
    "source", ["model.eval()", "re.compile('x')", "f(trust_remote_code=False)", "link.load(source)"]
)
def test_checker_knows_namesakes_apart(source: str) -> None:
    assert calls_of_danger(source) == []


# --- docstrings and names ---


def undocumented(source: str) -> list[str]:
    """Public modules, classes, functions and methods without a docstring."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else ["the module"]
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                found.append(node.name)
            if isinstance(node, ast.ClassDef):
                pending += node.body
    return found


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_everything_public_says_what_it_is(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    if source.strip():
        assert undocumented(source) == []


def test_docstring_checker_sees_methods_and_skips_what_is_private() -> None:
    source = (
        '"""M."""\nclass A:\n    """A."""\n    def f(self): ...\n    def _g(self): ...\ndef _h(): ...\ndef i(): ...'
    )
    assert sorted(undocumented(source)) == ["f", "i"]


UNITS = ("_s", "_bytes", "_bytes_per_s", "_flops", "_flops_per_s", "_tokens", "_tokens_per_s", "_frac", "_idx")
# Counts, positions and shares without a unit, by the field's own words; those of ModelShape are config.json's.
UNITLESS = {
    "index",
    "rows",
    "batch",
    "slots",
    "device",
    "draft_len",
    "draft_depth",
    "max_depth",
    "pass_nodes",
    "tiers",
    "accepted_shares",
    "top_probs",
    "match_shares",
    "match_probs",
    "paths",
    "seed",
    "count",
    "emitted_token",
    "preferred_token",
    "position",
    "logit_gap",
    "allowed_logit_gap",
    "survival",
    "tokens_per_round",
    "streamed_bytes_per_pass",
    "ranks",
    "draft_probs",
    "overlaps",
    "match_lengths",
    "match_hits",
    "calibration",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "experts_per_token",
    "key_values_per_token",
    "query_values_per_token",
    "embedding_params",
    "head_params",
}
# Quantity states the unit in the field that holds it, as Spread does; llama.cpp's names are its own.
EXEMPT = {"Quantity", "Spread", "LlamaCppTimings"}


def is_numeric(annotation: object) -> bool:
    if annotation in (int, float, machine.Quantity, profile.Spread):
        return True
    return get_origin(annotation) is not Literal and any(map(is_numeric, get_args(annotation)))


def numeric_fields() -> Iterator[tuple[str, str]]:
    for module in CONTRACT_MODULES:
        for name, contract in vars(module).items():
            if name.startswith("_"):
                continue
            if inspect.isclass(contract) and issubclass(contract, base.Contract) and name not in EXEMPT:
                for field, info in contract.model_fields.items():
                    if is_numeric(info.annotation):
                        yield f"{name}.{field}", field


def test_numbers_in_contracts_carry_their_unit() -> None:
    fields = dict(numeric_fields())
    assert len(fields) > 60, "the walk over the contracts found too little"
    bare = {field for field in fields.values() if not f"_{field}".endswith(UNITS) and not field.startswith("num_")}
    assert bare == UNITLESS


# --- help ---

COMMANDS = [
    ("planner", ["--help"]),
    ("planner", ["plan", "--help"]),
    ("planner", ["recommend", "--help"]),
    ("planner", ["what-if", "--help"]),
    ("planner", ["simulate", "--help"]),
    ("planner", ["profile", "--help"]),
    ("planner", ["drafts", "--help"]),
    ("planner", ["compare", "--help"]),
    ("planner", ["show", "--help"]),
    ("runtime", ["--help"]),
    ("runtime", ["generate", "--help"]),
]
_SPY = """
import atexit, importlib, sys
atexit.register(lambda: print("LOADED", *sorted(name for name in sys.modules if "." not in name), file=sys.stderr))
sys.argv = sys.argv[1:]
importlib.import_module(sys.argv[0] + ".cli").main()
"""


@pytest.mark.parametrize(
    ("package", "arguments"), COMMANDS, ids=[" ".join([package, *rest]) for package, rest in COMMANDS]
)
def test_help_is_light_and_names_the_exit_codes(package: str, arguments: list[str]) -> None:
    environment = {**os.environ, "COLUMNS": "400", "NO_COLOR": "1"}
    run = subprocess.run(
        [sys.executable, "-c", _SPY, package, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    loaded = run.stderr.rpartition("LOADED ")[2].split()
    assert "typer" in loaded
    assert not {"torch", "transformers", "scipy", "numpy", "huggingface_hub", "plotly"} & set(loaded)
    assert "Exit codes: 0 ok" in run.stdout
    for number in (1, 2, 3, 4, 5, 6, 7, 130, 143):
        assert f" {number} " in run.stdout


def test_every_subcommand_is_among_those_whose_help_is_tested() -> None:
    from planner.cli import app as planner_app
    from runtime.cli import app as runtime_app

    registered = {
        (package, command.name or (command.callback.__name__ if command.callback else ""))
        for package, app in (("planner", planner_app), ("runtime", runtime_app))
        for command in app.registered_commands
    }
    assert registered == {(package, arguments[0]) for package, arguments in COMMANDS if len(arguments) > 1}


@pytest.mark.parametrize("package", ["planner", "runtime"])
def test_console_script_is_installed_and_answers(package: str) -> None:
    script = Path(sys.executable).parent / package
    run = subprocess.run([script, "--help"], capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
