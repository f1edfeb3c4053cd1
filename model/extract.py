"""From a PyTorch module to the chain of layers it computes, or an error that names what it is not.

The model is traced symbolically (``torch.fx``), so that what counts is what ``forward`` does and
not how the modules are nested or named. Nothing is guessed: whatever the trace holds besides the
chain is refused.
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

__all__ = ["ChainLayer", "UnsupportedModuleError", "extract_chain"]

SUPPORTED = "supported is one chain of Linear, ReLU, Flatten, Dropout and Identity"


class UnsupportedModuleError(ValueError):
    """The model computes something that is not supported; names the module's path and why."""


@dataclass(frozen=True)
class ChainLayer:
    """One Linear of the chain.

    Parameters
    ----------
    name
        Path of the module as ``named_modules`` gives it; ``"0"`` where the model itself is the
        Linear.
    module
        The ``nn.Linear`` itself, not a copy.
    relu
        Whether a ReLU follows.
    """

    name: str
    module: nn.Linear
    relu: bool


class _Tracer(fx.Tracer):
    """Stops at the modules that the chain is made of; everything else is traced into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Linear) or super().is_leaf_module(m, module_qualified_name)


def extract_chain(model: nn.Module) -> list[ChainLayer]:
    """The Linear layers of a model in the order they compute, with their ReLUs.

    Supported are ``nn.Linear``, ``nn.ReLU``, ``nn.Flatten``, ``nn.Dropout``, ``nn.Identity``, the
    functions and methods ``relu``, ``dropout``, and ``flatten``, ``view`` and ``reshape`` to
    ``(batch, features)``, in modules nested and named at will. Dropout is taken as in evaluation:
    it passes.

    Returns
    -------
    At least one layer. The sizes of neighbours agree. The model is left as it was.

    Raises
    ------
    UnsupportedModuleError
        Anything else, in one line: another module or function, a Linear or weight used twice, a
        branch, a ReLU before the first Linear, hooks or parametrizations (which change what a
        module computes), parameters that are not finite float32, no Linear at all.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModuleError(f"the model must be a torch.nn.Module, "
                                     f"not {type(model).__name__}")
    if isinstance(model, nn.Linear) or (type(model).__module__.startswith("torch.nn.")
                                        and not isinstance(model, nn.Sequential)):
        # A tracer looks into its root: a root that is a leaf needs something around it.
        model = nn.Sequential(model)
    graph = _trace(model)
    modules = dict(model.named_modules())
    chain = _Chain(modules)
    for node in _chain_nodes(graph):
        chain.add(node)
    return chain.finish()


def _trace(model: nn.Module) -> fx.Graph:
    modes = [(module, module.training) for module in model.modules()]
    for path, module in model.named_modules():
        _check_plain(path, module)
    model.eval()
    try:
        return _Tracer().trace(model)
    except Exception as error:  # user code meets proxies and may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModuleError(
            f"forward of {type(model).__name__} cannot be traced ({reason}); {SUPPORTED}, "
            f"without control flow that depends on data") from error
    finally:
        for module, mode in modes:
            module.training = mode


def _check_plain(path: str, module: nn.Module) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise UnsupportedModuleError(
            f"module {path!r} ({type(module).__name__}) has forward hooks, which may change what "
            f"it computes; remove them first (torch.nn.utils.prune.remove, remove_weight_norm)")
    if "forward" in vars(module):
        # Tracing follows the class's forward and would miss this one.
        raise UnsupportedModuleError(
            f"module {path!r} ({type(module).__name__}) has a forward of its own, set on the "
            f"object; define it in a class instead")


def _is_shape(node: fx.Node) -> bool:
    """Whether a node only asks for the size of a tensor (``x.size(0)``, ``x.shape[0]``)."""
    if node.op == "call_method":
        return node.target == "size"
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] == "shape"
    return (node.target is operator.getitem and isinstance(node.args[0], fx.Node)
            and _is_shape(node.args[0]))


def _is_batch(value: object) -> bool:
    """Whether a value of the trace is the batch size: ``x.size(0)`` or ``x.shape[0]``."""
    if not isinstance(value, fx.Node) or not _is_shape(value):
        return False
    if value.op == "call_method":
        return value.args[1:] == (0,) or value.kwargs == {"dim": 0}
    return value.target is operator.getitem and value.args[1] == 0


def _owner(node: fx.Node) -> str:
    """The module in whose forward a node of the trace stands, for people."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return f"in module {path!r}" if path else "in the model's forward"


def _what(node: fx.Node) -> str:
    """An operation of the trace and where it stands, for people."""
    target = node.target
    if node.op == "call_module":
        return f"module {target!r}"
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return f"{name!r} {_owner(node)}"


def _chain_nodes(graph: fx.Graph) -> Iterable[fx.Node]:
    """Operations from input to output, each fed by the one before and by nothing else."""
    nodes = [node for node in graph.nodes if not _is_shape(node)]
    inputs = [n for n in nodes if n.op == "placeholder" and n.users]
    if len(inputs) != 1:
        names = ", ".join(str(n.target) for n in inputs) or "none"
        raise UnsupportedModuleError(
            f"forward must use exactly one input, not {len(inputs)} ({names}); {SUPPORTED}")
    before = inputs[0]
    for node in nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            if node.args[0] is not before:
                raise UnsupportedModuleError(
                    f"the model must return the output of its last layer and nothing else; "
                    f"{SUPPORTED}")
            continue
        feeding = [n for n in node.all_input_nodes if not _is_shape(n)]
        if node.op == "get_attr" or not feeding:
            raise UnsupportedModuleError(
                f"{_what(node)} computes with a parameter, buffer or constant of its own; "
                f"{SUPPORTED}")
        if feeding != [before]:
            raise UnsupportedModuleError(
                f"{_what(node)} joins or starts a branch (residual, skip or unused path); "
                f"{SUPPORTED}")
        yield node
        before = node


class _Chain:
    """Collects layers from the operations of a chain."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self._modules = modules
        self._layers: list[ChainLayer] = []
        # Features that a reshape asked for before any Linear said how many there are.
        self._features: tuple[int, str] | None = None

    def add(self, node: fx.Node) -> None:
        if node.op == "call_module":
            self._module(node, self._modules[node.target])
        elif node.target in (functional.relu, torch.relu, torch.relu_, "relu", "relu_"):
            self._relu(_what(node))
        elif node.target is functional.dropout:
            # Traced in evaluation mode: dropout that follows the mode is off by now.
            if node.args[2:3] == (True,) or node.kwargs.get("training", len(node.args) < 3):
                raise UnsupportedModuleError(
                    f"{_what(node)} drops in evaluation mode too (training=True); pass "
                    f"training=self.training")
        elif node.target in (torch.flatten, "flatten"):
            self._flatten(node)
        elif node.target in (torch.reshape, "view", "reshape"):
            self._reshape(node)
        else:
            raise UnsupportedModuleError(f"{_what(node)} is not supported; {SUPPORTED}")

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        path, kind = node.target, type(module)
        # Exact types: a subclass may compute anything.
        if len(node.args) != 1 or node.kwargs:
            raise UnsupportedModuleError(f"module {path!r} ({kind.__name__}) must be called with "
                                         f"its one input")
        if kind is nn.Linear:
            self._linear(path, module)
        elif kind is nn.ReLU:
            self._relu(f"module {path!r}")
        elif kind is nn.Flatten:
            if module.start_dim != 1 or module.end_dim != -1:
                raise UnsupportedModuleError(
                    f"module {path!r} (Flatten): start_dim={module.start_dim}, "
                    f"end_dim={module.end_dim} are not supported; only 1 and -1 are")
        elif kind not in (nn.Dropout, nn.Identity):
            hint = ("remove parametrizations first" if hasattr(module, "parametrizations")
                    else SUPPORTED)
            raise UnsupportedModuleError(
                f"module {path!r} ({kind.__name__}) is not supported; {hint}")

    def _linear(self, path: str, module: nn.Linear) -> None:
        for layer in self._layers:
            if layer.module is module or layer.module.weight is module.weight:
                raise UnsupportedModuleError(
                    f"module {path!r} (Linear) uses the weight of {layer.name!r} again; every "
                    f"Linear needs its own")
        for name, value in (("weight", module.weight), ("bias", module.bias)):
            if value is None:
                continue
            if value.is_meta or value.dtype != torch.float32:
                have = "has no data (device meta)" if value.is_meta else f"is {value.dtype}"
                raise UnsupportedModuleError(f"module {path!r} (Linear): {name} {have}; only "
                                             f"float32 is supported (model.float())")
            if not bool(torch.isfinite(value).all()):
                raise UnsupportedModuleError(f"module {path!r} (Linear): {name} has values that "
                                             f"are not finite (NaN or infinity)")
        if self._layers and self._layers[-1].module.out_features != module.in_features:
            before = self._layers[-1]
            raise UnsupportedModuleError(
                f"module {path!r} (Linear): in_features={module.in_features}, but {before.name!r} "
                f"before it gives {before.module.out_features}")
        self._layers.append(ChainLayer(path, module, relu=False))
        self._check_features(module.in_features)

    def _relu(self, what: str) -> None:
        if not self._layers:
            raise UnsupportedModuleError(
                f"{what} is a ReLU before the first Linear, which is not supported; apply it to "
                f"the inputs instead")
        last = self._layers[-1]
        self._layers[-1] = ChainLayer(last.name, last.module, relu=True)

    def _flatten(self, node: fx.Node) -> None:
        args = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
        args.pop("input", None)
        if args.get("start_dim", 0) != 1 or args.get("end_dim", -1) != -1:
            raise UnsupportedModuleError(
                f"{_what(node)} must be flatten(x, 1): the batch has to stay apart")

    def _reshape(self, node: fx.Node) -> None:
        shape = node.args[1:]
        if len(shape) == 1 and isinstance(shape[0], tuple | list):
            shape = tuple(shape[0])
        if len(shape) == 2 and _is_batch(shape[0]) and shape[1] == -1:
            return
        if (len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 0
                and (_is_batch(shape[0]) or shape[0] == -1)):
            self._features = (shape[1], _what(node))
            if self._layers:
                self._check_features(self._layers[-1].module.out_features)
            return
        raise UnsupportedModuleError(
            f"{_what(node)} must give (batch, features), as x.view(x.size(0), -1) or "
            f"x.view(-1, 784) do")

    def _check_features(self, features: int) -> None:
        if self._features is not None and self._features[0] != features:
            wanted, what = self._features
            raise UnsupportedModuleError(
                f"{what} reshapes to {wanted} features where the Linear layer has {features}")
        self._features = None

    def finish(self) -> list[ChainLayer]:
        if not self._layers:
            raise UnsupportedModuleError(f"the model has no Linear layer; {SUPPORTED}")
        return self._layers
