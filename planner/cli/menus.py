"""The names that a menu offers: machines, models and texts of the catalogue, and what can draft for what."""


def machine_names() -> tuple[str, ...]:
    """All machines of the catalogue."""
    from profiles import catalogue

    return catalogue.machine_names()


def target_names() -> tuple[str, ...]:
    """All models of the catalogue."""
    from profiles import catalogue

    return catalogue.model_names()


def draft_names(target: str) -> tuple[str, ...]:
    """The models that number tokens as the target does and are smaller, the smallest first.

    Raises: BadInputError, for an unknown target.
    """
    from profiles import catalogue

    sizes = {name: catalogue.model(name).weights_bytes("bf16") for name in catalogue.model_names()}
    target_bytes = catalogue.model(target).weights_bytes("bf16")
    fitting = [name for name in sizes if sizes[name] < target_bytes and catalogue.shares_tokenizer(target, name)]
    return tuple(sorted(fitting, key=sizes.__getitem__))


def texts() -> tuple[str, ...]:
    """The kinds of text that acceptance is published for."""
    from profiles import catalogue

    return tuple(sorted({curve.domain for curve in catalogue.read_curves()}))
