import contextlib
import gzip
import io
import lzma
import os
import random
import re
import struct
import time
import zlib

import pytest
import torch
from safetensors.torch import save

from timm_drnet.hub.mindspore.reader import read_checkpoint

pytest_plugins = ['mindspore_files']

def varint(n):
    """A number as protobuf writes it; a negative one as an int64."""
    n %= 1 << 64
    out = b''
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, content, length=None):
    """A field of bytes, perhaps with a length that is not theirs."""
    return varint(number << 3 | 2) + varint(len(content) if length is None else length) + content


def tensor(dims=(), kind='Float32', content=bytes(4), packed=False):
    """The message of a tensor; None leaves a field out."""
    numbers = [varint(dim) for dim in dims]
    out = field(1, b''.join(numbers)) if packed else b''.join(b'\x08' + number for number in numbers)
    return out + (b'' if kind is None else field(2, kind.encode())) + (b'' if content is None else field(3, content))


def value(tag='x', message=None, **kwargs):
    """One entry of a checkpoint."""
    return field(1, field(1, tag.encode()) + field(2, tensor(**kwargs) if message is None else message))


@pytest.fixture
def read(tmp_path):
    """Function that reads the bytes of a checkpoint."""

    def read(content):
        path = tmp_path / 'some.ckpt'
        path.write_bytes(content)
        return read_checkpoint(path)

    return read


@contextlib.contextmanager
def memory_limit(size):
    """Let allocations fail that take the process more than size bytes above what it has."""
    resource = pytest.importorskip('resource')
    if not os.path.exists('/proc/self/status'):
        pytest.skip('needs the size of the process')
    with open('/proc/self/status') as status:
        used = int(re.search(r'VmData:\s+(\d+) kB', status.read())[1]) * 1024
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def with_checksum(content, crc=None):
    crc = zlib.crc32(content) if crc is None else crc
    return content + b'crc_num' + crc.to_bytes(10, 'big')


def test_genuine_checkpoints(checkpoints):
    classifier, predictor = (read_checkpoint(path) for path in checkpoints)
    assert len(classifier) == 691
    assert len(predictor) == 62
    assert list(classifier)[:2] == ['conv1.weight', 'bn1.bn_0.moving_mean']
    assert classifier['layer4.0.conv2.weight'].shape == (512, 512, 3, 3)
    assert predictor['end_point.weight'].shape == (3, 512)
    for path, tensors in ((checkpoints[0], classifier), (checkpoints[1], predictor)):
        content = path.read_bytes()
        end = 0
        for tag, x in tensors.items():  # in the file, a tensor's bytes stand behind its name
            assert x.dtype == torch.float32
            start = content.index(field(1, tag.encode()), end, end + len(tag) + 30) + len(tag)
            end = content.index(x.numpy().tobytes(), start, start + 50 + x.nbytes) + x.nbytes
        assert end == len(content)


def test_genuine_checkpoints_take_little_time_and_memory(checkpoints):
    size = sum(path.stat().st_size for path in checkpoints)
    with memory_limit(int(1.5 * size)):
        start = time.process_time()
        for path in checkpoints:
            read_checkpoint(path)
        assert time.process_time() - start < 3


@pytest.mark.parametrize(('kind', 'code', 'dtype'), [
    ('Float16', 'e', torch.float16), ('Float32', 'f', torch.float32), ('Float64', 'd', torch.float64),
    ('Int8', 'b', torch.int8), ('Int16', 'h', torch.int16), ('Int32', 'i', torch.int32), ('Int64', 'q', torch.int64),
    ('UInt8', 'B', torch.uint8), ('UInt16', 'H', torch.uint16), ('UInt32', 'I', torch.uint32),
    ('UInt64', 'Q', torch.uint64), ('Bool', '?', torch.bool),
])
def test_types(kind, code, dtype, read):
    numbers = [0, 1, 1, 0, 1, 0] if kind == 'Bool' else [0, 1, 2, 3, 100, 127]
    content = struct.pack(f'<6{code}', *numbers)
    x = read(value('x', dims=(2, 3), kind=kind, content=content))['x']
    assert x.dtype == dtype
    assert torch.equal(x, torch.tensor(numbers, dtype=dtype).view(2, 3))


def test_bfloat16_is_the_upper_half_of_a_float32(read):
    content = b''.join(struct.pack('<f', x)[2:] for x in (1.5, -2.0, 0.0))
    x = read(value('x', dims=(3,), kind='BFloat16', content=content))['x']
    assert torch.equal(x, torch.tensor([1.5, -2.0, 0.0], dtype=torch.bfloat16))


@pytest.mark.parametrize('message', [
    tensor((2, 3), content=struct.pack('<6f', *range(6)), packed=True),
    field(3, struct.pack('<6f', *range(6))) + field(2, b'Float32') + b'\x08\x02' + b'\x08\x03',  # fields in any order
    b'\x08\x02' + field(2, b'Float32') + field(1, b'\x03') + field(3, struct.pack('<6f', *range(6))),
    b'\x08\x82\x80\x00' + tensor((3,), content=struct.pack('<6f', *range(6))),  # a number need not be short
])
def test_what_protobuf_leaves_open(message, read):
    assert read(value('x', message))['x'].tolist() == [[0, 1, 2], [3, 4, 5]]
    swapped = field(1, field(2, message) + field(1, b'x'))
    assert read(swapped)['x'].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize('dims', [(), (0,)])
def test_scalars_of_new_and_old_versions(dims, read):
    x = read(value('epoch_num', dims=dims, kind='Int64', content=struct.pack('<q', -7)))['epoch_num']
    assert x.shape == ()
    assert x.item() == -7


@pytest.mark.parametrize('dims', [(0,), (3, 0, 2), (0, 2 ** 40)])
def test_tensors_without_elements(dims, read):
    assert read(value('x', dims=dims, content=b''))['x'].shape == dims


def test_strings_are_left_out(read):
    text = value('note', dims=(0,), kind='str', content='hello'.encode('utf-32-le'))
    assert list(read(value('a') + text + value('b'))) == ['a', 'b']


def test_names_may_be_any_text(read):
    assert list(read(value('Gewicht.β') + value('') + value('x' * 1000))) == ['Gewicht.β', '', 'x' * 1000]


def test_tensors_have_memory_of_their_own(tmp_path):
    path = tmp_path / 'some.ckpt'
    path.write_bytes(value('a', dims=(2,), content=struct.pack('<2f', 1, 2)) + value('b', dims=(2,), content=bytes(8)))
    tensors = read_checkpoint(path)
    path.write_bytes(bytes(path.stat().st_size))
    tensors['b'] += 5
    assert tensors['a'].tolist() == [1, 2]
    assert tensors['b'].tolist() == [5, 5]
    assert all(x.untyped_storage().nbytes() == 8 and x.is_contiguous() for x in tensors.values())


def test_checksum(read):
    content = value('a') + value('b', dims=(2,), content=b'12345678')
    assert list(read(with_checksum(content))) == ['a', 'b']
    damaged = with_checksum(content).replace(b'12345678', b'12345679')
    crc = zlib.crc32(content)
    for wrong in (damaged, with_checksum(content, crc ^ 1), with_checksum(content, crc + (1 << 32))):
        with pytest.raises(ValueError, match=rf'at byte {len(content)}, the checksum is wrong.*get it again'):
            read(wrong)


GOOD = value('good')


@pytest.mark.parametrize(('content', 'words'), [
    # cut off
    (GOOD[:-1], ['byte 0,', 'value is to have 23 bytes', 'only 22']),
    (GOOD + b'\n', [f'byte {len(GOOD) + 1},', 'cut off']),
    (GOOD + b'\x8a', ['cut off']),
    (GOOD + GOOD[:12].replace(b'good', b'best'), [f'byte {len(GOOD)},', 'only 10']),
    (with_checksum(GOOD)[:-1], ['wire type 3']),
    # lengths that reach beyond the message around them
    (field(1, field(1, b'x', length=2)), ['tag is to have 2 bytes', 'only 1']),
    (field(1, field(1, b'x') + field(2, tensor(), length=len(tensor()) + 1)) + GOOD, ['byte 5,', 'tensor is to have']),
    (value('x', field(2, b'Float32') + field(3, bytes(4), length=5)) + GOOD, ['tensor_content is to have 5', 'only 4']),
    (field(1, b'', length=2 ** 62), ['4,611,686,018,427,387,904 bytes', 'only 0']),
    (value('x', field(3, bytes(4), length=2 ** 63 + 4)), ['tensor_content', 'only 4']),
    # numbers
    (b'\x0a' + b'\x80' * 9 + b'\x02', ['byte 1,', '64 bits']),
    (b'\x0a' + b'\x80' * 10 + b'\x01' + GOOD, ['64 bits']),
    (b'\x8a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00' + GOOD, ['byte 0,', '64 bits']),
    (value('x', b'\x08\x80'), ['cut off']),
    (value('x', field(1, b'\x80') + tensor()), ['cut off']),
    (value('x', field(1, b'') + tensor()), ['cut off']),
    # fields that do not belong there
    (varint(1 << 3 | 0) + b'\x01', ['byte 0,', 'field 1 with wire type 0', 'only value']),
    (field(2, b'x'), ['field 2 with wire type 2']),
    (field(0, b'x'), ['field 0']),
    (b'\x0b' + GOOD + b'\x0c', ['wire type 3']),
    (GOOD + b'\x0c', ['wire type 4']),
    (b'\x0d' + bytes(4), ['wire type 5']),
    (b'\x0f' + bytes(4), ['wire type 7']),
    (field(1, field(1, b'x') + field(3, field(1, tensor()))), ['field 3', 'only tag, tensor']),
    (field(1, field(1, b'x') + varint(2 << 3 | 0) + b'\x01'), ['field 2 with wire type 0']),
    (value('x', tensor() + field(4, b'')), ['field 4', 'only dims, tensor_type, tensor_content']),
    (value('x', b'\x09' + bytes(8) + tensor()), ['field 1 with wire type 1']),
    (value('x', b'\x10\x01' + tensor()), ['field 2 with wire type 0']),
    # missing or double
    (field(1, b''), ['tag is missing']),
    (field(1, field(1, b'x')), ['tensor is missing']),
    (field(1, field(2, tensor())), ['tag is missing']),
    (value(kind=None), ['tensor_type is missing']),
    (value(content=None), ['tensor_content is missing']),
    (field(1, field(1, b'x') + field(1, b'x') + field(2, tensor())), ['tag comes again']),
    (field(1, field(1, b'x') + field(2, tensor()) + field(2, tensor())), ['tensor comes again']),
    (value('x', tensor() + field(2, b'Float32')), ['tensor_type comes again']),
    (value('x', tensor() + field(3, bytes(4))), ['tensor_content comes again']),
    (GOOD + value('x') + GOOD, ["'good' comes again", '512 MiB']),
    (value('x', kind='str', content=b'') + value('x'), ["'x' comes again"]),
    # types, names and dimensions
    (value(kind='Int4'), ["'x' has the unknown type 'Int4'", 'Float32']),
    (value(kind='float32'), ["unknown type 'float32'"]),
    (value(kind=''), ["unknown type ''"]),
    (field(1, field(1, b'\xff\xfe') + field(2, tensor())), ['byte 4,', 'UTF-8']),
    (value('x', field(2, b'Float\xff') + field(3, b'')), ['UTF-8']),
    (value('x' * 1001), ['1,000']),
    (value('name' * 100, kind='y' * 1000), ['namen...']),
    (value(dims=(2,)), ["'x' has 4 bytes", 'Float32', '[2]']),
    (value(dims=(2,), content=bytes(12)), ['12 bytes']),
    (value(dims=(), content=bytes(8)), ['8 bytes']),
    (value(dims=(0,), content=bytes(8)), ['8 bytes', '[0]']),
    (value(dims=(0, 1)), ['4 bytes', '[0, 1]']),
    (value(dims=(1,), content=b''), ['0 bytes']),
    (value(dims=(1,), kind='Int16', content=bytes(3)), ['3 bytes']),
    (value(dims=(-1,)), ['negative']),
    (value(dims=(-1, -1)), ['negative']),
    (value(dims=(2 ** 62, 4), content=b''), ['0 bytes']),  # 0 elements, if one counts in 64 bits
    (value(dims=(2 ** 61,), kind='Float64', content=b''), ['0 bytes']),
    (value(dims=(2 ** 32, 2 ** 32, 4), packed=True), ['4 bytes']),
    (value(dims=(0, 2 ** 62, 2 ** 62), content=b''), ['0 bytes']),
    (value(dims=(1,) * 33), ['more than 32']),
    (value(dims=(0,) * 100_000, content=b'', packed=True), ['more than 32']),
    (value(kind='Bool', content=b'\x02'), ["'x' is to be Bool"]),
], ids=lambda argument: ' '.join(argument) if isinstance(argument, list) else '')
def test_malformed_files(content, words, read, tmp_path):
    with pytest.raises(ValueError, match='^Cannot read ') as caught:
        read(content)
    start, path, text = str(caught.value).partition(str(tmp_path / 'some.ckpt'))
    assert path
    assert all(word in text for word in ['at byte', 'get it again', *words]), text
    assert '\n' not in text
    assert len(start + text) < 500


def torch_file(legacy):
    file = io.BytesIO()
    torch.save({'x': torch.zeros(3)}, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@pytest.mark.parametrize(('content', 'words'), [
    (b'', ['empty']),
    (torch_file(legacy=False), ['zip', 'PyTorch']),
    (torch_file(legacy=True), ['pickle', 'PyTorch']),
    (save({'x': torch.zeros(3)}), ['safetensors']),
    (save({'x' * 92: torch.zeros(3)}), ['safetensors']),
    (lzma.compress(GOOD), ['decompress', 'xz']),
    (gzip.compress(GOOD), ['decompress', 'gzip']),
    (b'<!DOCTYPE html><title>404</title>', ['web page']),
    (struct.pack('<I', 0x7F3A5ED8) + bytes(100), ['encrypted', 'dec_key']),
    (struct.pack('<I', 0x7F3A5ED9) + bytes(100), ['encrypted', 'dec_key']),
    (struct.pack('<I', 0x7F3A5EDA) + bytes(100), ['encrypted', 'dec_key']),
    (b'Some text, of no particular format.', ['byte 0,']),
    (b'\n\n\nSome more text, which begins as a checkpoint does.', ['at byte']),
    (b'\x89PNG\r\n\x1a\n' + bytes(100), ['at byte']),
    (bytes(100), ['byte 0,']),
], ids=lambda argument: ' '.join(argument) if isinstance(argument, list) else '')
def test_foreign_files(content, words, read):
    with pytest.raises(ValueError, match=r'some\.ckpt.*Give a \.ckpt file that MindSpore wrote') as caught:
        read(content)
    text = str(caught.value).partition('some.ckpt')[2]
    assert all(word in text for word in words), text


def test_what_is_no_file(tmp_path):
    with pytest.raises(ValueError, match='folder'):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / 'none.ckpt')
    if hasattr(os, 'mkfifo'):
        os.mkfifo(tmp_path / 'pipe.ckpt')
        with pytest.raises(ValueError, match='device'):
            read_checkpoint(tmp_path / 'pipe.ckpt')


def test_a_path_may_be_text(tmp_path):
    (tmp_path / 'some.ckpt').write_bytes(GOOD)
    assert list(read_checkpoint(str(tmp_path / 'some.ckpt'))) == ['good']


ENTRIES = [
    value('conv.weight', dims=(2, 3), content=bytes(range(24))),
    value('note', dims=(0,), kind='str', content='Hi'.encode('utf-32-le')),
    value('epoch_num', dims=(0,), kind='Int64', content=bytes(8)),
    value('packed', dims=(300,), kind='Int8', content=bytes(300), packed=True),
    value('flag', dims=(), kind='Bool', content=b'\x01'),
]


def test_a_file_that_is_cut_off_reads_only_between_tensors(read):
    content = b''.join(ENTRIES)
    ends = {sum(map(len, ENTRIES[:n])): n for n in range(1, len(ENTRIES) + 1)}
    for size in range(1, len(content) + 1):
        if size in ends:
            assert len(read(content[:size])) == ends[size] - (ends[size] > 1)  # without the string
        else:
            with pytest.raises(ValueError, match='at byte'):
                read(content[:size])


@pytest.mark.parametrize('good', [b''.join(ENTRIES), with_checksum(b''.join(ENTRIES))], ids=['plain', 'checksum'])
def test_damaged_files_are_read_or_refused(good, read):
    rng = random.Random(0)
    refused = 0
    with memory_limit(64 * 2 ** 20):
        start = time.process_time()
        for _ in range(300):
            content = bytearray(good)
            for _ in range(rng.choice((1, 1, 2, 10))):
                position = rng.randrange(len(content))
                if rng.random() < 0.5:
                    content[position] ^= 1 << rng.randrange(8)
                elif rng.random() < 0.5:
                    content[position] = rng.choice((0, 0x7F, 0x80, 0xFF))
                elif rng.random() < 0.5:
                    content[position:position] = rng.randbytes(rng.randrange(1, 12))
                else:
                    del content[position:position + rng.randrange(1, 12)]
            try:
                tensors = read(bytes(content))
            except ValueError:
                refused += 1
            else:
                assert sum(x.nbytes for x in tensors.values()) <= len(content)
        assert time.process_time() - start < 10
    assert refused > 50


HOLE = 2 ** 30


def around_hole(number, head):
    """The start of a field that ends with the hole."""
    return field(number, head, length=len(head) + HOLE)


@pytest.mark.parametrize(('head', 'words'), [
    (field(1, b'', length=2 ** 60), 'value is to have'),
    (around_hole(1, field(1, b'', HOLE)), 'name has more than'),
    (around_hole(1, field(1, b'x') + around_hole(2, field(2, b'', HOLE))), 'name has more than'),
    (around_hole(1, field(1, b'x') + around_hole(2, field(1, b'', HOLE))), 'more than 32'),
    (around_hole(1, field(1, b'x') + around_hole(2, tensor((HOLE // 4 + 1,), content=None) + field(3, b'', HOLE))),
     'do not fit'),
    (around_hole(1, field(1, b'x') + around_hole(2, tensor((HOLE // 4,), content=None) + field(3, b'', HOLE))),
     'field 0'),  # a good tensor, but nothing good behind it
], ids=['value', 'tag', 'type', 'dims', 'content', 'second value'])
def test_large_files_are_refused_before_they_take_memory(head, words, tmp_path):
    with (tmp_path / 'some.ckpt').open('wb') as file:
        file.write(head)
        file.truncate(len(head) + 2 * HOLE)
    start = time.process_time()
    with memory_limit(32 * 2 ** 20), pytest.raises(ValueError, match='at byte') as caught:
        read_checkpoint(tmp_path / 'some.ckpt')
    assert time.process_time() - start < 1
    assert words in str(caught.value).partition('some.ckpt')[2]


def test_many_tiny_tensors(read):
    entries = [value(f'{i:x}', dims=(0,), content=b'') for i in range(100_001)]
    with memory_limit(256 * 2 ** 20):
        start = time.process_time()
        assert len(read(b''.join(entries[:5_000]))) == 5_000
        with pytest.raises(ValueError, match='more than 100,000 tensors'):
            read(b''.join(entries))
        assert time.process_time() - start < 20


def test_many_tiny_fields(read):
    with pytest.raises(ValueError, match='tag is missing'):
        read(b'\x0a\x00' * 10 ** 7)
    with pytest.raises(ValueError, match='cut off'):
        read(value('x', b'\x0a\x00' * 10 ** 7))
    deep = b''
    for _ in range(5000):  # messages within messages
        deep = field(1, deep)
    with pytest.raises(ValueError, match='at byte'):
        read(deep)


def test_a_file_that_shrinks_meanwhile_is_refused(tmp_path, monkeypatch):
    path = tmp_path / 'some.ckpt'
    path.write_bytes(value('x', dims=(10_000,), content=bytes(40_000)))
    allocate = torch.empty

    def truncate_and_allocate(*args, **kwargs):
        os.truncate(path, 20_000)
        return allocate(*args, **kwargs)

    monkeypatch.setattr(torch, 'empty', truncate_and_allocate)
    with pytest.raises(ValueError, match='became shorter'):
        read_checkpoint(path)
