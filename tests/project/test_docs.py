"""README.md and docs/ against the code: what they list is complete, what they name exists, their examples run."""

import inspect
import json
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import main
import registry
from config import KEYS, Config, keys_for, parse_assignment, variants
from docs import make_configuration
from results_manager import ExperimentManager
from system.checkpoints import read_checkpoint
from tests.tools.methods import OWN_METHODS, OWN_TASKS
from tests.tools.runs import tensorboard_events


@pytest.fixture(autouse=True)
def families_of_the_registry(monkeypatch):
    """Tests of the benchmarks, collected by the same pytest, add a family of their own."""
    monkeypatch.delitem(registry.TASKS, "oracle", raising=False)


ROOT = Path(main.__file__).parent
PATHS = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
TINY = {"EPOCHS": 2, "NUM_TASKS": 30, "META_BATCH_SIZE": 4, "HIDDEN_DIM": 6, "EVAL_TASKS": 6, "EVAL_QUERY_SAMPLES": 5}
TINY |= {"EVAL_STEPS": 3, "VALIDATION_TASKS": 4, "LOG_INTERVAL": 5, "VALIDATION_INTERVAL": 5, "CHECKPOINT_INTERVAL": 5}
TINY_FLAGS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


def slugs(text):
    """The anchors that GitHub gives to the headings of a page."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_resolves(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]) if "://" not in link]
    broken = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (anchor and anchor not in slugs(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


def test_the_readme_reaches_every_page_in_at_most_160_lines_and_has_one_command_that_installs_and_tests():
    readme = PAGES["README.md"]
    assert [page for page in PAGES if page != "README.md" and f"]({page})" not in readme] == []
    assert len(readme.splitlines()) <= 160
    (found,) = re.findall(r"^    python3 -m venv .*pytest$", readme, re.M)
    assert "-r requirements-test.txt" in found


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists_and_its_command_lines_are_taken(page):
    names = re.findall(r"^    python ((?:\w+/)*\w+\.py)", PAGES[page], re.M)
    names += re.findall(r"`(?:pytest )?(tests/(?:\w+/)*\w+\.py)`", PAGES[page])
    assert [name for name in names if not (ROOT / name).exists()] == []
    for line in re.findall(r"^    .*main\.py(?: .*)?$", PAGES[page], re.M):
        if line.endswith("..."):
            continue  # of which a part is left out
        words = shlex.split(line.split("main.py", 1)[1], comments=True)
        args = main.parse_arguments(main.build_parser(), words)
        for chosen in variants(args.set):
            Config.resolve(dict(map(parse_assignment, chosen)))


def test_the_table_of_settings_is_what_the_code_declares(monkeypatch):
    """`python docs/make_configuration.py` makes it current."""
    for names, own in (("METHODS", OWN_METHODS), ("TASKS", OWN_TASKS)):
        monkeypatch.setattr(make_configuration, names, {name: getattr(registry, names)[name] for name in own})
    assert PAGES["docs/configuration.md"] == make_configuration.document()
    for key, field in KEYS.items():
        shown = json.dumps(field.default) if not isinstance(field.default, float) else f"{field.default:.4g}"
        assert re.findall(rf"^\| `{key}` \| (.*?) \|", PAGES["docs/configuration.md"], re.M) == [shown], key


def own_files():
    """Where the project's own methods and families stand."""
    classes = [registry.METHODS[name] for name in OWN_METHODS]
    families = [registry.tasks_of(name, Config.resolve(registry.defaults("maml", name))) for name in OWN_TASKS[:-1]]
    classes += [type(getattr(family, "family", family)) for family in families]
    return {Path(inspect.getfile(one)).relative_to(ROOT) for one in classes}


def test_every_flag_method_family_file_and_setting_of_a_resumed_run_is_listed():
    flags = [flag for flag in main.build_parser()._option_string_actions if flag.startswith("--")]
    rows = "\n".join(line for line in PAGES["docs/command_line.md"].splitlines() if line.startswith("| `--"))
    assert [name for name in (*flags, *OWN_METHODS, *OWN_TASKS) if f"`{name}`" not in rows] == []
    (listed,) = re.findall(r"\* What may change: (.*?)\.\s", PAGES["docs/processes.md"], re.S)
    words = set(re.findall(r"[A-Z_]{4,}", listed)) - {"EVAL"} | {key for key in KEYS if key.startswith("EVAL")}
    assert words == set(keys_for("resume"))
    paths = [path.relative_to(ROOT) for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")] if path.name != "__init__.py"]
    added = {path for path in paths if path.parts[0] in ("methods", "families")} - own_files()
    own = [path.as_posix() for path in paths if path.parts[0] not in ("tests", "benchmarks") and path.parts[0][0] != "."]
    own = [name for name in own if Path(name) not in added]
    assert own and [path for path in own if f"`{path}`" not in PAGES["docs/tour.md"]] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, figures):
    """A tiny run of the method that leaves most behind, and the names of its figures: they are made, and not drawn."""
    output, names = tmp_path_factory.mktemp("docs"), []
    with figures(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExperimentManager, "save_figures", lambda self, pictures, pdf, iteration: names.extend(pictures))
        patch.setattr(ExperimentManager, "log_picture", lambda self, name, png, iteration: names.append(name))
        flags = [*TINY_FLAGS, "--set", "LEO_LATENT_DIM=3", "--set", "LEO_DECODER_DIM=4"]
        assert main.main(["--method", "leo", "--output", str(output), *flags]) == 0
    return next(output.iterdir()), names


def undocumented(names):
    """Those of `names` that docs/run_directory.md does not have in backticks, where K, SS and NAME stand for any."""
    patterns = []
    for word in re.findall(r"`([^`\n]+)`", PAGES["docs/run_directory.md"]):
        pattern = re.sub(r"(?<![A-Za-z])K(?![A-Za-z])", r"\\d+", re.escape(word))
        patterns.append(re.sub(r"NAME$", r"\\w+", pattern.replace("SS", r"\d\d")))
    return [name for name in names if not any(re.fullmatch(pattern, name) for pattern in patterns)]


def test_every_array_figure_file_and_tag_is_documented(finished):
    directory, figures = finished
    with np.load(directory / "plots" / "data.npz") as arrays:
        assert len(arrays.files) > 10 and undocumented(arrays.files) == []
    plain = [name for name in figures if "/" not in name]
    assert len(plain) == 7 and undocumented(plain) == []
    assert undocumented(f"figures/{name}" for name in figures) == []
    files = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    page = PAGES["docs/run_directory.md"]
    assert [name for name in files if name not in page and not name.startswith("tensorboard/events")] == []
    tags = tensorboard_events(directory / "tensorboard").Tags()["scalars"]
    assert len(tags) > 10 and undocumented(tags) == []


def test_every_entry_of_the_records_is_documented(finished):
    metrics, report = (json.loads((finished[0] / name).read_text()) for name in ("metrics.json", "full_report.json"))
    entries = [*metrics, *metrics["train"][0], *metrics["validation"][0], *metrics["evaluation"], *metrics["performance"]]
    own = {"kl", "latent_std", "encoder_penalty"}  # under their TensorBoard tags
    first = next(iter(metrics["evaluation"]["shots"].values()))
    per_step = [f"{name}[s]" if isinstance(value, list) else name for name, value in first.items() if name != "interval"]
    assert undocumented([name for name in entries if name not in own and name != "mse"] + per_step) == []
    checkpoint = read_checkpoint(finished[0] / "checkpoints" / "last.pt")
    assert undocumented([*first["interval"], *report, *checkpoint]) == []


def example(heading, name, monkeypatch):
    """The first Python block under a heading of the README, as a module."""
    section = PAGES["README.md"].split(f"\n## {heading}\n")[1]
    (code, *_) = re.findall(r"```python\n(.*?)```", section, re.S)
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(code, module.__dict__)
    return module


def train(output, *flags):
    assert main.main(["--output", str(output), *TINY_FLAGS, *flags]) == 0
    (directory,) = output.iterdir()
    return directory


def test_the_readmes_method_trains(tmp_path, monkeypatch):
    module = example("Add a method", "layerwise", monkeypatch)
    monkeypatch.setitem(registry.METHODS, "layerwise", module.LayerwiseMAML)
    directory = train(tmp_path, "--method", "layerwise")
    assert directory.name.startswith("LAYERWISE_Sinusoidal_")
    log_lr = read_checkpoint(directory / "checkpoints" / "last.pt")["meta_parameters"]["log_lr"]
    assert log_lr.shape == (3,) and log_lr.std() > 0  # the step sizes have been learned, each on its own


def test_the_readmes_task_family_trains(tmp_path, monkeypatch):
    module = example("Add a task family", "steps", monkeypatch)
    (entry,) = re.findall(r'`"steps": (lambda config: .*)`', PAGES["README.md"])
    monkeypatch.setitem(registry.TASKS, "steps", eval(entry, module.__dict__))
    assert train(tmp_path, "--tasks", "steps").name.startswith("MAML_Steps_")
