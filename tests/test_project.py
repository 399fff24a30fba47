"""What the repository promises about itself: versions, dependencies, packaging, and imports that point one way."""

import ast
import importlib.metadata
import importlib.resources
import itertools
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from timm_drnet.version import __version__

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'timm_drnet'
PYPROJECT = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
METADATA = tomllib.loads(PYPROJECT)

# Lowest first. A room imports from those above its line; rooms of one line do not know each other.
ROOMS = (
    ('version', 'core'),
    ('cascade',),
    ('data',),
    ('deploy',),
    ('cost',),
    ('evaluate',),
    ('model',),
    ('train', 'bulk'),
    ('hub', 'analysis', 'demo'),
    ('adaptation',),
    ('cli',),
    ('',),  # the package itself, which re-exports the public surface
)

IMPORTED_AS = {'pillow': 'PIL'}  # where a distribution and its module differ in name


def module_name(path: Path) -> str:
    """Name of a module within the package: '' for the package itself, 'cli' for its subpackage."""
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob('*.py'))}


def floor(module: str) -> int:
    """Where a module's room stands in ROOMS."""
    room = module.partition('.')[0]
    return next(rank for rank, rooms in enumerate(ROOMS) if room in rooms)


def imports(module: str, at_import: bool = False) -> Iterator[str]:
    """Full names of what a module imports, such as 'timm.models.ResNet' or 'timm_drnet.core.norm.resize'.

    Either all, those inside functions and for annotations only included, or what is imported with the module itself.
    """
    path = MODULES[module]
    package = ['timm_drnet', *path.relative_to(PACKAGE).parent.parts]
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding='utf-8'))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) + 1 - node.level] if node.level else []
            base = '.'.join([*base, *([node.module] if node.module else [])])
            yield from (f'{base}.{alias.name}' for alias in node.names)
        elif not (at_import and isinstance(node, ast.FunctionDef)):
            pending.extend(ast.iter_child_nodes(node))


def imported_modules(module: str) -> set[str]:
    """Modules of the package that a module imports, anywhere in it."""
    found = set()
    for name in imports(module):
        package, _, inner = name.partition('.')
        if package == 'timm_drnet':
            while inner not in MODULES:  # a name within a module
                inner = inner.rpartition('.')[0]
            found.add(inner)
    return found


def test_import_reader_finds_what_is_there():
    assert {'core.gumbel', 'core.norm', 'core.routing'} <= imported_modules('core.drnet')
    assert 'core.drnet' in imported_modules('cost.flops')
    assert 'timm_drnet.core.drnet.DRNet' in imports('cost.flops')
    assert 'onnxruntime' in imports('deploy.runtimes')
    assert 'onnxruntime' not in imports('deploy.runtimes', at_import=True)


def test_imports_make_no_circle():
    graph = {module: imported_modules(module) - {module} for module in MODULES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f'these modules import each other: {" -> ".join(error.args[1])}')


def test_rooms_import_one_way():
    upward = [
        f'{module} imports {other}' for module in MODULES for other in imported_modules(module)
        if floor(other) > floor(module)
        or (floor(other) == floor(module) and other.partition('.')[0] != module.partition('.')[0])]
    assert not upward


def test_the_core_is_read_in_one_sitting():
    files = [path for module, path in MODULES.items() if module.startswith('core')]
    assert sum(len(path.read_text(encoding='utf-8').splitlines()) for path in files) <= 700


def test_the_front_room_is_not_crowded():
    assert len(list(PACKAGE.glob('*.py'))) <= 5


def test_no_import_of_private_timm_modules():
    private = [(module, name) for module in MODULES for name in imports(module) if re.match(r'timm\.(.*\.)?_', name)]
    assert not private, 'import from the public timm package instead'


def distributions(requirements: list[str]) -> set[str]:
    """What requirements are imported as."""
    names = [re.match(r'[\w-]+', requirement).group() for requirement in requirements]
    return {IMPORTED_AS.get(name, name) for name in names}


def third_party(modules: Iterable[str], at_import: bool) -> set[str]:
    """Packages that modules import, when they are imported themselves or at all."""
    roots = {name.partition('.')[0] for module in modules for name in imports(module, at_import=at_import)}
    beside_an_export = {'arrays', 'files', 'manifest', 'pixels', 'preprocessing', 'runtimes'}
    return roots - sys.stdlib_module_names - {'timm_drnet'} - beside_an_export


def test_dependencies_are_what_is_imported():
    assert third_party(MODULES, at_import=True) == distributions(METADATA['project']['dependencies'])


def test_no_import_prints():
    """PyTorch's builder of extensions warns where CUDA_HOME is set and there is no card; its benchmark imports it."""
    builders = ('torch.utils.cpp_extension', 'torch.utils.benchmark')
    assert not [(module, name) for module in MODULES for name in imports(module) if name.startswith(builders)]


def test_extras_are_what_is_imported_when_needed():
    extras = METADATA['project']['optional-dependencies']
    optional = set().union(*(distributions(extras[name]) for name in extras if name not in ('docs', 'test')))
    needed = third_party(MODULES, at_import=False) - third_party(MODULES, at_import=True)
    assert needed <= optional
    assert optional - needed <= {'onnx', 'onnxscript'}  # PyTorch's exporter imports them
    assert optional <= distributions(extras['test']), 'the tests cover the extras, too'


def test_every_floor_has_its_reason():
    project = METADATA['project']
    requirements = [*METADATA['build-system']['requires'], *project['dependencies']]
    for extra in project['optional-dependencies'].values():
        requirements += extra
    lines = [line.strip() for line in PYPROJECT.splitlines()]
    for requirement in requirements:
        above = lines[lines.index(f'"{requirement}",') - 1]
        assert '>=' in requirement
        assert above.startswith('# '), f'say above {requirement} why it needs that version'


def test_page_of_dependencies_names_each():
    project = METADATA['project']
    wanted = {'setuptools'}
    for requirement in (*project['dependencies'], *itertools.chain(*project['optional-dependencies'].values())):
        wanted.add(re.match(r'[\w-]+', requirement).group())
    page = (ROOT / 'docs' / 'dependencies.md').read_text(encoding='utf-8')
    assert set(re.findall(r'^\| ([\w-]+) \| ', page, flags=re.MULTILINE)) - {'package'} == wanted


def test_one_version_everywhere():
    assert importlib.metadata.version('timm-drnet') == __version__
    assert f'\n## [{__version__}]' in (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
    assert f'\nversion: {__version__}\n' in (ROOT / 'CITATION.cff').read_text(encoding='utf-8')


def test_package_holds_its_data():
    package = importlib.resources.files('timm_drnet')
    assert package.joinpath('py.typed').is_file()
    installed = {file.name for file in package.joinpath('weights').iterdir()}
    assert {file.name for file in (PACKAGE / 'weights').iterdir()} <= installed
    for module in MODULES:
        if (PACKAGE / module.replace('.', '/') / '__init__.py').is_file():
            assert importlib.resources.files(f'timm_drnet.{module}'.rstrip('.')).joinpath('__init__.py').is_file()


def test_weights_are_small():
    large = [file.name for file in (PACKAGE / 'weights').iterdir() if file.stat().st_size > 10_000_000]
    assert not large, 'the package ships at most 10 MB a file'


def test_ci_runs_the_readme_s_command():
    command = 'pip install ".[test]" && pytest'
    assert command in (ROOT / 'README.md').read_text(encoding='utf-8')
    assert f"run '{command}'" in (ROOT / '.ci' / 'run').read_text(encoding='utf-8')
