"""What the documentation shows runs as it stands, and what it names is there."""

import re
import runpy
import shlex
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.utils import CheckpointSaver

import timm_drnet
from timm_drnet.cli import main
from timm_drnet.cli.parsers import build_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / 'docs').glob('*.md'), ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'SECURITY.md'])


def blocks(page, language):
    """Code blocks of a page that need no more than the package: those before which the page names no need."""
    text = (ROOT / 'docs' / page).read_text(encoding='utf-8')
    found = re.findall(rf'(<!-- needs [^\n]*-->\n)?```{language}\n(.*?)```', text, flags=re.DOTALL)
    return [block for need, block in found if not need]


def commands(text):
    """Command lines of the package, in blocks of either kind, and continued lines as one."""
    text = re.sub(r'\\\n *', '', text)
    return re.findall(r'^(?:    )?timm-drnet (.*)$', text, flags=re.MULTILINE)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_of_pages_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)#:\s]+)(?:#[^)]*)?\)', page.read_text(encoding='utf-8')):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_have_the_arguments_that_are_shown(page, capsys):
    for command in commands(page.read_text(encoding='utf-8')):
        if '...' not in command:
            build_parser().parse_args(shlex.split(command, comments=True))


@pytest.mark.parametrize('page', ['index.md', 'deployment.md'])
def test_python_examples_run(page):
    for block in blocks(page, 'python'):
        exec(compile(block, page, 'exec'), {})


def test_readme_of_a_release_has_whole_addresses():
    site = runpy.run_path(str(ROOT / '.ci/site.py'))
    text = 'a [page](docs/hub.md#top), ![a picture](docs/x.svg), [a folder](docs) and [another](https://a.b/c)'
    there = site['URLS']['Repository']
    assert site['to_repository'](text, '') == (
        f'a [page]({there}/blob/main/docs/hub.md#top), ![a picture]({there}/raw/main/docs/x.svg), [a folder]'
        f'({there}/tree/main/docs) and [another](https://a.b/c)')
    assert not re.search(r'\]\((?!https?:|#)', site['to_repository']((ROOT / 'README.md').read_text(), ''))


def test_the_api_is_that_of_the_package():
    text = (ROOT / 'docs/api.md').read_text(encoding='utf-8')
    assert {*re.findall('^::: timm_drnet.(.*)$', text, flags=re.MULTILINE)} == {*timm_drnet.__all__} - {'__version__'}


def test_equations_stand_where_the_table_says():
    rows = re.findall(r'^\| (.*?) \| .* \| (.*?) \|$', (ROOT / 'docs/equations.md').read_text(), flags=re.MULTILINE)
    checked = 0
    for paper, where in rows:
        sources = [(ROOT / 'docs' / path).read_text() for path in re.findall(r'\((\S+\.py)\)', where)]
        for number in re.findall(r'\d+', paper.partition('Eq.')[2]):
            # either by its number, or within a range such as "Eq. 9 to 11"
            pattern = rf'Eq\. (\d+[,a-z ]+)*{number}\b'
            assert any(re.search(pattern, source) for source in sources), (paper, number)
            checked += 1
        for name in re.findall(r'`(\w+)`(?! ?\()', re.sub(r'\[[^]]*\]\([^)]*\)', '', where)):
            assert any(f'def {name}(' in source for source in sources), name
    assert checked >= 10


def test_every_page_is_in_the_navigation():
    def pages(entries):
        for entry in entries:
            value = next(iter(entry.values()))
            yield from pages(value) if isinstance(value, list) else [value]

    config = yaml.safe_load((ROOT / 'mkdocs.yml').read_text(encoding='utf-8'))
    assert sorted(pages(config['nav'])) == sorted(path.name for path in (ROOT / 'docs').glob('*.md'))


def test_training_page(tmp_path, monkeypatch, capsys):
    """From the checkpoint on: what train.py does in its stead is a checkpoint with the same record."""
    monkeypatch.chdir(tmp_path)
    for photo in sorted((ROOT / 'examples/photos').glob('*.jpg'))[:5]:
        for split in ('train', 'val'):
            (tmp_path / 'photos' / split / photo.stem).mkdir(parents=True)
            shutil.copy(photo, tmp_path / 'photos' / split / photo.stem)
    text = (ROOT / 'docs/train.md').read_text(encoding='utf-8')
    trained = next(command for command in commands(text) if command.startswith('run '))
    name, classes = (re.search(rf'--{option} (\S+)', trained)[1] for option in ('model', 'num-classes'))
    model = timm.create_model(name, pretrained=True, num_classes=int(classes))
    full = timm_drnet.cost_table(model)[0].backbone_flops / 1e9
    args = Namespace(
        model=name, num_classes=int(classes), data_dir='photos', dataset='', train_split='train', pretrained=True,
        model_kwargs={})
    folder = Path('output/photos')
    assert f'--output {folder.parent} --experiment {folder.name}' in trained
    folder.mkdir(parents=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    CheckpointSaver(model, optimizer, args, checkpoint_dir=str(folder)).save_checkpoint(0, metric=1.0)
    assert main(['last-checkpoint', str(folder)]) == 0
    done = []
    for block in blocks('train.md', 'sh'):
        for command in commands(block):
            # With five photographs few averages can be met, but that of the largest resolution can.
            words = shlex.split(command.replace('--target-gflops 0.3', f'--target-gflops {full}'))
            assert main(words) == 0, capsys.readouterr().err
            done.append(words[0])
    assert done == ['predict', 'validate', 'budget', 'predict', 'publish']
    assert '5: crocodile, dalmatian, elephant, flamingo, grand_piano' in (tmp_path / 'card/README.md').read_text()
