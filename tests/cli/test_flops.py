import json

import pytest

from timm_drnet.cli import main


def test_table_shows_the_numbers_of_the_paper_s_models(capsys):
    assert main(['flops', 'drnet_resnet50']) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if ' px ' in line]
    assert [(row[0], row[2]) for row in rows] == [('224', '4089.2'), ('168', '2503.0'), ('112', '1077.9')]
    assert '25,557,032' in out
    assert '4,907,331' in out


def test_cascade_pays_for_its_smaller_rungs(capsys):
    kwargs = ['backbone=resnet10t', 'router=cascade', 'resolutions=(64,48,32)', 'thresholds=(.5,None)']
    assert main(['flops', 'drnet', '--model-kwargs', *kwargs]) == 0
    heading, *rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:5]]
    assert heading == ['resolution', 'backbone', 'of', 'largest', 'smaller', 'rungs', 'total']
    backbone = [row[2] for row in rows]
    assert [row[6] for row in rows] == [backbone[1], '0.0', '0.0']  # 32 px is left out


def test_json_holds_exact_numbers(capsys):
    assert main(['flops', 'drnet_mobilenetv2', '--json']) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row['resolution'] for row in result['rows']] == [224, 196, 168]
    assert result['rows'][0]['backbone_flops'] == 300_774_272
    assert result['rows'][0]['fraction'] == 1.0
    assert result['parameters']['backbone'] == 3_504_872


def test_arguments_reach_the_model(capsys):
    assert main(['flops', 'drnet', '--num-classes', '7', '--json',
                 '--model-kwargs', 'backbone=resnet10t', 'resolutions=(64,32)']) == 0
    assert [row['resolution'] for row in json.loads(capsys.readouterr().out)['rows']] == [64, 32]


@pytest.mark.parametrize(('argv', 'words'), [
    (['flops', 'no_such_model'], ['no_such_model']),
    (['flops', 'resnet18'], ['resnet18', 'not a DRNet']),
    (['flops', 'drnet', '--model-kwargs', 'backbone=convnext_atto'], ['BatchNorm']),
    (['flops', 'drnet', '--model-kwargs', 'backbone=resnet10t', 'resolutions=(32,64)'], ['resolutions', '(32, 64)']),
    (['flops', 'drnet', '--model-kwargs', 'backbone=resnet10t', 'no_such_argument=1'], ['no_such_argument']),
])
def test_bad_input_is_one_clear_line(argv, words, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words)
