"""Imports go one way, and the command line stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FOUNDATION = {
    "errors",
    "extensions",
    "progress",
    "text_escape",
    "environment",
    "cores",
    "config",
    "data",
    "run",
    "stages",
}
TOP = {"api", "cli", "pipeline", "preview", "demo", "doctor", "__main__"}

# Layer -> layers that it may import. A stage may import its own package's modules, never another stage.
ALLOWED = {
    "foundation": {"foundation"},
    "models": {"foundation", "models"},
    "cluster": {"foundation", "cluster"},
    "finetune": {"foundation", "models", "finetune"},
    "stage": {"foundation", "models", "cluster", "stage"},
    "export": {"foundation", "export"},
    "top": {"foundation", "models", "cluster", "finetune", "stage", "export", "top"},
}


def layer_of(module: str) -> str:
    parts = module.split(".")
    if parts[0] in ("finetune", "export"):
        return parts[0]
    if len(parts) == 1 or parts[1] in FOUNDATION:
        return "foundation"
    if parts[1] in ("models", "cluster"):
        return parts[1]
    return "top" if parts[1] in TOP else "stage"


def source_files() -> list[Path]:
    return [p for package in ("dreamgen", "finetune", "export") for p in sorted((ROOT / package).rglob("*.py"))]


def imported_modules(path: Path) -> list[str]:
    found, tree = [], ast.parse(path.read_text(encoding="utf-8"))
    not_run = {
        child for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body for child in ast.walk(statement)
    }  # fmt: skip
    for node in ast.walk(tree):
        if node in not_run:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            found.append(node.module)
    return [name for name in found if name.split(".")[0] in ("dreamgen", "finetune", "export")]


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    layer = layer_of(module)
    for imported in imported_modules(path):
        if imported == "dreamgen":
            continue  # the version
        assert layer_of(imported) in ALLOWED[layer], f"{module} ({layer}) imports {imported} ({layer_of(imported)})"
        if layer == "stage" and layer_of(imported) == "stage":
            own, other = (name.split(".")[1] for name in (module, imported))
            assert own == other, f"stage {own} imports stage {other}"


def test_only_its_own_package_names_the_classes_of_a_world_model():
    own = ROOT / "dreamgen/models/cosmos_predict25"
    # A hub id such as nvidia/Cosmos-Predict2.5-2B is a value of a setting and no class.
    classes = re.compile(r"Cosmos(?!-Predict)|UniPC|AutoencoderKLWan|Qwen")
    files = [path for path in [*source_files(), *sorted((ROOT / "benchmarks").glob("*.py"))] if own not in path.parents]
    assert files and [str(path) for path in files if classes.search(path.read_text(encoding="utf-8"))] == []


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from dreamgen.cli.main import main; main(['--help']); main(['run', '--help']);"
        "heavy = {'torch', 'ray', 'diffusers', 'lerobot', 'transformers', 'pandas', 'pyarrow', 'cv2', 'av', 'numpy'};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"--help imports {done.stderr}"


DRIVERS = (
    "import dreamgen.plan.stage, dreamgen.generate.stage; from dreamgen.models.world_model import WORLD_MODELS;"
    "[kind.load_class() for _, kind in WORLD_MODELS.items()]"
)
ESTIMATES = "import dreamgen.preview, finetune.train; import dreamgen.models.cosmos_predict25.training_cost"


@pytest.mark.parametrize(
    ("imports", "heavy"),
    [(DRIVERS, {"torch"}), (ESTIMATES, set()), ("import finetune.inverse_dynamics", set())],
    ids=["plan and the driver of generate", "estimates of a training", "inverse dynamics"],
)
def test_what_does_without_the_world_model_imports_none_of_its_libraries(imports, heavy):
    heavy = heavy | {"diffusers", "transformers", "peft"}
    code = f"import sys; {imports}; sys.exit(', '.join(sorted({heavy} & set(sys.modules))) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"it imports {done.stderr}"
