"""Read the final VLIW bundles of one op, as XLA:TPU dumps them.

A file `*-NAME-NN-final_bundles.txt` holds the code of one op of a scheduled program. A line is one
bundle, with its address, the operations that it issues together, and comments that say where regions
start and end; a branch names a region. Only the scalar operations are kept: they decide which bundles
are issued, and how often.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

_BUNDLE = re.compile(r"\s*(0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:\s*(?:> ?)*\s*\{(.*)", re.DOTALL)
_ENTRY = re.compile(r"entry bundle: %?([\w.\-<>]+)")
_START = re.compile(r"Start(?:/End empty)? region (\d+)")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_OPERATION = re.compile(
    r"(?:%[sp]\d+_(?P<register>[sp]\d+) = |%\d+ = )?(?P<opcode>[a-z][\w.]*)(?P<rest>.*)", re.DOTALL
)
# A guarded operation may name the value that stays where the guard is false; it is in the same register.
_GUARD = re.compile(r"\((!?)%p\d+_(p\d+)(?:, %\w+)?\)")
# Without a result in a register these matter too.
_WITHOUT_RESULT = ("sbr.rel", "sst", "vdelay")
_REGION = re.compile(r"\$region(\d+)")
_STAGE = re.compile(r"iteration index, stage = (\d+)")
_LOOP_EXIT = re.compile(r"totalorder [^,]*, (\d+) /\* loop exit test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of the scalar unit.

    Attributes:
      opcode: such as "sadd.s32".
      register: the register that it writes, such as "s12" or "p4"; "" if none.
      operands: registers, integers as text, or anything else, in order; phis have none.
      guard: the predicate register under which it runs; "" if it always does.
      negated: whether it runs where the guard is false.
      region: the region that a branch goes to; None for all else.
    """

    opcode: str
    register: str = ""
    operands: tuple[str, ...] = ()
    guard: str = ""
    negated: bool = False
    region: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """The scalar operations of one bundle; `exit_test` is the bound of a loop's exit test in it."""

    operations: tuple[Operation, ...] = ()
    exit_test: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """The code of one op.

    Attributes:
      name: of the op in the HLO module, or of the first of several that share their code.
      bundles: by address.
      regions: the address at which each region starts.
      windows: how many blocks of data the code takes in turn, the next one being fetched while one is
        computed; 1 where it has no such loop, or where the number depends on data.
    """

    name: str
    bundles: tuple[Bundle, ...]
    regions: Mapping[int, int]
    windows: int = 1


def parse_kernel(text: str) -> Kernel:
    """Reads the text of one file of final bundles.

    Raises:
      ValueError: if it is no such text, or an address is missing in it.
    """
    name = _ENTRY.search(text)
    bundles: list[Bundle] = []
    regions: dict[int, int] = {}
    for line in _lines(text):
        match = _BUNDLE.match(line)
        if match is None:
            continue
        address = int(match[1], 16)
        if address != len(bundles):
            raise ValueError(
                f"the text of final bundles has address {address:#x} where {len(bundles):#x} is next; "
                "pass a file *-final_bundles.txt as it was dumped"
            )
        regions |= {int(region): address for region in _START.findall(match[2])}
        bundles.append(_bundle(match[2]))
    if name is None or not bundles:
        raise ValueError(
            "this is no text of final bundles: it has no `entry bundle`; pass a file "
            "*-final_bundles.txt of the folder that --xla_jf_dump_to names"
        )
    return Kernel(
        name=name[1], bundles=tuple(bundles), regions=regions, windows=_windows(text, bundles)
    )


def _windows(text: str, bundles: list[Bundle]) -> int:
    """The turns of the loop over blocks, less those in which its pipeline fills and drains."""
    stages = [int(stage) for stage in _STAGE.findall(text)]
    turns = max((bundle.exit_test or 0 for bundle in bundles), default=0)
    return max(turns - max(stages), 1) if stages else 1


def _lines(text: str) -> list[str]:
    """The text by bundles: a comment in one may have several lines."""
    return re.split(r"\n(?=\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:)", text)


def _bundle(text: str) -> Bundle:
    exit_test = _LOOP_EXIT.search(text)
    # Both cores of a chip run the code; it is followed on the first one, whose id is 0.
    text = re.sub(r"sld \[[^;]*?\]\]([^;]*?)/\* [^*;]*core id \*/", r"smov \1 0", text)
    words = _COMMENT.sub("", text).rsplit("}", 1)[0].split(";;")
    operations = [_operation(word.strip()) for word in words]
    return Bundle(
        operations=tuple(operation for operation in operations if operation is not None),
        exit_test=int(exit_test[1]) if exit_test else None,
    )


def _operation(text: str) -> Operation | None:
    """The scalar operation of a word of a bundle; None for the operations of other units."""
    match = _OPERATION.fullmatch(text)
    if match is None or not (match["register"] or match["opcode"] in _WITHOUT_RESULT):
        return None
    rest = match["rest"]
    guard, region = _GUARD.search(rest), _REGION.search(rest)
    separator = r"(?<=\])[\s,]+" if match["opcode"] == "sst" else ","
    operands = [word.strip() for word in re.split(separator, _GUARD.sub("", rest).strip())]
    return Operation(
        opcode=match["opcode"],
        register=match["register"] or "",
        operands=tuple(re.sub(r"^%[sp]\d+_", "", word) for word in operands if word),
        guard=guard[2] if guard else "",
        negated=bool(guard and guard[1]),
        region=int(region[1]) if region else None,
    )
