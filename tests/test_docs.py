"""What the documentation shows runs as it stands, and what it names is there."""

import argparse
import ast
import importlib.util
import itertools
import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from timm.utils import CheckpointSaver

import timm_drnet
from timm_drnet.cli import main
from timm_drnet.cli.parsers import build_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / 'docs').glob('*.md'), ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'SECURITY.md'])


# With what is needed on the line above. A block without a fence is one of commands if it begins like one.
BLOCK = re.compile(
    r'^(?:<!-- needs (?P<need>[^\n]+) -->\n+)?'
    r'(?:```(?P<language>\w+)\n(?P<fenced>.*?)^```$|(?P<indented>(?:^ {4}[^\n]*\n|^\n(?= {4}))+))',
    flags=re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r'(#[^\n]*\n *)*(timm-drnet|python|pip|uv|train\.py|torchrun|pytest|tar|mkdir|cd|git|docker|curl) ')


def blocks(page, language, marked=False):
    """Code blocks of a page in a language: those that need no more than the package, or also the others."""
    for match in BLOCK.finditer(page.read_text(encoding='utf-8')):
        text = match['fenced'] or match['indented'] or ''
        found = match['language'] or ('sh' if COMMAND.match(text.strip()) else 'text')
        if found == language and (marked or not match['need']):
            yield text


def commands(text):
    """The words of each command in a block: continued lines are one, and lines with && several."""
    for line in re.sub(r'\\\n *', '', text).splitlines():
        for command in line.strip().split(' && '):
            if COMMAND.match(command):
                yield shlex.split(command, comments=True)


class Parsed(Exception):
    """The end of a script whose command line is right."""


def parse_only(script, words, monkeypatch):
    """Run a script up to where it has parsed its command line."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, args=None, namespace=None):
        parse(parser, args, namespace)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        patch.setattr(sys, 'argv', [str(script), *words])
        patch.syspath_prepend(script.parent)
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name='__main__')


def is_of_the_package(words):
    """Whether a pip command installs what this repository describes."""
    extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    match words:
        case ['pip', 'install', '-r', file]:
            return (ROOT / file).is_file()
        case ['pip', 'install', what] | ['pip', 'install', '-e', what]:
            found = re.fullmatch(r'(?:\.|timm-drnet)(?:\[(\w+)\])?', what)
            return found is not None and found[1] in (None, *extras)
    return False


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_of_pages_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)#:\s]+)(?:#[^)]*)?\)', page.read_text(encoding='utf-8')):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_files_named_in_sentences_exist(page):
    for named in re.findall(r'`((?:tests|examples|timm_drnet|docs)/[\w./-]+)`', page.read_text(encoding='utf-8')):
        assert (ROOT / named).exists(), named


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_are_right_or_say_what_they_need(page, monkeypatch):
    unmarked = [words for block in blocks(page, 'sh') for words in commands(block)]
    for words in [words for block in blocks(page, 'sh', marked=True) for words in commands(block)]:
        script = ROOT / words[1]
        if words[0] == 'timm-drnet':
            if '...' not in words:
                build_parser().parse_args(words[1:])
        elif words[0] == 'python' and script.is_file():
            if script.parent.name != 'serve' or importlib.util.find_spec('mosec'):
                parse_only(script, words[2:], monkeypatch)
        elif words[0] != 'pytest' and not is_of_the_package(words):
            assert words not in unmarked, f'{page.name}: a comment <!-- needs ... --> above {shlex.join(words)}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_have_these_options(page):
    subparsers = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for span in re.findall(r'(?<!`)`timm-drnet ([^`]+)`', page.read_text(encoding='utf-8')):
        command, *words = shlex.split(span)
        if command.islower():  # and not a placeholder
            options = subparsers.choices[command]._option_string_actions
            assert {word for word in words if word.startswith('-') and word != '...'} <= {*options}, span


@pytest.mark.parametrize(
    'page', [page for page in PAGES if any(blocks(page, 'python'))], ids=lambda page: page.name)
def test_python_examples_run_in_order(page):
    exec(compile('\n'.join(blocks(page, 'python')), page.name, 'exec'), {})


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_other_blocks_are_none_that_could_run(page):
    for match in BLOCK.finditer(page.read_text(encoding='utf-8')):
        assert match['language'] in (None, 'python', 'sh'), match[0]
    for block in blocks(page, 'python', marked=True):
        compile(block, page.name, 'exec')


def test_the_notebook_runs_from_top_to_bottom(monkeypatch):
    """Its cells in one process: a kernel would add some thirty packages and nothing that they need."""
    notebook = json.loads((ROOT / 'examples/tutorial.ipynb').read_text(encoding='utf-8'))
    assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 5)
    cells = notebook['cells']
    assert len({cell['id'] for cell in cells}) == len(cells)
    monkeypatch.chdir(ROOT / 'examples')
    monkeypatch.setattr('timm_drnet.adaptation.adapt._TIMED_BATCHES', 1)  # what times come out is not the question
    namespace = {}
    for cell in cells:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code':
            assert (cell['outputs'], cell['execution_count']) == ([], None)
            exec(compile(source, cell['id'], 'exec'), namespace)
        else:
            for target in re.findall(r'\]\(([^):#]+)\)', source):
                assert Path(target).exists(), target
    assert [namespace['model'].resolutions[j] for j in namespace['choice']].count(160) == 9
    assert {found.name for found in namespace['work'].iterdir()} == {'crops', 'dynamic', 'exported'}


def test_readme_of_a_release_has_whole_addresses():
    site = runpy.run_path(str(ROOT / '.ci/site.py'))
    text = 'a [page](docs/hub.md#top), ![a picture](docs/x.svg), [a folder](docs) and [another](https://a.b/c)'
    there = site['URLS']['Repository']
    assert site['to_repository'](text, '') == (
        f'a [page]({there}/blob/main/docs/hub.md#top), ![a picture]({there}/raw/main/docs/x.svg), [a folder]'
        f'({there}/tree/main/docs) and [another](https://a.b/c)')
    assert not re.search(r'\]\((?!https?:|#)', site['to_repository']((ROOT / 'README.md').read_text(), ''))


def test_the_site_asks_no_other_server():
    theme = yaml.load((ROOT / 'mkdocs.yml').read_text(encoding='utf-8'), yaml.BaseLoader)['theme']
    assert theme['font'] == 'false'
    # the script of the theme asks for facts about the repository where it finds this mark, which the theme's own has
    link = (ROOT / theme['custom_dir'] / 'partials' / 'source.html').read_text(encoding='utf-8')
    assert 'class="md-source"' in link
    assert 'data-md-component' not in link


def test_the_api_is_that_of_the_package():
    text = (ROOT / 'docs/api.md').read_text(encoding='utf-8')
    assert {*re.findall('^::: timm_drnet.(.*)$', text, flags=re.MULTILINE)} == {*timm_drnet.__all__} - {'__version__'}


def test_examples_in_docstrings_have_a_heading():
    # without one the site shows them as quotations
    for path in (ROOT / 'timm_drnet').rglob('*.py'):
        assert not re.search(r'\n\n *>>>', path.read_text(encoding='utf-8')), path


def test_equations_stand_where_the_table_says():
    table = (ROOT / 'docs/equations.md').read_text(encoding='utf-8').partition('\n## ')[0]
    rows = re.findall(r'^\| (.*?) \| .* \| (.*?) \|$', table, flags=re.MULTILINE)
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


def test_faults_name_tests_that_exist():
    """Every row of the page on faults has one, by its address for pytest."""
    text = (ROOT / 'docs/robustness.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (?!-|what .* \| test \|$).*', text, flags=re.MULTILINE)
    names = {}
    for row in rows:
        shown = re.findall(r'`([^`]+::[^`]+)`', row.rsplit('|', 2)[1])
        assert shown, row
        for file, name in (address.split('::') for address in shown):
            if file not in names:
                tree = ast.parse((ROOT / file).read_text(encoding='utf-8'))
                names[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in names[file], f'{file}::{name}'
    assert len(rows) > 60


def test_every_page_is_in_the_navigation():
    def pages(entries):
        for entry in entries:
            value = next(iter(entry.values()))
            yield from pages(value) if isinstance(value, list) else [value]

    config = yaml.safe_load((ROOT / 'mkdocs.yml').read_text(encoding='utf-8'))
    assert sorted(pages(config['nav'])) == sorted(path.name for path in (ROOT / 'docs').glob('*.md'))


def test_training_page(tmp_path, monkeypatch, capsys):
    """All of it on five photographs; what train.py does is done by timm's parts, and its record is left as it is."""
    monkeypatch.chdir(tmp_path)
    photos = sorted((ROOT / 'examples/photos').glob('*.jpg'))[:5]
    for photo in photos:
        for part in (Path('train', photo.stem), Path('val', photo.stem), Path('held')):
            (tmp_path / 'photos' / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, tmp_path / 'photos' / part)
    page = ROOT / 'docs/train.md'
    trained = next(words for block in blocks(page, 'sh', marked=True) for words in commands(block) if words[1] == 'run')
    given = {
        option: list(itertools.takewhile(lambda word: not word.startswith('-'), trained[i + 1:]))
        for i, option in enumerate(trained) if option.startswith('-')}
    name, classes = given['--model'][0], int(given['--num-classes'][0])
    kwargs = {key: ast.literal_eval(value) for key, _, value in (one.partition('=') for one in given['--model-kwargs'])}
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=True, num_classes=classes, **kwargs)
    full = timm_drnet.cost_table(model)[0].backbone_flops / 1e9
    optimizer = create_optimizer_v2(model, opt=given['--opt'][0], lr=float(given['--lr'][0]))
    scale = [*map(float, given['--scale'])]
    prepare = create_transform(**resolve_data_config(model=model), is_training=True, scale=scale)
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
    images, losses = torch.stack([prepare(Image.open(photo)) for photo in photos]), []
    for _ in range(3):
        losses.append(task.train()(images, torch.arange(5))['loss'])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]

    folder = Path(given['--output'][0], given['--experiment'][0])
    folder.mkdir(parents=True)
    args = Namespace(
        model=name, num_classes=classes, data_dir=given['--data-dir'][0], dataset='',
        train_split=given['--train-split'][0], pretrained=True, model_kwargs=kwargs)
    CheckpointSaver(model, optimizer, args, checkpoint_dir=str(folder)).save_checkpoint(0, metric=1.0)
    assert main(['last-checkpoint', str(folder)]) == 0
    done = []
    for block in blocks(page, 'sh'):
        for words in commands(block):
            # With five photographs few averages can be met, but that of the largest resolution can.
            words = [str(full) if words[i - 1] == '--target-gflops' else word for i, word in enumerate(words)]
            assert main(words[1:]) == 0, capsys.readouterr().err
            done.append(words[1])
    assert done == ['predict', 'validate', 'budget', 'budget', 'validate', 'predict', 'publish']
    assert '5: crocodile, dalmatian, elephant, flamingo, grand_piano' in (tmp_path / 'card/README.md').read_text()
