"""What one forward pass shows: which layers close an MLP, where attention is, and where on the image each token lies.

Nothing here depends on a model family. While the pass runs, every tensor is known by what it was made of since the last linear
layers. And the batch shows one image with changes whose size differs from square to square: tokens that lie on the image in
raster order change in proportion.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .hooks import hooked
from .vision_model import VisionModel

# Query, key and value projections by their usual names: what each equal share of their output is.
_PROJECTIONS = {
    **dict.fromkeys(("qkv", "to_qkv"), ("query", "key", "value")), "qk": ("query", "key"),
    **dict.fromkeys(("kv", "to_kv"), ("key", "value")),
    **dict.fromkeys(("q", "q_proj", "query", "to_q"), ("query",)), **dict.fromkeys(("k", "k_proj", "key", "to_k"), ("key",)),
    **dict.fromkeys(("v", "v_proj", "value", "to_v"), ("value",)),
}
# Functions by their names in ATen, in-place or not. All else (matrix products, softmax, pooling) mixes tokens.
_ACTIVATIONS = {"relu", "relu6", "gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu", "prelu", "_prelu_kernel", "tanh",
                "hardtanh", "hardswish", "softplus", "threshold", "clamp", "clamp_min"}
_GATES = {"sigmoid", "hardsigmoid", "erf"}  # parts of activation functions, but none by themselves
_COPIES = {"clone", "contiguous", "_to_copy", "dropout", "native_dropout", "reshape", "flatten", "_unsafe_view", "copy"}
_POOLING = {"mean", "sum", "amax", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"}
_TOKENWISE = {"mean", "sum", "var", "var_mean", "sqrt", "rsqrt", "reciprocal", "pow", "square", "neg", "abs", "exp", "log",
              "cat", "stack", "constant_pad_nd", "roll", "index", "repeat", "expand"}
_PRODUCTS, _SUMS = {"mul", "div"}, {"add", "sub", "rsub", "addcmul"}


class Origin(NamedTuple):
    """What a tensor that depends on the image was made of."""

    layers: frozenset[int] = frozenset()  # calls of linear layers since which no tokens were mixed
    nonlinear: bool = False
    mixed: bool = False  # by a depthwise convolution
    pooled: bool = False  # over the image, as the input of squeeze-and-excitation is
    fresh: int = 0  # 2 for what an activation function has just made, 1 for a part of one
    raw: bool = False  # a linear layer's output as it is
    act: tuple[str, str] | None = None  # the linear layer and the activation function whose output it is


class Found(NamedTuple):
    """A tensor where units may be read, and how its tokens responded to the changes of each image, by the axis of the units."""

    kind: str
    path: str
    call: int
    shape: tuple[int, ...]  # of one image's share
    responses: dict[int, torch.Tensor]  # (images, tokens)
    part: tuple[int, int] = (0, 1)
    given: bool = False  # units are what the module is given, not what it returns
    act: tuple[str, str] | None = None
    made: int = 0  # units that an MLP's closing layer makes
    owner: str = ""  # attention's module; of an MLP, and of the block that it ends, its closing layer


class Linear(NamedTuple):
    path: str
    given: int
    made: int
    convolution: bool


def linear_of(path: str, module: nn.Module) -> Linear | None:
    """A linear layer or 1x1 convolution, else None."""
    if isinstance(module, nn.Linear):
        return Linear(path, module.in_features, module.out_features, False)
    if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride == (1, 1) and module.groups == 1:
        return Linear(path, module.in_channels, module.out_channels, True)
    return None


class Watch(TorchDispatchMode):
    """Records, while a forward pass runs under it, places that are ``found``, what the network returns as ``output``, and owners
    of queries that are ``constant``, whatever the image."""

    def __init__(self, model: VisionModel, images: int):
        super().__init__()
        self.found: list[Found] = []
        self.output, self.constant = None, set()
        self._model, self._images = model, images
        self._named = dict(model.module.named_modules())
        self._linear = {path: linear for path, module in self._named.items() if (linear := linear_of(path, module))}
        self._calls, self._counts = [], dict.fromkeys(self._named, 0)
        self._origins: dict[int, Origin] = {}  # by storage, which views share
        self._open: list[tuple[str, int]] = []  # closing layers whose block has not ended
        self._acts: dict[str, str] = {}  # functions at work on a linear layer's output, and that layer
        self._projections: dict[str, str] = {}  # owners of queries, keys and values, whose attention has not ended

    def run(self, inputs: torch.Tensor) -> None:
        inputs = inputs.to(next((p.dtype for p in self._model.module.parameters() if p.is_floating_point()), inputs.dtype))
        self._origins[_storage(inputs)] = Origin()
        with hooked(self._named, self._after, self._before), self:
            self._model.forward(inputs)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        full = function.overloadpacket.__name__
        name = full.rstrip("_")
        known = {_storage(leaf): leaf for leaf in given}
        operands = [leaf for leaf in given if _storage(leaf) in self._origins]
        for made in (leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)):
            if full.endswith("_") or name == "lift_fresh" or _storage(made) not in known:  # views stay as they are
                if operands and name != "lift_fresh":
                    pooled = (name in _POOLING and made.shape[-2:].numel() == 1 < operands[0].shape[-2:].numel() or
                              all(self._origins[_storage(operand)].pooled for operand in operands))
                    self._origins[_storage(made)] = self._combine(name, args, operands)._replace(pooled=pooled)
                else:
                    self._origins.pop(_storage(made), None)
        return outputs

    def _combine(self, name: str, args: tuple, operands: list[torch.Tensor]) -> Origin:
        given = [self._origins[_storage(operand)] for operand in operands]
        first, layers = given[0]._replace(raw=False, act=None), [origin.layers for origin in given]
        if name in _COPIES:
            return given[0]
        if name in _ACTIVATIONS | _GATES:
            return first._replace(nonlinear=True, fresh=2 if name in _ACTIVATIONS else 1)
        constant = [arg for arg in args if isinstance(arg, torch.Tensor) and _storage(arg) not in self._origins]
        if len(given) == 1 and (name in _PRODUCTS | _SUMS or name in ("mm", "matmul") and len(set(constant[0].shape)) == 1):
            return first  # scaled, shifted or rotated by constants
        union = Origin(frozenset().union(*layers), any(o.nonlinear for o in given), any(o.mixed for o in given))
        if name in _PRODUCTS and (all(layers) or not any(layers)):
            fresh = 2 if any(o.fresh for o in given) and len({operand.shape for operand in operands}) == 1 else 0
            return union._replace(nonlinear=True, fresh=fresh)
        if name in _SUMS and (len(set(layers)) == 1 or self._are_adapters(given)):  # else residual connections
            return union
        if name in _TOKENWISE or "norm" in name and all(layers):
            return union
        if "conv" in name and len(args) > 1 and args[-1] == len(args[1]) > 1:  # depthwise
            return union._replace(mixed=True)
        return Origin()

    def _are_adapters(self, given: list[Origin]) -> bool:
        """Whether linear layers' outputs are added, as LoRA does."""
        return all(o.layers and not o.nonlinear and not any(self._calls[i].convolution for i in o.layers) for o in given)

    def _before(self, path: str, module: nn.Module, arguments: tuple) -> None:
        x = arguments[0] if arguments and isinstance(arguments[0], torch.Tensor) else None
        origin = x is not None and self._origins.get(_storage(x))
        if not origin:
            return
        if origin.raw:
            self._acts[path] = self._calls[min(origin.layers)].path
        closing = self._linear.get(path) if path.rpartition(".")[2] not in _PROJECTIONS else None
        if closing and origin.nonlinear and not (closing.convolution and origin.mixed) and any(
                self._calls[i].made in (closing.given, 2 * closing.given)
                and (self._calls[i].given == closing.made or not closing.convolution)
                for i in origin.layers):
            self._note("mlp", path, x, (1,) if closing.convolution else (-1,), given=True, act=origin.act, made=closing.made,
                       owner=path)
            self._open = [each for each in self._open if each[0] != path] + [(path, len(self._calls))]

    def _after(self, path: str, module: nn.Module, arguments: tuple, output) -> None:
        self._counts[path] += 1
        if not path:
            self.output = output
            return
        parent, _, name = path.rpartition(".")
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        if len(tensors) != 1 or _storage(tensors[0]) not in self._origins:  # CoaT's parallel blocks return one tensor a scale
            if path in self._linear and name in _PROJECTIONS:  # attention pooling's learned query
                self.constant.add(parent)
            return
        x, origin = tensors[0], self._origins[_storage(tensors[0])]
        if path in self._linear:
            self._calls.append(self._linear[path])
            self._origins[_storage(x)] = Origin(frozenset([len(self._calls) - 1]), pooled=origin.pooled, raw=True)
            if name in _PROJECTIONS and isinstance(module, nn.Linear):
                kinds = _PROJECTIONS[name]
                for part, kind in enumerate(kinds):
                    self._note(kind, path, x, (-1,), part=(part, len(kinds)), owner=parent)
                self._projections[parent] = path
            return
        if path in self._acts:
            opening = self._acts.pop(path)
            if origin.nonlinear or isinstance(module, nn.Identity):  # in an activation function's stead
                origin = origin._replace(nonlinear=True, act=(opening, path))
        if origin.fresh == 2:
            self._note("channel", path, x, (1, -1) if x.dim() == 4 else (-1,), act=origin.act, owner=path)
        self._origins[_storage(x)] = origin._replace(fresh=0)
        for owner in [o for o in self._projections if o == path or o.rpartition(".")[0] == path]:
            made = {(self._calls[i].made, self._calls[i].convolution) for i in origin.layers}
            if made == {(self._linear[self._projections[owner]].given, False)} and not origin.nonlinear:
                self._note("attention", path, x, (-1,), owner=owner)
                del self._projections[owner]
        closed = [each for each in self._open if each[0].startswith(f"{path}.") and each[0].count(".") - path.count(".") <= 3]
        ended = [each for each in closed if origin.layers != {each[1]}]
        if ended:
            width = self._linear[ended[-1][0]].made
            self._note("residual", path, x, [axis for axis in (-1, 1) if x.dim() > 2 and x.shape[axis] == width],
                       owner=ended[-1][0])
            self._open = [each for each in self._open if each not in ended]

    def _note(self, kind: str, path: str, x: torch.Tensor, axes, **more) -> None:
        if x.dim() < 3 or len(x) % self._images or not axes or self._origins[_storage(x)].pooled:
            return
        responses = {}
        for axis in axes:
            tokens = x.detach().movedim(axis, -1).reshape(self._images, -1, x.shape[axis]).float()
            responses[axis] = (tokens[1:] - tokens[:1]).norm(dim=-1).cpu()
        call = self._counts[path] - (0 if more.get("given") else 1)
        self.found.append(Found(kind, path, call, (len(x) // self._images, *x.shape[1:]), responses, **more))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
