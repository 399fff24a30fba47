"""Adaptation as a whole: what is kept, what is undone, and what an interruption costs."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

import timm_drnet
from timm_drnet.adaptation.adapt import adapt, adapt_model, drnet_to_adapt
from timm_drnet.adaptation.branches import Settings
from timm_drnet.adaptation.norms import get_state, private_norms
from timm_drnet.adaptation.photographs import find_photographs
from timm_drnet.deploy.weights_digest import weights_digest
from timm_drnet.evaluate.answers import choose, collect_answers
from timm_drnet.train.utility import utility_targets


def spoil(model):
    """Shift the norms of the smaller resolution by anything."""
    generator = torch.Generator().manual_seed(1)
    for norm in private_norms(model, 1):
        with torch.no_grad():
            norm.bias.add_(torch.randn(norm.bias.shape, generator=generator))
    return model


def same(state, other):
    return all(torch.equal(one[key], two[key]) for one, two in zip(state, other, strict=True) for key in one)


@pytest.fixture
def photographs(folder):
    """Photographs whose labels nobody knows."""
    return find_photographs(folder, 0.5, seed=0)


def test_what_helps_is_kept(plain, photographs, images):
    """A branch whose norms fit badly agrees more often once they are tuned; the largest answers as it did."""
    model = spoil(drnet_to_adapt(plain, (64, 48)))
    lines = []
    found = adapt_model(model, photographs, Settings(0.8, epochs=2, lr=0.02, batch_size=16), report=lines.append)
    kept = [trial for trial in found.trials if trial.kept]
    assert len(kept) > 1, 'nothing helped'
    assert kept[-1].agreement > found.trials[0].agreement
    assert all(trial.gain > trial.error for trial in kept[1:])
    x = images(4)
    assert torch.equal(model.forward_at(x, 0), plain(x))
    assert found.read_off == found.held_out == 80  # the others were tuned on
    assert any('kept' in line for line in lines)
    # What is reported is what the model does on the photographs that its dial was read off.
    answers = collect_answers(model, photographs.evaluation(model))
    choices = choose(model, answers)
    costs = [row.total_flops for row in timm_drnet.cost_table(model)]
    spent = sum(costs[j] for j in choices.tolist()) / len(choices) / 1e9
    assert spent == pytest.approx(found.budget.chosen.cost)
    assert spent == pytest.approx(0.8 * costs_of_largest(model), rel=0.01)
    last = [trial for trial in kept if trial.resolution == 48][-1]
    agrees = answers.classes[:, 1, 0] == answers.classes[:, 0, 0]
    assert last.agreement == pytest.approx(100 * agrees.double().mean())
    assert found.time_ratio > 0


def costs_of_largest(model):
    return timm_drnet.cost_table(model)[0].backbone_flops / 1e9


def test_what_does_not_help_is_undone(plain, photographs):
    """A learning rate that ruins the branch: it ends with the norms that it came with, and the dial sees all images."""
    model = drnet_to_adapt(plain, (64, 48))
    before = get_state(private_norms(model, 1))
    found = adapt_model(model, photographs, Settings(0.8, epochs=1, lr=5.0, batch_size=16))
    tuned = found.trials[-1]
    assert (tuned.change, tuned.kept) == ('norms tuned', False)
    assert tuned.agreement < found.trials[0].agreement
    if not any(trial.kept for trial in found.trials[1:]):
        assert same(get_state(private_norms(model, 1)), before)
        assert found.read_off == 160


def adapt_predictor(plain, folder, **kwargs):
    return adapt(plain, folder, (64, 48), target=1.0, router='predictor', epochs=0, held_out=0.5, **kwargs)


@pytest.fixture(scope='module')
def with_predictor(untouched, folder):
    """What came of a predictor, and what was told meanwhile."""
    lines = []
    return adapt_predictor(untouched, folder, report=lines.append), lines


def test_predictor(with_predictor, plain, folder, images):
    """It learns without labels; its dial is set on photographs that it did not see."""
    found, lines = with_predictor
    model = found.model
    assert found.read_off == found.held_out == 80
    x = images(4)
    assert torch.equal(model.forward_at(x, 0), plain(x))
    assert sum('predictor: epoch' in line for line in lines) == 6
    assert model.args.predictor_loss == 'utility'
    photographs = find_photographs(folder, 0.5, seed=42)
    choices = torch.cat([model.predict_resolution(x) for x in photographs.evaluation(model)])
    costs = [row.total_flops for row in timm_drnet.cost_table(model)]
    spent = sum(costs[j] for j in choices.tolist()) / len(choices) / 1e9
    assert spent == pytest.approx(costs_of_largest(model), rel=0.01)  # of which the predictor takes 40 %
    assert spent == pytest.approx(found.budget.chosen.cost)


def test_probabilities_as_labels_are_the_divergence(images):
    """The utility of cross-entropies with the largest's probabilities is that of divergences from it."""
    logits = 3 * torch.randn(20, 3, 5)
    p = logits[:, 0].softmax(dim=1)
    entropies = torch.stack([F.cross_entropy(logits[:, j], p, reduction='none') for j in range(3)], dim=1)
    divergences = (p[:, None] * (p[:, None].log() - logits.log_softmax(dim=2))).sum(dim=2)
    targets = [utility_targets(losses, (4.0, 2.0, 1.0), 2.5, 1.0) for losses in (entropies, divergences)]
    torch.testing.assert_close(*targets, rtol=1e-3, atol=1e-4)


def test_without_epochs_only_the_thresholds_are_set(plain, folder):
    state, place = copy.deepcopy(plain.state_dict()), folder.parent / 'progress'
    found = adapt(plain, folder, (64, 48), target=0.8, epochs=0, held_out=0.3, state=place)
    assert found.read_off == 160  # the 48 held out would be too few for the target
    assert not place.exists()
    assert [trial.change for trial in found.trials] == ['']
    assert found.model.args.thresholds == found.budget.chosen.thresholds
    assert found.labelled  # five folders for five classes
    assert found.budget.chosen.top1 is not None
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())


@pytest.mark.slow
def test_interruption(plain, photographs, tmp_path):
    """Interrupted twice, in a tuning and between two branches, the same call ends with the same model."""
    settings = Settings(0.8, epochs=2, batch_size=16)

    def run(report, state):
        model = spoil(drnet_to_adapt(plain, (64, 56, 48)))
        return adapt_model(model, photographs, settings, state, report)

    def interrupt_at(place):
        def report(line):
            lines.append(line)
            if place in line:
                raise KeyboardInterrupt

        return report

    state, lines = tmp_path / 'state', []
    for place in ('epoch 1 of 2', '48 px: as it comes'):
        with pytest.raises(KeyboardInterrupt):
            run(interrupt_at(place), state)
        assert state.exists()
    resumed, whole = run(lines.append, state), run(lambda line: None, None)
    assert resumed.trials == whole.trials
    assert resumed.model.args == whole.model.args
    for (key, value), other in zip(resumed.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    assert sum('56 px: tuning' in line for line in lines) == 2  # neither epoch was done twice


def test_weights_are_the_same_by_any_number_of_threads(plain):
    """An interrupted adaptation may go on with others: sums of floating point would differ in their last digits."""
    before, threads = weights_digest(plain), torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert weights_digest(plain) == before
    finally:
        torch.set_num_threads(threads)
    weight = next(plain.parameters())
    with torch.no_grad():
        weight.view(-1)[:2] = weight.view(-1)[:2].flip(0)  # the sum stays
    assert weights_digest(plain) != before


def test_a_backbone_that_cannot_be_deployed_is_adapted_all_the_same(plain, folder, monkeypatch):
    def deploy(self, **kwargs):
        raise ValueError('torch.fx cannot follow this one')

    monkeypatch.setattr(timm_drnet.DRNet, 'deploy', deploy)
    lines = []
    found = adapt(plain, folder, (64, 48), target=0.8, epochs=0, report=lines.append)
    assert found.time_ratio is None
    assert found.budget.chosen.cost
    assert lines[-1] == 'no time was measured: torch.fx cannot follow this one'


def test_progress_of_another_adaptation(plain, photographs, tmp_path):
    def interrupt(line):
        raise KeyboardInterrupt

    def run(target, report=lambda line: None):
        return adapt_model(
            drnet_to_adapt(plain, (64, 48)), photographs, Settings(target, epochs=1, batch_size=16), tmp_path / 'state',
            report)

    with pytest.raises(KeyboardInterrupt):
        run(0.8, lambda line: interrupt(line) if 'epoch' in line else None)
    with pytest.raises(ValueError, match=r'another target, 0\.8 instead of 0\.9; remove the file'):
        run(0.9)
    (tmp_path / 'state').write_bytes(b'something else')
    with pytest.raises(ValueError, match='not the progress of an adaptation; remove it'):
        run(0.8)


@pytest.mark.parametrize(('change', 'message'), [
    ({'target': 0.0}, 'Invalid target 0.0'), ({'target': 1.5}, 'Invalid target 1.5'),
    ({'epochs': -1}, 'Invalid epochs -1'), ({'lr': float('nan')}, 'Invalid lr nan'),
    ({'batch_size': 1}, 'Invalid batch_size 1'), ({'workers': -1}, 'Invalid workers -1')])
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)


@pytest.mark.parametrize(('args', 'message'), [
    ({'router': 'predictor'}, "use these, or router='cascade'"),
    ({'resolution_aware_norm': False}, 'resolution_aware_norm=True'),
    ({'resolutions': (64,)}, 'Invalid resolutions')])
def test_models_that_cannot_be_adapted(photographs, args, message):
    model = timm_drnet.create_drnet('test_resnet', **{'resolutions': (64, 48), 'router': 'cascade', **args})
    with pytest.raises(ValueError, match=message):
        adapt_model(model, photographs, Settings())


def test_a_target_out_of_reach_says_what_can_be_reached(plain, photographs):
    with pytest.raises(ValueError, match=r'Invalid target 0\.2: the smallest resolution alone costs 0\.79'):
        adapt_model(drnet_to_adapt(plain, (64, 56)), photographs, Settings(0.2, epochs=0))


def test_too_few_images_for_the_target(plain, folder):
    few = find_photographs(folder, 0.3, seed=0)
    with pytest.raises(ValueError, match=r'48 to set the dial on, and a target of 0\.8 within 1 % needs 63'):
        adapt_model(drnet_to_adapt(plain, (64, 48)), few, Settings(0.8))


def test_interrupted_predictor(with_predictor, plain, folder, tmp_path):
    """The same first weights: what was done before the predictor is not refused as that of another model."""
    def run(report=lambda line: None):
        torch.seed()  # each start is another process
        return adapt_predictor(plain, folder, state=tmp_path / 'state', report=report)

    def interrupt(line):
        if 'predictor: epoch 1' in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    assert (tmp_path / 'state').exists()
    resumed, (whole, _) = run(), with_predictor
    for one, other in zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_arguments_that_would_have_no_effect_are_refused(plain, folder):
    with pytest.raises(TypeError, match='Invalid drop_rate'):
        adapt(plain, folder, drop_rate=0.1)
    with pytest.raises(ValueError, match=r'Invalid resolutions \(64, 32\): the backbone is a DRNet already'):
        adapt(drnet_to_adapt(plain, (64, 48)), folder, (64, 32))
    with pytest.raises(ValueError, match="Invalid router 'predictor': the backbone is a DRNet already, with a cascade"):
        adapt(drnet_to_adapt(plain, (64, 48)), folder, router='predictor')


def test_backbone_by_name(folder, monkeypatch):
    """A name stands for a model with its weights."""
    asked = []
    create = timm.create_model

    def create_model(name, pretrained=False, **kwargs):
        asked.append((name, pretrained, kwargs))
        return create(name, **kwargs)

    monkeypatch.setattr(timm, 'create_model', create_model)
    with pytest.raises(FileNotFoundError):
        adapt('test_resnet', 'nowhere', (64, 48), num_classes=5)
    assert asked[0] == ('test_resnet', True, {'num_classes': 5})
