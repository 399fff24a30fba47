"""The model: what it predicts and classifies, in eval and in training, and that no change to it leaves a stale view."""

import copy
import io
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from timm_drnet.core.norm import ResolutionAwareNorm

RESOLUTIONS = (64, 48, 32)
CHOICE = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1])


def small(x, size):
    return F.interpolate(x, (size, size), mode='bilinear', align_corners=False)


def norm_state(model, index=None):
    """The state of all resolution-aware norms, or of one candidate's, by name."""
    pattern = r'\.norms\.(\d+)\.'
    return {
        key: value.clone() for key, value in model.backbone.state_dict().items()
        if (match := re.search(pattern, key)) and index in (None, int(match[1]))
    }


def routed_by_plain_models(model, make_plain, x, choice):
    """Logits by one plain timm model for each resolution, image by image of its choice; and the plain models."""
    plains = [make_plain(model, j) for j in range(len(model.resolutions))]
    logits = torch.empty(len(x), model.num_classes)
    for j, plain in enumerate(plains):
        chosen = choice == j
        if chosen.any():
            logits[chosen] = plain(small(x[chosen], model.resolutions[j]))
    return logits, plains


# Arguments.


@pytest.mark.parametrize(('argument', 'value', 'remedy'), [
    ('stage', 'finetune', "'joint', 'pretrain'"),
    ('alpha', 0.0, 'GFLOPs'),
    ('alpha', -1.0, 'GFLOPs'),
    ('alpha', float('nan'), 'GFLOPs'),
    ('alpha', float('inf'), 'GFLOPs'),
    ('alpha', '2.5', 'GFLOPs'),
    ('alpha', 10 ** 400, 'GFLOPs'),
    ('eta', float('nan'), 'must not be negative'),
    ('eta', -0.1, 'must not be negative'),
    ('tau', 0.0, 'must be positive'),
    ('joint_resolutions', 'both', "'drawn', 'all'"),
    ('predictor_size', 16, 'at least 32'),
    ('predictor_size', 40.5, 'a whole number'),
    ('resolution_aware_norm', 'no', 'True, False'),
    ('cost_weight', float('nan'), 'a finite number'),
    ('cost', 5, "'latency', or 4 numbers"),
    ('thresholds', 5, '0 numbers or None'),
    ('predictor', 'transformer', "'residual', 'inverted_residual'"),
    ('resolutions', (), 'largest first'),
    ('resolutions', (32, 64), 'largest first'),
    ('resolutions', (64, 64), 'largest first'),
    ('resolutions', (64, 0), 'largest first'),
    ('resolutions', (64.5, 32), 'largest first'),
    ('resolutions', '64', 'largest first'),
])
def test_invalid_argument_is_refused_with_its_remedy(make_tiny, argument, value, remedy):
    with pytest.raises(ValueError, match=rf'(?s)Invalid {argument}.*{remedy}'):
        make_tiny(**{argument: value})


def test_arguments_are_kept(make_tiny):
    model = make_tiny(resolutions=[96, 64], alpha=0.5, eta=0.3, tau=2.0, predictor_size=40)
    assert model.resolutions == (96, 64)
    assert (model.args.alpha, model.args.eta, model.args.tau, model.args.predictor_size) == (0.5, 0.3, 2.0, 40)
    assert model.args.stage == 'joint'


def test_unknown_argument_is_refused(make_tiny):
    with pytest.raises(TypeError, match='resolution'):
        make_tiny(resolution=64)


@pytest.mark.parametrize(('name', 'value'), [('alpha', 1.0), ('cost_weight', 0.5), ('stage', 'pretrain')])
def test_attribute_that_would_change_nothing_is_refused(tiny, name, value):
    with pytest.raises(AttributeError, match=f'model.args = dataclasses.replace.model.args, {name}='):
        setattr(tiny, name, value)
    tiny.args = replace(tiny.args, **{name: value})
    assert getattr(tiny.args, name) == value


def test_any_number_of_resolutions(make_tiny, images):
    for resolutions in ((40,), (64, 56, 48, 40, 32)):
        model = make_tiny(resolutions=resolutions).eval()
        assert model(images(3)).shape == (3, 5)
        assert set(model.predict_resolution(images(3)).tolist()) <= set(range(len(resolutions)))


@pytest.mark.parametrize('shape', [(3, 64, 64), (2, 3, 64, 48), (0, 3, 64, 64), (64, 64), (2, 3, 0, 0)])
@pytest.mark.parametrize('call', ['forward', 'predict_resolution', 'forward_at'])
def test_input_that_is_no_batch_of_square_images_is_refused(tiny, shape, call):
    args = (0,) if call == 'forward_at' else ()
    with pytest.raises(ValueError, match=rf'Invalid input of shape {re.escape(str(shape))}: use a batch of square'):
        getattr(tiny, call)(torch.zeros(shape), *args)


def test_input_of_other_types_and_channels_is_refused(tiny, images):
    for model in (tiny, tiny.deploy(micro_batch=0)):
        for dtype in (torch.uint8, torch.int64):
            with pytest.raises(ValueError, match=f'Invalid input of type {dtype}: use normalized images'):
                model(images(2).to(dtype))
        with pytest.raises(RuntimeError, match='to have 3 channels, but got 1 channels instead'):  # PyTorch's own words
            model(images(2, channels=1))


@pytest.mark.parametrize('choice', [3, -1, torch.tensor([0, 3]), torch.tensor([-1, 0])])
def test_choice_that_is_no_candidate_is_refused(tiny, images, choice):
    with pytest.raises(ValueError, match=r'Invalid choice (3|-1): .*3 candidates'):
        tiny.forward_at(images(2), choice)


@pytest.mark.parametrize('form', [list, tuple, np.asarray, torch.as_tensor])
def test_choices_in_any_form(tiny, images, form):
    choice = CHOICE.tolist()
    assert torch.equal(tiny.forward_at(images(8), form(choice)), tiny.forward_at(images(8), CHOICE))


@pytest.mark.parametrize('choice', [
    torch.tensor([0, 1, 2]), torch.tensor([[0, 1]]), torch.tensor([0.0, 1.0]), [0.0, 1.0], [True, False], 'ab', None])
def test_choice_of_wrong_form_is_refused(tiny, images, choice):
    with pytest.raises(ValueError, match='use one integer for each of the 2 images'):
        tiny.forward_at(images(2), choice)


def test_branch_that_does_not_exist_is_refused(tiny):
    with pytest.raises(ValueError, match='Invalid choice 3'):
        tiny.branch(3)


# Evaluation.


@pytest.mark.parametrize('size', [64, 50, 100])
def test_forward_at_equals_plain_models(tiny, make_plain, images, size):
    x = images(8, size)
    expected, plains = routed_by_plain_models(tiny, make_plain, x, CHOICE)
    torch.testing.assert_close(tiny.forward_at(x, CHOICE), expected)
    torch.testing.assert_close(tiny.forward_at(x, CHOICE.to(torch.uint8)), expected)
    for j, plain in enumerate(plains):
        torch.testing.assert_close(tiny.forward_at(x, j), plain(small(x, RESOLUTIONS[j])))


def test_forward_runs_each_image_at_its_predicted_resolution(tiny, make_plain, spread_choices, images):
    x = images(12)
    spread_choices(tiny, x)
    choice = tiny.predict_resolution(x)
    assert choice.dtype == torch.int64
    assert torch.equal(choice, tiny.predictor(small(x, 32)).argmax(dim=1))
    torch.testing.assert_close(tiny(x), routed_by_plain_models(tiny, make_plain, x, choice)[0])


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_scores_that_are_not_finite_choose_nothing(tiny, images, value):
    nn.init.constant_(tiny.predictor.classifier.bias, value)
    assert tiny.predict_resolution(images(2)).tolist() == [-1, -1]
    for model in (tiny, tiny.train()):
        with pytest.raises(ValueError, match='not finite'):
            model(images(2))


def test_parts_keep_the_memory_format(tiny, images):
    layouts = []
    tiny.backbone.conv1.register_forward_pre_hook(
        lambda module, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last)))
    tiny.forward_at(images(8).contiguous(memory_format=torch.channels_last), CHOICE)
    assert layouts == [True] * 3


def test_single_image_trains_with_a_predictor_that_ends_in_one_pixel(make_tiny, images):
    model = make_tiny().train()  # the predictor sees 32 px
    before = copy.deepcopy(model.predictor.state_dict())
    model(images(1)).sum().backward()
    moved = {key for key, value in model.predictor.state_dict().items() if not torch.equal(value, before[key])}
    assert moved  # larger maps count as usual
    assert all(p.grad is not None for p in model.predictor.parameters())


def test_gradient_of_the_choice_is_one_of_float32(make_tiny, images):
    """At a loss scale of 65536, that of a GradScaler, the sum over classes overflows in half precision."""
    model = make_tiny().train()
    with torch.autocast('cpu', dtype=torch.float16):
        logits = model(images(4))
    assert logits.dtype == torch.float16
    h = model.take_step().h
    (grad,) = torch.autograd.grad(logits, h, torch.full_like(logits, 60000))
    assert grad.isfinite().all()
    chosen = h.argmax(dim=1, keepdim=True)
    torch.testing.assert_close(grad.gather(1, chosen)[:, 0], 60000 * logits.float().sum(dim=1), rtol=1e-2, atol=10)


def test_evaluation_draws_no_noise(tiny, spread_choices, images):
    x = images(12)
    spread_choices(tiny, x)
    random = torch.get_rng_state()
    first, choice = tiny(x), tiny.predict_resolution(x)
    assert torch.equal(torch.get_rng_state(), random)
    torch.manual_seed(1)
    assert torch.equal(tiny(x), first)
    assert torch.equal(tiny.predict_resolution(x), choice)


def test_training_draws_noise(tiny, images):
    tiny.train()
    x = images(64)
    nn.init.zeros_(tiny.predictor.classifier.weight)
    nn.init.zeros_(tiny.predictor.classifier.bias)
    assert torch.bincount(tiny.predict_resolution(x), minlength=3).min() > 8  # 21 of each on average


def test_higher_temperature_does_not_change_the_shares_but_the_gradients(make_tiny, images):
    x = images(8)
    grads = []
    for tau in (0.5, 5.0):
        model = make_tiny(tau=tau).train()
        torch.manual_seed(0)
        model(x).square().sum().backward()
        grads.append((model.take_step().h.detach(), model.predictor.classifier.weight.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert not torch.allclose(grads[0][1], grads[1][1])


def test_model_without_classifier_gives_routed_embeddings(make_tiny, shake, spread_choices, images):
    model = shake(make_tiny(num_classes=0)).eval()
    x = images(12)
    choice = spread_choices(model, x)
    embeddings = model(x)
    assert embeddings.shape == (12, model.num_features)
    torch.testing.assert_close(embeddings, model.forward_at(x, choice))


def test_forward_features_and_head_are_those_of_the_largest_branch(tiny, make_plain, images):
    plain, x = make_plain(tiny, 0), images(2, 40)
    features = tiny.forward_features(x)
    torch.testing.assert_close(features, plain.forward_features(x))
    torch.testing.assert_close(tiny.forward_head(features), plain(x))
    pooled = tiny.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, plain.forward_head(features, pre_logits=True))


def test_forward_intermediates_are_those_of_the_largest_branch(tiny, make_plain, images):
    plain, x = make_plain(tiny, 0), images(2, 40)
    features, levels = tiny.forward_intermediates(x, indices=[1, 3])
    expected_features, expected_levels = plain.forward_intermediates(x, indices=[1, 3])
    torch.testing.assert_close(features, expected_features)
    torch.testing.assert_close(levels, expected_levels)


@pytest.mark.parametrize('batch', [4, 2])
def test_maps_without_pooling_train_with_the_factor_of_their_own_image(make_tiny, images, batch):
    """A map may be as high or wide as the batch is large, and a factor must not go along it."""
    model = make_tiny(resolutions=(64,), tau=1.0)
    model.reset_classifier(0, global_pool='')
    model.train()
    maps = model(images(batch))
    assert maps.ndim == 4
    assert 2 in maps.shape[2:]
    (first,) = torch.autograd.grad(maps[0].sum(), model.take_step().h)
    assert first[0].abs().sum() > 0
    assert first[1:].abs().sum() == 0


def test_outputs_without_pooling_cannot_be_batched(tiny, images):
    tiny.reset_classifier(0, '')
    with pytest.raises(ValueError, match='without global pooling'):
        tiny.forward_at(images(2), torch.tensor([0, 2]))
    assert tiny.forward_at(images(2), 1).ndim == 4


def test_ablation_shares_one_norm(make_tiny, shake, make_plain, images):
    model = shake(make_tiny(resolution_aware_norm=False)).eval()
    norms = [module for module in model.backbone.modules() if isinstance(module, ResolutionAwareNorm)]
    assert norms
    assert all(len(norm.norms) == 1 for norm in norms)
    plain, x = make_plain(model, 0), images(8)
    expected = torch.cat([plain(small(x[i:i + 1], RESOLUTIONS[j])) for i, j in enumerate(CHOICE)])
    torch.testing.assert_close(model.forward_at(x, CHOICE), expected)
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# Training.


def test_statistics_count_only_the_routed_images(make_tiny, shake, make_plain, images):
    model = shake(make_tiny()).train()
    x, choice = images(8), torch.tensor([2, 0, 0, 2, 2, 0, 0, 2])
    before = norm_state(model)
    plains = [make_plain(model, j) for j in range(3)]
    logits = model.forward_at(x, choice)
    for j in (0, 2):
        torch.testing.assert_close(logits[choice == j], plains[j](small(x[choice == j], RESOLUTIONS[j])))
        for key, value in norm_state(model, j).items():
            torch.testing.assert_close(value, plains[j].state_dict()[key.replace(f'.norms.{j}.', '.')])
            assert key.endswith(('weight', 'bias')) or not torch.equal(value, before[key])
    for key, value in norm_state(model, 1).items():  # which no image chose
        assert torch.equal(value, before[key])


def test_gradients_equal_those_of_plain_models(make_tiny, shake, make_plain, images):
    model = shake(make_tiny()).train()
    x = images(8)
    expected, plains = routed_by_plain_models(model, make_plain, x, CHOICE)
    expected.square().sum().backward()
    model.forward_at(x, CHOICE).square().sum().backward()
    plain_grads = [dict(plain.named_parameters()) for plain in plains]
    for key, p in model.backbone.named_parameters():
        norm = re.fullmatch(r'(.+)\.norms\.(\d+)\.(.+)', key)
        if norm:
            grad = plain_grads[int(norm[2])][f'{norm[1]}.{norm[3]}'].grad
        else:  # shared, so the branches' gradients add up
            grad = sum(plain[key].grad for plain in plain_grads)
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-4)


def test_predictor_learns_through_the_factor_of_the_logits(make_tiny, images):
    model = make_tiny().train()
    x, upstream = images(6), torch.randn(6, 5)
    logits = model(x)
    h = model.take_step().h
    (grad,) = torch.autograd.grad(logits, h, upstream)
    # Eq. 4: the logits are h_j times those of the chosen branch; h_j is 1
    expected = torch.zeros(6, 3).scatter(1, h.argmax(dim=1, keepdim=True), (logits * upstream).sum(dim=1, keepdim=True))
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('chosen', [0, 2])
def test_every_parameter_gets_a_gradient_when_one_branch_is_chosen(make_tiny, images, chosen, checkpointing):
    model = make_tiny().train()
    model.set_grad_checkpointing(checkpointing)
    nn.init.zeros_(model.predictor.classifier.weight)
    model.predictor.classifier.bias.data = 1e3 * F.one_hot(torch.tensor(chosen), 3).float()
    model(images(3)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    for key, p in model.backbone.named_parameters():
        norm = re.search(r'\.norms\.(\d+)\.', key)
        if norm and int(norm[1]) != chosen:
            assert not p.grad.any()
    assert any(p.grad.any() for p in model.branch(chosen).parameters())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_idle_norms_of_any_size_do_not_overflow_in_half_precision(make_tiny, images, dtype):
    model = make_tiny().train()
    nn.init.zeros_(model.predictor.classifier.weight)
    model.predictor.classifier.bias.data = torch.tensor([1e3, 0, 0])
    for key, p in model.backbone.named_parameters():
        if re.search(r'\.norms\.[12]\.weight', key):
            nn.init.constant_(p, 1e4)  # their sum is beyond float16
    with torch.autocast('cpu', dtype=dtype):
        logits = model(images(3))
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    logits.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_branch_without_images_runs_in_the_type_of_its_weights(make_tiny, images, dtype):
    """Synchronized norms would gather statistics in half precision from here, and in float32 from other ranks."""
    model = make_tiny().train()
    seen = set()
    for norm in model.backbone.modules():
        if isinstance(norm, _BatchNorm):
            norm.register_forward_pre_hook(lambda module, args: seen.add(args[0].dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert model._run(1, images(0).to(dtype)).shape == (0, 5)
    assert seen == {torch.float32}


def test_checkpointed_gradients_equal_plain_ones(make_tiny, shake, images):
    results = []
    for enable in (False, True):
        model = shake(make_tiny()).train()
        model.set_grad_checkpointing(enable)
        logits = model.forward_at(images(8), CHOICE)
        logits.square().sum().backward()
        results.append((logits.detach(), {name: p.grad for name, p in model.backbone.named_parameters()}))
    torch.testing.assert_close(results[1], results[0])


def test_checkpointing_runs_the_forward_again(make_tiny, images):
    model = make_tiny().train()
    model.set_grad_checkpointing()
    runs = []
    model.backbone.layer1[0].conv1.register_forward_hook(lambda *_: runs.append(1))
    logits = model.forward_at(images(2), 1)
    assert len(runs) == 1
    logits.sum().backward()
    assert len(runs) == 2


@pytest.mark.parametrize('lonely', [0, 1, 2])
def test_single_image_with_a_map_of_one_pixel_trains(make_tiny, shake, images, lonely):
    model = shake(make_tiny(resolutions=(40, 36, 32))).train()  # 40 and 36 px end in 2 by 2, 32 px in 1 by 1
    others = (lonely + 1) % 3
    choice = torch.full((5,), others)
    choice[3] = lonely
    before = norm_state(model, lonely)
    logits = model.forward_at(images(5), choice)
    assert logits.isfinite().all()
    logits.sum().backward()
    moved = {key: not torch.equal(value, before[key]) for key, value in norm_state(model, lonely).items()}
    statistics = {key: value for key, value in moved.items() if 'running' in key or 'tracked' in key}
    last = {key for key in statistics if 'layer4' in key}
    assert all(statistics[key] for key in statistics if 'layer4' not in key)  # larger maps count as usual
    if lonely == 2:
        unmoved = {key for key in last if not statistics[key]}
        assert unmoved
        assert all(not statistics[key] for key in last if 'layer4.0.bn2' in key)
    else:
        assert all(statistics[key] for key in last)


def test_single_image_step_equals_norms_frozen_where_the_map_has_one_pixel(make_tiny, shake, make_plain, images):
    model = shake(make_tiny(resolutions=(64, 32))).train()
    plain, x = make_plain(model, 1), images(1, 32)
    sizes = {}
    for name, module in plain.named_modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(lambda _, args, name=name: sizes.update({name: args[0][0, 0].numel()}))
    plain.eval()(x)
    for name, module in plain.train().named_modules():
        if sizes.get(name) == 1:
            module.eval()
    assert 1 in sizes.values()
    torch.testing.assert_close(model.forward_at(x, 1), plain(x))


def test_norms_frozen_by_hand_stay_frozen(make_tiny, images):
    model = make_tiny().train()
    for module in model.backbone.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    before = norm_state(model)
    model.forward_at(images(1, 32), 2)
    model.forward_at(images(8), CHOICE)
    for key, value in norm_state(model).items():
        assert torch.equal(value, before[key])


def test_pretrain_stage_runs_all_resolutions_and_returns_the_largest(make_tiny, shake, make_plain, images):
    model = shake(make_tiny(stage='pretrain')).train()
    plains, x = [make_plain(model, j) for j in range(3)], images(4)
    logits = model(x)
    candidates = model.take_step().candidate_logits
    assert torch.equal(candidates[0], logits)
    for j, plain in enumerate(plains):
        torch.testing.assert_close(candidates[j], plain(small(x, RESOLUTIONS[j])))


def test_pretrain_stage_freezes_the_predictor_and_evaluates_the_largest(make_tiny, images):
    model = make_tiny(stage='pretrain')
    assert not any(p.requires_grad for p in model.predictor.parameters())
    assert all(p.requires_grad for p in model.backbone.parameters())
    model.predictor.register_forward_hook(lambda *_: pytest.fail('the predictor ran'))
    x = images(3, 80)
    model.train()
    state = {key: value.clone() for key, value in model.predictor.state_dict().items()}
    model(x)
    model.take_step()
    model.eval()
    assert torch.equal(model(x), model.forward_at(x, 0))
    assert torch.equal(model.predict_resolution(x), torch.zeros(3, dtype=torch.int64))
    for key, value in model.predictor.state_dict().items():
        assert torch.equal(value, state[key])


def test_step_is_handed_over_once(make_tiny, images):
    model = make_tiny().train()
    with pytest.raises(RuntimeError, match='call the DRNet in training mode'):
        model.take_step()
    model(images(2))
    model.take_step()
    with pytest.raises(RuntimeError, match='its loss once'):
        model.take_step()


def test_training_without_the_loss_is_warned_of_once(make_tiny, images, caplog):
    model = make_tiny().train()
    for _ in range(3):
        model(images(2))
    warnings = [r.getMessage() for r in caplog.records if r.levelname == 'WARNING' and 'drnet' in r.name]
    assert len(warnings) == 1
    assert 'trained without its loss' in warnings[0]
    assert 'timm_drnet.training_loss' in warnings[0]


# Changes to the model.


def test_reset_classifier_reaches_every_branch(tiny, make_plain, images):
    tiny(images(2))
    tiny.reset_classifier(9)
    assert tiny.num_classes == 9
    assert tiny.get_classifier() is tiny.backbone.fc
    expected, _ = routed_by_plain_models(tiny, make_plain, images(8), CHOICE)
    torch.testing.assert_close(tiny.forward_at(images(8), CHOICE), expected)
    tiny.reset_classifier(0)
    assert tiny(images(2)).shape == (2, tiny.num_features)


def test_reset_classifier_keeps_pooling_or_replaces_it(make_tiny):
    model = make_tiny(global_pool='max')
    model.reset_classifier(4)
    assert model.backbone.global_pool.pool_type == 'max'
    model.reset_classifier(4, 'avg')
    assert model.branch(2).global_pool.pool_type == 'avg'


def test_mode_reaches_every_branch(make_tiny, images):
    model = make_tiny(drop_rate=0.5)
    x = images(4)
    for j in range(3):
        model.train()
        assert model.branch(j).training
        with torch.random.fork_rng():
            assert not torch.equal(model.forward_at(x, j), model.forward_at(x, j))  # dropout
        model.eval()
        assert not any(module.training for module in model.branch(j).modules())
        assert torch.equal(model.forward_at(x, j), model.forward_at(x, j))


def test_branch_shares_weights_with_the_model(tiny, images):
    branch, x = tiny.branch(1), images(2, 48)
    before = branch(x)
    with torch.no_grad():
        tiny.backbone.fc.bias.add_(1)
    torch.testing.assert_close(branch(x), before + 1)
    assert set(branch.parameters()) <= set(tiny.parameters())


@pytest.mark.parametrize('clone', [
    copy.deepcopy,
    lambda model: pickle.loads(pickle.dumps(model)),
    lambda model: torch.load(_saved(model), weights_only=False),
])
def test_clones_are_equal_and_independent(tiny, spread_choices, images, clone):
    x = images(12)
    spread_choices(tiny, x)
    expected = tiny(x)
    twin = clone(tiny)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
        for j in range(3):
            assert not twin.forward_at(x, j).any()
    assert torch.equal(tiny(x), expected)


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def test_model_in_the_middle_of_a_step_can_be_copied(make_tiny, images):
    model = make_tiny().train()
    model(images(2))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(RuntimeError, match='no training step'):
            twin.take_step()
    model.take_step()


def test_state_dict_round_trip(make_tiny, tiny, spread_choices, images):
    x = images(12)
    spread_choices(tiny, x)
    state = tiny.state_dict()
    assert {key.split('.')[0] for key in state} == {'backbone', 'predictor'}
    other = make_tiny(seed=1).eval()
    assert not torch.equal(other(x), tiny(x))
    other.load_state_dict(state)
    assert torch.equal(other(x), tiny(x))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_dtype_reaches_every_branch(tiny, images, dtype):
    x = images(8)
    expected = tiny.forward_at(x, CHOICE)
    tiny.to(dtype)
    logits = tiny.forward_at(x.to(dtype), CHOICE)
    assert logits.dtype == tiny(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1)
    tiny.train()(x.to(dtype)).sum().backward()
    assert all(p.grad.dtype == dtype for p in tiny.parameters())


def test_channels_last_gives_the_same(tiny, images):
    x = images(8)
    expected = tiny.forward_at(x, CHOICE)
    tiny.to(memory_format=torch.channels_last)
    torch.testing.assert_close(tiny.forward_at(x.to(memory_format=torch.channels_last), CHOICE), expected)


@pytest.mark.parametrize('backbone', ['test_resnet', 'test_efficientnet'])
def test_sync_batchnorm_conversion_reaches_every_branch(make_tiny, shake, images, backbone):
    model = shake(make_tiny(backbone)).eval()
    x = images(8)
    expected = model.forward_at(x, CHOICE)
    model = convert_sync_batchnorm(model)
    for j in range(3):
        norms = [module for module in model.branch(j).modules() if isinstance(module, _BatchNorm)]
        assert norms
        assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert any(isinstance(module, ResolutionAwareNorm) for module in model.backbone.modules())
    torch.testing.assert_close(model.forward_at(x, CHOICE), expected)
    model.train()(images(4)).sum().backward()  # one process: nothing to synchronize with
    assert all(p.grad is not None for p in model.parameters())


def test_average_of_weights_has_its_own_branches(make_tiny, shake, images):
    model = shake(make_tiny()).train()
    x = images(8)
    ema = ModelEmaV3(model, decay=0.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    ema.update(model)
    expected = make_tiny().eval()
    expected.load_state_dict({
        key: value.lerp(before[key], 0.5) if value.is_floating_point() else value
        for key, value in model.state_dict().items()})
    torch.testing.assert_close(ema.module.forward_at(x, CHOICE), expected.forward_at(x, CHOICE))
    torch.testing.assert_close(ema(x), expected(x))


# timm's contract beyond its own tests.


def test_groups_give_the_predictor_a_tenth_of_the_learning_rate(make_tiny):
    model = make_tiny()
    optimizer = create_optimizer_v2(model, opt='sgd', lr=1.0, layer_decay=0.1)
    scales = {p: group['lr_scale'] for group in optimizer.param_groups for p in group['params']}
    assert {round(scales[p], 6) for p in model.predictor.parameters()} == {0.1}
    assert {scales[p] for p in model.backbone.parameters()} == {1.0}


def test_properties_are_those_of_the_backbone(make_tiny):
    model, plain = make_tiny(in_chans=2), timm.create_model('test_resnet', in_chans=2, num_classes=5)
    for name in ('num_classes', 'num_features', 'head_hidden_size', 'in_chans', 'feature_info'):
        assert getattr(model, name) == getattr(plain, name)
    assert model.no_weight_decay() == set()


def test_channels_last_model_can_be_saved_once_contiguous(tiny, images, tmp_path):
    tiny.to(memory_format=torch.channels_last).to(memory_format=torch.contiguous_format)
    save_for_hf(tiny, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert torch.equal(loaded(images(2)), tiny(images(2)))
