"""Whether and how a training step is compiled. Independent of what the step computes."""

from __future__ import annotations

import functools
import os
import shutil
import threading
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from system.compiler_cache import check_paths

COMPILE_FROM = 2000  # iterations from which compiling pays: it costs 10 to 90 s once, and a step gets 5 to 9 times faster
LOOPS_FROM = "2.13"  # the version of torch from which its compiler takes loops around such a step
NARROW = 32  # columns of a batched product from which on both orders are about as fast


def decide_compiling(mode: str, iterations: int, device: torch.device) -> tuple[bool, str]:
    """Whether the step is compiled, and why.

    It depends on the length of the whole run only, never on a measured time: a resumed or repeated run must decide
    the same, or its last bits would differ.

    Args:
        mode: "auto" (where it pays), "always" or "never".
    """
    if mode == "never":
        return False, "COMPILE=never"
    if mode == "auto" and iterations < COMPILE_FROM:
        return False, f"{iterations} iterations are too few to pay for compiling (from {COMPILE_FROM} on)"
    note = f"worth it for {iterations} iterations"
    if has_compiler(device):
        return True, note
    return True, f"{note}, but no C++ compiler ({_compiler()}) was found: traced, without kernels of its own"


def has_compiler(device: torch.device) -> bool:
    """Whether kernels can be compiled: on the CPU that takes a C++ compiler."""
    return device.type != "cpu" or shutil.which(_compiler()) is not None


def can_loop() -> bool:
    """Whether this torch's compiler takes a loop around steps."""
    return torch.__version__ >= LOOPS_FROM  # compared as versions, not as text


def _compiler() -> str:
    return os.environ.get("CXX") or "g++"


class Compiled:
    """A bound method, compiled into one graph at its first call; later calls must have the same shapes.

    What it reads of its object has to be the same tensors in every call. The first call goes through `torch.compile`, and
    tells which inputs of the graph are arguments; all others are tensors of the object. So later calls need no guards and no
    bytecode, only the graph, which saves a tenth to a sixth of a small step.
    """

    def __init__(self, method: Callable[..., Tensor], device: torch.device):
        # The compiler finds its work again by code object: each trainer in this process has one of its own.
        original = cast(Any, method).__func__
        own = types.FunctionType(original.__code__.replace(), original.__globals__, original.__name__, original.__defaults__)
        bound = types.MethodType(own, cast(Any, method).__self__)
        self.device = device
        self.first = torch.compile(bound, fullgraph=True, dynamic=False, backend=cast(Any, self._compile))
        # Asking which vector instructions there are takes seconds: it runs beside the tracing, in a thread that a process
        # which is interrupted does not wait for.
        self.probe = threading.Thread(target=_probe_processor, daemon=True)
        self.places: list[tuple[int, int]] | None = None  # input of the graph, and the argument that it is; None at first

    def _compile(self, module: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        backend = self._backend()
        if self.probe.ident:
            self.probe.join()
        self.graph: Any = backend(module, examples)

        def run(*inputs: Tensor) -> Any:
            self.inputs: list[Any] = list(inputs)
            self.outputs = self.graph(*inputs)
            return self.outputs

        return run

    def _backend(self) -> Callable[..., Any]:
        """What makes the graph fast; without a compiler, what runs it operation by operation: that alone is twice as fast
        as the eager step, since derivatives and vectorisation are worked out once and not in every step."""
        if not has_compiler(self.device):
            return cast(Any, torch._dynamo.lookup_backend("aot_eager"))
        from torch._inductor.compile_fx import compile_fx  # takes a second: only for those who compile

        return functools.partial(compile_fx, config_patches=_compiler_options(self.device))

    def __call__(self, *args: Any) -> Tensor:
        leaves = _leaves(args)
        if self.places is not None:
            inputs = self.inputs.copy()
            for place, leaf in self.places:
                inputs[place] = leaves[leaf]
            if self.device.type != "cuda":
                return self.graph(*inputs)[0]
            torch.compiler.cudagraph_mark_step_begin()  # the next replay overwrites what this one gives: hence a copy
            return self.graph(*inputs)[0].clone()
        if self.device.type == "cpu" and has_compiler(self.device):
            check_paths()
            self.probe.start()
        result = self.first(*args)
        assert result is self.outputs[0], "the graph's first output is the method's result"
        numbers = {id(leaf): number for number, leaf in enumerate(leaves)}
        self.places = [(place, numbers[id(given)]) for place, given in enumerate(self.inputs) if id(given) in numbers]
        for place, _ in self.places:
            self.inputs[place] = None  # not to be kept alive
        del self.outputs
        return result


def _probe_processor() -> None:
    """Ask which vector instructions there are: torch finds out in processes of its own, and remembers the answer."""
    from torch._inductor import cpu_vec_isa

    with suppress(Exception):  # the compiler meets the same exception, and is heard
        cpu_vec_isa.pick_vec_isa()


def repeat(
    step: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...], rows: tuple[Tensor, ...], first: Tensor, end: Tensor
) -> tuple[Tensor, ...]:
    """`state` after `step(state, *row)` for each row number `first` to `end` - 1 ([], integers) of the tensors `rows`.

    To be compiled: it becomes a loop in C++. `step` returns new tensors and changes none.
    """

    def body(number: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return number + 1, *step(state, *(row.index_select(0, number.reshape(1))[0] for row in rows))

    return tuple(while_loop(lambda number, *_: number < end, body, (first, *state))[1:])


def _leaves(values: Any) -> list[Tensor]:
    return [leaf for value in values for leaf in (_leaves(value) if isinstance(value, tuple) else (value,))]


def widen_products(graph: torch.fx.Graph) -> None:
    """Compute a batched product A B with a narrow result as the transpose of B' A', which is wide.

    The second derivative of a layer with few points contains [T, 40, 40] @ [T, 40, 10]: there the CPU library is
    three times slower than at [T, 10, 40] @ [T, 40, 40], the same numbers transposed. A transpose costs nothing here.
    """
    bmm, permute = torch.ops.aten.bmm.default, torch.ops.aten.permute.default

    def insert(operator: Callable[..., Any], *args: Any) -> torch.fx.Node:
        node = graph.call_function(operator, args)
        node.meta["val"] = operator(*(arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in args))
        return node

    for node in graph.find_nodes(op="call_function", target=bmm):
        _, rows, columns = node.meta["val"].shape
        if columns >= min(rows, NARROW):
            continue
        left, right = node.args
        with graph.inserting_before(node):
            product = insert(bmm, insert(permute, right, [0, 2, 1]), insert(permute, left, [0, 2, 1]))
            node.replace_all_uses_with(insert(permute, product, [0, 2, 1]))
        graph.erase_node(node)


def _compiler_options(device: torch.device) -> dict[str, Any]:
    if device.type != "cpu":
        return {"triton.cudagraphs": True}
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class WidenProducts(CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            widen_products(graph)

        def uuid(self) -> str:
            """Identifies the pass in the compiler's cache; must change with what it does."""
            return "widen-products-1"

    # Calling the kernels from C++ instead of Python saves a tenth of a small step, the pass another tenth. Precompiled
    # headers cost more time than they save; they also need 140 MB, openssl, and a folder that no environment variable can
    # move. The compiler caches a graph with a loop only if `while_loop` is declared cacheable. That is safe: the loop's body is
    # part of the graph, and so of the cache's key.
    loops = {"torch.ops.higher_order.while_loop": torch.__version__}
    return {
        "cpp_wrapper": True,
        "post_grad_custom_post_pass": WidenProducts(),
        "cpp_cache_precompile_headers": False,
        "unsafe_marked_cacheable_functions": loops,
    }
