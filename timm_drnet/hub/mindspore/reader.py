"""Checkpoints of MindSpore, read without MindSpore.

A checkpoint is a protobuf message with three kinds of messages, each within the one above::

    Checkpoint:   value (1, repeated)
    Value:        tag (1, string), tensor (2)
    TensorProto:  dims (1, int64, repeated), tensor_type (2, string), tensor_content (3, bytes, little endian)

It is read by hand. A protobuf library would hold the file in memory once more, and would let pass what nobody means:
fields that come twice, unknown ones, and contents that do not fit their dimensions.
"""

import math
import mmap
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch

_Entry: TypeAlias = tuple[torch.dtype, list[int], int]  # and where the content starts

_CHECKPOINT = {1: 'value'}
_VALUE = {1: 'tag', 2: 'tensor'}
_TENSOR = {1: 'dims', 2: 'tensor_type', 3: 'tensor_content'}
_REPEATED = ('value', 'dims')

_DTYPES = {
    'Bool': torch.bool, 'UInt8': torch.uint8, 'UInt16': torch.uint16, 'UInt32': torch.uint32, 'UInt64': torch.uint64,
    'Int8': torch.int8, 'Int16': torch.int16, 'Int32': torch.int32, 'Int64': torch.int64,
    'Float16': torch.float16, 'BFloat16': torch.bfloat16, 'Float32': torch.float32, 'Float64': torch.float64,
}
# Far beyond any network, so that no file can make its reader take much more memory than it has bytes.
_MAX_ENTRIES = 100_000
_MAX_DIMS = 32
_MAX_NAME = 1_000

_ENCRYPTED = 'it is encrypted: load it in MindSpore with its dec_key, and save it again without enc_key'
_FOREIGN = {
    b'\xd8\x5e\x3a\x7f': _ENCRYPTED, b'\xd9\x5e\x3a\x7f': _ENCRYPTED, b'\xda\x5e\x3a\x7f': _ENCRYPTED,
    b'PK\x03\x04': 'it is a zip archive, perhaps a checkpoint of PyTorch',
    b'\x80': 'it is a pickle, perhaps a checkpoint of PyTorch',
    b'\xfd7zXZ\x00': 'it is compressed: decompress it with xz',
    b'\x1f\x8b': 'it is compressed: decompress it with gzip',
    b'<': 'it is a web page, perhaps what came in the place of a download',
}
_CRC = b'crc_num'  # in front of ten bytes, big endian: how save_checkpoint(..., crc_check=True) ends a file


class _MalformedError(Exception):
    """What is wrong with a file, and where."""

    def __init__(self, what: str, offset: int | None = None) -> None:
        where, damaged = '', ''
        if offset is not None:
            where, damaged = f'at byte {offset:,}, ', '; if this is one, it is damaged, so get it again'
        super().__init__(f'{where}{what}. Give a .ckpt file that MindSpore wrote{damaged}.')


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read the tensors of a MindSpore checkpoint.

    Tensors of more than 512 MiB, which MindSpore saves in pieces, are refused. Strings, which it can save beside
    tensors, are left out. If the file ends in a checksum, it is verified.

    Args:
        path: A .ckpt file.

    Returns:
        The tensors by name, in the order of the file, each with memory of its own.

    Raises:
        ValueError: If the file is of another format, damaged or encrypted.
        OSError: If it cannot be opened.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for somebody to write
            raise _MalformedError('it is a folder or device, not a file')
        return _read(path)
    except _MalformedError as error:
        raise ValueError(f'Cannot read {os.fspath(path)!r} as a checkpoint of MindSpore: {error}') from error


def _read(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    tensors = {}
    with open(path, 'rb') as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise _MalformedError('it is empty')
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            entries = _read_entries(data, _find_end(data))
        # The contents go from the file to where they belong: the pages of a map would be in memory a second time.
        for tag, (dtype, dims, offset) in entries.items():
            tensor = tensors[tag] = torch.empty(dims, dtype=dtype)
            content = tensor.flatten().view(torch.uint8)
            file.seek(offset)
            if file.readinto(content.numpy().data) < len(content):
                raise _MalformedError('it ends: it became shorter while it was read', offset)
            if dtype == torch.bool and (content > 1).any():
                raise _MalformedError(f'{_quote(tag)} is to be Bool, but is not all 0 and 1', offset)
    return tensors


def _find_end(data: mmap.mmap) -> int:
    """Recognize what is no checkpoint, and where one ends: at the end of the file, or at a checksum."""
    for magic, what in _FOREIGN.items():
        if data[:len(magic)] == magic:
            raise _MalformedError(what)
    if int.from_bytes(data[:8], 'little') < len(data) and data[8:9] == b'{':
        raise _MalformedError('it is a safetensors file')
    end = len(data) - len(_CRC) - 10
    if end < 0 or data[end:-10] != _CRC:
        return len(data)
    with memoryview(data) as whole, whole[:end] as message:
        if zlib.crc32(message) != int.from_bytes(data[-10:], 'big'):
            raise _MalformedError('the checksum is wrong', end)
    return end


def _read_entries(data: mmap.mmap, end: int) -> dict[str, _Entry]:
    """Where and what the tensors are. Their contents are not touched, so that a bad file costs no memory."""
    entries: dict[str, _Entry | None] = {}
    for _, start, stop in _fields(data, 0, end, _CHECKPOINT):
        value = {name: (first, last) for name, first, last in _fields(data, start, stop, _VALUE)}
        tag = _text(data, _get(value, 'tag', start))
        if tag in entries:
            raise _MalformedError(
                f'{_quote(tag)} comes again; tensors of more than 512 MiB, which MindSpore saves in pieces, cannot be'
                ' read', start)
        if len(entries) == _MAX_ENTRIES:
            raise _MalformedError(f'more than {_MAX_ENTRIES:,} tensors', start)
        entries[tag] = _read_entry(data, tag, *_get(value, 'tensor', start))
    return {tag: entry for tag, entry in entries.items() if entry is not None}


def _read_entry(data: mmap.mmap, tag: str, start: int, end: int) -> _Entry | None:
    """Where and what one tensor is; None for a string."""
    dims: list[int] = []
    tensor = {}
    for name, first, last in _fields(data, start, end, _TENSOR):
        if name != 'dims':
            tensor[name] = first, last
            continue
        while True:  # one number, or several that are packed
            dim, first = _varint(data, first, last)
            dims.append(dim)
            if dim >= 2 ** 63 or len(dims) > _MAX_DIMS:
                raise _MalformedError(f'{_quote(tag)} has a negative dimension, or more than {_MAX_DIMS}', start)
            if first == last:
                break
    tensor_type = _text(data, _get(tensor, 'tensor_type', start))
    first, last = _get(tensor, 'tensor_content', start)
    if tensor_type == 'str':
        return None
    if tensor_type not in _DTYPES:
        raise _MalformedError(
            f'{_quote(tag)} has the unknown type {_quote(tensor_type)}; known are {", ".join(_DTYPES)}', start)
    dtype = _DTYPES[tensor_type]
    if dims == [0] and last - first == dtype.itemsize:
        dims = []  # how older versions of MindSpore write a scalar
    overflow = math.prod(max(dim, 1) for dim in dims) >= 2 ** 63  # of the strides, perhaps, if there are no elements
    if overflow or math.prod(dims) * dtype.itemsize != last - first:
        raise _MalformedError(
            f'{_quote(tag)} has {last - first:,} bytes, which do not fit {tensor_type} and dims {dims}', first)
    return dtype, dims, first


def _fields(data: mmap.mmap, start: int, end: int, names: Mapping[int, str]) -> Iterator[tuple[str, int, int]]:
    """Yield the name of every field of a message, and where its content starts and ends."""
    seen = set()
    while start < end:
        field = start
        key, start = _varint(data, start, end)
        name, wire_type = names.get(key >> 3), key & 7
        if name is None or (wire_type != 2 and (name, wire_type) != ('dims', 0)):
            raise _MalformedError(
                f'field {key >> 3} with wire type {wire_type} stands where only {", ".join(names.values())} can', field)
        if name in seen:
            raise _MalformedError(f'{name} comes again', field)
        if name not in _REPEATED:
            seen.add(name)
        if wire_type == 2:
            length, start = _varint(data, start, end)
            stop = start + length
        else:
            _, stop = _varint(data, start, end)
        if stop > end:
            raise _MalformedError(f'{name} is to have {length:,} bytes, but there are only {end - start:,}', field)
        yield name, start, stop
        start = stop


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """A number of up to 64 bits, and where it ends."""
    value = 0
    for i, byte in enumerate(data[start:min(start + 10, end)]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if value >= 2 ** 64:
                break
            return value, start + i + 1
    raise _MalformedError('a number is cut off, or has more than 64 bits', start)


def _get(message: Mapping[str, tuple[int, int]], name: str, start: int) -> tuple[int, int]:
    if name not in message:
        raise _MalformedError(f'{name} is missing', start)
    return message[name]


def _text(data: mmap.mmap, span: tuple[int, int]) -> str:
    start, end = span
    if end - start > _MAX_NAME:
        raise _MalformedError(f'a name has more than {_MAX_NAME:,} bytes', start)
    try:
        return data[start:end].decode()
    except UnicodeDecodeError as error:
        raise _MalformedError('a name is not UTF-8', start) from error


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else f'{text[:77]}...')
