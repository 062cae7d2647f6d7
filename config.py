"""Every hyperparameter of a run: typed, documented, validated, to and from JSON.

The names, types and allowed ranges of the settings, and nothing of what they are used for: it imports neither torch nor
anything else of this project.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 1 << 20  # a settings file is a few kilobytes; more is a mistake, not a setting
SMALLEST = 2.0**-126  # float32's smallest normal number: training takes what is nearer to 0 as 0
MOST_SHOTS = 10**4  # at evaluation


class ConfigError(ValueError):
    """A setting that can't be used; the text is one line that names the key, the value and the range."""

    code = 2  # of the process that it ends


Roles = tuple[str, ...]
Limit = float | None
# What a key may be for, beside its value (`keys_for`): actions on a run that exists by which it may be changed ...
RESUME, EVALUATE, PREDICT = ("resume",), ("resume", "evaluate"), ("resume", "evaluate", "predict")
# ... and what comparing runs asks: whether it says what the test tasks or the validation tasks are, and whether it tells no
# methods apart. The seed is what a group of runs averages over; DEVICE, COMPILE and TASK_CHUNK change results by rounding only,
# two intervals only what is recorded, and EVAL_SHOTS what is measured.
# Methods that are fitted at once do not read what is TRAINED.
TASKS, VALIDATION, SAME_METHOD, TRAINED = ("test tasks",), ("validation tasks",), ("same method",), ("trained",)
RECORDED, MEASURED = RESUME + SAME_METHOD + TRAINED, EVALUATE + SAME_METHOD


def _key(default: Any, doc: str, low: Limit = None, high: Limit = None, *, above: bool = False, roles: Roles = ()) -> Any:
    """Declare a key: its default, what it means, the closed range allowed (open below if `above`), and what else it is for."""
    return dataclasses.field(default=default, metadata={"doc": doc, "low": low, "high": high, "above": above, "roles": roles})


def _choice(default: str, doc: str, *choices: str, roles: Roles = ()) -> Any:
    return dataclasses.field(default=default, metadata={"doc": doc, "choices": choices, "roles": roles})


@dataclass(frozen=True)
class Config:
    """The resolved settings of one run; immutable, and valid by construction.

    Raises `ConfigError` for a value of the wrong type, outside its range, zero or infinite in float32, and for settings
    that can't work together.
    """

    # training
    RANDOM_SEED: int = _key(0, "training's random streams and a table's split derive from it", 0, 2**64 - 1, roles=SAME_METHOD)
    EPOCHS: int = _key(70, "visits to each training function", 1, 10**9, roles=RESUME + TRAINED)
    NUM_TASKS: int = _key(25_000, "training functions; EPOCHS=1 makes every task a fresh one", 1, 10**8, roles=TRAINED)
    META_BATCH_SIZE: int = _key(25, "T: tasks in a meta-batch, one outer step", 1, 10**7, roles=TRAINED)
    META_LEARNING_RATE: float = _key(0.001, "step size of the outer optimiser", 0.0, 10.0, above=True, roles=TRAINED)
    META_OPTIMISER: str = _choice("adam", "Adam; or Muon for hidden matrices, Adam for the rest", "adam", "muon", roles=TRAINED)
    META_SCHEDULE: str = _choice("cosine", "outer step size: falls to zero, or is kept", "cosine", "constant", roles=TRAINED)
    META_GRADIENT_CLIP: float = _key(1.0, "bound on the norm of the meta-gradient; 0 = none", 0.0, 1e9, roles=TRAINED)
    META_AVERAGE: float = _key(0.0, "decay of the average that best.pt keeps; 0 = none, 1 = mean", 0.0, 1.0, roles=TRAINED)

    # adaptation
    SUPPORT_SAMPLES: int = _key(10, "K: points to adapt on while training (shots)", 1, 10**6)
    QUERY_SAMPLES: int = _key(10, "Q: points to be judged on while training", 1, 10**6, roles=TRAINED)
    INNER_STEPS: int = _key(1, "S: support gradients while training; LEO's include those in z", 0, 1000)
    INNER_LEARNING_RATE: float = _key(0.004, "inner step size; LEO learns it from here, per weight", 0.0, 1e3, above=True)
    INNER_GRADIENT_CLIP: float = _key(0.0, "bound on the norm of an inner gradient; 0 = none", 0.0, 1e9)
    FIRST_ORDER: bool = _key(False, "treat inner gradients as constants (first-order MAML)")

    # the adapted network
    INPUT_DIM: int = _key(1, "D: input dimension", 1, 10**4, roles=TASKS)
    HIDDEN_DIM: int = _key(40, "units in each of its hidden layers", 1, 10**6, roles=TRAINED)
    HIDDEN_LAYERS: int = _key(2, "hidden layers", 1, 100, roles=TRAINED)
    ACTIVATION: str = _choice("relu", "between layers", "relu", "tanh", "elu", "silu", "sine", roles=TRAINED)
    CONTEXT_DIM: int = _key(5, "C: size of the context vector, where a method adapts one", 1, 10**4)

    # tasks: y = A sin(u.x - phase) + noise, or y = slope (u.x) + intercept + noise
    AMPLITUDE_MIN: float = _key(0.1, "smallest amplitude A", 0.0, 1e6, roles=TASKS)
    AMPLITUDE_MAX: float = _key(5.0, "largest amplitude A", 0.0, 1e6, roles=TASKS)
    PHASE_MIN: float = _key(0.0, "smallest phase, radians", -1e3, 1e3, roles=TASKS)
    PHASE_MAX: float = _key(math.pi, "largest phase, radians", -1e3, 1e3, roles=TASKS)
    SLOPE_MIN: float = _key(-3.0, "smallest slope of a line (sine-line)", -1e6, 1e6, roles=TASKS)
    SLOPE_MAX: float = _key(3.0, "largest slope of a line (sine-line)", -1e6, 1e6, roles=TASKS)
    INTERCEPT_MIN: float = _key(-3.0, "smallest intercept of a line (sine-line)", -1e6, 1e6, roles=TASKS)
    INTERCEPT_MAX: float = _key(3.0, "largest intercept of a line (sine-line)", -1e6, 1e6, roles=TASKS)
    X_MIN: float = _key(-5.0, "smallest input", -1e6, 1e6, roles=TASKS)
    X_MAX: float = _key(5.0, "largest input", -1e6, 1e6, roles=TASKS)
    NOISE_STD: float = _key(0.0, "standard deviation of the noise on targets", 0.0, 1e6, roles=TASKS)

    # tasks of a Gaussian process
    GP_KERNEL: str = _choice("rbf", "its kernel: RBF, Matern 5/2, periodic", "rbf", "matern", "periodic", roles=TASKS)
    GP_LENGTH: float = _key(0.5, "length over which its functions vary", 0.0, 1e6, above=True, roles=TASKS)
    GP_SCALE: float = _key(1.0, "standard deviation of its functions", 0.0, 1e6, above=True, roles=TASKS)
    GP_PERIOD: float = _key(1.0, "period, of the periodic kernel", 0.0, 1e6, above=True, roles=TASKS)

    # tasks from a table of measurements
    DATA: str = _key("", "its file; empty = tasks of another family", roles=SAME_METHOD)
    COLUMNS: tuple[str, ...] = _key((), "task=NAME, x=NAME for each input, y=NAME, split=NAME", roles=SAME_METHOD)
    SUPPORT_FROM: str = _choice("random", "a subject's support points: any, or its first by x", "random", "first", roles=TASKS)
    TRAIN_SHARE: float = _key(60.0, "training subjects in a random split, relative to the other shares", 0.0, 1e6, above=True)
    VALIDATION_SHARE: float = _key(15.0, "validation subjects", 0.0, 1e6, above=True)
    TEST_SHARE: float = _key(25.0, "test subjects", 0.0, 1e6, above=True)
    FOLDS: int = _key(0, "of cross-fitting; 1 = one split, 0 = 5 below 150 subjects", 0, 100, roles=TASKS)
    SPLIT_SEED: int = _key(-1, "the random split derives from it; -1 = from RANDOM_SEED", -1, 2**64 - 1, roles=SAME_METHOD)
    EVAL_REPEATS: int = _key(10, "draws of support points for each held-out subject", 1, 10**4, roles=EVALUATE + TASKS)

    # ALPaCA
    ALPACA_SPLINES: bool = _key(False, "start as the linear mixed model, whose splines stand beside the learned features")

    # LEO
    LEO_LATENT_DIM: int = _key(16, "Z: size of the latent code", 1, 10**4)
    LEO_ENCODER_DIM: int = _key(16, "units of the encoder's layers", 1, 10**5)
    LEO_RELATION_DIM: int = _key(32, "units of the relation network's layers", 1, 10**5)
    LEO_DECODER_DIM: int = _key(32, "units of the decoder's hidden layer", 1, 10**5)
    LEO_LATENT_STEPS: int = _key(5, "of all inner steps, how many at most are taken in z (the first ones)", 0, 1000)
    LEO_LATENT_LEARNING_RATE: float = _key(0.01, "initial step size in z, learned per dimension", 0.0, 1e3, above=True)
    LEO_KL_WEIGHT: float = _key(1e-4, "beta: weight of KL(q(z|support) || N(0, I))", 0.0, 1e6)
    LEO_ENCODER_PENALTY: float = _key(1e-6, "gamma: weight of ||stop_gradient(z') - z||^2", 0.0, 1e6)
    LEO_L2_WEIGHT: float = _key(1e-8, "lambda1: weight of the squared generator weights", 0.0, 1e6)
    LEO_ORTHOGONALITY: float = _key(1e-4, "lambda2: weight of the decoder's row correlations", 0.0, 1e6)

    # evaluation
    EVAL_TASKS: int = _key(1000, "test tasks", 2, 10**6, roles=EVALUATE + TASKS)
    EVAL_QUERY_SAMPLES: int = _key(100, "points a held-out task is judged on", 1, 10**5, roles=EVALUATE + TASKS + VALIDATION)
    EVAL_STEPS: int = _key(10, "most support gradients at evaluation", 0, 1000, roles=PREDICT)
    EVAL_SHOTS: tuple[int, ...] = _key(
        (), "K at evaluation, beside 0; empty = by SUPPORT_SAMPLES", 0, MOST_SHOTS, roles=MEASURED
    )
    VALIDATION_TASKS: int = _key(200, "validation tasks; best.pt is the best on them", 2, 10**6, roles=VALIDATION)

    # the machine, and the record
    DEVICE: str = _key("auto", "auto (CUDA if there is one), cpu, cuda or cuda:N", roles=PREDICT + SAME_METHOD)
    COMPILE: str = _choice("auto", "compile or not; auto = where it pays", "auto", "always", "never", roles=RECORDED)
    TASK_CHUNK: int = _key(0, "tasks differentiated at a time; 0 = as fits", 0, 10**7, roles=SAME_METHOD + TRAINED)
    LOG_INTERVAL: int = _key(100, "iterations between logged training values", 1, 10**9, roles=RECORDED)
    VALIDATION_INTERVAL: int = _key(2000, "iterations between validations", 1, 10**9, roles=RESUME + TRAINED)
    CHECKPOINT_INTERVAL: int = _key(10_000, "iterations between checkpoints", 1, 10**9, roles=RECORDED)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        for name in ("AMPLITUDE", "PHASE", "SLOPE", "INTERCEPT", "X"):
            low, high = getattr(self, f"{name}_MIN"), getattr(self, f"{name}_MAX")
            if not _float32(high) - _float32(low) >= SMALLEST:
                rounded = " in float32, where they are one number" if low < high else ""
                raise ConfigError(f"{name}_MIN must be below {name}_MAX (got {low}; expected below {high}{rounded})")
        chunk, most = self.TASK_CHUNK, self.META_BATCH_SIZE
        if chunk > most:
            raise ConfigError(f"TASK_CHUNK can't be above META_BATCH_SIZE (got {chunk}; expected 0 to {most})")
        if not self.EVAL_SHOTS:
            object.__setattr__(self, "EVAL_SHOTS", suitable_shots(self.SUPPORT_SAMPLES))

    @property
    def evaluation_shots(self) -> tuple[int, ...]:
        """All K at which a run is judged: the one that it is trained for, and no point at all, as well."""
        return tuple(sorted({0, *self.EVAL_SHOTS, self.SUPPORT_SAMPLES}))

    @property
    def iterations(self) -> int:
        """Outer steps in the whole run: every function is visited EPOCHS times."""
        return -(-self.EPOCHS * self.NUM_TASKS // self.META_BATCH_SIZE)

    @classmethod
    def resolve(cls, *layers: Mapping[str, Any]) -> Config:
        """Build a Config from layers of settings, later ones winning; an unknown key is refused."""
        merged = {name: value for layer in layers for name, value in layer.items()}
        for name in merged:
            if name not in KEYS:
                near = difflib.get_close_matches(str(name).upper(), KEYS, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else "docs/configuration.md lists all keys"
                raise ConfigError(f"unknown key (got {_shown(name)}; {hint})")
        return cls(**merged)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready values, in the order of declaration."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def suitable_shots(count: int) -> tuple[int, ...]:
    """The K to evaluate at where a run is trained for K = `count`: 5, 10 and 20, or else half of it, itself and twice of it."""
    usual = (5, 10, 20)
    if count in usual:
        return usual
    around = {max(1, count // 2), count, 2 * count}
    return tuple(sorted({min(shots, MOST_SHOTS) for shots in around}))


KEYS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(Config)}


def keys_for(role: str) -> tuple[str, ...]:
    """The keys that are declared with a role."""
    return tuple(name for name, field in KEYS.items() if role in field.metadata["roles"])


def _shown(value: Any) -> str:
    """A value as it appears in a message: one line, of bounded length."""
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _allowed(field: dataclasses.Field[Any]) -> str:
    """The allowed values of a key, in words."""
    meta = field.metadata
    if "choices" in meta:
        return " or ".join(meta["choices"])
    single = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    kind = single.get(str(field.type), "a list of texts" if "str" in str(field.type) else "a list of whole numbers")
    if meta["low"] is None:
        return kind
    start = f"above {meta['low']} up" if meta["above"] else f"from {meta['low']}"
    return f"{kind} {start} to {meta['high']}"


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return `value` in the key's own type, or raise `ConfigError`."""
    kind = str(field.type)
    if kind.startswith("tuple"):
        if not isinstance(value, (list, tuple)) or len(set(map(repr, value))) != len(value):
            raise _refusal(field, value)
        for item in value:
            _check_one(field, item, value)
        return tuple(value)
    if kind == "float" and type(value) is int and abs(value) < 1e300:
        value = float(value)
    _check_one(field, value, value)
    if field.name == "DEVICE" and not re.fullmatch("auto|cpu|cuda(:[0-9]{1,3})?", value):
        raise ConfigError(f"DEVICE can't be used (got {_shown(value)}; expected auto, cpu, cuda or cuda:N)")
    return value


def _check_one(field: dataclasses.Field[Any], item: Any, value: Any) -> None:
    """Raise `ConfigError` where `item`, the value of a key or one of several in it, has another type or is out of range."""
    types = {"int": int, "float": float, "bool": bool, "str": str, "tuple[int, ...]": int, "tuple[str, ...]": str}
    kind, meta = types[str(field.type)], field.metadata
    usable = type(item) is kind and item in meta.get("choices", [item])  # bool is a subclass of int, and true is not a count
    if usable and meta.get("low") is not None:
        above_low = item > meta["low"] if meta["above"] else item >= meta["low"]
        usable = above_low and item <= meta["high"]  # not NaN and infinities; a huge int has no float
    if not usable:
        raise _refusal(field, value)
    if kind is float and item and abs(_float32(item)) < SMALLEST:
        raise _refusal(field, item, f", at least {SMALLEST:.3g} from 0, the smallest number in float32")


def _refusal(field: dataclasses.Field[Any], value: Any, limit: str = "") -> ConfigError:
    return ConfigError(f"{field.name} can't be used (got {_shown(value)}; expected {_allowed(field)}{limit})")


def _float32(value: float) -> float:
    """The float32 number that is computed with."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `KEY=VALUE` from a command line; VALUE is read as JSON where it is JSON, as text otherwise."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set needs KEY=VALUE (got {_shown(text)}; expected for example EPOCHS=5)")
    kind = str(KEYS[name].type) if name in KEYS else ""
    if kind == "bool":
        value = value.lower()
    if kind.startswith("tuple") and not value.startswith("["):
        value = f"[{value}]"  # 5,10,20 without brackets, which shells dislike
    try:
        return name, _strict_loads(value)
    except (ValueError, RecursionError):
        return name, value


def variants(assignments: Sequence[str]) -> list[list[str]]:
    """Every combination of the values of settings that are given several, such as HIDDEN_DIM=20,40.

    Raises `ConfigError` for a value given twice, and for several values of what says which tasks a run is judged on.
    """
    choices = []
    for text in assignments:
        name, _, values = text.partition("=")
        field = KEYS.get(name)
        listed = [text]
        if field and "," in values and ("choices" in field.metadata or field.type in ("int", "float", "bool")):
            if {*TASKS, *VALIDATION} & {*field.metadata["roles"]}:
                raise ConfigError(
                    f"{name} can't have several values (got {values}; expected one: runs are compared on equal tasks)"
                )
            listed = [f"{name}={value.strip()}" for value in values.split(",")]
        if len(set(listed)) < len(listed):
            raise ConfigError(f"{name} has a value twice (got {values}; expected different ones)")
        choices.append(listed)
    return [list(chosen) for chosen in itertools.product(*choices)]


def load_settings(path: Path) -> dict[str, Any]:
    """Read a settings file: one object of strict JSON, its keys and values checked by `Config.resolve`.

    Raises `ConfigError` for another file, also for one with NaN or with a key that stands there twice.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"no such file (got {path}; expected a JSON file)")
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise ConfigError(f"{path} is too large (got {size} bytes; expected at most {MAX_JSON_BYTES} for settings)")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} can't be read (got {error.strerror}; expected a readable JSON file)") from None
    try:
        settings = _strict_loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # of the syntax, the encoding, or the depth
        expected = "expected an object in UTF-8, of unique keys and finite numbers"
        raise ConfigError(f"{path} is not strict JSON (got {error}; {expected})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings (got {_shown(settings)}; expected an object)")
    return settings


def _strict_loads(text: str) -> Any:
    def constant(name: str) -> Any:
        raise ValueError(f"the constant {name}")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, count in Counter(name for name, _ in items).items():
            if count > 1:
                raise ValueError(f"the key {_shown(name)} twice")
        return dict(items)

    return json.loads(text, parse_constant=constant, object_pairs_hook=pairs)
