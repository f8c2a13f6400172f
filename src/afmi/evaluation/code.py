"""Describe values and the code that works on them, alike in every process that has the same.

Code counts by what Python makes of it, so that comments and line numbers do not; the code of
installed packages by their versions. Memory addresses and absolute paths are left out.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import hashlib
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from afmi.models.factory import FILE_PREFIX

__all__ = ["CodeReader", "tensor_digest"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.Size)
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type)
_VERSIONED = {"afmi", "torch"}  # an identity has these versions anyway
_DEEPEST = 8


class CodeReader:
    """Collects the code that values lead to.

    Attributes:
        code: digests of functions by their qualified names, what global and class variables they
            use hold, and the versions of installed packages.
    """

    def __init__(self) -> None:
        self.code: dict[str, str] = {}
        self._read: set[int] = set()

    def text(self, value: Any, depth: int = 0) -> str:
        """Return what a value is, in text, and read the code of the functions and classes in it.

        Of an object that is neither plain, a container, a tensor nor a dataclass only the class
        is told, for what it holds may be another in every process.
        """
        if isinstance(value, (*_PLAIN, enum.Enum)):
            # A path is where something lies on this machine.
            return "a path" if isinstance(value, str) and os.path.isabs(value) else repr(value)
        if isinstance(value, (Tensor, np.ndarray)):
            return tensor_digest(value)
        if isinstance(value, _FUNCTIONS):
            self.read(value)
            return _name(value)
        self.read(type(value))
        if depth < _DEEPEST:
            parts = [f"{key}={part}" for key, part in self._parts(value, depth + 1)]
            return f"{_name(type(value))}({', '.join(parts)})"
        return _name(type(value))

    def read(self, source: Any) -> None:
        """Read the code of a function or class, and of all that it uses."""
        for inner in ("__func__", "func", "__wrapped__"):  # of methods, properties, caches
            if not isinstance(source, (types.FunctionType, type)):
                source = getattr(source, inner, source)
        if id(source) in self._read or not self._is_own(getattr(source, "__module__", None)):
            return
        self._read.add(id(source))
        if isinstance(source, type):
            self._read_class(source)
        elif isinstance(source, types.FunctionType):
            self._read_function(source)

    def _parts(self, value: Any, depth: int) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            for key, item in value.items():
                # Tensors by keys such as sizes are a cache, more often than not.
                if not isinstance(item, Tensor):
                    yield self.text(key, depth), self.text(item, depth)
        elif isinstance(value, (set, frozenset)):
            yield from (("", text) for text in sorted(self.text(item, depth) for item in value))
        elif isinstance(value, (tuple, list)):
            yield from (("", self.text(item, depth)) for item in value)
        elif isinstance(value, functools.partial):
            yield from self._parts((value.func, value.args, value.keywords), depth)
        else:
            yield from self._fields(value, depth)

    def _fields(self, value: Any, depth: int) -> Iterator[tuple[str, str]]:
        if isinstance(value, nn.Module):  # one that its parent did not register
            for name, tensor in (*value.named_parameters(), *value.named_buffers()):
                yield name, tensor_digest(tensor)
        elif isinstance(value, types.SimpleNamespace):
            yield from self._parts(vars(value), depth)
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield field.name, self.text(getattr(value, field.name, None), depth)

    def _is_own(self, home: str | None) -> bool:
        """Tell whether a module is the user's; of an installed package, note the version."""
        top = (home or "builtins").partition(".")[0]
        if top in _VERSIONED or (top in sys.stdlib_module_names and top != "__main__"):
            return False
        file = getattr(sys.modules.get(home or ""), "__file__", None)
        if file is None or not {"site-packages", "dist-packages"} & {*Path(file).parts}:
            return True
        self.code[top] = _version(top)
        return False

    def _read_class(self, cls: type) -> None:
        for base in cls.__bases__:
            self.read(base)
        for name, member in vars(cls).items():
            if isinstance(member, property):
                for function in (member.fget, member.fset):
                    self.read(function)
            elif callable(member) or hasattr(member, "__func__") or hasattr(member, "func"):
                self.read(member)
            elif not name.startswith(("__", "_abc_")):
                self.code[f"{_name(cls)}.{name}"] = self.text(member)

    def _read_function(self, function: Any) -> None:
        code, name = function.__code__, _name(function)
        defaults = self.text((function.__defaults__, function.__kwdefaults__))
        digest = _digest(*_code_parts(code), defaults)
        # Several may have one name, as lambdas do.
        self.code[name] = _digest(self.code.get(name, ""), digest)
        for free, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
            try:
                self._use(f"{name}.{free}", cell.cell_contents, ())
            except ValueError:  # it is empty still
                continue
        variables, home = function.__globals__, function.__globals__.get("__name__", "")
        if self._is_own(home):
            attributes = _used(code, "LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")
            for variable in _used(code, "LOAD_GLOBAL", "LOAD_NAME"):
                if variable in variables and not variable.startswith("__"):
                    where = f"{_module_name(home)}.{variable}"
                    self._use(where, variables[variable], attributes)
            for module in _used(code, "IMPORT_NAME"):
                self._use(module, sys.modules.get(module), attributes)

    def _use(self, name: str, value: Any, attributes: Sequence[str]) -> None:
        """Read what a function uses; of a module, the attributes that the function may want."""
        if isinstance(value, types.ModuleType):
            if self._is_own(value.__name__):
                for attribute in attributes:
                    if attribute in vars(value) and not attribute.startswith("__"):
                        self._use(f"{value.__name__}.{attribute}", vars(value)[attribute], ())
        elif isinstance(value, (types.FunctionType, type)):
            self.read(value)
        else:
            self.code[name] = self.text(value)


def tensor_digest(tensor: Tensor | np.ndarray) -> str:
    """Return a digest of a tensor's shape, type and numbers."""
    kind = f"{tuple(tensor.shape)} {tensor.dtype}"
    try:
        dense = torch.as_tensor(tensor, device="cpu").detach()
        dense = (dense.to_dense() if dense.layout != torch.strided else dense).resolve_conj()
        flat = dense.resolve_neg().contiguous().flatten()
        return _digest(kind, flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    except Exception:  # without storage, or of a type that has no bytes of its own
        return kind


def _code_parts(code: types.CodeType) -> Iterator[Any]:
    yield from (code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    yield getattr(code, "co_exceptiontable", b"")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_parts(constant)
        else:
            ordered = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
            yield repr(ordered)


def _used(code: types.CodeType, *operations: str) -> list[str]:
    """Return the names that code uses in these operations, also within inner functions."""
    names = {str(i.argval) for i in dis.get_instructions(code) if i.opname in operations}
    inner = (
        _used(part, *operations) for part in code.co_consts if isinstance(part, types.CodeType)
    )
    return sorted(names.union(*inner))


def _digest(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = part if isinstance(part, (bytes, memoryview)) else repr(part).encode(errors="replace")
        digest.update(f"{len(raw)} ".encode())
        digest.update(raw)
    return digest.hexdigest()


def _name(value: Any) -> str:
    home = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return f"{_module_name(home)}.{name}" if home else name


def _module_name(home: str) -> str:
    return home.removeprefix(FILE_PREFIX)


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # its distribution has another name
        names: Callable[[], Mapping[str, list[str]]] = metadata.packages_distributions
        return ", ".join(sorted({metadata.version(name) for name in names().get(package, [])}))
