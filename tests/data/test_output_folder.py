"""Output folders, written whole or not at all; what is refused is tested with the export."""

import pytest

from timm_drnet.data.output_folder import check_output_folder, staged


def test_folder_appears_when_it_is_complete(tmp_path):
    with staged(tmp_path / 'out') as folder:
        (folder / 'a.txt').write_text('a')
        assert not (tmp_path / 'out').exists()
    assert [path.name for path in tmp_path.iterdir()] == ['out']
    assert (tmp_path / 'out/a.txt').read_text() == 'a'


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_nothing_remains_of_a_failure(tmp_path, error):
    (tmp_path / 'out').mkdir()

    def fail():
        with staged(tmp_path / 'out') as folder:
            (folder / 'a.txt').write_text('a')
            raise error

    with pytest.raises(error):
        fail()
    assert [path.name for path in tmp_path.rglob('*')] == ['out']


def test_folder_that_was_filled_meanwhile_is_kept(tmp_path):
    target = check_output_folder(tmp_path / 'out')

    def fill():
        with staged(target) as folder:
            (folder / 'a.txt').write_text('a')
            target.mkdir()
            (target / 'mine.txt').write_text('precious')

    with pytest.raises(OSError, match='not empty'):
        fill()
    assert [path.name for path in tmp_path.rglob('*')] == ['out', 'mine.txt']
