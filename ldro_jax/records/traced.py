"""Digests of traced programs: two programs that compute the same in the same way have one digest.

A function's name and file say little about what it computes: a learning rate is a number inside a
closure, a loss calls others. What JAX traces of a function has all of it, as equations, numbers and
constants. A digest goes over these and over nothing that differs between two processes or
machines: no variable's name, place in memory or line of code, no device and no sharding.

For example, ``optax.sgd(0.1)`` of one parameter is::

    { lambda ; a:f32[]. let b:f32[] = mul -0.1:f32[] a in (b,) }

and the digest reads: one input float32[]; ``mul`` of the number -0.1 and input 0 gives float32[];
output 1.
"""

import hashlib
import inspect
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

# Parameters of equations that say where something is computed, or how it is called.
_LEFT_OUT = re.compile(
    "name|.*shardings?|.*layouts?|.*mesh|devices|srcs|copy_semantics|donated_invars|keep_unused|"
    "compiler_options_kvs|inline|.*debug_info|name_and_src_info|sharding_rule"
)
_PLACES = re.compile(r" at 0x[0-9a-f]+|0x[0-9a-f]{6,}")


def of(function: Callable[..., Any], *arguments: Any) -> str:
    """The digest, 16 hexadecimal digits, of a function for pytrees of arrays or their shapes.

    The function is traced, and not computed.
    """
    shapes = jax.tree.map(_shape, arguments)
    closed, out = jax.make_jaxpr(function, return_shape=True)(*shapes)
    writer = _Writer()
    # Outputs of the same leaves in another tree are other outputs.
    writer.write(shapes=_text(jax.tree.structure(shapes)), out=_text(jax.tree.structure(out)))
    writer.closed(closed)
    return writer.digest()


def of_values(*values: Any) -> str:
    """The digest of arrays, numbers, texts, and lists and dictionaries of them."""
    writer = _Writer()
    for value in values:
        writer.value(value)
    return writer.digest()


def of_code(function: Callable[..., Any]) -> str:
    """The digest of the code of a function that can't be traced, and of what it closes over.

    It is another one in another version of Python, and leaves out what the functions do that the
    code calls by their names.
    """
    writer = _Writer()
    writer.code(function, seen=set())
    return writer.digest()


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf)
    # Since 0.12 JAX warns of 64 bits, where it has 32.
    held = jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct(np.shape(leaf), held)


def _text(value: Any) -> str:
    return _PLACES.sub("", str(value))


class _Writer:
    """Writes programs into a hash."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)
        # Bodies that are called again and again are written once: by identity, and kept alive.
        self._written: dict[int, tuple[Any, str]] = {}

    def digest(self) -> str:
        return self._hash.hexdigest()

    def write(self, **parts: str) -> None:
        for name, text in parts.items():
            self._hash.update(f"{name}={text}\n".encode(errors="backslashreplace"))

    def closed(self, closed: Any) -> None:
        self.jaxpr(closed.jaxpr)
        for constant in closed.consts:
            self.value(constant)

    def jaxpr(self, jaxpr: Any) -> None:
        numbers: dict[Any, int] = {}

        def declare(variables):
            for variable in variables:
                numbers[variable] = len(numbers)
                self.write(variable=_aval(variable.aval))

        declare(jaxpr.constvars)
        declare(jaxpr.invars)
        for eqn in jaxpr.eqns:
            self.write(equation=eqn.primitive.name)
            self._read(eqn.invars, numbers)
            declare(eqn.outvars)
            for name in sorted(eqn.params):
                if not _LEFT_OUT.fullmatch(name):
                    self.write(parameter=name)
                    self.value(eqn.params[name])
        self.write(outputs="")
        self._read(jaxpr.outvars, numbers)

    def _read(self, variables: Any, numbers: Mapping[Any, int]) -> None:
        for variable in variables:
            if hasattr(variable, "val"):
                self.write(literal=_aval(variable.aval))
                self.value(variable.val)
            else:
                self.write(reads=str(numbers[variable]))

    def value(self, value: Any) -> None:
        """Writes a parameter or a constant, whatever it is."""
        if hasattr(value, "jaxpr") and hasattr(value, "consts"):
            self._once(value, _Writer.closed)
        elif hasattr(value, "eqns") and hasattr(value, "invars"):
            self._once(value, _Writer.jaxpr)
        elif isinstance(value, Mapping):
            for key in sorted(value, key=str):
                self.write(key=_text(key))
                self.value(value[key])
        elif isinstance(value, (tuple, list)):
            self.write(sequence=f"{type(value).__name__} {len(value)}")
            for item in value:
                self.value(item)
        elif isinstance(value, (set, frozenset)):
            self.write(set=str(sorted(map(_text, value))))
        elif isinstance(value, (np.ndarray, np.generic, jax.Array)):
            self._array(value)
        elif isinstance(value, type):
            self.write(type=value.__name__)
        elif callable(value):
            # What a derivative rule computes is in the gradient's own equations.
            self.write(function=type(value).__name__)
        else:
            self.write(value=_text(repr(value)))

    def code(self, function: Any, seen: set[int]) -> None:
        """Writes the code of a function and of those in its closure."""
        function = getattr(inspect.unwrap(function), "__func__", function)
        code = getattr(function, "__code__", None)
        if code is None or id(function) in seen:
            self.write(object=type(function).__name__)
            return
        seen.add(id(function))
        self._code(code)
        cells = [c.cell_contents for c in function.__closure__ or () if c != types.CellType()]
        for value in [*cells, *(function.__defaults__ or ())]:
            if callable(value):
                self.code(value, seen)
            elif isinstance(value, (bool, int, float, str, np.ndarray, jax.Array, type(None))):
                self.value(value)

    def _code(self, code: types.CodeType) -> None:
        self._hash.update(code.co_code)
        self.write(names=" ".join(code.co_names))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            elif constant != code.co_consts[0] or not isinstance(constant, str):
                self.value(constant)  # but for the docstring

    def _once(self, program: Any, write: Callable[["_Writer", Any], None]) -> None:
        if id(program) not in self._written:
            inner = _Writer()
            inner._written = self._written
            write(inner, program)
            self._written[id(program)] = (program, inner.digest())
        self.write(program=self._written[id(program)][1])

    def _array(self, array: Any) -> None:
        self.write(array=f"{array.dtype}{list(np.shape(array))}")
        if isinstance(array, jax.Array):
            if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
                array = jax.random.key_data(array)
            # One process doesn't have all of what is spread over several.
            if not array.is_fully_addressable:
                return
        self._hash.update(np.asarray(array).tobytes())


def _aval(aval: Any) -> str:
    if hasattr(aval, "shape") and hasattr(aval, "dtype"):
        return f"{aval.dtype}{list(aval.shape)}"
    return _text(aval)
