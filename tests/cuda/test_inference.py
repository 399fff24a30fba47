"""On a card a model gives what it gives on the processor, and the host waits for it once."""

import copy
import io

import pytest
import torch
from device import DEVICE, needs_card, waits_of

from timm_drnet.adaptation.norms import estimate_statistics
from timm_drnet.bulk.grouping import classify_grouped
from timm_drnet.cost.latency import latency_table
from timm_drnet.deploy import deployed as deployment

pytestmark = needs_card

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Convolutions in float32, where a test does not say otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


@pytest.fixture(params=['predictor', 'cascade'])
def routed(request, tiny, make_cascade, spread_choices, images):
    """A model of either kind on the processor, and 30 images of which each resolution gets a third."""
    x = images(30)
    if request.param == 'cascade':
        return make_cascade(), x
    spread_choices(tiny, x)
    return tiny, x


def on_card(model, layout=torch.contiguous_format):
    return copy.deepcopy(model).to(DEVICE, memory_format=layout)


def close(ours, theirs, atol=1e-3):
    scale = theirs.abs().max().item()
    torch.testing.assert_close(ours.float().cpu(), theirs.float().cpu(), rtol=0, atol=atol * scale)


@pytest.mark.parametrize('layout', LAYOUTS)
@torch.no_grad()
def test_forward_is_that_of_the_processor(routed, layout):
    model, x = routed
    there, images = on_card(model, layout), x.to(DEVICE, memory_format=layout)
    logits, choice = there.classify(images)
    assert torch.bincount(choice).tolist() == [10, 10, 10]
    assert torch.equal(choice.cpu(), model.predict_resolution(x))
    assert logits.device.type == DEVICE.type
    close(logits, model(x))
    close(there(images), model(x))
    mixed = torch.arange(len(x)) % 3
    close(there.forward_at(images, mixed), model.forward_at(x, mixed))  # choices on the processor
    close(there.forward_at(images, mixed.to(DEVICE)), model.forward_at(x, mixed))
    choices, grouped = classify_grouped(there, x, 7, DEVICE)
    assert torch.equal(choices, choice.cpu())
    close(grouped, model(x))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(tiny, images, dtype):
    x, choice = images(30), torch.arange(30) % 3
    there = on_card(tiny).to(dtype, memory_format=torch.channels_last)
    logits = there.forward_at(x.to(DEVICE, dtype, memory_format=torch.channels_last), choice)
    assert logits.dtype == dtype
    close(logits, tiny.forward_at(x, choice), atol=0.05)


@torch.no_grad()
def test_one_wait_for_a_batch_and_one_for_a_rung(routed, waits):
    model, x = routed
    cascade = model.args.router == 'cascade'
    there, x = on_card(model, torch.channels_last), x.to(DEVICE, memory_format=torch.channels_last)
    choice = torch.arange(len(x), device=DEVICE) % 3
    for one in (there, there.deploy()):
        for run, expected in (
                (lambda one=one: one(x), 2 if cascade else 1),
                (lambda one=one: one.classify(x), 2 if cascade else 1),
                (lambda one=one: one.forward_at(x, choice), 1),
                (lambda one=one: one.forward_at(x, 1), 0)):
            found = waits_of(run, waits)
            assert len(found) == expected, found
    assert waits_of(lambda: estimate_statistics(there, 1, [x]), waits) == []


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('backbone', ['test_resnet', 'mobilenetv2_035'])
@torch.no_grad()
def test_deployed(make_tiny, shake, images, monkeypatch, backbone, dtype):
    model = shake(make_tiny(backbone)).eval()
    x, choice = images(30), torch.arange(30) % 3
    sizes = set()
    seconds = deployment._seconds
    monkeypatch.setattr(deployment, '_seconds', lambda module, x: sizes.add(len(x)) or seconds(module, x))
    there = on_card(model).to(dtype, memory_format=torch.channels_last)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    deployed = there.deploy(micro_batch=None if DEVICE.type == 'cuda' else 0)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    assert {(p.device.type, p.dtype) for p in deployed.parameters()} == {(DEVICE.type, dtype)}
    assert deployed.micro_batch == (0, 0, 0)
    assert DEVICE.type == 'cpu' or sizes == {64}  # fewer images would not tell layouts apart
    atol = 1e-3 if dtype == torch.float32 else 0.05
    close(deployed.forward_at(x.to(DEVICE, dtype), choice), model.forward_at(x, choice), atol)


@torch.no_grad()
def test_checkpoints_go_from_the_card_to_the_processor_and_back(make_tiny, routed):
    model, x = routed
    there = on_card(model, torch.channels_last)
    expected, where = model(x), model.predict_resolution(x)
    file = io.BytesIO()
    torch.save(there.state_dict(), file)
    file.seek(0)
    for device in ('cpu', DEVICE):
        other = make_tiny(seed=1, router=model.args.router, thresholds=model.args.thresholds).eval().to(device)
        other.load_state_dict(torch.load(file, map_location=device, weights_only=True))
        file.seek(0)
        close(other(x.to(device)), expected)
    for one in (there, there.deploy(micro_batch=0)):
        file = io.BytesIO()
        torch.save(one, file)
        file.seek(0)
        back = torch.load(file, map_location='cpu', weights_only=False)
        assert {p.device.type for p in back.parameters()} == {'cpu'}
        close(back(x), expected)
        assert torch.equal(back.predict_resolution(x), where)
        close(back.to(DEVICE)(x.to(DEVICE)), expected)


def test_latency_of_every_resolution(tiny):
    rows = latency_table(on_card(tiny), repeats=2)
    assert all(row.backbone_ms > 0 and row.predictor_ms > 0 for row in rows)


@pytest.mark.parametrize('how', [
    {'backend': 'cudagraphs', 'dynamic': False},
    {'mode': 'reduce-overhead', 'dynamic': False},
], ids=['cudagraphs', 'reduce-overhead'])
@torch.no_grad()
def test_compiled_with_graphs_of_cuda(routed, how):
    model, x = routed
    if model.predictor is None and 'mode' in how:
        pytest.skip('compiling takes long, and one kind of router will do')
    there, images = on_card(model), x.to(DEVICE)
    torch.compiler.reset()
    there.compile(**how if DEVICE.type == 'cuda' else {'backend': 'eager'})
    for order in ([*range(30)], [*range(30)], [*range(30)], [*reversed(range(30))]):  # warmed up, recorded, replayed
        close(there(images[order]), model(x[order]), atol=2e-3)
    if model.predictor is not None:
        scores = there.predictor_scores(images)
        there.predictor_scores(-images)
        close(scores, model.predictor_scores(x), atol=2e-3)
    torch.compiler.reset()
