"""Whether and how a training step is compiled. This file refuses to know what the step computes."""

from __future__ import annotations

import os
import shutil
import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass

COMPILE_FROM = 2000  # iterations from which compiling pays: it costs 10 to 90 s once, and a step gets 5 to 9 times faster
WILL_COMPILE = "worth it for "


def compile_note(mode: str, iterations: int, device: torch.device) -> str:
    """What was decided about compiling, and why; starts with `WILL_COMPILE` if it will be done.

    It depends on the length of the whole run only, never on a measured time: a resumed or repeated run must decide
    the same, or its last bits would differ.

    Args:
        mode: "auto" (where it pays and a compiler is there), "always" or "never".
    """
    if mode == "never":
        return "COMPILE=never"
    compiler = os.environ.get("CXX") or "g++"
    if device.type == "cpu" and shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}) was found"
    if mode == "auto" and iterations < COMPILE_FROM:
        return f"{iterations} iterations are too few to pay for compiling (from {COMPILE_FROM} on)"
    return f"{WILL_COMPILE}{iterations} iterations"


def compiled(method: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """The bound `method`, compiled into one graph at its first call; later calls must have the same shapes."""
    # The compiler finds its work again by code object: without guards a second trainer in this process would run the
    # first one's graph, so each has a code object of its own.
    original = cast(Any, method).__func__
    own = types.FunctionType(original.__code__.replace(), original.__globals__, original.__name__)
    # Every call has the shapes and dtypes of the first (groups are padded), so the guards that would check this
    # again at each step are dropped: they cost as much as a tenth of a small step.
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    if device.type == "cpu":
        # Calling the kernels from C++ instead of Python saves a tenth of a small step, the pass another tenth.
        options |= {"cpp_wrapper": True, "post_grad_custom_post_pass": NarrowProducts()}
    return torch.compile(types.MethodType(own, cast(Any, method).__self__), fullgraph=True, dynamic=False, options=options)


class NarrowProducts(CustomGraphPass):
    """Computes a batched product A B with a narrow result as the transpose of B' A', which is wide.

    The second derivative of a layer with few points contains [T, 40, 40] @ [T, 40, 10]: there the CPU library is
    three times slower than at [T, 10, 40] @ [T, 40, 40], the same numbers transposed. A transpose costs nothing here.
    """

    NARROW = 32  # columns of a result from which on both are about as fast

    def __call__(self, graph: torch.fx.Graph) -> None:
        bmm, permute = torch.ops.aten.bmm.default, torch.ops.aten.permute.default

        def insert(operator: Callable[..., Any], *args: Any) -> torch.fx.Node:
            node = graph.call_function(operator, args)
            node.meta["val"] = operator(*(arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in args))
            return node

        for node in graph.find_nodes(op="call_function", target=bmm):
            _, rows, columns = node.meta["val"].shape
            if columns >= min(rows, self.NARROW):
                continue
            left, right = node.args
            with graph.inserting_before(node):
                product = insert(bmm, insert(permute, right, [0, 2, 1]), insert(permute, left, [0, 2, 1]))
                node.replace_all_uses_with(insert(permute, product, [0, 2, 1]))
            graph.erase_node(node)

    def uuid(self) -> str:
        """Identifies the pass in the compiler's cache; must change with what it does."""
        return "narrow-products-1"
