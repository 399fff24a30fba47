"""Any bytes as a checkpoint of MindSpore: refused by its one kind of error, or tensors no larger than the file."""

import random
import struct
import tempfile
import zlib
from pathlib import Path

from timm_drnet.hub.mindspore.names import convert_checkpoints
from timm_drnet.hub.mindspore.reader import read_checkpoint

MODULES = ['timm_drnet.hub.mindspore.reader', 'timm_drnet.hub.mindspore.names']
"""Whose branches guide the fuzzer."""

_FILE = Path(tempfile.mkdtemp(prefix='fuzz')) / 'some.ckpt'
_CRC = b'crc_num'


def _varint(n: int) -> bytes:
    out = b''
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _value(tag: bytes, dims: bytes, kind: bytes, content: bytes) -> bytes:
    return _field(1, _field(1, tag) + _field(2, dims + _field(2, kind) + _field(3, content)))


def _sealed(content: bytes) -> bytes:
    return content + _CRC + zlib.crc32(content).to_bytes(10, 'big')


SEEDS = [
    _value(b'x', b'\x08\x02\x08\x03', b'Float32', struct.pack('<6f', *range(6)))
    + _value(b'flag', b'', b'Bool', b'\x01') + _value(b'note', b'\x08\x00', b'str', b'a\0\0\0'),
    _value(b'a', _field(1, b'\x02\x01'), b'Int8', b'ab') + _value(b'b', b'\x08\x00', b'BFloat16', b''),
    _value(b'end_point.bias', b'\x08\x02', b'Float32', bytes(8))
    + _value(b'bn1.gamma', b'\x08\x01', b'Float64', bytes(8)),
]
SEEDS.append(_sealed(SEEDS[0]))

_CONTENTS = (
    b'', b'\0', b'\x01', b'\xff', b'\x80' * 9 + b'\x01', b'\xff' * 10, b'x', b'\xff\xfe', b'Bool', b'Float32',
    b'Float64', b'BFloat16', b'Int64', b'str', bytes(8), b'x' * 1001, b'end_point.bias',
    b'moments.bn1.gamma', b'bn1.bn_0.gamma')


def _parse(data: bytes) -> list[list[object]] | None:
    """Fields, [key, content], with messages in messages; None for what is no message."""
    fields: list[list[object]] = []
    while data:
        key, data = _take(data)
        if key is None:
            return None
        if key & 7 == 0:
            length, rest = _take(data)
            if length is None:
                return None
            content: object = data[:len(data) - len(rest)]
            data = rest
        elif key & 7 == 2:
            length, data = _take(data)
            if length is None or length > len(data):
                return None
            content, data = data[:length], data[length:]
            content = _parse(content) if content and key >> 3 < 3 and _parse(content) else content
        else:
            return None
        fields.append([key, content])
    return fields


def _take(data: bytes) -> tuple[int | None, bytes]:
    value = 0
    for i, byte in enumerate(data[:10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, data[i + 1:]
    return None, data


def _serialize(fields: list[list[object]]) -> bytes:
    out = b''
    for key, content in fields:
        raw = _serialize(content) if isinstance(content, list) else content
        out += _varint(key) + (_varint(len(raw)) if key & 7 == 2 else b'') + raw
    return out


def mutate(data: bytes, rng: random.Random) -> bytes | None:
    """Another field somewhere in a checkpoint, whose lengths fit; None for what is none."""
    sealed = data[-17:-10] == _CRC
    fields = _parse(data[:-17] if sealed else data)
    if not fields:
        return None
    for _ in range(rng.choice((1, 1, 2, 4))):
        node = fields
        while (inner := [inside for _, inside in node if isinstance(inside, list) and inside]) and rng.random() < 0.8:
            node = rng.choice(inner)
        at = rng.randrange(len(node))
        action = rng.randrange(6)
        if action == 0 and len(node) > 1:
            del node[at]
        elif action == 1:
            node.insert(at, list(rng.choice(node)))
        elif action == 2:
            node[at][0] = rng.choice((0, 1, 2, 3, 4, 2 ** 61 - 1)) << 3 | rng.choice((0, 1, 2, 2, 2, 3, 5))
        elif action == 3:
            node[at] = [10, b'\x00']
        elif action == 4 and isinstance(node[at][1], bytes) and node[at][0] & 7 == 2:
            node[at][1] = rng.choice((node[at][1] * 2, node[at][1][:-1], node[at][1] + b'\0'))
        else:
            node[at][1] = rng.choice(_CONTENTS)
    content = _serialize(fields)
    return _sealed(content) if sealed else content


def check(data: bytes) -> None:
    """Read a checkpoint and convert its tensors; any error but the documented one is a finding."""
    _FILE.write_bytes(data)
    try:
        tensors = read_checkpoint(_FILE)
    except ValueError as error:
        start, _, text = str(error).partition(str(_FILE))
        _check_message(start + text, "Cannot read ''", 500)
        return
    assert sum(x.nbytes for x in tensors.values()) <= len(data)
    if 'end_point.bias' in tensors:
        try:
            convert_checkpoints(tensors, tensors)
        except ValueError as error:
            _check_message(str(error), 'Invalid ', 1200)


def _check_message(text: str, start: str, length: int) -> None:
    assert text.startswith(start), text
    assert text.isprintable(), text
    assert len(text) < length, text
