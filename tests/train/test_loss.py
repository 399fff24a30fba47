"""The losses of both stages inside timm's task, held against gradients computed without the package's training code."""

import copy
import itertools
import math
import re
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import convert_splitbn_model
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, LogitDistillationTask, MultiLabelClassificationTask

import timm_drnet
from timm_drnet.train.loss import expected_loss

BACKBONE = 'test_resnet'
RESOLUTIONS = (64, 48, 32)
CLASSES = 5


def make_model(stage='joint', **kwargs):
    torch.manual_seed(0)
    model = timm_drnet.create_drnet(
        BACKBONE, resolutions=RESOLUTIONS, num_classes=CLASSES, stage=stage,
        **{'predictor': 'inverted_residual', 'predictor_size': 32, **kwargs})
    return model.train()


def make_batch(n=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 64, 64, generator=generator)
    return x, torch.randint(CLASSES, (n,), generator=generator)


def soft(target):
    return 0.7 * F.one_hot(target, CLASSES).float() + 0.3 * F.one_hot(target.flip(0), CLASSES).float()


CRITERIA = {
    'cross-entropy': (torch.nn.CrossEntropyLoss(), lambda t: t),
    'smoothing': (LabelSmoothingCrossEntropy(0.1), lambda t: t),
    'bce': (BinaryCrossEntropy(smoothing=0.1), lambda t: t),
    'mixup': (SoftTargetCrossEntropy(), soft),
    'bce and mixup': (BinaryCrossEntropy(), soft),
    'augmix': (JsdCrossEntropy(num_splits=3), lambda t: t[:2].repeat(3)),  # --jsd-loss --aug-splits 3
    'augmix, labels of the clean images': (JsdCrossEntropy(num_splits=3), lambda t: t[:2]),
}


def plain_twin(model, j):
    """A plain timm model with branch j's weights: it knows nothing of views."""
    twin = timm.create_model(BACKBONE, num_classes=CLASSES)
    marker = f'.norms.{j}.'
    state = {k.replace(marker, '.'): v for k, v in model.backbone.state_dict().items()
             if '.norms.' not in k or marker in k}
    twin.load_state_dict(copy.deepcopy(state))
    return twin.train()


def drnet_name(name, j, twin_names):
    """Name in the DRNet of a twin's parameter."""
    parent, _, leaf = name.rpartition('.')
    norm = f'{parent}.norms.{j}.{leaf}'
    return norm if norm in twin_names else name


def accumulate(grads, model, twin, j):
    names = {n for n, _ in model.backbone.named_parameters()}
    for name, p in twin.named_parameters():
        if p.grad is not None:
            key = drnet_name(name, j, names)
            grads[key] = grads.get(key, 0) + p.grad
    return grads


def resized(x, r):
    return x if x.shape[-1] == r else F.interpolate(x, size=(r, r), mode='bilinear', align_corners=False)


def assert_backbone_grads(model, expected, scale=1.0):
    for name, p in model.backbone.named_parameters():
        want = expected.get(name, torch.zeros_like(p))
        torch.testing.assert_close(p.grad / scale, want, rtol=2e-4, atol=2e-6, msg=lambda m, n=name: f'{n}: {m}')


def pretrain_reference(model, x, target, criterion):
    grads, total = {}, 0.0
    for j, r in enumerate(RESOLUTIONS):
        twin = plain_twin(model, j)
        loss = criterion(twin(resized(x, r)), target)
        loss.backward()
        total += loss.item()
        accumulate(grads, model, twin, j)
    return grads, total


@pytest.mark.parametrize('criterion', CRITERIA)
def test_pretrain_gradients_are_those_of_the_summed_losses(criterion):
    loss_fn, to_target = CRITERIA[criterion]
    model = make_model('pretrain')
    x, target = make_batch()
    grads, total = pretrain_reference(model, x, to_target(target), loss_fn)

    loss = ClassificationTask(model, loss_fn)(x, to_target(target))['loss']
    loss.backward()

    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert_backbone_grads(model, grads)
    assert all(p.grad is None and not p.requires_grad for p in model.predictor.parameters())


def joint_reference(model, x, target, criterion, seed, alpha, eta, costs):
    """CE + eta * L_reg by the paper's equations, with plain twins and the model's own predictor weights.

    Returns:
        Gradients of the backbone, of the predictor, the loss and the choices.
    """
    predictor = copy.deepcopy(model.predictor).train()
    torch.manual_seed(seed)
    log_p = predictor(resized(x, model.args.predictor_size)).log_softmax(1)
    g = -torch.empty_like(log_p).exponential_().log()  # Eq. 10
    y = ((log_p + g) / model.args.tau).softmax(1)  # Eq. 11
    choice = y.argmax(1)  # Eq. 9
    twins = [plain_twin(model, j) for j in range(len(RESOLUTIONS))]
    logits = torch.stack([torch.zeros(CLASSES)] * len(x))
    for j, r in enumerate(RESOLUTIONS):
        if (choice == j).any():
            logits = logits.index_copy(0, (choice == j).nonzero().flatten(), twins[j](resized(x[choice == j], r)))
    # Straight-through by hand: the gradient of h is put where h enters, as a leaf of value one.
    h = F.one_hot(choice, len(RESOLUTIONS)).float().requires_grad_()
    ce = criterion(logits * (h * F.one_hot(choice, len(RESOLUTIONS))).sum(1, keepdim=True), target)
    spent = (h * torch.tensor(costs)).sum(1).mean()  # Eq. 6
    reg = torch.clamp((spent - alpha) / (max(costs) - min(costs)), min=0)  # Eq. 7
    loss = ce + eta * reg  # Eq. 8
    loss.backward()
    y.backward(h.grad)
    grads = {}
    for j, twin in enumerate(twins):
        accumulate(grads, model, twin, j)
    return grads, dict(predictor.named_parameters()), loss.item(), choice


def costs_of(model):
    return [row.backbone_flops / 1e9 for row in timm_drnet.cost_table(model)]


def assert_same_step(model, result, grads, predictor, total):
    """The loss and all gradients are those of a reference."""
    assert result['loss'].item() == pytest.approx(total, rel=1e-5)
    assert_backbone_grads(model, grads)
    for name, p in model.predictor.named_parameters():
        torch.testing.assert_close(p.grad, predictor[name].grad, rtol=2e-4, atol=1e-7)
    assert any(p.grad.abs().max() > 1e-6 for p in model.predictor.parameters())


@pytest.mark.parametrize(('criterion', 'seed'), [*zip(CRITERIA, itertools.cycle([0, 3])), ('cross-entropy', 3)])
def test_joint_gradients_are_those_of_cross_entropy_plus_flops_loss(criterion, seed):
    loss_fn, to_target = CRITERIA[criterion]
    costs = costs_of(make_model())
    alpha, eta = 0.5 * costs[1], 0.7
    model = make_model(alpha=alpha, eta=eta, tau=0.8)
    x, target = make_batch()
    grads, predictor, total, choice = joint_reference(
        model, x, to_target(target), loss_fn, seed, alpha, eta, costs)
    assert len(choice.unique()) > 1

    torch.manual_seed(seed)
    result = ClassificationTask(model, loss_fn)(x, to_target(target))
    result['loss'].backward()

    assert_same_step(model, result, grads, predictor, total)


def test_expected_loss_by_enumeration():
    scores = torch.tensor([[0.3, -1.0, 0.5], [2.0, 0.0, 1.0]], requires_grad=True)
    logits = [torch.tensor([[1.0, 0.0], [0.5, 0.2]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.zeros(2, 2)]
    target = [0, 1]
    loss = expected_loss(scores.softmax(dim=1), logits, torch.tensor(target))
    p = [[math.exp(s) / sum(map(math.exp, row)) for s in row] for row in scores.tolist()]
    losses = [
        [-math.log(math.exp(each[i][target[i]]) / sum(map(math.exp, each[i].tolist()))) for each in logits]
        for i in range(2)]
    # All nine ways in which two images can be routed, each with its probability.
    ways = [(p[0][a] * p[1][b], losses[0][a] + losses[1][b]) for a in range(3) for b in range(3)]
    assert loss.item() == pytest.approx(sum(q * ce / 2 for q, ce in ways), rel=1e-5)
    loss.backward()
    # d p_k / d s_j = p_k (1[k = j] - p_j)
    for i in range(2):
        for j in range(3):
            slope = sum(losses[i][k] / 2 * p[i][k] * ((k == j) - p[i][j]) for k in range(3))
            assert float(scores.grad[i, j]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def all_resolutions_reference(model, x, target, criterion, alpha, eta, costs):
    """The criterion at every resolution, and for the predictor the expectation over its probabilities.

    Returns:
        Gradients of the backbone, of the predictor, and the loss.
    """
    predictor = copy.deepcopy(model.predictor).train()
    log_p = predictor(resized(x, model.args.predictor_size)).log_softmax(1)
    labels = target if target.is_floating_point() else F.one_hot(target, CLASSES).float()
    labels = torch.cat([labels] * (len(x) // len(labels)))
    grads, total, expected, spent = {}, 0.0, 0.0, 0.0
    for j, r in enumerate(RESOLUTIONS):
        twin = plain_twin(model, j)
        logits = twin(resized(x, r))
        loss = criterion(logits, target)
        loss.backward()
        accumulate(grads, model, twin, j)
        total += loss.item()
        cross_entropy = -(labels * logits.detach().log_softmax(1)).sum(1)
        expected = expected + (log_p[:, j].exp() * cross_entropy).mean()
        spent = spent + costs[j] * log_p[:, j].exp().mean()  # Eq. 6, with p in the place of h
    reg = torch.clamp((spent - alpha) / (max(costs) - min(costs)), min=0)  # Eq. 7
    (expected + eta * reg).backward()
    return grads, dict(predictor.named_parameters()), total + eta * reg.item()


# alpha as a share of the second cost: with and without a FLOPs loss
@pytest.mark.parametrize(('criterion', 'share'), [*zip(CRITERIA, itertools.repeat(0.5)), ('cross-entropy', 2.0)])
def test_joint_gradients_at_all_resolutions(criterion, share):
    loss_fn, to_target = CRITERIA[criterion]
    costs = costs_of(make_model())
    alpha, eta = share * costs[1], 0.7
    model = make_model(alpha=alpha, eta=eta, joint_resolutions='all')
    x, target = make_batch()
    grads, predictor, total = all_resolutions_reference(model, x, to_target(target), loss_fn, alpha, eta, costs)

    result = ClassificationTask(model, loss_fn)(x, to_target(target))
    result['loss'].backward()

    assert_same_step(model, result, grads, predictor, total)


def test_every_norm_is_kept_fresh_at_all_resolutions(caplog):
    """Though all images would choose the same; evaluation chooses as ever, and what is logged are the choices."""
    model = make_model(joint_resolutions='all')
    with torch.no_grad():
        model.predictor.classifier.bias.copy_(torch.tensor([0.0, 100.0, 0.0]))
    x, target = make_batch()
    ClassificationTask(model, torch.nn.CrossEntropyLoss())(x, target)['loss'].backward()
    assert all(norm.running_mean.abs().max() > 0 for norm in model.backbone.bn1.norms)
    with caplog.at_level('INFO'):
        model.eval()(x)
    assert '64 px: 0.0%, 48 px: 100.0%, 32 px: 0.0%' in caplog.text
    torch.testing.assert_close(model(x), model.branch(1)(resized(x, 48)))


def test_training_loss_is_the_task_s_loss():
    for stage in ('pretrain', 'joint'):
        x, target = make_batch()
        criterion = torch.nn.CrossEntropyLoss()
        grads = []
        for by_task in (True, False):
            model = make_model(stage, alpha=1e-3)
            torch.manual_seed(5)
            if by_task:
                loss = ClassificationTask(model, criterion)(x, target)['loss']
            else:
                loss = timm_drnet.training_loss(model, criterion, model(x), target)
            loss.backward()
            grads.append([p.grad for p in model.parameters() if p.grad is not None])
        assert len(grads[0]) == len(grads[1])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize('stage', ['pretrain', 'joint'])
def test_loss_scaling_scales_every_gradient(stage):
    """What a GradScaler does: the FLOPs loss must be under the scale like the rest."""
    x, target = make_batch()
    grads = []
    for scale in (1.0, 1024.0):
        model = make_model(stage, alpha=1e-3)
        torch.manual_seed(2)
        (ClassificationTask(model, torch.nn.CrossEntropyLoss())(x, target)['loss'] * scale).backward()
        grads.append([p.grad / scale for p in model.parameters() if p.requires_grad])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('stage', ['pretrain', 'joint'])
def test_gradient_accumulation_averages_the_losses_of_its_steps(stage):
    batches = [make_batch(seed=s) for s in (1, 2)]
    model = make_model(stage, alpha=1e-3)
    torch.manual_seed(2)
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss())
    for x, target in batches:
        (task(x, target)['loss'] / 2).backward()
    accumulated = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    model = make_model(stage, alpha=1e-3)
    torch.manual_seed(2)
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss())
    expected = {}
    for x, target in batches:
        model.zero_grad()
        task(x, target)['loss'].backward()
        for n, p in model.named_parameters():
            if p.grad is not None:
                expected[n] = expected.get(n, 0) + p.grad / 2
    assert accumulated.keys() == expected.keys()
    for n, grad in accumulated.items():
        torch.testing.assert_close(grad, expected[n], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('stage', ['pretrain', 'joint'])
def test_gradient_checkpointing_changes_no_gradient(stage):
    x, target = make_batch()
    grads = []
    for enable in (False, True):
        model = make_model(stage, alpha=1e-3)
        model.set_grad_checkpointing(enable)
        torch.manual_seed(4)
        ClassificationTask(model, torch.nn.CrossEntropyLoss())(x, target)['loss'].backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('stage', ['pretrain', 'joint'])
def test_moving_average_follows_and_routes_like_the_model(stage):
    x, target = make_batch()
    model = make_model(stage, alpha=1e-3)
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    task.setup_ema(decay=0.0)  # the average is the last value
    for step in (1, 2):
        task(x, target)['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=step)
    ema = task.get_eval_model(ema=True).module
    with torch.no_grad():
        torch.testing.assert_close(ema.eval()(x), model.eval()(x))


def test_hinge_is_zero_below_the_target_and_costs_nothing():
    costs = [4.0, 2.5, 1.0]
    h = torch.eye(3).repeat(4, 1).requires_grad_()
    loss = timm_drnet.flops_loss(h, costs, alpha=2.6)
    loss.backward()
    assert loss.item() == 0
    assert not h.grad.any()
    assert timm_drnet.flops_loss(h, costs, alpha=2.0).item() == pytest.approx(0.5 / 3)


@pytest.mark.parametrize(('costs', 'alpha', 'told'), [
    ((2.0, 2.0, 2.0), 1.0, 'alpha=1 has no effect, as every resolution costs 2 ms'),
    ((3.0, 2.0, 1.0), 3.5, 'alpha=3.5 is no target .* 1 to 3 ms: the FLOPs loss will always be 0'),
    ((3.0, 2.0, 1.0), 0.5, 'alpha=0.5 is no target .* 1 to 3 ms: the FLOPs loss can never be 0'),
    ((3.0, 2.0, 1.0), 1.5, ''),
])
@pytest.mark.parametrize('kwargs', [{}, {'joint_resolutions': 'all'}, {'stage': 'pretrain'}])
def test_target_that_cannot_be_one(costs, alpha, told, kwargs, caplog):
    """It is told of once, and the loss stays finite where all costs are equal."""
    losses = []
    for target in (alpha, None):
        model = make_model(cost=(*costs, 0.1), alpha=target, eta=10.0, **kwargs)
        torch.manual_seed(1)
        for _ in range(2):
            task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
        losses.append(task(*make_batch())['loss'])
        losses[-1].backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    warnings = [record.getMessage() for record in caplog.records if 'alpha' in record.getMessage()]
    if 'stage' in kwargs or not told:  # the pretrain stage weighs no costs
        assert not warnings
    else:
        assert len(warnings) == 1
        assert re.search(told, warnings[0])
    if 'stage' in kwargs or 'always' in told or 'no effect' in told:
        torch.testing.assert_close(*losses)


def test_predictor_learns_at_a_tenth_of_the_rate():
    model = make_model()
    optimizer = create_optimizer_v2(model, opt='sgd', lr=1.0, momentum=0.9, layer_decay=0.1)
    scheduler, _ = create_scheduler_v2(optimizer, sched='cosine', num_epochs=10, warmup_epochs=0)
    scheduler.step(0)
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    assert all(rates[id(p)] == pytest.approx(0.1) for p in model.predictor.parameters())
    assert all(rates[id(p)] == pytest.approx(1.0) for p in model.backbone.parameters())


def test_training_without_the_loss_warns_once(caplog):
    model = make_model()
    x, target = make_batch()
    for _ in range(3):
        F.cross_entropy(model(x), target).backward()
    assert sum('trained without its loss' in r.message for r in caplog.records) == 1


def test_training_with_the_loss_does_not_warn(caplog):
    model = make_model()
    x, target = make_batch()
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss())
    for _ in range(3):
        task(x, target=target)['loss'].backward()
    with torch.no_grad():
        for _ in range(3):
            make_model()(x)
    assert 'trained without its loss' not in caplog.text


def test_task_in_eval_mode_keeps_the_criterion():
    model = make_model('pretrain').eval()
    x, target = make_batch()
    criterion = torch.nn.CrossEntropyLoss()
    with torch.no_grad():
        loss = ClassificationTask(model, criterion)(x, target)['loss']
        torch.testing.assert_close(loss, criterion(model.forward_at(x, 0), target))


def test_joint_stage_distils_and_pretrain_stage_refuses():
    x, target = make_batch()
    teacher = timm.create_model(BACKBONE, num_classes=CLASSES)
    criterion = torch.nn.CrossEntropyLoss()
    losses = []
    for alpha in (None, 1e-3):
        model = make_model(alpha=alpha, eta=1.0)
        torch.manual_seed(1)
        task = LogitDistillationTask(model, teacher_model=teacher, criterion=criterion, verbose=False)
        losses.append(task(x, target)['loss'].item())
    assert losses[1] > losses[0] + 0.1
    for model in (make_model('pretrain'), make_model(joint_resolutions='all')):
        with pytest.raises(ValueError, match='ClassificationTask'):
            LogitDistillationTask(model, teacher_model=teacher, criterion=criterion, verbose=False)


@pytest.mark.parametrize('kwargs', [{}, {'stage': 'pretrain'}, {'joint_resolutions': 'all'}])
def test_tasks_that_cannot_train_a_model_are_refused(kwargs):
    """Several labels have no cross-entropy to expect; split norms need the batch in its order."""
    if 'joint_resolutions' in kwargs:
        with pytest.raises(ValueError, match="Invalid joint_resolutions='all' for images with several labels"):
            MultiLabelClassificationTask(make_model(**kwargs), verbose=False)
    else:
        MultiLabelClassificationTask(make_model(**kwargs), verbose=False)
    model = convert_splitbn_model(make_model(**kwargs), num_splits=2)
    if kwargs:
        x, target = make_batch()
        assert ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)(x, target)['loss'].isfinite()
    else:
        with pytest.raises(ValueError, match=r'Split norms \(--split-bn\) need the whole batch'):
            ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)


def test_costs_follow_the_arguments(caplog):
    """Milliseconds in place of FLOPs, or another target, count from the next step on, with a warning of their own."""
    model, criterion = make_model(alpha=1e-9, tau=0.01), torch.nn.CrossEntropyLoss()
    x, target = make_batch()
    for change in ({}, {'cost': (3.0, 2.0, 1.0, 0.1), 'alpha': 0.5}, {'alpha': 0.7}):
        model.args = replace(model.args, eta=100.0, **change)
        timm_drnet.training_loss(model, criterion, model(x), target)
    warnings = [record.getMessage() for record in caplog.records if 'alpha' in record.getMessage()]
    assert [message.partition(' ')[0] for message in warnings] == ['alpha=1e-09', 'alpha=0.5', 'alpha=0.7']
    assert '1 to 3 ms' in warnings[2]


def test_training_loss_refuses_what_it_cannot_complete():
    criterion = torch.nn.CrossEntropyLoss()
    x, target = make_batch()
    for model, message in (
            (make_model(distill=1.0), 'Invalid distill=1 where an image trains at one resolution'),
            (convert_splitbn_model(make_model(), num_splits=2), 'Split norms')):
        output = torch.zeros(6, 5)
        with pytest.raises(ValueError, match=message):
            timm_drnet.training_loss(model, criterion, output, target)
    with pytest.raises(TypeError, match='DRNet'):
        timm_drnet.training_loss(timm.create_model(BACKBONE), criterion, torch.zeros(6, 5), target)
    model = make_model().eval()
    with pytest.raises(RuntimeError, match='training mode'):
        timm_drnet.training_loss(model, criterion, model(x), target)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('kwargs', [{}, {'stage': 'pretrain'}, {'joint_resolutions': 'all'}])
def test_loss_under_autocast_is_float32_and_near_the_exact_one(kwargs, dtype):
    x, target = make_batch()
    losses = []
    for enabled in (False, True):
        model = make_model(alpha=1e-3, tau=0.01, **kwargs)
        task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
        torch.manual_seed(1)
        with torch.autocast('cpu', dtype=dtype, enabled=enabled):
            losses.append(task(x, target))
        assert losses[-1]['loss'].dtype == losses[-1]['drnet_loss'].dtype == torch.float32
        (1024 * losses[-1]['loss']).backward()  # as a GradScaler does
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    for key in ('loss', 'drnet_loss'):
        torch.testing.assert_close(losses[1][key], losses[0][key], rtol=0.02, atol=0)


@pytest.mark.parametrize('kwargs', [{}, {'stage': 'pretrain'}, {'joint_resolutions': 'all'}])
def test_one_image(kwargs):
    """The predictor's last layers see one value a channel, of which there is no variance."""
    model = make_model(alpha=1e-3, **kwargs)
    before = {name: b.clone() for name, b in model.named_buffers() if 'running' in name}
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
    x, target = make_batch(1)
    task(x, target)['loss'].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert all(b.isfinite().all() for b in model.buffers())
    assert any(not torch.equal(b, before[name]) for name, b in model.named_buffers() if name in before)


@pytest.mark.parametrize(('kwargs', 'expected'), [
    ({}, {'tolist': 1}), ({'joint_resolutions': 'all'}, {}), ({'stage': 'pretrain'}, {}),
    ({'joint_resolutions': 'all', 'predictor_loss': 'utility', 'distill': 1.0}, {}),
])
def test_step_waits_for_the_device_once_or_never(kwargs, expected, waits):
    """Routing reads how many images each resolution has; all else of a step stays on the device."""
    model = make_model(alpha=1e-3, **kwargs)
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
    x, target = make_batch()
    waits.seen.clear()
    with waits:
        task(x, target)['loss'].backward()
    assert waits.seen == expected


def test_predictor_trains_in_float32_on_a_processor():
    """Its backward in bfloat16 is slow there; in evaluation it takes part in autocast, like the backbone."""
    model = make_model()
    seen = []
    for name, module in (('predictor', model.predictor.conv_stem), ('backbone', model.backbone.conv1[0])):
        module.register_forward_hook(lambda _, args, output, name=name: seen.append((name, output.dtype)))
    x, _ = make_batch()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model(x.bfloat16())
        assert set(seen) == {('predictor', torch.float32), ('backbone', torch.bfloat16)}
        seen.clear()
        model.eval()(x)
    assert set(seen) == {('predictor', torch.bfloat16), ('backbone', torch.bfloat16)}
