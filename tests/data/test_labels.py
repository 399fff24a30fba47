"""Names of the classes."""

import timm

import timm_drnet
from timm_drnet.data.labels import class_labels


def make_model(num_classes, **cfg):
    model = timm_drnet.create_drnet(
        'resnet10t', resolutions=(64, 48), num_classes=num_classes, predictor='inverted_residual')
    model.pretrained_cfg.update(cfg)
    return model


def test_names_of_the_shipped_model():
    labels = class_labels(timm.create_model(timm_drnet.DEFAULT_MODEL))
    assert len(labels) == 1000
    assert (labels[355], labels[579]) == ('llama', 'grand piano, grand')


def test_names_of_another_classifier_do_not_count():
    assert class_labels(make_model(3, label_names=('a', 'b'))) == ('0', '1', '2')


def test_descriptions_come_before_names():
    names = ('n1', 'n2')
    assert class_labels(make_model(2, label_names=names)) == names
    for descriptions in ({'n2': 'cat', 'n1': 'dog'}, ['dog', 'cat']):
        assert class_labels(make_model(2, label_names=names, label_descriptions=descriptions)) == ('dog', 'cat')


def test_imagenet():
    labels = class_labels(make_model(1000))
    assert len(labels) == 1000
    assert labels[0].startswith('tench')
    assert labels[999].startswith('toilet')


def test_numbers_where_there_are_no_names():
    assert class_labels(make_model(4)) == ('0', '1', '2', '3')
