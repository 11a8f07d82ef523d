"""Have XLA:TPU dump the bundles of what this process compiles, and write their counts into the HLO.

libtpu reads its flags once, when jax first asks for a topology, so `start` comes before that. With a
filter for the last pass the dump of a program is some megabytes, and compiling takes twice as long; all
passes of one dot would be 100 MB, and with them libtpu may end the process after int8 dots on v4.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path

import jax

from collective_einsum.ruler.bundles.count import Count, count
from collective_einsum.ruler.bundles.kernels import parse_kernel
from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import shapes
from collective_einsum.ruler.hlo.moves import moves_on_chip

_FLAGS = "--xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
_FILE = re.compile(r"\d+-(.+)-\d+-final_bundles\.txt")
_KERNEL_TARGET = "tpu_custom_call"
# Attributes that name other instructions, or say where one was traced from.
_NAMES = ("metadata", "calls", "control-predecessors")


def start() -> None:
    """Has every program that this process compiles from now on dump its bundles, into a folder that
    goes with the process.

    Raises:
      ValueError: if libtpu has read its flags already.
    """
    if _folder.cache_info().currsize:
        return
    if "libtpu.so" in Path("/proc/self/maps").read_text():
        raise ValueError(
            "libtpu has started and cannot dump bundles any more; ask for them first: "
            'ruler.mesh("v5e:4x4", axes, bundles=True), or --bundles on the command line'
        )
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {_FLAGS} --xla_jf_dump_to={_folder()}".strip()


def is_on() -> bool:
    """Whether this process dumps bundles."""
    return bool(_folder.cache_info().currsize)


def mark() -> str:
    """A mark for the keys under which programs are kept: those with counts have one, of which ops are
    counted."""
    return " bundles of dots, kernels, ops and moves" if is_on() else ""


def text_of(compile_program: Callable[[], jax.stages.Compiled]) -> tuple[jax.stages.Compiled, str]:
    """Compiles a program.

    Args:
      compile_program: compiles it, and nothing else meanwhile.

    Returns:
      The program and its text; where this process dumps bundles, the text has their counts.
    """
    if not is_on():
        executable = compile_program()
        return executable, executable.as_text() or ""
    for file in _folder().iterdir():
        file.unlink()
    executable = compile_program()
    return executable, annotated(executable.as_text() or "", _folder())


def annotated(text: str, folder: Path) -> str:
    """A module's text, with the issued bundles of its ops in their `backend_config`: of narrow dots, of
    Pallas kernels, and of all that is no dot, also of data moved on the chip, of which the compiler has
    no estimate; a dot is narrow if an operand has less than 16 bits.

    An op has none where no file is named after it or after one with the same code, as if jax took the
    program from a cache, or where it issues too many bundles to follow.
    """
    files = {}
    for file in sorted(folder.iterdir()):
        if match := _FILE.fullmatch(file.name):
            files[match[1]] = file
    counts: dict[str, Count] = {}
    module = hlo.parse(text)
    ops = _counted_ops(module)
    for name in ops.keys() & files.keys():
        try:
            counts[name] = count(parse_kernel(files[name].read_text()))
        except ValueError:
            continue
    # Ops of the same code share one file, named after one of them. The compiler ignores more
    # differences than the exact code does: the order of a fusion's operands, and of its lines.
    for code_of in (_code, _outline):
        codes = {name: code_of(module, *op) for name, op in ops.items()}
        by_code = {codes[name]: counted for name, counted in counts.items()}
        counts |= {name: by_code[code] for name, code in codes.items() if code in by_code}
    # Attributes of a kernel go on over lines.
    texts = re.split(r"\n(?=\s+(?:ROOT )?%?[\w.\-]+ = )", text)
    return "\n".join(_with_count(op, counts) for op in texts)


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="bundles-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _counted_ops(module: hlo.Module) -> dict[str, tuple[hlo.Computation, hlo.Instruction]]:
    """The ops that count, by name, with the computations that they are in."""
    fused = module.called_by("fusion")
    return {
        instruction.name: (computation, instruction)
        for computation in module.computations.values()
        if computation.name not in fused
        for instruction in computation
        if _counts(module, computation, instruction)
    }


def _counts(module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction) -> bool:
    if instruction.custom_call_target == _KERNEL_TARGET:
        return True
    if work.flops(module, computation, instruction):
        return any(_is_narrow(computation[name].shape) for name in instruction.operands)
    return instruction.estimated_cycles is not None or moves_on_chip(computation, instruction)


def _is_narrow(shape: shapes.AnyShape) -> bool:
    return any(leaf.bits < 16 and leaf.dtype != "pred" for leaf in shapes.leaves(shape))


def _code(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> Hashable:
    """All of an op but names and where it was traced from; equal for ops that share their code."""
    inner = [module.computations[name] for name in instruction.calls]
    return (
        instruction.opcode,
        instruction.shape,
        "" if instruction.operands else instruction.literal,
        tuple(computation[operand].shape for operand in instruction.operands),
        tuple(sorted((k, v) for k, v in instruction.attributes.items() if k not in _NAMES)),
        tuple(
            (_code(module, called, one), *map(list(called.instructions).index, one.operands))
            for called in inner
            for one in called
        ),
    )


def _outline(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> Hashable:
    """An op's shapes, attributes and opcodes, in no order; equal for ops that do the same."""
    inner = (one.opcode for name in instruction.calls for one in module.computations[name])
    return (
        instruction.opcode,
        instruction.shape,
        tuple(sorted(str(computation[operand].shape) for operand in instruction.operands)),
        tuple(sorted((k, v) for k, v in instruction.attributes.items() if k not in _NAMES)),
        tuple(sorted(inner)),
    )


def _with_count(op: str, counts: dict[str, Count]) -> str:
    """The text of an op, and of what follows it before the next one, with its count."""
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", op)
    counted = counts.get(match[1]) if match else None
    if counted is None:
        return op
    field = f'"issued_bundles":"{counted.bundles}","issued_windows":"{counted.windows}"'
    if "backend_config={" not in op:
        line, end, rest = op.partition("\n")
        return f"{line}, backend_config={{{field}}}{end}{rest}"
    separator = "" if "backend_config={}" in op else ","
    return op.replace("backend_config={", f"backend_config={{{field}{separator}", 1)
