"""Write docs/configuration.md from the declarations in config.py and registry.py.

    python docs/make_configuration.py

The words around the tables are here, everything in the tables comes from the code. Changes nothing else.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import KEYS, Config  # noqa: E402 (found by the line above)
from registry import METHODS, PAIR_DEFAULTS, TASK_DEFAULTS, TASKS, defaults, settings_read  # noqa: E402

TARGET = ROOT / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

This file is made by `python docs/make_configuration.py` from `config.py` and `registry.py`; edit those.

A key is set by `--set KEY=VALUE` or in a JSON file given by `--config`; [command_line.md](command_line.md) says which wins.

* VALUE is read as JSON where it is JSON, and as text otherwise. A list may be written without brackets
  (`--set EVAL_SHOTS=5,10,20`), and `true` and `false` in upper or lower case.
* A settings file is one object of strict JSON in UTF-8. NaN, infinity and a key that stands there twice are refused.
* An unknown key, a wrong type (`"0.1"` is text, `1.0` is no whole number) and a value outside of the allowed range are
  refused before anything is written; for an unknown key the nearest known one is named.
* Of each pair AMPLITUDE, PHASE, SLOPE, INTERCEPT and X, `_MIN` must be below `_MAX`, also when rounded to float32, in which
  everything is computed. Numbers other than 0 are at least 1.18e-38 from it. TASK_CHUNK is at most META_BATCH_SIZE.

An empty EVAL_SHOTS becomes 5, 10, 20 where SUPPORT_SAMPLES is one of these, and otherwise half of SUPPORT_SAMPLES, itself and
twice of it; config.json has the numbers.

*Default* holds unless *for some* names the method, the task family, or both with a `+`; the last one named wins. A table
has defaults of its own: SUPPORT_SAMPLES is a third of the points of the middle training subject, but at most 5 and below
what two subjects of each split have; EVAL_SHOTS is half of SUPPORT_SAMPLES, itself and twice of it, where most test subjects
have the points; EPOCHS makes 5,000 steps; VALIDATION_INTERVAL is half of them, META_AVERAGE 0.995, LOG_INTERVAL 50,
CHECKPOINT_INTERVAL 1000. *Read by* says which methods or task families read a key, where not all do. Where neither the method
nor the family of a run reads it, `--set` refuses it, and a changed value in a file of `--config` is warned about.
"""

STEPS = """\
## Number of outer steps

EPOCHS x NUM_TASKS / META_BATCH_SIZE, rounded up. With the defaults on sinusoids: {counts}.
The MAML paper's "fresh tasks at every iteration" is `--set EPOCHS=1 --set NUM_TASKS=1750000`.
"""


def document() -> str:
    """The whole text of docs/configuration.md."""
    method_reads, family_reads = ({name: settings_read(name) for name in names} for names in (METHODS, TASKS))
    parts = [INTRODUCTION]
    for heading, keys in sections().items():
        parts.append(f"## {heading[0].upper() + heading[1:]}\n")
        parts.append("| key | default | for some | allowed | meaning | read by |\n|---|---|---|---|---|---|")
        for key in keys:
            field = KEYS[key]
            read_by = ", ".join(filter(None, (readers(key, method_reads), readers(key, family_reads))))
            cells = [f"`{key}`", text(field.default), other_defaults(key), allowed(field), field.metadata["doc"], read_by]
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("")
    trained = (method for method, learner in METHODS.items() if not learner.is_fitted())
    counts = (f"{Config.resolve(defaults(method, 'sinusoid')).iterations:,} for `{method}`" for method in trained)
    return "\n".join(parts) + "\n" + STEPS.format(counts=", ".join(counts))


def sections() -> dict[str, list[str]]:
    """The keys under the comments that head them in the declaration of `Config`."""
    result: dict[str, list[str]] = {}
    heading = ""
    for line in inspect.getsource(Config).splitlines():
        if comment := re.fullmatch(r"    # (.*)", line):
            heading = comment[1]
        elif (key := re.match(r"    ([A-Z0-9_]+): ", line)) and key[1] in KEYS:
            result.setdefault(heading, []).append(key[1])
    return result


def text(value: Any) -> str:
    """A default as it is shown: as in JSON, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def other_defaults(key: str) -> str:
    """What a method, a task family, or a pair of both sets instead of the shared default."""
    layers = {f"`{name}`": METHODS[name].defaults for name in METHODS}
    layers |= {f"`{name}`": TASK_DEFAULTS.get(name, {}) for name in TASKS}
    layers |= {f"`{method}` + `{tasks}`": values for (method, tasks), values in PAIR_DEFAULTS.items()}
    return ", ".join(f"{name} {text(values[key])}" for name, values in layers.items() if key in values)


def allowed(field: dataclasses.Field[Any]) -> str:
    """The allowed values of a key, in words."""
    meta, kind = field.metadata, str(field.type)
    if "choices" in meta:
        return ", ".join(f"`{choice}`" for choice in meta["choices"])
    if meta["low"] is None:
        return {"bool": "true, false", "tuple[str, ...]": "list of texts"}.get(kind, "text")
    low, high = number(meta["low"]), number(meta["high"])
    limits = f"above {low}, up to {high}" if meta["above"] else f"{low} to {high}"
    names = {"int": "whole number", "float": "number"}
    return f"{names[kind]}, {limits}" if kind in names else f"list of whole numbers, each {limits}"


def number(value: float) -> str:
    if value == 2**64 - 1:
        return "2^64 - 1"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}"


def readers(key: str, reads: Mapping[str, Collection[str]]) -> str:
    """Who reads a key that some read and others do not."""
    names = [f"`{name}`" for name, keys in reads.items() if key in keys]
    others = [f"`{name}`" for name, keys in reads.items() if key not in keys]
    if not names or not others:
        return ""
    return ", ".join(names) if len(names) <= len(others) else f"all but {', '.join(others)}"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
