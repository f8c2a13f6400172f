"""A job on its way to workers: a small description, and apart from it all that is large.

Weights, arrays and long lists are taken out of the pickle, so that an engine can put them once
where all workers of a machine read them.
"""

from __future__ import annotations

import functools
import importlib.machinery
import io
import os
import pickle
import platform
import sys
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn

from afmi._version import __version__
from afmi.errors import AfmiError, UsageError, first_line

__all__ = ["Parcel"]

_LARGE = 4096
"""Bytes, or members of a tuple, from which on a part is taken out."""


@dataclass(frozen=True)
class _Array:
    """A tensor's numbers, without its place."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    data: np.ndarray
    device: str
    parameter: bool
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> _Array:
        # As it lies in memory, since the order of the strides decides which kernels run.
        values = tensor.detach().cpu()
        dense = torch.empty_like(values, memory_format=torch.preserve_format).copy_(values)
        flat = dense.as_strided((dense.numel(),), (1,)).contiguous()
        return cls(
            *(tensor.dtype, tuple(dense.shape), dense.stride()),
            *(flat.view(torch.uint8).numpy(), tensor.device.type),
            parameter=isinstance(tensor, nn.Parameter),
            requires_grad=tensor.requires_grad,
        )

    def tensor(self) -> Tensor:
        # A copy: what comes from shared memory must not be written to.
        flat = torch.from_numpy(np.array(self.data)).view(self.dtype)
        values = flat.as_strided(self.shape, self.stride).to(self.device)
        if self.parameter:
            return nn.Parameter(values, requires_grad=self.requires_grad)
        return values.requires_grad_(self.requires_grad)


@dataclass(frozen=True)
class Parcel:
    """An object that can be built again in another process, on another device.

    Attributes:
        description: everything but what is large: a compressed pickle. Functions and classes that
            another process could not import, such as those of a notebook or of a file beside it,
            are in it by their code.
        parts: what is large.
        versions: of the packages that decide the results.
    """

    description: bytes
    parts: tuple[Any, ...]
    versions: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, value: object) -> Parcel:
        """Pack an object.

        Raises:
            UsageError: when a part of it cannot be pickled.
        """
        buffer = io.BytesIO()
        pickler = _Pickler(buffer)
        with _by_value():
            try:
                pickler.dump(value)
            except Exception as error:
                raise UsageError(
                    f"the network or the data cannot be sent to workers ({first_line(error)}); "
                    "expected what cloudpickle can pickle: open files, locks and generators must "
                    "be made where they are used; or evaluate in one process, without workers"
                ) from error
        return cls(zlib.compress(buffer.getvalue(), 6), tuple(pickler.parts), _versions())

    def open(self) -> Any:
        """Build the object; its tensors lie on devices of the types that they lay on.

        Raises:
            AfmiError: when this process has other versions of the packages, or lacks a module.
        """
        here = _versions()
        if here != self.versions:
            wrong = [
                f"{name} {now} instead of {then}"
                for (name, then), (_, now) in zip(self.versions, here, strict=True)
                if then != now
            ]
            raise AfmiError(
                f"a worker on {platform.node()} has {', '.join(wrong)}; install the same versions "
                "on all machines"
            )
        unpickler = _Unpickler(io.BytesIO(zlib.decompress(self.description)))
        unpickler.parts = self.parts
        unpickler.built = {}
        try:
            return unpickler.load()
        except ModuleNotFoundError as error:
            raise AfmiError(
                f"a worker on {platform.node()} lacks the module {error.name!r}; install it on all "
                "machines"
            ) from error


class _Pickler(cloudpickle.Pickler):
    """Takes out what is large."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.parts: list[Any] = []
        self._places: dict[int, int] = {}
        self._kept: list[object] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not _is_large(obj):
            return None
        if id(obj) not in self._places:
            self._places[id(obj)] = len(self.parts)
            self._kept.append(obj)  # so that no other object gets its id
            self.parts.append(_Array.of(obj) if isinstance(obj, Tensor) else obj)
        return self._places[id(obj)]


class _Unpickler(pickle.Unpickler):
    parts: Sequence[Any]
    built: dict[int, Any]

    def persistent_load(self, pid: Any) -> Any:
        # A tensor that two modules share stays one.
        if pid not in self.built:
            part = self.parts[pid]
            if isinstance(part, _Array):
                part = part.tensor()
            self.built[pid] = part
        return self.built[pid]


def _is_large(value: object) -> bool:
    if type(value) in (Tensor, nn.Parameter):
        assert isinstance(value, Tensor)
        # Every one, so that each gets to the worker's device; others are pickled as they are.
        plain = value.layout is torch.strided and not value.is_quantized
        return plain and value.device.type not in ("meta",) and value.is_leaf
    if type(value) is np.ndarray:
        return value.nbytes >= _LARGE and not value.dtype.hasobject
    if isinstance(value, (bytes, str)):
        return len(value) >= _LARGE
    plain = (str, int, float)
    return type(value) is tuple and len(value) >= _LARGE and all(type(v) in plain for v in value)


@contextmanager
def _by_value() -> Iterator[None]:
    """Pickle by their code what other processes cannot import."""
    names = [name for name, module in list(sys.modules.items()) if not _importable(name, module)]
    done = []
    try:
        for name in names:
            try:
                cloudpickle.register_pickle_by_value(sys.modules[name])
            except (ValueError, KeyError):  # known so already, or gone
                continue
            done.append(name)
        yield
    finally:
        for name in done:
            cloudpickle.unregister_pickle_by_value(sys.modules[name])


def _importable(name: str, module: Any) -> bool:
    """Tell whether every machine with the same packages can import a module."""
    file = getattr(module, "__file__", None)
    top = name.partition(".")[0]
    if top in ("afmi", "__main__") or not isinstance(file, str) or not file.endswith(".py"):
        return True  # __main__ goes by value anyway; what is compiled cannot
    return file.startswith(_installed_paths()) and _is_found(top)


@functools.cache
def _is_found(top: str) -> bool:
    return importlib.machinery.PathFinder.find_spec(top) is not None


@functools.cache
def _installed_paths() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return *(os.path.join(sysconfig.get_path(name), "") for name in names), sys.base_prefix


def _versions() -> tuple[tuple[str, str], ...]:
    python = ".".join(platform.python_version_tuple()[:2])
    return ("afmi", __version__), ("torch", torch.__version__), ("Python", python)
