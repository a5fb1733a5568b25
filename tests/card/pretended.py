"""Tensors that say they are on cuda:0 and keep their values on the host.

Within `pretended()` torch makes such tensors wherever a card is asked for.  Work goes on as on the host, but
what a card refuses is refused: tensors of both places in one operation, NumPy of a card's tensor, a generator
of the other place.  So code that would fail on a card fails here.  What it cannot see: tensors that C++ makes
by itself during a backward pass (constants on the host are let through there), and streams.  `waits` counts
how often the host asked for a number or a tensor of the card's.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from xreg.ops import registry

CARD, HOST = torch.device("cuda:0"), torch.device("cpu")
Tensor, aten = torch.Tensor, torch.ops.aten
ON_THE_HOST = {"xreg": ((6,), (3, 4))}  # shapes of an operator's arguments that stay there: metric, affine
WAITING = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)
INDEXED = (
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default
)  # fmt: skip


waits = Counter()  # by what was asked for


class CardTensor(Tensor):
    """A tensor on the card; `inner` has the values."""

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> "CardTensor":
        known = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, device=HOST, requires_grad=requires_grad, **known
        )

    def __init__(self, inner: Tensor, requires_grad: bool = False) -> None:
        self.inner = inner

    device = property(lambda self: CARD)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def __repr__(self) -> str:
        return f"CardTensor({self.inner})"

    def __deepcopy__(self, memo: dict) -> Tensor:
        kind = torch.nn.Parameter if isinstance(self, torch.nn.Parameter) else lambda t, grad: t
        return memo.setdefault(id(self), kind(CardTensor(self.inner.clone()), self.requires_grad))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return CardTensor(x.detach().clone())

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return _inner(g)


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        waits["tensor"] += 1
        return _inner(x).clone()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g if isinstance(g, CardTensor) else CardTensor(g)


class CardGenerator(torch._C.Generator):
    """A generator that knows where it is."""

    def __new__(cls, device: torch.device | str = "cpu") -> "CardGenerator":
        made = super().__new__(cls)
        made.place = CARD if _on_card(device) else HOST
        return made

    def __init__(self, device: torch.device | str = "cpu") -> None:
        pass

    device = property(lambda self: self.place)


def _on_card(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _inner(x: object) -> object:
    return x.inner if isinstance(x, CardTensor) else x


def _moved(x: Tensor, device: torch.device | str | None) -> Tensor:
    if device is None or isinstance(x, CardTensor) == _on_card(device):
        return x
    return (_Up if _on_card(device) else _Down).apply(x)


def _run(func, args: tuple, kwargs: dict):
    """An operator on inner tensors; its results are where its tensors are, or where it is told."""
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    carded = any(isinstance(t, CardTensor) for t in tensors)
    if func is aten.copy_.default:
        waits["copy"] += isinstance(args[1], CardTensor) and not isinstance(args[0], CardTensor)
        func(_inner(args[0]), _inner(args[1]))
        return args[0]
    if carded:
        _refuse_mixed(func, args, tensors)
        picked = args[1] if func in INDEXED else ()
        by_mask = any(isinstance(t, CardTensor) and t.dtype == torch.bool for t in picked)
        waits[str(func)] += func in WAITING or by_mask
    told = kwargs.get("device")
    makes = carded if told is None or (torch.device(told) == HOST and carded) else _on_card(told)
    if told is not None:
        kwargs = {**kwargs, "device": HOST}
    if func is aten._to_copy.default:
        kwargs.pop("device", None)
    found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    known = {id(t.inner): t for t in tensors if isinstance(t, CardTensor)}  # what works in place

    def wrapped(t: object) -> object:
        if not isinstance(t, Tensor) or isinstance(t, CardTensor):
            return t
        return known.get(id(t), CardTensor(t) if makes else t)

    return tree_map(wrapped, found)


def _refuse_mixed(func, args: tuple, tensors: list[Tensor]) -> None:
    if func in INDEXED:  # an index may be on the host, what is indexed may not
        tensors = [args[0], *(t for t in args[2:3] if isinstance(t, Tensor))]
    stays = ON_THE_HOST.get(func.namespace, ())
    host = [t for t in tensors if not isinstance(t, CardTensor) and t.dim() and tuple(t.shape) not in stays]
    if torch._C._current_graph_task_id() != -1:  # zeros and ones that C++ makes in a backward pass
        host = [t for t in host if t.numel() and not bool((t == t.flatten()[0]).all())]
    if host and "foreach" not in str(func):
        raise RuntimeError(f"{func} got tensors on cuda:0 and, of the shape {tuple(host[0].shape)}, on cpu")


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch decides before it comes to an operator: where to move a tensor to, and generators."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if isinstance(generator := kwargs.get("generator"), CardGenerator):
            told = kwargs.get("device")
            there = any(isinstance(a, CardTensor) for a in args) if told is None else _on_card(told)
            if _on_card(generator.device) != there:
                raise RuntimeError(
                    f"{func} for {'cuda' if there else 'cpu'} got a generator on {generator.device}"
                )
        if func is Tensor.to:
            return _to(*args, **kwargs)
        if func in (Tensor.cuda, Tensor.cpu):
            return _moved(args[0], CARD if func is Tensor.cuda else HOST)
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], CardTensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is Tensor.tolist:
            waits["list"] += isinstance(args[0], CardTensor)
            return func(_inner(args[0]).detach())
        if func is Tensor.new_tensor:
            return _moved(func(*args, **kwargs), kwargs.get("device", args[0].device))
        if func in (torch.as_tensor, torch.asarray, torch.tensor):
            device = kwargs.pop("device", None)
            if isinstance(x := args[0], CardTensor):
                return _moved(x.to(kwargs.get("dtype") or x.dtype), device)
            return _moved(func(*args, **kwargs), device)
        return func(*args, **kwargs)


def _to(x: Tensor, *args, device=None, non_blocking: bool = False, **kwargs) -> Tensor:
    device, rest, known = _asked(args, device, kwargs)
    waits["up"] += _on_card(device) and not isinstance(x, CardTensor) and not non_blocking
    return _moved(Tensor.to(x, *rest, **known) if rest or known else x, device)


def _asked(args: tuple, device: object, kwargs: dict) -> tuple[object, list, dict]:
    """The device that `to` was told, and everything else."""
    rest, known = [], {k: v for k, v in kwargs.items() if k not in ("non_blocking", "copy") and v is not None}
    for a in args:
        if isinstance(a, torch.device | str):
            device = a
        elif isinstance(a, Tensor):
            device, known["dtype"] = a.device, a.dtype
        elif a is not None and not isinstance(a, bool):
            rest.append(a)
    return device, rest, known


def _module_to(module: torch.nn.Module, *args, device=None, **kwargs) -> torch.nn.Module:
    device, rest, known = _asked(args, device, kwargs)
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is None:
                continue
            own = {k: v for k, v in known.items() if k != "memory_format" or p.dim() == 4}
            value = p.detach().to(*rest, **own) if rest or own else p.detach()
            part._parameters[name] = torch.nn.Parameter(_moved(value, device).detach(), p.requires_grad)
        for name, b in part._buffers.items():
            part._buffers[name] = None if b is None else _moved(b, device)
    return module


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """A machine whose torch has a card, with kernels for it."""
    registry.load()
    waits.clear()
    submit = ThreadPoolExecutor.submit

    def within(pool: ThreadPoolExecutor, function, *args, **kwargs):
        def run():
            with _Functions(), _Operators():
                return function(*args, **kwargs)

        return submit(pool, run)

    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "device_count", lambda: 1),
            (torch, "Generator", CardGenerator),
            (torch.nn.Module, "to", _module_to),
            (ThreadPoolExecutor, "submit", within),  # torch's modes are a thread's own
            (registry, "cuda_reason", lambda: None),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(_Functions())
        stack.enter_context(_Operators())
        yield
