"""Deployed models give what the models give, whatever their family, cuts, layout and number of threads."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from timm.data import resolve_model_data_config
from tiny_models import FAMILIES
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

import timm_drnet
from timm_drnet.deploy import deployed as deployed_module
from timm_drnet.deploy import deployment
from timm_drnet.deploy.onednn import FusedConv
from timm_drnet.deploy.pieces import cut_up, fastest_cut
from timm_drnet.evaluate.validation import validate


def norms(module):
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def close(ours, theirs):
    scale = theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * scale)


SHARING = ('resnet18d', 'densenet121', 'mobilenetv3_small_050', 'dla46_c')


@pytest.mark.parametrize(('name', 'share_weights'), [
    *((name, False) for name in FAMILIES), *((name, True) for name in SHARING)])
def test_family_gives_the_same(make_family, spread_choices, images, name, share_weights):
    model = make_family(name)
    x = images(6)
    choice = spread_choices(model, x)
    deployed = model.deploy(micro_batch=0, share_weights=share_weights)
    with torch.no_grad():
        assert torch.equal(deployed.predict_resolution(x), choice)
        close(deployed(x), model(x))
        for j in range(3):
            close(deployed.forward_at(x, j), model.forward_at(x, j))
        mixed = choice.flip(0)
        close(deployed.forward_at(x, mixed), model.forward_at(x, mixed))


@pytest.mark.parametrize(('name', 'left'), [
    ('resnet18d', 0), ('mobilenetv2_035', 0), ('regnety_002', 0), ('densenet121', None)])
def test_norms_are_gone_where_they_follow_a_convolution(make_family, name, left):
    deployed = make_family(name).deploy(micro_batch=0)
    assert norms(deployed) == []
    affine = [m for m in deployed.branch(0).modules() if type(m).__name__ == 'ChannelAffine']
    assert len(affine) == left if left is not None else len(affine) > 4  # DenseNet's stand in front of convolutions


@pytest.mark.parametrize('cut', [1, 2, 3, 5, 100])
def test_cuts_change_nothing(tiny, spread_choices, images, cut):
    x = images(7)
    choice = spread_choices(tiny, x)
    whole, cut_up = tiny.deploy(micro_batch=0), tiny.deploy(micro_batch=cut)
    assert cut_up.micro_batch == (cut,) * 3
    sizes = []
    cut_up.branches[0].register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    torch.testing.assert_close(cut_up(x), whole(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cut_up.forward_at(x, choice), whole.forward_at(x, choice), rtol=1e-5, atol=1e-5)
    sizes.clear()
    torch.testing.assert_close(cut_up.forward_at(x, 0), whole.forward_at(x, 0), rtol=1e-5, atol=1e-5)
    assert max(sizes) <= cut
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == 7


def test_cuts_are_found(tiny):
    deployed = tiny.deploy()
    assert all(cut in (1, 2, 4, 8, 16, 32) for cut in (*deployed.micro_batch, deployed.predictor_micro_batch))
    assert f'micro_batch={deployed.micro_batch}' in repr(deployed)


def test_fastest_cut_is_where_an_image_takes_least(monkeypatch):
    class Module:
        def __call__(self, x):
            self.images = len(x)
            return x

    module = Module()
    monkeypatch.setattr(  # a call costs 3, an image 1, and one beyond the fourth 5
        'timm_drnet.deploy.pieces.seconds_of',
        lambda run, device: (3 + len(run.args[0]) + 4 * max(0, len(run.args[0]) - 4)) / 1e4)
    assert fastest_cut(module, torch.zeros(1, 3, 8, 8)) == 4


@pytest.mark.parametrize(('cut', 'at_most', 'sizes'), [
    (8, True, [5, 5]), (8, False, [10]), (4, False, [5, 5]), (3, False, [4, 3, 3]), (32, False, [10]), (0, True, [10])])
def test_pieces_are_at_most_as_large_as_told_or_about_as_measured(cut, at_most, sizes):
    assert [len(piece) for piece in cut_up(torch.zeros(10, 3), cut, at_most)] == sizes


def test_measured_cuts_are_near_and_given_ones_a_limit(tiny, images):
    deployed, x, sizes = tiny.deploy(micro_batch=4), images(5), []
    for branch in deployed.branches:
        branch.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    expected = deployed.forward_at(x, 1)
    deployed.calibrated = True
    torch.testing.assert_close(deployed.forward_at(x, 1), expected, rtol=1e-5, atol=1e-5)
    assert sizes == [3, 2, 5]


def test_threads_give_what_one_gives(tiny, spread_choices, images):
    batches = [images(n, seed=n) for n in (1, 5, 8, 3, 2, 7, 6, 4)] * 4
    spread_choices(tiny, images(9))
    deployed = tiny.deploy(micro_batch=2)
    expected = [deployed(x) for x in batches]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(threads.map(deployed, batches), expected, strict=True))
    fresh = tiny.deploy(micro_batch=2)  # weights are put in order at their first use, now by all threads at once
    with ThreadPoolExecutor(8) as threads:
        assert all(torch.equal(a, b) for a, b in zip(threads.map(fresh, batches), expected, strict=True))


def test_threads_of_the_plain_model_give_what_one_gives(tiny, spread_choices, images):
    batches = [images(n, seed=n) for n in (1, 5, 8, 3, 2, 7, 6, 4)] * 4
    spread_choices(tiny, images(9))

    def run(x):
        with torch.no_grad():
            return tiny(x)

    expected = [run(x) for x in batches]
    with ThreadPoolExecutor(8) as threads:
        assert all(torch.equal(a, b) for a, b in zip(threads.map(run, batches), expected, strict=True))


@pytest.mark.parametrize('training', [False, True])
def test_model_is_left_as_it_was(tiny, images, training):
    tiny.train(training)
    state = {key: value.clone() for key, value in tiny.state_dict().items()}
    rng = torch.get_rng_state()
    deployed = tiny.deploy(micro_batch=0)
    deployed(images(2))
    assert torch.equal(torch.get_rng_state(), rng)
    assert tiny.training == training
    assert all(m.training == training for m in tiny.modules())
    assert all(torch.equal(tiny.state_dict()[key], value) for key, value in state.items())
    assert all(p.requires_grad and p.is_contiguous() for p in tiny.parameters())
    with torch.no_grad():
        for p in tiny.parameters():
            p.zero_()
    assert deployed(images(2)).abs().max() > 0


def test_inference_only(tiny, images):
    deployed = tiny.deploy(micro_batch=0)
    with pytest.raises(RuntimeError, match='is for inference: train the model that it was made from'):
        deployed.train()
    assert not deployed.eval().training
    assert not any(p.requires_grad for p in deployed.parameters())
    y = deployed(images(2).requires_grad_())
    assert not y.requires_grad
    assert not y.is_inference()


def test_memory(make_tiny, shake):
    def size(module):
        return sum(p.numel() * 4 for p in module.parameters())

    args = {'backbone': 'resnet18d', 'channels': (16, 24, 32, 40), 'stem_width': 8}
    model, one_set = (
        shake(make_tiny(resolution_aware_norm=aware, **args)).eval() for aware in (True, False))
    three = model.deploy(micro_batch=0).memory()
    one = one_set.deploy(micro_batch=0).memory()
    predictor = size(model.predictor)
    assert (three - predictor) / (one - predictor) == pytest.approx(3, rel=0.05)
    assert model.deploy(micro_batch=0, share_weights=True).memory() == pytest.approx(size(model), rel=0.05)


def test_copies_and_pickles(tiny, images):
    x = images(3)
    deployed = tiny.deploy(micro_batch=2)
    expected = deployed.forward_at(x, 1)
    for other in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert torch.equal(other.forward_at(x, 1), expected)
        assert other.micro_batch == deployed.micro_batch
    other.load_state_dict({key: torch.zeros_like(value) for key, value in deployed.state_dict().items()})
    assert other.forward_at(x, 1).abs().max() == 0
    assert torch.equal(deployed.forward_at(x, 1), expected)


def test_data_types(tiny, images):
    x = images(4)
    deployed = tiny.deploy(micro_batch=0)
    expected = deployed.forward_at(x, 0)
    deployed.forward_at(x, 0)
    half = copy.deepcopy(deployed).to(torch.bfloat16).forward_at(x.bfloat16(), 0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
    back = copy.deepcopy(deployed).to(torch.float64).forward_at(x.double(), 0)
    torch.testing.assert_close(back.float(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_computes_in_another_type(make_cascade, images):
    model, x = make_cascade(), images(30)
    deployed = model.deploy(micro_batch=0, dtype=torch.bfloat16)
    assert {p.dtype for p in deployed.parameters()} == {torch.bfloat16}
    logits, choice = deployed.classify(x)
    assert logits.dtype == torch.float32
    exact = model.forward_at(x, choice)
    assert 0 < (logits - exact).abs().max() < 4 * torch.finfo(torch.bfloat16).eps * exact.abs().max()
    assert (choice == model.predict_resolution(x)).float().mean() >= 0.8
    with pytest.raises(ValueError, match=r'Invalid dtype torch\.int8: use torch\.bfloat16'):
        model.deploy(dtype=torch.int8)


def test_pretrain_stage_runs_the_largest(make_tiny, shake, images):
    model = shake(make_tiny(stage='pretrain')).eval()
    deployed = model.deploy(micro_batch=0)
    x = images(3)
    assert deployed.predict_resolution(x).tolist() == [0, 0, 0]
    assert deployed.predictor is None  # which would never run
    with torch.no_grad():
        close(deployed(x), model(x))


@pytest.mark.parametrize('args', [{'router': 'cascade'}, {'stage': 'pretrain'}])
def test_scores_without_a_predictor_are_refused(make_tiny, images, args):
    with pytest.raises(RuntimeError, match='No predictor is in use'):
        make_tiny(**args).eval().deploy(micro_batch=0).predictor_scores(images(2))


def test_configuration_comes_along(tiny):
    deployed = tiny.deploy(micro_batch=0)
    assert resolve_model_data_config(deployed) == resolve_model_data_config(tiny)
    for name in ('resolutions', 'num_classes', 'in_chans', 'args'):
        assert getattr(deployed, name) == getattr(tiny, name)


@pytest.mark.parametrize('value', [-1, 1.5, True, '8'])
def test_bad_micro_batch(tiny, value):
    with pytest.raises(ValueError, match='Invalid micro_batch .*: use a number of images'):
        tiny.deploy(micro_batch=value)


def test_bad_input(tiny, images):
    deployed = tiny.deploy(micro_batch=0)
    with pytest.raises(ValueError, match='use a batch of square images'):
        deployed(images(2)[:, :, :32])
    for value in (math.nan, math.inf):
        for run in (deployed, deployed.predict_resolution, lambda x: deployed.forward_at(x, 0)):
            with pytest.raises(ValueError, match='some of its values are not finite'):
                run(images(2).index_fill(0, torch.tensor([1]), value))
    with pytest.raises(ValueError, match='Invalid choice 3: there are 3 candidates'):
        deployed.forward_at(images(2), 3)
    with pytest.raises(ValueError, match='one integer for each of the 2 images'):
        deployed.forward_at(images(2), torch.tensor([0]))
    with pytest.raises(ValueError, match='Invalid choice'):
        deployed.branch(-1)
    with pytest.raises(ValueError, match='on the meta device'):
        copy.deepcopy(tiny).to('meta').deploy()


def test_first_convolution_of_each_branch_is_torch_s_own_folding(tiny, make_plain):
    deployed = tiny.deploy(micro_batch=0)
    for j in range(3):
        plain = make_plain(tiny, j)
        conv, norm = [m for m in plain.modules() if isinstance(m, (nn.Conv2d, _BatchNorm))][:2]
        expected = fuse_conv_bn_eval(conv, norm)
        state = next(m for m in deployed.branch(j).modules() if isinstance(m, FusedConv)).state_dict()
        torch.testing.assert_close(state['weight'], expected.weight)
        torch.testing.assert_close(state['bias'], expected.bias)


@pytest.mark.parametrize('share_weights', [False, True])
def test_branches_share_what_they_should(make_tiny, shake, share_weights):
    def convs(deployed, j):
        return [m for m in deployed.branch(j).modules() if isinstance(m, (nn.Conv2d, FusedConv))]

    deployed = shake(make_tiny()).deploy(micro_batch=0, share_weights=share_weights)
    for j in (1, 2):
        assert [a.weight is b.weight for a, b in zip(convs(deployed, 0), convs(deployed, j), strict=True)] == (
            [share_weights] * len(convs(deployed, 0)))
        assert next(m for m in deployed.branch(j).modules() if isinstance(m, nn.Linear)) is next(
            m for m in deployed.branch(0).modules() if isinstance(m, nn.Linear))
    one_norm = shake(make_tiny(resolution_aware_norm=False)).deploy(micro_batch=0, share_weights=share_weights)
    assert one_norm.branch(0) is one_norm.branch(1) is one_norm.branch(2)
    assert not any(type(m).__name__ == 'ChannelAffine' for m in one_norm.modules())  # folding costs no memory here


@pytest.mark.parametrize('n', [1, 4])
@pytest.mark.parametrize('size', [64, 40])
def test_images_of_any_number_size_and_layout(tiny, spread_choices, images, n, size):
    spread_choices(tiny, images(9))
    deployed = tiny.deploy(micro_batch=2)
    x = images(n, size)
    with torch.no_grad():
        close(deployed(x), tiny(x))
        close(deployed(x.contiguous(memory_format=torch.channels_last)), tiny(x))
    with torch.inference_mode():
        close(deployed(x), tiny(x))


@pytest.mark.parametrize('choice', [[1, 1, 0, 1], [2, 2, 2, 2], [0, 1, 2, 0]])
def test_any_shares(tiny, images, choice):
    x, choice = images(4), torch.tensor(choice)
    with torch.no_grad():
        close(tiny.deploy(micro_batch=2).forward_at(x, choice), tiny.forward_at(x, choice))


def test_model_without_classifier_gives_embeddings(make_tiny, shake, images):
    model = shake(make_tiny(num_classes=0, in_chans=1)).eval()
    deployed, x = model.deploy(micro_batch=0), images(3, channels=1)
    assert deployed(x).shape == (3, model.num_features)
    with torch.no_grad():
        close(deployed(x), model(x))


def test_compiling_changes_nothing(tiny, images):
    deployed, x = tiny.deploy(micro_batch=0), images(3)
    compiled = torch.compile(deployed, backend=lambda graph, inputs: pytest.fail('there is nothing to compile'))
    assert torch.equal(compiled(x), deployed(x))
    assert torch.equal(compiled.forward_at(x, 1), deployed.forward_at(x, 1))


def test_package_takes_it_for_the_model(tiny, spread_choices, images):
    x = images(12)
    spread_choices(tiny, x)
    deployed = tiny.deploy(micro_batch=0)
    assert timm_drnet.cost_table(deployed) == timm_drnet.cost_table(tiny)
    batches = [(x, torch.arange(12) % 5)]
    assert validate(deployed, batches) == validate(tiny, batches)


def test_cuts_are_measured_anew_after_a_move(tiny, images, monkeypatch):
    deployed, given = tiny.deploy(), tiny.deploy(micro_batch=3)
    monkeypatch.setattr(
        deployed_module, 'fastest_cut', lambda module, image: 16 if image.dtype == torch.float64 else 64)
    deployed.to(memory_format=torch.channels_last)
    assert 64 not in deployed.micro_batch
    assert deployed.double().micro_batch == (16,) * 3
    assert deployed.float().predictor_micro_batch == 64
    assert given.double().micro_batch == (3,) * 3
    close(given(images(2).double()).float(), deployed(images(2)))


@pytest.mark.parametrize('faster', [torch.channels_last, torch.contiguous_format])
def test_layout_is_measured_where_onednn_does_not_run(tiny, images, monkeypatch, faster):
    def seconds(run, device):
        conv = next(m for m in run.func.modules() if isinstance(m, FusedConv))
        return 1.0 if conv.weight.is_contiguous(memory_format=faster) else 2.0

    monkeypatch.setattr(deployed_module, 'seconds_of', seconds)
    deployed = tiny.double().deploy(micro_batch=0)
    convs = [m for m in deployed.modules() if isinstance(m, FusedConv)]
    assert all(conv.weight.is_contiguous(memory_format=faster) for conv in convs)
    with torch.no_grad():
        close(deployed(images(2).double()), tiny(images(2).double()))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_wrong_folding_is_noticed(tiny, monkeypatch, dtype):
    fold_norms = deployment.fold_norms

    def wrong(module, *args):
        folded = fold_norms(module, *args)
        next(folded.parameters()).mul_(1.1)
        return folded

    monkeypatch.setattr(deployment, 'fold_norms', wrong)
    with pytest.raises(RuntimeError, match='cannot be deployed: with its norms folded, the result differs'):
        tiny.to(dtype).deploy(micro_batch=0)


def test_checkpointed_and_half_precision_models_deploy(tiny, images):
    tiny.set_grad_checkpointing()
    expected = tiny.deploy(micro_batch=0)(images(2))
    result = tiny.to(torch.bfloat16).deploy(micro_batch=0).forward_at(images(2).bfloat16(), 0)
    assert expected.isfinite().all()
    assert result.dtype == torch.bfloat16
    assert tiny.backbone.grad_checkpointing


def test_autocast_and_inference_mode_do_not_matter(tiny, images):
    x = images(3)
    expected = tiny.deploy(micro_batch=0).forward_at(x, 1)
    with torch.autocast('cpu', torch.bfloat16), torch.inference_mode():
        deployed = tiny.deploy(micro_batch=0)
        torch.testing.assert_close(deployed.forward_at(x, 1).float(), expected, rtol=0.05, atol=0.05)
    assert torch.equal(copy.deepcopy(deployed).forward_at(x, 1), expected)
