"""The floors: a file imports only from its own floor or below; and importing the package stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "llamalab"

FLOOR = {
    "engine": 0,
    "errors": 0,
    "scored": 0,
    "checkpoints": 1,
    "llama": 1,
    "native": 1,
    "ope": 1,
    "chat": 2,
    "engines": 2,
    "sandbox": 2,
    "templates": 2,
    "lab": 3,
    "scoring": 3,
    "arena": 4,
    "rlm": 4,
    "__main__": 5,
    "cli": 5,
    "serve": 5,
}
TOP = 6
"""The package itself (`llamalab/__init__.py`) stands above every floor: nothing inside imports it."""

HEAVY = {"llama_cpp", "numpy", "jax", "torch", "rich", "jinja2", "pydantic", "huggingface_hub", "gguf", "llguidance"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    parts = module.split(".")
    return TOP if len(parts) == 1 else FLOOR[parts[1]]


def imports_of(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import of llamalab: at the top, under TYPE_CHECKING, and inside functions."""
    found = []
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            if module == "llamalab":  # `from llamalab import engine` names a module or something of the package itself
                found += [(node.lineno, f"llamalab.{a.name}" if a.name in FLOOR else module) for a in node.names]
            else:
                found.append((node.lineno, module))
    return [(line, module) for line, module in found if module.split(".")[0] == "llamalab"]


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_imports_only_from_its_own_floor_or_below(path: Path) -> None:
    own = floor_of(module_name(path))
    too_high = [f"{path.name}:{line} imports {module}" for line, module in imports_of(path) if floor_of(module) > own]
    assert too_high == []


def test_the_rule_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path / "llamalab")
    file = tmp_path / "llamalab" / "ope" / "weights.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import numpy\nimport llamalab.cli\nfrom llamalab import rlm, load\nfrom ..engines import x\nfrom . import y\n"
        "if TYPE_CHECKING:\n    from llamalab.chat import C\ndef f():\n    import llamalab.scoring.store as s\n"
    )
    assert sorted(imports_of(file)) == [
        (2, "llamalab.cli"),
        (3, "llamalab"),
        (3, "llamalab.rlm"),
        (4, "llamalab.engines"),
        (5, "llamalab.ope"),
        (7, "llamalab.chat"),
        (9, "llamalab.scoring.store"),
    ]


@pytest.mark.parametrize(
    "module", ["llamalab", "llamalab.engine", "llamalab.cli", "llamalab.checkpoints.locate", "llamalab.rlm"]
)
def test_import_loads_no_runtime(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY & set(loaded) == set()


def test_every_public_name_is_there() -> None:
    code = "import llamalab; [getattr(llamalab, name) for name in llamalab.__all__]; print(sorted(llamalab.__all__))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_public_names_agree() -> None:
    """What `__all__` promises is what the lazy table gives and what type checkers see."""
    import llamalab

    imports = [n for n in ast.walk(ast.parse((SOURCE / "__init__.py").read_text())) if isinstance(n, ast.ImportFrom)]
    typed = {alias.asname or alias.name for node in imports for alias in node.names}

    assert set(llamalab.__all__) == set(llamalab._HOME) == typed - {"annotations", "TYPE_CHECKING", "Any"}


def test_unknown_public_name_is_an_attribute_error() -> None:
    import llamalab

    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = llamalab.laod
