"""Executes a plan: streams a decoder's layers under its compute, drafts, verifies, and reports what was measured.

    import runtime

    with runtime.load("path/or/hub-id", draft="path/or/hub-id", device_memory="12GiB") as engine:
        for piece in engine.generate("def fibonacci(n):"):
            print(piece.text, end="", flush=True)

Nothing heavy is imported until a name below is used, so that a command's help stays instant.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.api import Engine, Limits, load, make_plan, stream
    from runtime.sampling import SamplingSettings

__all__ = ["Engine", "Limits", "SamplingSettings", "load", "make_plan", "stream"]


def __getattr__(name: str) -> object:
    if name == "SamplingSettings":
        from runtime import sampling

        return sampling.SamplingSettings
    if name in __all__:
        from runtime import api

        return getattr(api, name)
    raise AttributeError(f"module 'runtime' has no attribute {name!r}")
