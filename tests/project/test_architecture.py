"""The shape of the code: levels, sizes, who imports whom, and what the loop refuses to do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
# the one table of levels: a folder is one room, and imports run only downward, or to the left within a line
LEVELS = [line.split()[1:] for line in reversed(TOUR.split("```")[1].strip().splitlines())]
ROOMS = [re.sub(r"\.py$|/$", "", name) for level in LEVELS for name in level]
FILES = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).glob("*.py"))])
OURS = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES]

METHODS = {"maml", "leo"}
TENSORBOARD = {"tensorboard", "torch.utils.tensorboard"}
PLOTS = {"matplotlib", "visualization", "report.figures", "report.prediction_figures"}
DISK = {"pathlib", "io", "shelve", "tempfile", "zipfile", "pickle", "json"}
METHODS_REFUSE = {"os", *DISK, *PLOTS, *TENSORBOARD, "training"}
REFUSED = {  # imports that a module or folder must not have, however deep inside a function
    "config": {"torch", "numpy"},
    "dataset": {"torch", "os", *DISK, *PLOTS},
    "learner": {"os", *DISK, *PLOTS, *TENSORBOARD, "config"},
    "maml": METHODS_REFUSE,
    "leo": METHODS_REFUSE,
    "methods": METHODS_REFUSE | {"maml", "leo"},
    "training.step": {*DISK, *PLOTS, *TENSORBOARD, "config"},
    "training.loop": {*DISK, *PLOTS, *TENSORBOARD, "config"},
    "training": {"matplotlib", *TENSORBOARD},
    "evaluation": {"os", *PLOTS, *TENSORBOARD, "training"},
    "tables": {"os", *PLOTS, *TENSORBOARD, "learner", "config"},
    "visualization": {"torch", "os", *DISK, "matplotlib.pyplot", "pylab"},
    "report": {"torch", "os", "matplotlib.pyplot", "pylab", *TENSORBOARD},
    "report.figures": DISK,
    "report.prediction_figures": DISK,
    "results_manager": {"matplotlib.pyplot", "learner", "training"},
    "regressor": {*PLOTS, *TENSORBOARD, "training", "argparse", "signal"},
    "commands": {"matplotlib.pyplot", *TENSORBOARD},
    "registry": {"matplotlib", "training", *TENSORBOARD},
    "main": {"matplotlib"},
}
NO_DISK = ("dataset", "learner", "maml", "leo", "training.step", "training.loop", "evaluation.errors", "visualization")
NAME_METHODS = {"registry", "maml", "leo", "commands.runs", "main", "config"}  # `maml` is the default of --method


def room(name: str) -> str:
    return name.split(".")[0]


def path_of(module: str) -> Path:
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def source(module: str) -> str:
    return path_of(module).read_text(encoding="utf-8")


def imported_names(text: str) -> set[str]:
    """Dotted names of everything that a source imports, at the top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "."} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports(module: str) -> set[str]:
    return imported_names(source(module))


def upward(module: str, names: set[str]) -> set[str]:
    """Which of the imported `names` do not stand below `module`."""
    place = ROOMS.index(room(module))
    others = {name for name in names if room(name) in ROOMS and room(name) != room(module)}
    return {name for name in others if ROOMS.index(room(name)) >= place}


def circles(edges: dict[str, set[str]]) -> list[str]:
    """Modules that reach themselves by imports."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        pending = [start]
        while pending:
            for target in edges.get(pending.pop(), set()) - seen:
                seen.add(target)
                pending.append(target)
        return seen

    return [module for module in edges if module in reached(module)]


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def calls(node: ast.AST) -> list[ast.Call]:
    return [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]


# ---- sizes


def test_ten_files_lie_at_the_top_level() -> None:
    assert len(list(ROOT.glob("*.py"))) == 10


# ---- imports


def test_every_file_stands_on_a_level() -> None:
    assert {room(module) for module in OURS} == set(ROOMS)


@pytest.mark.parametrize("module", OURS)
def test_imports_run_only_downward(module: str) -> None:
    assert upward(module, imports(module)) == set()


def test_no_circle_of_imports_within_a_folder_or_between_files() -> None:
    assert circles({module: imports(module) & set(OURS) for module in OURS}) == []


def test_an_upward_import_and_a_circle_would_be_found() -> None:
    assert upward("system.files", imported_names("def f():\n    from commands.train import run")) == {
        "commands.train",
        "commands.train.run",
    }
    assert upward("dataset", imported_names("import config, dataset, numpy")) == set()
    assert circles({"a.b": {"a.c"}, "a.c": {"d"}, "d": {"a.b"}, "e": {"d"}}) == ["a.b", "a.c", "d"]


@pytest.mark.parametrize("module", OURS)
def test_a_module_does_not_import_what_it_must_not_know(module: str) -> None:
    refused = REFUSED.get(module, set()) | REFUSED.get(room(module), set())
    assert {name for name in imports(module) if within(name, refused)} == set()


@pytest.mark.parametrize("module", OURS)
def test_no_import_is_hidden_in_a_call_or_a_star(module: str) -> None:
    hidden = {"__import__", "import_module", "exec", "eval"}
    names = {getattr(call.func, "id", getattr(call.func, "attr", "")) for call in calls(ast.parse(source(module)))}
    assert not names & hidden and not any(name.endswith("*") for name in imports(module))


@pytest.mark.parametrize(
    ("modules", "absent"),
    [("visualization, report.figures, evaluation.comparison", {"torch", "matplotlib.pyplot"}), ("config, dataset", {"torch"})],
)
def test_importing_a_module_leaves_out_what_it_must_not_know(modules: str, absent: set[str]) -> None:
    program = f"import sys, {modules}; print(sorted({absent} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


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


def test_every_function_that_makes_a_figure_is_a_figure_function() -> None:
    makers = {}
    for module in OURS:
        for node in ast.parse(source(module)).body:
            called = {getattr(call.func, "id", "") for call in calls(node)}
            if isinstance(node, ast.FunctionDef) and called & {"figure_grid", "panels"} and node.name != "panels":
                makers[node.name] = [ast.unparse(decorator) for decorator in node.decorator_list]
    assert len(makers) >= 9 and set(map(tuple, makers.values())) == {("figure_function",)}


# ---- names


@pytest.mark.parametrize("module", [module for module in OURS if module not in NAME_METHODS and room(module) != "methods"])
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


@pytest.mark.parametrize(
    "module", ["learner", "training.step", "training.loop", "evaluation.errors", "dataset", "visualization", "results_manager"]
)
def test_no_numerical_function_is_handed_a_configuration(module: str) -> None:
    functions = [node for node in ast.walk(ast.parse(source(module))) if isinstance(node, ast.FunctionDef)]
    allowed = {
        "__init__",
        "from_config",
        "meta_parameters_per_weight",
        "numbers_per_task",
        "log_evaluation",
    }  # the first read it into numbers, the last shows it in a table
    handed = {f.name for f in functions for arg in f.args.args + f.args.kwonlyargs if arg.arg in ("config", "cfg", "args")}
    assert handed <= allowed


# ---- the loop


def test_no_step_of_the_loop_waits_for_the_device_without_a_comment() -> None:
    texts = (
        source(f"training.{name}").replace("from __future__ import annotations\n", "\n") for name in ("state", "step", "loop")
    )
    lines = (text := "".join(texts)).splitlines()
    methods: dict[str, list[ast.AST]] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            methods.setdefault(node.name, []).append(node)
    waiting = {"item", "tolist", "cpu", "numpy", "synchronize"}
    pending, seen, found = ["train", "__call__", "_step", "_steps", "_whole", "_gradient", "_update"], set(), []
    while pending:
        name = pending.pop()
        seen.add(name)
        for call in (call for method in methods[name] for call in calls(method)):
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
    assert sorted(places) == ["learner._each_task", "training.step._meta_loss"]


def test_nobody_calls_backward() -> None:
    backward = [module for module in OURS for call in calls(ast.parse(source(module))) if "backward" in ast.unparse(call.func)]
    assert backward == []


@pytest.mark.parametrize("module", OURS)
def test_every_torch_load_names_weights_only(module: str) -> None:
    loads = [call for call in calls(ast.parse(source(module))) if ast.unparse(call.func) == "torch.load"]
    assert all(any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords) for call in loads)


# ---- what the client fixed


def test_requirements_list_exactly_the_packages_agreed_on() -> None:
    files = [(ROOT / name).read_text(encoding="utf-8").split("\n") for name in ("requirements.txt", "requirements-test.txt")]
    names = [sorted(re.split(r"[^A-Za-z0-9_-]", line)[0] for line in lines if line and line[0] != "-") for lines in files]
    assert names == [
        ["matplotlib", "numpy", "psutil", "tensorboard", "torch", "tqdm"],
        ["hypothesis", "pytest", "pytest-xdist"],
    ]
    assert files[1][0] == "-r requirements.txt"


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
    tops = {room(name) for name in imports(module)} - set(ROOMS) - set(sys.stdlib_module_names)
    assert tops <= required
