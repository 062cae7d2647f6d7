"""The shape of the code: levels, who imports whom, and what the training loop refuses to do."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
# The one table of levels. A folder is one room; imports run only downward, or to the left within a line.
LEVELS = [line.split()[1:] for line in reversed(TOUR.split("```")[1].strip().splitlines())]
ROOMS = [name.removesuffix(".py").removesuffix("/") for level in LEVELS for name in level]
FILES = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).glob("*.py"))]
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text(encoding="utf-8")
    for path in sorted(FILES)
}
TREES = {module: ast.parse(text) for module, text in SOURCES.items()}

METHODS = {"maml", "leo"}
TENSORBOARD = {"tensorboard", "torch.utils.tensorboard"}
PLOTS = {"matplotlib", "visualization", "report.figures"}
DISK = {"pathlib", "io", "shelve", "tempfile", "zipfile", "pickle", "json"}
METHODS_REFUSE = {"os", *DISK, *PLOTS, *TENSORBOARD, "training"}
REFUSED = {  # imports that a module or room must not have, however deep inside a function
    "config": {"torch", "numpy"},
    "dataset": {"torch", "os", *DISK, *PLOTS},
    "system": {"matplotlib"},
    "learner": {"os", *DISK, *PLOTS, *TENSORBOARD, "config"},
    "maml": METHODS_REFUSE,
    "leo": METHODS_REFUSE,
    "methods": METHODS_REFUSE | METHODS,
    "training.step": {*DISK, *PLOTS, *TENSORBOARD, "config"},
    "training.loop": {*DISK, *PLOTS, *TENSORBOARD},
    "training": {"matplotlib", *TENSORBOARD},
    "evaluation": {"os", *PLOTS, *TENSORBOARD, "training"},
    "tables": {"os", *PLOTS, *TENSORBOARD, "learner", "config"},
    "visualization": {"torch", "os", *(DISK - {"io"}), "matplotlib.pyplot", "pylab"},
    "report": {"torch", "os", "matplotlib.pyplot", "pylab", *TENSORBOARD},
    "report.figures": DISK,
    "results_manager": {"matplotlib.pyplot", "learner", "training"},
    "regressor": {*PLOTS, *TENSORBOARD, "training", "argparse", "signal"},
    "commands": {"matplotlib.pyplot", *TENSORBOARD},
    "registry": {"matplotlib", "training", *TENSORBOARD},
    "main": {"matplotlib"},
}
NAME_METHODS = {"registry", "maml", "leo", "commands.runs", "main", "config"}  # `maml` is the default of --method


def room(name):
    return name.split(".")[0]


def imported_names(tree):
    """Dotted names of everything that a source imports, at the top or inside a function."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "."} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


IMPORTS = {module: imported_names(tree) for module, tree in TREES.items()}


def upward(module, names):
    """Which of the imported `names` do not stand below `module`."""
    others = {name for name in names if room(name) in ROOMS and room(name) != room(module)}
    return {name for name in others if ROOMS.index(room(name)) >= ROOMS.index(room(module))}


def circles(edges):
    """Modules that reach themselves by imports."""
    reached = {module: set(targets) for module, targets in edges.items()}
    for middle in edges:  # paths through one module more
        for targets in reached.values():
            targets |= reached[middle] if middle in targets else set()
    return [module for module, targets in reached.items() if module in targets]


def within(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def calls(node):
    return [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]


def functions():
    """Every function of the code, with its module."""
    for module, tree in TREES.items():
        yield from ((module, node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_ten_files_lie_at_the_top_level_and_every_room_has_a_level():
    assert len(list(ROOT.glob("*.py"))) == 10
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks"}
    assert {room(module) for module in SOURCES} | packages == set(ROOMS)


def test_imports_run_only_downward_and_in_no_circle():
    assert {module: found for module, names in IMPORTS.items() if (found := upward(module, names))} == {}
    assert circles({module: names & set(SOURCES) for module, names in IMPORTS.items()}) == []
    hidden = imported_names(ast.parse("def f():\n    from commands.train import run"))  # an upward one would be found
    assert upward("system.files", hidden) == {"commands.train", "commands.train.run"}
    assert upward("dataset", imported_names(ast.parse("import config, dataset, numpy"))) == set()
    assert circles({"a.b": {"a.c"}, "a.c": {"d"}, "d": {"a.b"}, "e": {"d"}}) == ["a.b", "a.c", "d"]


def test_no_module_imports_what_it_must_not_know():
    refused = {module: REFUSED.get(module, set()) | REFUSED.get(room(module), set()) for module in SOURCES}
    found = {module: {name for name in names if within(name, refused[module])} for module, names in IMPORTS.items()}
    assert {module: names for module, names in found.items() if names} == {}


def test_no_import_is_hidden_in_a_call_or_a_star():
    hidden = {"__import__", "import_module", "exec", "eval"}
    called = {getattr(call.func, "id", getattr(call.func, "attr", "")) for tree in TREES.values() for call in calls(tree)}
    assert not called & hidden and not any(name.endswith("*") for names in IMPORTS.values() for name in names)


def test_importing_a_module_leaves_out_what_it_must_not_know():
    program = "import sys, config, dataset, visualization, report.figures, evaluation.statistics\n"
    program += "print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_a_module_that_refuses_to_know_files_opens_none():
    disk = {"open", "savefig", "save", "load", "savez", "savez_compressed", "loadtxt", "savetxt", "mkdir", "write_text"}
    owners = ("torch", "np", "numpy")  # trainer.load takes up a state: a method of its own is no disk access
    forbidden = disk | {f"{owner}.{name}" for owner in owners for name in disk}
    modules = ("dataset", "learner", "maml", "leo", "training.step", "training.loop", "visualization")
    assert [call for module in modules for call in calls(TREES[module]) if ast.unparse(call.func) in forbidden] == []


def test_no_method_is_named_where_any_method_must_work():
    allowed = {module for module in SOURCES if module in NAME_METHODS or room(module) == "methods"}
    word = re.compile(r"(?<![A-Za-z0-9])(?:maml|leo)(?![A-Za-z0-9])", re.IGNORECASE)
    assert {module: word.findall(text) for module, text in SOURCES.items() if module not in allowed and word.search(text)} == {}
    compared = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    sides = [side for node in compared for side in [node.left, *node.comparators] if isinstance(side, ast.Constant)]
    assert [side.value for side in sides if side.value in METHODS] == []


def test_every_module_says_what_it_is_for():
    assert [module for module, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_no_numerical_function_is_handed_a_configuration():
    numerical = {"learner", "training.step", "training.loop", "evaluation.errors", "dataset", "visualization"}
    allowed = {"from_config", "__init__", "meta_parameters_per_weight", "numbers_per_task"}  # they read it into numbers
    handed = {
        f"{module}.{function.name}"
        for module, function in functions()
        for arg in function.args.args + function.args.kwonlyargs
        if module in numerical and function.name not in allowed and arg.arg in ("config", "cfg", "args")
    }
    assert handed == set()


def test_no_step_of_the_loop_waits_for_the_device_without_a_comment():
    texts = (SOURCES[f"training.{name}"].split("from __future__ import annotations\n") for name in ("state", "step", "loop"))
    lines = (text := "\n".join(part for parts in texts for part in parts)).splitlines()
    methods = {}
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


def test_the_meta_loss_and_the_evaluation_are_vectorised_in_one_place_each():
    called = {(module, ast.unparse(call.func)) for module, function in functions() for call in calls(function)}
    assert {module for module, name in called if name in ("vmap", "torch.vmap")} == {
        "learner",
        "training.step",
        "training.method_check",
    }


def test_nobody_calls_backward_and_every_torch_load_names_weights_only():
    everywhere = [call for tree in TREES.values() for call in calls(tree)]
    assert [ast.unparse(call) for call in everywhere if "backward" in ast.unparse(call.func)] == []
    loads = [call for call in everywhere if ast.unparse(call.func) == "torch.load"]
    named = [{ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "weights_only"} for call in loads]
    assert loads and all(values == {"True"} for values in named)


def test_requirements_list_exactly_the_packages_agreed_on_which_are_all_that_is_imported():
    files = [(ROOT / name).read_text(encoding="utf-8").split("\n") for name in ("requirements.txt", "requirements-test.txt")]
    names = [sorted(re.split(r"[^A-Za-z0-9_-]", line)[0] for line in lines if line and line[0] != "-") for lines in files]
    program, tests = ["matplotlib", "numpy", "psutil", "tensorboard", "torch", "tqdm"], ["hypothesis", "pytest", "pytest-xdist"]
    assert names == [program, tests] and files[1][0] == "-r requirements.txt"
    imported = {room(name) for names in IMPORTS.values() for name in names}
    assert imported - set(ROOMS) - set(sys.stdlib_module_names) <= set(program)


def test_what_the_client_fixed_is_at_the_top_level():
    files = "main.py config.py maml.py leo.py dataset.py visualization.py results_manager.py requirements.txt experiments tests"
    assert [name for name in files.split() if not (ROOT / name).exists()] == []
