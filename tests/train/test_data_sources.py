"""Folders, tar files, WebDataset shards and Parquet files train through timm's readers, as docs/data.md says."""

import importlib.util
import io
import json
import math
import re
import shlex
import socket
import subprocess
import tarfile
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.task import ClassificationTask

ROOT = Path(__file__).parents[2]
CLASSES = ['a', 'B', 'c2', 'c10']  # in timm's order, which is not that of sorted()
COUNTS = {'train': 48, 'val': 16}
KINDS = ['folder', 'tar', 'wds', 'hfds', 'hfids']  # in the order of the page
STREAMS = ['wds', 'hfids']
BATCH = 4

spec = importlib.util.spec_from_file_location('pack', ROOT / 'examples' / 'datasets' / 'pack.py')
pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)


def commands():
    """The command lines of docs/data.md, as lists of words."""
    text = (ROOT / 'docs' / 'data.md').read_text(encoding='utf-8').replace('\\\n', ' ')
    return [shlex.split(line) for line in re.findall(r'^    (.+)', text, re.MULTILINE)]


def train_lines():
    parser = ArgumentParser()
    for name in ('--dataset', '--data-dir', '--train-split', '--val-split'):
        parser.add_argument(name, default='')
    lines = [parser.parse_known_args(words)[0] for words in commands() if words[:2] == ['timm-drnet', 'run']]
    return dict(zip(KINDS, lines, strict=True))


def draw(folder):
    """Images of one colour each: red says which class, green which image of it. Sizes, formats and suffixes vary."""
    for split, count in COUNTS.items():
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for n in range(count // len(CLASSES)):
                image = Image.new('RGB', (40 + n, 50 - n), (60 * label + 20, 15 * n + 10, 128))
                path = folder / split / name / f'image.{n}{(".jpg", ".png", ".jpeg", ".JPG")[n % 4]}'
                image.save(path, quality=90, compress_level=1)  # encoded again, the bytes would differ
    return folder


def seen(images, target):
    """Class by colour, image by colour and label of each image of a batch."""
    red, green, _ = (images.mean(dim=(2, 3)) * 255).unbind(dim=1)
    return list(zip(
        ((red - 20) / 60).round().int().tolist(), ((green - 10) / 15).round().int().tolist(), target.tolist(),
        strict=True))


def all_of(split):
    return Counter({(label, n, label): 1 for label in range(4) for n in range(COUNTS[split] // 4)})


def make_loader(kind, training, workers, distributed=False):
    """What train.py makes with --batch-size 4 --workers N --no-aug --mean 0 0 0 --std 1 1 1: images are in 0..1."""
    args = train_lines()[kind]
    dataset = create_dataset(
        args.dataset, root=args.data_dir, split=args.train_split if training else args.val_split, is_training=training,
        class_map='', download=False, batch_size=BATCH, input_img_mode='RGB', input_key=None, target_key=None,
        num_samples=None, trust_remote_code=False, **({'seed': 42, 'repeats': 0} if training else {}))
    return create_loader(
        dataset, input_size=(3, 64, 64), batch_size=BATCH, is_training=training, no_aug=training, num_workers=workers,
        interpolation='bilinear', crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1), device=torch.device('cpu'),
        distributed=distributed, worker_seeding='all')


def set_epoch(loader, epoch):
    """As train.py does."""
    if hasattr(loader.dataset, 'set_epoch'):
        loader.dataset.set_epoch(epoch)
    if hasattr(loader.sampler, 'set_epoch'):
        loader.sampler.set_epoch(epoch)


def epoch_of(loader, epoch=0):
    set_epoch(loader, epoch)
    return [image for batch in loader for image in seen(*batch)]


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
    """Where every command of docs/data.md that makes data was run."""
    folder = tmp_path_factory.mktemp('data')
    draw(folder / 'photos')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in commands():
            if words[:2] == ['python', 'examples/datasets/pack.py']:
                assert pack.main(words[2:]) == 0
            elif words[0] in ('mkdir', 'tar'):
                subprocess.run(words, check=True)
    return folder


@pytest.fixture(autouse=True)
def at_work(workplace, monkeypatch):
    """In that folder, and without a network; workers of loaders inherit both."""
    connect = socket.socket.connect

    def local_only(self, address):
        assert self.family == socket.AF_UNIX, f'no test may connect to {address}'
        return connect(self, address)

    monkeypatch.setattr(socket.socket, 'connect', local_only)
    monkeypatch.setattr(socket, 'getaddrinfo', lambda host, *args, **kwargs: pytest.fail(f'no test may look up {host}'))
    monkeypatch.setattr(datasets.config, 'SLEEP_TIME_ON_THREADS_SHUTDOWN', 0.1, raising=False)  # 5 s an epoch
    monkeypatch.chdir(workplace)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('kind', KINDS)
def test_every_image_arrives_once_with_its_label(kind, workers):
    loader = make_loader(kind, True, workers)
    assert len(loader) == COUNTS['train'] // BATCH
    first, second = epoch_of(loader, 0), epoch_of(loader, 1)
    assert Counter(first) == Counter(second) == all_of('train')
    assert first != second
    assert Counter(epoch_of(make_loader(kind, False, workers))) == all_of('val')


@pytest.mark.parametrize(('kind', 'workers'), [(kind, 0) for kind in KINDS] + [(kind, 2) for kind in STREAMS])
def test_two_processes_share_the_images(kind, workers, monkeypatch):
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda group=None: 2)
    for training, split in ((True, 'train'), (False, 'val')):
        parts = []
        for rank in range(2):
            monkeypatch.setattr(torch.distributed, 'get_rank', lambda group=None, rank=rank: rank)
            parts.append(epoch_of(make_loader(kind, training, workers, distributed=True)))
        assert [len(part) for part in parts] == [COUNTS[split] // 2] * 2
        assert Counter(parts[0] + parts[1]) == all_of(split)


@pytest.mark.parametrize('kind', KINDS)
def test_joint_stage_trains(kind, make_tiny):
    model = make_tiny(num_classes=len(CLASSES), stage='joint', alpha=1e-4).train()
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), device=torch.device('cpu'), verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses = []
    for images, target in make_loader(kind, True, workers=0):
        optimizer.zero_grad()
        loss = task(images, target)['loss']
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) == 12
    assert all(math.isfinite(loss) for loss in losses)
    changed = {name.split('.')[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {'backbone', 'predictor'}


def test_files_are_copied_byte_by_byte():
    for split, count in COUNTS.items():
        originals = {
            (path.read_bytes(), CLASSES.index(path.parent.name)) for path in Path('photos', split).rglob('*.*')}
        assert len(originals) == count
        packed = []
        for shard in Path('photos-wds').glob(f'{split}-*.tar'):
            with tarfile.open(shard) as tar:
                members = {member.name: tar.extractfile(member).read() for member in tar}
            for name, value in members.items():
                if not name.endswith('.cls'):
                    assert name.endswith('.' + {'PNG': 'png', 'JPEG': 'jpg'}[Image.open(io.BytesIO(value)).format])
                    packed.append((value, int(members[name.split('.')[0] + '.cls'])))
        assert len(packed) == count
        assert set(packed) == originals
        files = Path('photos-parquet/data').glob(f'{split}-*')
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        assert len(rows) == count
        assert {(row['image']['bytes'], row['label']) for row in rows} == originals


def test_names_of_the_classes_are_kept_in_timms_order():
    assert json.loads(Path('photos-wds/_info.json').read_text())['classes'] == CLASSES
    labels = {name: label for label, name in enumerate(CLASSES)}
    assert create_dataset('', root='photos', split='train').reader.class_to_idx == labels
    parquet = create_dataset('hfds/photos-parquet', root='photos-cache', split='train')
    assert parquet.reader.class_to_idx == labels


@pytest.mark.parametrize('kind', STREAMS)
def test_packed_streams_say_how_long_they_are(kind, tmp_path):
    args = train_lines()[kind]
    for split, count in COUNTS.items():
        root = args.data_dir if kind == 'wds' else str(tmp_path)  # not a cache that has been told already
        assert len(create_dataset(args.dataset, root=root, split=split)) == count


def test_shards_are_equally_long_and_mixed(tmp_path):
    assert pack.main(['wds', 'photos', str(tmp_path / 'out'), '--shards', '5']) == 0
    for split, count in COUNTS.items():
        info = json.loads((tmp_path / 'out' / '_info.json').read_text())['splits'][split]
        assert info['num_samples'] == sum(info['shard_lengths']) == count
        assert max(info['shard_lengths']) - min(info['shard_lengths']) == 1
        labels = []
        for name, length in zip(info['filenames'], info['shard_lengths'], strict=True):
            with tarfile.open(tmp_path / 'out' / name) as tar:
                labels.append([int(tar.extractfile(m).read()) for m in tar if m.name.endswith('.cls')])
            assert len(labels[-1]) == length
        assert all(shard != sorted(shard) for shard in labels if len(shard) > 4)
        assert split == 'val' or all(len(set(shard)) > 1 for shard in labels)


def test_a_class_may_be_named_like_a_split(tmp_path):
    data = draw(tmp_path / 'data')
    for split in COUNTS:
        (data / split / 'B').rename(data / split / 'val')
    assert pack.main(['wds', str(data), str(tmp_path / 'out')]) == 0
    assert json.loads((tmp_path / 'out' / '_info.json').read_text())['classes'] == ['a', 'c2', 'c10', 'val']


def broken_data(folder, fault):
    data = draw(folder)
    if fault == 'class':
        (data / 'val' / 'c2').rename(data / 'moved')
    elif fault == 'beside':
        (data / 'val' / 'B' / 'image.0.jpg').rename(data / 'val' / 'image.0.jpg')
    elif fault == 'images':
        for path in (data / 'val').rglob('image*'):
            path.rename(path.with_suffix('.txt'))
    elif fault == 'split':
        (data / 'val').rename(data / 'validation')
    elif fault == 'unreadable':  # found out when the other images are packed
        (data / 'val' / 'B' / 'image.9.jpg').symlink_to(data / 'nothing')
    return data


@pytest.mark.parametrize('form', ['wds', 'parquet'])
@pytest.mark.parametrize(('fault', 'options', 'message'), [
    ('class', [], 'Invalid split val: its classes are not those of train.*1 differ, such as c2; give both'),
    ('beside', [], 'Invalid split val: .*/val has images outside of its class folders; move them'),
    ('images', [], 'Invalid split val: Found 0 images in subfolders of .*/val'),
    ('split', [], 'Invalid split val: there is no folder .*/val; name the folders with --splits'),
    ('', ['--splits', 'train', '../x'], r'Invalid split \.\./x: use letters'),
    ('', ['--splits', 'target'], "Invalid split target: .*not 'tar'; rename"),
    ('', ['--shards', '17'], 'Invalid shards 17: use 1 to 16, the number of images in val'),
    ('', ['--shards', '0'], 'Invalid shards 0: use 1 to 48, the number of images in train'),
    ('unreadable', [], 'No such file or directory: .*image.9.jpg'),
])
def test_pack_refuses_bad_data_and_leaves_nothing(form, fault, options, message, tmp_path, capsys):
    data = broken_data(tmp_path / 'data', fault)
    assert pack.main([form, str(data), str(tmp_path / 'out'), '--shards', '4', *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(f'pack.py: .*{message}', error)
    assert list(tmp_path.iterdir()) == [data]


def test_pack_touches_no_existing_output(tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'precious').touch()
    assert pack.main(['wds', 'photos', str(tmp_path / 'out')]) == 2
    assert 'this folder is not empty; name a new one' in capsys.readouterr().err
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['precious']


def test_pack_shows_progress(tmp_path, monkeypatch):
    bars = []
    tqdm = pack.tqdm

    def terminal(*args, **kwargs):
        bars.append(tqdm(*args, **{**kwargs, 'file': io.StringIO(), 'disable': False}))
        return bars[-1]

    monkeypatch.setattr(pack, 'tqdm', terminal)
    for form in ('wds', 'parquet'):
        assert pack.main([form, 'photos', str(tmp_path / form)]) == 0
    assert [(bar.n, bar.total) for bar in bars] == [(64, 64), (64, 64)]
