"""Who may import whom, read off the syntax trees; each rule is also shown to catch a planted violation.

* Maths (all of `math/`, and every file of a family but its `*distribution.py`, `__init__.py` and those in `UPPER`)
  imports JAX and maths of its own family.
* `distribution.py`, and what ends in it, adds NumPyro.
* A family never imports another, except that arima, ets, gp and var may use the maths and the distributions of ssm.
* Nothing else in the package imports a family, except `__init__.py` and the adapters that build models.
* ArviZ, Matplotlib and pandas are imported inside functions.
* No `assert`, which `python -O` drops, and no touching of JAX's configuration.
"""

import ast
import sys
from pathlib import Path

import pytest
from helpers import ROOT

# The upper files, and folders, of each family: they hold models, or methods, and may use the core.
UPPER = {
    "arima": {"auto", "gaps", "many", "model", "paths", "search"},
    "bnn": {"local", "methods", "model", "weights"},
    "ets": {"auto", "conditional", "model", "priors"},
    "gp": {
        "covariance",
        "derivative",
        "features",
        "grid_process",
        "integral",
        "large",
        "latent",
        "line_process",
        "means",
        "model",
        "pathwise",
        "product_covariances",
        "stationary_covariances",
        "svgp",
        "svgp_fit",
        "svgp_training",
        "vecchia_process",
    },
    "hmm": {"model"},
    "ssm": {"factors", "latent", "model", "multivariate", "parts", "several_model", "structural"},
    "var": {"model"},
}
FAMILIES = set(UPPER)
USES_SSM = {"arima", "ets", "gp", "var"}
MAY_BUILD_MODELS = {"probkit", "probkit.sklearn"}
MATHS_MAY_USE = set(sys.stdlib_module_names) | {"equinox", "jax", "jaxtyping", "numpy", "optax"}
LAZY = {"arviz", "arviz_base", "arviz_plots", "arviz_stats", "matplotlib", "pandas"}
CONFIGURES_JAX = {
    "jax.config.update",
    "config.update",
    "numpyro.enable_x64",
    "numpyro.set_platform",
    "numpyro.set_host_device_count",
}


def module_of(path: Path) -> str:
    """The dotted name of a file: `probkit/gp/__init__.py` is `probkit.gp`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted((ROOT / "probkit").rglob("*.py"))
MODULES = {module_of(path) for path in FILES}


def family(module: str) -> str | None:
    """The family that a module belongs to, or None."""
    parts = module.split(".")
    return parts[1] if parts[0] == "probkit" and len(parts) > 1 and parts[1] in FAMILIES else None


def rung(module: str) -> str:
    """One of maths, distribution, model (a family's upper files) and core (the rest)."""
    parts = module.split(".")
    if parts[:2] == ["probkit", "math"]:
        return "maths"
    if family(module) is None:
        return "core"
    if len(parts) == 2 or UPPER[parts[1]] & set(parts[2:]):
        return "model"
    return "distribution" if parts[-1].endswith("distribution") else "maths"


def imported(tree: ast.AST, module: str, is_package: bool, modules: set[str]) -> list[tuple[int, str]]:
    """Line and full name of every module that the tree imports, at any depth."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*here, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.append((node.lineno, name if name in modules else base))
    return found


def may_import(module: str, target: str) -> bool:
    """Whether the layers let `module` import `target`."""
    kind, outside = rung(module), not (target == "probkit" or target.startswith("probkit."))
    if outside:
        allowed = MATHS_MAY_USE | ({"numpyro"} if kind == "distribution" else set())
        return kind in ("core", "model") or target.split(".")[0] in allowed
    if module in MAY_BUILD_MODELS:
        return True
    if target == "probkit":
        return False  # the root holds every family: import the module that is meant
    lower = {"maths": ("maths",), "distribution": ("maths", "distribution")}
    if rung(target) not in lower.get(kind, (rung(target),)):
        return False
    theirs = family(target)
    if theirs is None or theirs == family(module):
        return True
    return theirs == "ssm" and family(module) in USES_SSM and rung(target) in ("maths", "distribution")


def run_on_import(tree: ast.AST) -> list[ast.AST]:
    """The nodes outside functions and outside `if TYPE_CHECKING:`."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        found += [node, *run_on_import(node)]
    return found


def violations(source: str, module: str, *, is_package: bool = False, modules: set[str] = MODULES) -> list[str]:
    """What the rules forbid in one source, as `module:line: what`."""
    tree = ast.parse(source)
    found = [
        (line, f"{rung(module)} imports {target}")
        for line, target in imported(tree, module, is_package, modules)
        if not may_import(module, target)
    ]
    top = ast.Module([node for node in run_on_import(tree) if isinstance(node, ast.Import | ast.ImportFrom)], [])
    for line, target in imported(top, module, is_package, modules):
        if target.split(".")[0] in LAZY:
            found.append((line, f"{target} is imported outside a function"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found.append((node.lineno, "assert statement"))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in CONFIGURES_JAX:
            found.append((node.lineno, f"{ast.unparse(node.func)} is called"))
    return [f"{module}:{line}: {what}" for line, what in sorted(set(found))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_package(path):
    found = violations(path.read_text(encoding="utf-8"), module_of(path), is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_the_package_was_found():
    assert {"probkit.model", "probkit.datasets"} <= MODULES


PLANTED = {"probkit.model", "probkit.fit", "probkit.infer", "probkit.infer.nuts", "probkit.math.linalg"} | {
    f"probkit.{name}{part}" for name in FAMILIES for part in ("", ".maths", ".distribution", ".model")
}


@pytest.mark.parametrize(
    ("module", "source", "what"),
    [
        ("probkit.gp.maths", "import numpyro.distributions as dist", "maths imports numpyro.distributions"),
        ("probkit.gp.maths", "import scipy.linalg", "maths imports scipy.linalg"),
        ("probkit.gp.maths", "from probkit.model import Model", "maths imports probkit.model"),
        ("probkit.gp.maths", "from ..model import Model", "maths imports probkit.model"),
        ("probkit.gp.maths", "from .distribution import D", "maths imports probkit.gp.distribution"),
        ("probkit.gp.maths", "from probkit.bnn import maths", "maths imports probkit.bnn.maths"),
        ("probkit.gp.maths", "from probkit.ssm import LocalLevel", "maths imports probkit.ssm"),
        ("probkit.gp.maths", "from probkit.ssm.model import LocalLevel", "maths imports probkit.ssm.model"),
        ("probkit.math.linalg", "from probkit.gp.maths import f", "maths imports probkit.gp.maths"),
        ("probkit.math.linalg", "def f():\n    import pandas", "maths imports pandas"),
        ("probkit.ssm.distribution", "from probkit.model import Model", "distribution imports probkit.model"),
        ("probkit.ssm.model", "from probkit.arima.maths import f", "model imports probkit.arima.maths"),
        ("probkit.arima.model", "from probkit.ssm.model import Model", "model imports probkit.ssm.model"),
        ("probkit.bnn.model", "from probkit.ssm.maths import f", "model imports probkit.ssm.maths"),
        ("probkit.fit", "from probkit import gp", "core imports probkit.gp"),
        ("probkit.fit", "from . import gp", "core imports probkit.gp"),
        ("probkit.fit", "from probkit import LocalLevel", "core imports probkit"),
        ("probkit.fit", "import probkit as pk", "core imports probkit"),
        ("probkit.infer.nuts", "def f():\n    from ..gp.model import GP", "core imports probkit.gp.model"),
        ("probkit.fit", "import pandas as pd", "pandas is imported outside a function"),
        ("probkit.fit", "class A:\n    import matplotlib.pyplot", "matplotlib.pyplot is imported outside a function"),
        ("probkit.fit", "try:\n    from arviz_base import x\nfinally:\n    pass", "arviz_base is imported outside"),
        ("probkit.fit", "def f(x):\n    assert x", "assert statement"),
        ("probkit.fit", "import jax\njax.config.update('jax_enable_x64', True)", "jax.config.update is called"),
        ("probkit.fit", "from jax import config\nconfig.update('jax_enable_x64', True)", "config.update is called"),
        ("probkit.fit", "import numpyro\nnumpyro.enable_x64()", "numpyro.enable_x64 is called"),
    ],
)
def test_a_planted_violation_is_caught(module, source, what):
    found = violations(source, module, modules=PLANTED)
    assert len(found) == 1
    assert what in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("probkit.gp.maths", "import math\nimport jax.numpy as jnp\nfrom probkit.math.linalg import f"),
        ("probkit.gp.maths", "from ..ssm.maths import f\nfrom . import maths"),
        ("probkit.gp.distribution", "import numpyro.distributions as dist\nfrom .maths import f"),
        ("probkit.arima.model", "from probkit.model import Model\nfrom probkit.ssm import maths\nimport numpyro"),
        ("probkit.infer.nuts", "import numpyro\nfrom ..model import Model\nfrom probkit.infer import nuts"),
        ("probkit.fit", "def f():\n    import pandas as pd\n    from arviz_base import from_dict"),
        ("probkit.fit", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas as pd"),
        ("probkit", "from probkit.gp.model import GP\nfrom probkit import gp, ssm"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert violations(source, module, is_package=module == "probkit", modules=PLANTED) == []


def test_relative_imports_of_a_package_start_at_itself():
    assert violations("from .model import GP", "probkit.gp", is_package=True, modules=PLANTED) == []
    found = violations("from ..ssm.model import M", "probkit.gp", is_package=True, modules=PLANTED)
    assert found == ["probkit.gp:1: model imports probkit.ssm.model"]
