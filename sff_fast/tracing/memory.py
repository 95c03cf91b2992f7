"""What every storage holds while a constructor runs under the tracer.

A storage has a list of writes, each a box of its elements and a value. Values that can be named (constants, functions of a
draw) and deferred operations are not written until something reads the memory for real: then the list is executed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

from sff_fast.boxes import Box, Unrepresentable, coalesce, common, nested, paint, row_major, through
from sff_fast.tracing.draws import DrawProgram
from sff_fast.tracing.values import CLEAN, Const, Data, Deferred, Random, Taint, Uninitialised, Value, apply

FROM_OUTSIDE = "values from outside"
"""What stands among the operations on memory that was not made under the tracer."""


@dataclass(frozen=True)
class Piece:
    """A box of elements with one value, and for a :class:`Random` value the elements of the draw they hold.

    The box counts elements of a storage in a record, and row-major logical indices where a tensor was resolved.
    """

    box: Box
    value: Value
    draw_strides: tuple[int, ...]
    draw_offset: int

    def moved(self, box: Box, place: tuple) -> Piece:
        """The part of this piece that lies at ``place`` (a map into it), as ``box`` in another space."""
        strides, offset = through(*place, self.draw_strides, self.draw_offset)
        return Piece(box, self.value, strides, offset)

    def holding(self, value: Value) -> Piece:
        """The same box with another value."""
        return Piece(self.box, value, self.draw_strides, self.draw_offset)


def uniform_piece(box: Box, value: Value) -> Piece:
    """A piece whose value needs no draw."""
    return Piece(box, value, (0,) * len(box.size), 0)


@dataclass
class Record:
    """One storage.

    Args:
        reference: Weak reference that keeps the storage's address from being used again while the trace runs.
        dtype: The dtype that the writes' boxes count in.
        writes: Boxes in order, later ones over earlier ones.
        concrete: Whether the memory holds these values already.
        foreign: Whether the storage was not made under the tracer: somebody else may look at it, so writes are done at once.
        leaked: Whether somebody outside of torch can write to the memory (``Tensor.numpy``): it alone is true then.
        readers: Tensors whose deferred values are computed from this memory as it is now.
    """

    reference: StorageWeakRef
    dtype: torch.dtype
    writes: list[Piece]
    concrete: bool
    foreign: bool = False
    leaked: bool = False
    readers: list[torch.Tensor] = field(default_factory=list)

    @property
    def has_data(self) -> bool:
        """Whether some values are only in memory."""
        return any(isinstance(write.value, Data) for write in self.writes)


def shown(pieces: list[Piece], numel: int) -> list[Piece]:
    """The pieces over ``numel`` elements that later ones do not hide altogether."""
    if len(pieces) < 2:
        return pieces
    owner, _ = paint(numel, [piece.box for piece in pieces])
    owners = set(np.unique(owner).tolist())
    return [piece for i, piece in enumerate(pieces) if i in owners]


def tensor_box(tensor: torch.Tensor) -> Box:
    """The elements of its storage that a tensor of at least one element shows."""
    return Box(tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset())


def covers_storage(tensor: torch.Tensor) -> bool:
    """Whether a tensor shows every element of its storage exactly once."""
    return (
        tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        and tensor.storage_offset() == 0
        and (tensor.is_contiguous() or nested(tensor_box(tensor)))
    )


class Memory:
    """The storages of one run of a constructor.

    Args:
        program: The draws, for concrete values.
    """

    def __init__(self, program: DrawProgram) -> None:
        self.program = program
        self._records: dict[int, Record] = {}

    # ------------------------------------------------------------------ records
    def find(self, tensor: torch.Tensor) -> Record | None:
        """The record of a tensor's storage, or None where the tracer has not seen it."""
        return self._records.get(tensor.untyped_storage()._cdata)

    def record(self, tensor: torch.Tensor) -> Record:
        """The record of a tensor's storage; a storage that was not seen before holds values from outside."""
        storage = tensor.untyped_storage()
        found = self._records.get(storage._cdata)
        if found is None:
            found = Record(StorageWeakRef(storage), tensor.dtype, [], True, foreign=True)
            self._records[storage._cdata] = found
            count = storage.nbytes() // tensor.element_size()
            if count:
                whole = Box((count,), (1,), 0)
                found.writes.append(uniform_piece(whole, Data(Taint(external=True, operations=(FROM_OUTSIDE,)))))
        return found

    def define(self, tensor: torch.Tensor, pieces: Sequence[Piece], concrete: bool) -> None:
        """Start the record of a storage that was just allocated for ``tensor``; pieces count logical indices."""
        storage = tensor.untyped_storage()
        writes = list(self._in_storage(tensor, pieces)) if tensor.numel() else []
        self._records[storage._cdata] = Record(StorageWeakRef(storage), tensor.dtype, writes, concrete)

    def alias(self, tensor: torch.Tensor, source: torch.Tensor) -> bool:
        """Give the storage of ``tensor`` the values of the storage of ``source``, byte for byte.

        Returns:
            Whether the caller must copy the bytes: the source's values are in memory only.
        """
        known, storage = self.record(source), tensor.untyped_storage()
        if any(isinstance(write.value, Deferred) for write in known.writes):
            self.force(source)
        self.settle_readers(tensor)
        concrete = known.concrete
        self._records[storage._cdata] = Record(StorageWeakRef(storage), known.dtype, list(known.writes), concrete)
        return concrete

    def whole(self, tensor: torch.Tensor, value: Value) -> list[Piece]:
        """Pieces that give all of a tensor one value."""
        return [uniform_piece(Box((tensor.numel(),), (1,), 0), value)] if tensor.numel() else []

    # ------------------------------------------------------------------ reading
    def resolve(self, tensor: torch.Tensor) -> list[Piece]:
        """What a tensor shows.

        Args:
            tensor: Any strided tensor.

        Returns:
            Pieces over the tensor's row-major logical indices, later ones over earlier ones.

        Raises:
            Unrepresentable: The tensor cuts through the writes in a way that boxes cannot say.
        """
        if tensor.numel() == 0:
            return []
        record = self.record(tensor)
        if record.dtype != tensor.dtype:
            raise Unrepresentable
        if len(record.writes) == 1 and tensor.storage_offset() == 0 and tensor.is_contiguous():
            (write,) = record.writes
            if write.box == Box((tensor.numel(),), (1,), 0):
                return [write]
        logical = row_major(tensor.shape)
        dims = list(zip(tensor.shape, tensor.stride(), logical))
        repeated = [(n, step) for n, stride, step in dims if n > 1 and stride == 0]
        size, strides, steps = coalesce(*zip(*[d for d in dims if d[0] > 1 and d[1] > 0] or [(1, 1, 1)]))
        seen = Box(size, strides, tensor.storage_offset())
        if not nested(seen):
            raise Unrepresentable
        found: list[Piece] = []
        for write in reversed(record.writes):
            shared = common(write.box, seen)
            if shared is None:
                continue
            box, in_write, in_seen = shared
            shown_strides, shown_offset = through(*in_seen, steps, 0)
            shown = Box(box.size + tuple(n for n, _ in repeated), shown_strides + tuple(s for _, s in repeated), shown_offset)
            start, changes = in_write
            changes = (*changes, *((0,) * len(write.box.size) for _ in repeated))
            found.append(write.moved(shown, (start, changes)))
            if box.numel == seen.numel:
                break
        return found[::-1]

    def taint(self, tensor: torch.Tensor) -> Taint:
        """What the values of a tensor depend on."""
        try:
            pieces: Iterable[Piece] = shown(self.resolve(tensor), tensor.numel())
        except Unrepresentable:
            record = self.record(tensor)
            pieces = shown(record.writes, tensor.untyped_storage().nbytes() // record.dtype.itemsize)
        taint = CLEAN
        for piece in pieces:
            taint = taint | piece.value.taint()
        return taint

    def constant(self, tensor: torch.Tensor) -> float | None:
        """The one value that all elements of a tensor have, where the tracer knows it."""
        try:
            pieces = self.resolve(tensor)
        except Unrepresentable:
            return None
        if pieces and all(isinstance(p.value, Const) for p in pieces) and pieces[0].box.numel == tensor.numel():
            values = {p.value.value for p in pieces}
            if len(values) == 1:
                return values.pop()
        return None

    # ------------------------------------------------------------------ writing
    def _in_storage(self, tensor: torch.Tensor, pieces: Iterable[Piece]) -> Iterable[Piece]:
        """Turn pieces over a tensor's logical indices into pieces over its storage."""
        if tensor.is_contiguous() and tensor.storage_offset() == 0:
            yield from pieces
            return
        logical = row_major(tensor.shape)
        size, logical, strides = coalesce(tensor.shape, logical, tensor.stride())
        container = Box(size, logical, 0)
        for piece in pieces:
            shared = common(piece.box, container)
            assert shared is not None, "a piece lies outside of its tensor"
            box, in_piece, in_tensor = shared
            if box.numel != piece.box.numel:
                raise Unrepresentable
            steps, offset = through(*in_tensor, strides, tensor.storage_offset())
            yield piece.moved(Box(box.size, steps, offset), in_piece)

    def write(self, tensor: torch.Tensor, pieces: Sequence[Piece], executed: bool = False) -> None:
        """Put values into a tensor.

        Args:
            tensor: Any strided tensor.
            pieces: Values over its logical indices; the rest keeps what it has.
            executed: Whether the memory holds them already, and the rest of the storage is concrete, default False: then
                the tracer must be able to name every value.

        Raises:
            Unrepresentable: Boxes cannot say where they lie; nothing was written.
        """
        if tensor.numel() == 0:
            return
        record = self.record(tensor)
        whole = covers_storage(tensor) and bool(pieces) and pieces[0].box.numel == tensor.numel()
        if record.dtype != tensor.dtype and not whole:
            raise Unrepresentable
        writes = list(self._in_storage(tensor, pieces))
        self.settle_readers(tensor)
        if whole:
            record.writes, record.dtype, record.concrete = writes, tensor.dtype, executed
        else:
            if not executed and record.concrete and record.has_data:
                self._execute(tensor, record.dtype, writes)
            else:
                record.concrete = executed
            record.writes.extend(writes)
        if record.foreign or record.leaked:
            self.force(tensor)

    def wrote(self, tensor: torch.Tensor, taint: Taint) -> None:
        """Note that an operation was executed for real and wrote to a tensor; its storage is concrete."""
        if tensor.numel() == 0:
            return
        record = self.record(tensor)
        box = tensor_box(tensor)
        if covers_storage(tensor):
            record.writes, record.dtype = self._storage_whole(tensor, Data(taint)), tensor.dtype
        elif record.dtype == tensor.dtype and nested(box):
            record.writes.append(uniform_piece(box, Data(taint)))
        else:
            for write in record.writes:
                taint = taint | write.value.taint()
            record.writes = self._storage_whole(tensor, Data(taint))
            record.dtype = tensor.dtype
        record.concrete = True

    @staticmethod
    def _storage_whole(tensor: torch.Tensor, value: Value) -> list[Piece]:
        count = tensor.untyped_storage().nbytes() // tensor.element_size()
        return [uniform_piece(Box((count,), (1,), 0), value)]

    # ------------------------------------------------------------------ concrete values
    def force(self, tensor: torch.Tensor) -> None:
        """Write everything that is pending in a tensor's storage into memory, and what is computed from it elsewhere."""
        self.settle_readers(tensor)
        record = self.record(tensor)
        if record.concrete:
            return
        record.concrete = True
        if tensor.device.type != "meta":
            self._execute(tensor, record.dtype, record.writes)
        record.writes = [
            write.holding(Data(write.value.origin)) if isinstance(write.value, Deferred) else write for write in record.writes
        ]

    def settle_readers(self, tensor: torch.Tensor) -> None:
        """Compute what is deferred and reads a tensor's storage: it may be about to change."""
        record = self.find(tensor)
        if record is not None and record.readers:
            readers, record.readers = record.readers, []
            for reader in readers:
                self.force(reader)

    def defer(self, out: torch.Tensor, taint: Taint, job: Callable[[], object], reads: Sequence[torch.Tensor]) -> bool:
        """Put an operation off until something reads what it writes, or writes to what it reads.

        Args:
            out: What the operation overwrites, all of it.
            taint: What its values depend on.
            job: Runs the operation; called once at most, and holds what it needs.
            reads: The tensors that it reads.

        Returns:
            Whether that can be done; if not, nothing has changed.
        """
        records = [self.record(tensor) for tensor in (out, *reads)]
        if any(record.foreign or record.leaked for record in records) or not all(record.concrete for record in records[1:]):
            return False
        if any(record is records[0] for record in records[1:]):
            return False
        try:
            self.write(out, self.whole(out, Deferred(taint, job)))
        except Unrepresentable:
            return False
        for record in records[1:]:
            record.readers.append(out)
        return True

    def _execute(self, tensor: torch.Tensor, dtype: torch.dtype, writes: Sequence[Piece]) -> None:
        if tensor.device.type == "meta":
            return
        with torch.no_grad(), _disable_current_modes():
            flat = torch.empty(0, dtype=dtype, device=tensor.device).set_(tensor.untyped_storage())
            for write in writes:
                target = torch.as_strided(flat, write.box.size, write.box.strides, write.box.offset)
                if isinstance(write.value, Const):
                    target.fill_(write.value.value)
                elif isinstance(write.value, Random):
                    drawn = self.program.values(write.value.draw)
                    values = torch.as_strided(drawn, write.box.size, write.draw_strides, write.draw_offset)
                    for operation in write.value.operations:
                        values = apply(values, operation)
                    target.copy_(values)
                elif isinstance(write.value, Deferred):
                    write.value.job()
                else:
                    assert isinstance(write.value, Uninitialised), "data is in memory already"

    def leak(self, tensor: torch.Tensor) -> None:
        """Note that somebody outside of torch can write to a tensor's memory from now on."""
        self.force(tensor)
        record = self.record(tensor)
        if not record.leaked:
            taint = Taint(external=True, operations=("memory shared with NumPy",))
            for write in record.writes:
                taint = taint | write.value.taint()
            record.leaked = True
            record.writes = self._storage_whole(tensor, Data(taint))
