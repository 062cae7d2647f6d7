"""What strangers bring: checkpoint files by accident, attacks that carry our own digest, and names of files and runs."""

from __future__ import annotations

import functools
import hashlib
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from system.checkpoints import SCHEMA_VERSION, checkpoint_bytes


def sealed(body: bytes) -> bytes:
    """A stranger's archive with the digest that our own files carry: what a forger can do."""
    body = body[:-2] if body[-2:] == b"\0\0" else body
    return body + (64).to_bytes(2, "little") + hashlib.sha256(body).hexdigest().encode()


def archive(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zipped(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
    return buffer.getvalue()


class Attack:
    """An object whose unpickling calls `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def attacks(mark: Path) -> dict[str, bytes]:
    """Files that would make the directory `mark` if they were let."""
    import subprocess

    ways = {
        "os.mkdir": Attack(os.mkdir, str(mark)),
        "os.system": Attack(os.system, f"mkdir {mark}"),
        "eval": Attack(eval, f"__import__('os').mkdir({str(mark)!r})"),
        "exec": Attack(exec, f"import os; os.mkdir({str(mark)!r})"),
        "subprocess": Attack(subprocess.check_call, ["mkdir", str(mark)]),
        "partial": Attack(functools.partial(os.mkdir, str(mark))),
        "torch.load": Attack(torch.load, str(mark)),
    }
    found = {}
    for name, way in ways.items():
        state = {"schema_version": SCHEMA_VERSION, "iteration": way}
        found[f"{name} in an archive"] = sealed(archive(state))
        found[f"{name} as the whole archive"] = sealed(archive(way))
        found[f"{name} in a legacy file"] = sealed(archive(state, _use_new_zipfile_serialization=False))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps({"schema_version": SCHEMA_VERSION, "iteration": ways["os.mkdir"]}, protocol)
        found[f"a pickle of protocol {protocol}"] = data
        found[f"a pickle of protocol {protocol}, sealed"] = sealed(data)
        found[f"a pickle of protocol {protocol} in an archive"] = sealed(zipped(archive__data_pkl=data, archive__version=b"3"))
    found["a module"] = sealed(archive({"schema_version": SCHEMA_VERSION, "module": torch.nn.Linear(1, 1)}))
    found["a name that climbs"] = sealed(zipped(**{"..__..__data_pkl": pickle.dumps({}), "..__..__version": b"3"}))
    found["a small file that unpacks to a large one"] = sealed(zipped(archive__data_pkl=b"\0" * 2**26, archive__version=b"3"))
    return found


def accidents(sound: bytes) -> dict[str, bytes]:
    """What may lie where a sound checkpoint was."""
    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 4
    strange = [{"state_dict": {"weight": torch.zeros(3)}}, [1, 2], torch.zeros(3)]
    return {
        **{"empty": b"", "truncated": sound[: len(sound) // 2], "its last byte lost": sound[:-1], "zeros": bytes(len(sound))},
        **{"one bit flipped": bytes(flipped), "bytes after its end": sound + b"\0", "text": b"hello, world\n" * 20},
        **{"random bytes": np.random.default_rng(0).bytes(5000), "a plain zip": zipped(readme=b"not a checkpoint")},
        **{"a foreign checkpoint": archive(strange[0]), "nothing, sealed": sealed(b""), "text, sealed": sealed(b"hello")},
        **{f"{value!r}, sealed": sealed(archive(value)) for value in strange},
    }


def misfits(state: dict[str, Any]) -> dict[str, bytes]:
    """Well-formed checkpoints with our digest, that do not fit the run: `state` with one thing changed."""
    parameters, adam = state["meta_parameters"], state["adam"]
    name = next(iter(parameters))
    weights = parameters[name]

    def poisoned(tensor: torch.Tensor, value: float) -> torch.Tensor:
        bad = tensor.clone()
        bad.view(-1)[0] = value
        return bad

    config = state["config"]
    bad_configs: dict[str, Any] = {
        **{"no settings": None, "settings that are a list": ["EPOCHS"], "a setting without a name": config | {5: 1}},
        **{f"EPOCHS = {value!r}": config | {"EPOCHS": value} for value in ("many", torch.zeros(2))},
        **{f"HIDDEN_DIM = {size}": config | {"HIDDEN_DIM": size} for size in (10**6, config["HIDDEN_DIM"] + 1)},
    }
    bad_weights: dict[str, Any] = {
        **{"weights in words": "weights", "another shape": torch.zeros(3), "another type": weights.double()},
        **{"complex numbers": weights.to(torch.complex64), "whole numbers": weights.long(), "sparse": weights.to_sparse()},
        **{"NaN in the weights": poisoned(weights, math.nan), "infinity in the weights": poisoned(weights, math.inf)},
    }
    bad_parts: dict[str, tuple[str, Any]] = {
        "a newer schema": ("schema_version", SCHEMA_VERSION + 1),
        "an unknown method": ("method", "reptile"),
        "a dictionary of task families": ("tasks", {}),
        "no weights": ("meta_parameters", {}),
        "a missing tensor": ("meta_parameters", {key: tensor for key, tensor in parameters.items() if key != name}),
        "an extra tensor": ("meta_parameters", parameters | {"extra": torch.zeros(3)}),
        "no Adam": ("adam", None),
        "NaN in Adam": ("adam", adam | {"exp_avg_sq": poisoned(adam["exp_avg_sq"], math.nan)}),
        "Adam of another size": ("adam", adam | {"exp_avg": torch.zeros(3)}),
        "Adam's step in words": ("adam", adam | {"step": "12"}),
        **{f"a step of {step!r}": ("iteration", step) for step in ("12", -1, 1.5, None)},
        "no history": ("history", None),
        "a history without a loss": ("history", {"train": [{"iteration": 1}], "validation": []}),
        "a best error in words": ("best", "good"),
        "no time": ("train_seconds", None),
    }
    wild = {what: {part: value} for what, (part, value) in bad_parts.items()}
    wild |= {what: {"config": value} for what, value in bad_configs.items()}
    wild |= {what: {"meta_parameters": parameters | {name: tensor}} for what, tensor in bad_weights.items()}
    return {what: checkpoint_bytes(state | change) for what, change in wild.items()}


NAMES = [  # of files, runs, columns, subjects and units; on Linux a file may have each of them
    *("$x$", "$x_1^2$", "a$", "$", "$$", "$\\frac{1}{2}$", "$\\undefined{", "cost in $ and $", "\\$x\\$", "a\\$b$c$", "$\n$"),
    *("_", "_hidden", "__init__", "x_1^2", "x_{", "_child0", "_nolegend_", "a^b^c", "\\alpha", "C:\\new\\table", "\\"),
    *("100%", "%s%d%n", "{0}", "{x!r:>9}", "{{}", "<b>bold</b>", "&lt;&#36;", "a|b||c", "*a* `b` [c](d)", "# title", "=1+1"),
    *("a\nb", "a\r\nb", "a\tb", "a\x00b", "\x1b[31mred\x07", "\x7f\x85", "a\u2028b\u2029c", "\ufeffx", "a\u200bb\u00adc"),
    *("\u202egpj.exe", "\udcff\udc80", "测量数据", "ひらがな한국어", "e\u0301te\u0301 e\u0308\u0323", "עברית عربى"),
    *("\U0001f469\u200d\U0001f52c", "\U0010ffff\ue000\uffff", "x" * 255, "W_$1^" * 51, "\u3000a\u00a0b\u202fc\u2009 "),
    *(", ;\"'", "~!@()[]?/", "Z\u0335\u0321" * 40),
]
