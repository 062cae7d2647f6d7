"""The shape of the code: who imports whom, what each module refuses to know, and what the loop refuses to do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Imports run only downward: a module may import those of ours that stand in its set, and no other.
METHODS = {"maml", "leo"}
OURS = {
    "config": set(),
    "dataset": set(),
    "results_manager": set(),
    "visualization": set(),
    "learner": {"dataset"},
    "maml": {"config", "dataset", "learner"},
    "leo": {"config", "dataset", "learner"},
    "compilation": set(),
    "processes": set(),
    "trainer": {"compilation", "dataset", "learner", "processes"},
}
OURS["comparison_figures"] = {"visualization"}
OURS["experiment"] = set(OURS) - METHODS
OURS["comparison"] = {"comparison_figures", "config", "results_manager", "visualization"}
OURS["prediction"] = {"comparison_figures", "dataset", "results_manager", "trainer"}
OURS["arguments"] = {"config", "results_manager"}
OURS["main"] = set(OURS)

TENSORBOARD = {"tensorboard", "torch.utils.tensorboard"}
PLOTS = {"matplotlib", "visualization"}
FILES = {"pathlib", "io", "shelve", "tempfile", "zipfile", "pickle", "json"}
REFUSED = {  # imports that a module must not have, however deep inside a function
    "config": {"torch", "numpy"},
    "dataset": {"torch", "os", *FILES, *PLOTS},
    "learner": {"os", *FILES, *PLOTS, *TENSORBOARD},
    "maml": {"os", *FILES, *PLOTS, *TENSORBOARD},
    "leo": {"os", *FILES, *PLOTS, *TENSORBOARD},
    "trainer": {*FILES, *PLOTS, *TENSORBOARD},
    "visualization": {"torch", "os", *FILES, "matplotlib.pyplot", "pylab"},
    "comparison_figures": {"torch", "os", *(FILES - {"io"}), "matplotlib.pyplot", "pylab"},
    "results_manager": {"matplotlib.pyplot"},
    "comparison": {"torch", "matplotlib.pyplot", *TENSORBOARD},
    "prediction": {"torch", "matplotlib", *TENSORBOARD},
    "experiment": {"matplotlib", *TENSORBOARD},
    "arguments": {"torch", "matplotlib", *TENSORBOARD},
    "main": {"matplotlib"},
}
NO_DISK = ("dataset", "learner", "maml", "leo", "trainer", "visualization")
METHOD_FREE = (
    "compilation",
    "processes",
    "experiment",
    "trainer",
    "results_manager",
    "visualization",
    "dataset",
    "learner",
    "comparison",
    "comparison_figures",
    "prediction",
)


def source(module: str) -> str:
    return (ROOT / f"{module}.py").read_text(encoding="utf-8")


def imports(module: str) -> set[str]:
    """Dotted names of everything that a module imports, at the top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "."} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def calls(node: ast.AST) -> list[ast.Call]:
    return [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]


# ---- imports


def test_every_module_of_the_table_exists_and_no_other() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == set(OURS)


@pytest.mark.parametrize("module", OURS)
def test_a_module_imports_only_those_of_ours_below_it(module: str) -> None:
    assert {name for name in imports(module) if name in OURS} <= OURS[module]


@pytest.mark.parametrize("module", REFUSED)
def test_a_module_does_not_import_what_it_must_not_know(module: str) -> None:
    assert {name for name in imports(module) if within(name, REFUSED[module])} == set()


@pytest.mark.parametrize("module", OURS)
def test_no_import_is_hidden_in_a_call_or_a_star(module: str) -> None:
    hidden = {"__import__", "import_module", "exec", "eval"}
    names = {getattr(call.func, "id", getattr(call.func, "attr", "")) for call in calls(ast.parse(source(module)))}
    assert not names & hidden and not any(name.endswith("*") for name in imports(module))


def test_importing_visualization_leaves_torch_and_pyplot_out() -> None:
    program = "import sys, visualization; print(sorted({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_config_and_dataset_leaves_torch_out() -> None:
    program = "import sys, config, dataset; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("module", NO_DISK)
def test_a_module_that_refuses_to_know_files_opens_none(module: str) -> None:
    disk = {"open", "savefig", "save", "load", "savez", "savez_compressed", "loadtxt", "savetxt", "mkdir", "write_text"}
    torch_or_numpy = ("torch", "np", "numpy", "")  # trainer.load takes up a state: a method of its own is no disk access
    found = [
        ast.unparse(call)
        for call in calls(ast.parse(source(module)))
        if (isinstance(call.func, ast.Name) and call.func.id in disk)
        or (isinstance(call.func, ast.Attribute) and call.func.attr in disk and ast.unparse(call.func.value) in torch_or_numpy)
    ]
    assert found == []


# ---- names


@pytest.mark.parametrize("module", METHOD_FREE)
def test_no_method_is_named_where_any_method_must_work(module: str) -> None:
    words = re.findall(r"(?<![A-Za-z0-9])(?:maml|leo)(?![A-Za-z0-9])", source(module), re.IGNORECASE)
    assert words == []


def test_no_branch_compares_the_methods_name() -> None:
    compared = [
        ast.unparse(node)
        for module in OURS
        for node in ast.walk(ast.parse(source(module)))
        if isinstance(node, ast.Compare)
        and any(isinstance(side, ast.Constant) and side.value in METHODS for side in [node.left, *node.comparators])
    ]
    assert compared == []


@pytest.mark.parametrize("module", OURS)
def test_every_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(ast.parse(source(module)))


@pytest.mark.parametrize("module", ["learner", "trainer", "dataset", "visualization", "results_manager"])
def test_no_numerical_function_is_handed_a_configuration(module: str) -> None:
    functions = [node for node in ast.walk(ast.parse(source(module))) if isinstance(node, ast.FunctionDef)]
    allowed = {
        "from_config",
        "numbers_per_weight",
        "log_evaluation",
    }  # the first read it into numbers, the last shows it in a table
    handed = {f.name for f in functions for arg in f.args.args + f.args.kwonlyargs if arg.arg in ("config", "cfg", "args")}
    assert handed <= allowed


# ---- the loop


def test_no_step_of_the_loop_waits_for_the_device_without_a_comment() -> None:
    text = source("trainer")
    lines = text.splitlines()
    methods = {node.name: node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    waiting = {"item", "tolist", "cpu", "numpy", "synchronize"}
    pending, seen, found = ["train", "_whole_step", "_split_step"], set(), []
    while pending:
        name = pending.pop()
        seen.add(name)
        for call in calls(methods[name]):
            if "#" in lines[call.lineno - 1]:
                continue  # says why, beside the call
            attribute = getattr(call.func, "attr", getattr(call.func, "id", ""))
            if attribute in waiting:
                found.append(f"{name}: {ast.unparse(call)}")
            if attribute in methods and attribute not in seen:
                pending.append(attribute)
    assert found == []


def test_the_meta_loss_of_training_is_vectorised_in_one_place() -> None:
    places = [
        f"{module}.{node.name}"
        for module in OURS
        for node in ast.walk(ast.parse(source(module)))
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(call.func) in ("vmap", "torch.vmap") for call in calls(node))
    ]
    assert sorted(places) == ["trainer._meta_loss", "trainer.predict"]


def test_nobody_calls_backward() -> None:
    backward = [module for module in OURS for call in calls(ast.parse(source(module))) if "backward" in ast.unparse(call.func)]
    assert backward == []


@pytest.mark.parametrize("module", OURS)
def test_every_torch_load_names_weights_only(module: str) -> None:
    loads = [call for call in calls(ast.parse(source(module))) if ast.unparse(call.func) == "torch.load"]
    assert all(any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords) for call in loads)


# ---- what the client fixed


def test_requirements_list_exactly_the_packages_agreed_on() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    names = [re.split(r"[^A-Za-z0-9_-]", line)[0] for line in lines]
    assert sorted(names) == ["hypothesis", "matplotlib", "numpy", "psutil", "pytest", "tensorboard", "torch", "tqdm"]


@pytest.mark.parametrize(
    "name",
    [
        "main.py",
        "config.py",
        "maml.py",
        "leo.py",
        "dataset.py",
        "visualization.py",
        "results_manager.py",
        "requirements.txt",
        "experiments",
        "tests",
    ],
)
def test_what_the_client_fixed_is_at_the_top_level(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("module", OURS)
def test_third_party_imports_are_in_the_requirements(module: str) -> None:
    required = {re.split(r"[^a-z]", line)[0] for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").split()}
    tops = {name.split(".")[0] for name in imports(module)} - set(OURS) - set(sys.stdlib_module_names)
    assert tops <= required
