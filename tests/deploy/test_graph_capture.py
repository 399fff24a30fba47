"""fx, TorchScript, torch.compile and torch.export give what the model itself gives."""

import copy
import io
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import timm_drnet
from timm_drnet.cost.costs import set_cost_weight
from timm_drnet.deploy.graph_capture import ScriptedRouting, route_static

# TorchScript is deprecated, yet timm's users still export with it; fx notes that the two modes have different nodes.
pytestmark = [
    pytest.mark.filterwarnings('ignore:`torch.jit:FutureWarning'),
    pytest.mark.filterwarnings('ignore:NOTE. The nodes obtained:UserWarning'),
]


# More graphs of a function than torch keeps are an error, where PyTorch can tell.
FAIL_AT_THE_LIMIT = {
    name: True for name in ('fail_on_recompile_limit_hit',) if hasattr(torch._dynamo.config, name)}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """No compiled code of another test."""
    torch.compiler.reset()


@pytest.fixture
def routed(tiny, spread_choices, images):
    """A model in eval mode and nine images that take all its resolutions in turn."""
    x = images(9)
    spread_choices(tiny, x)
    return tiny, x


def test_fx_feature_extractor(routed):
    model, x = routed
    names = get_graph_node_names(model)[1]
    assert {'predictor.classifier', 'backbone.fc', 'backbone.fc_1', 'backbone.fc_2'} <= set(names)
    extractor = create_feature_extractor(model, ['predictor.classifier', 'backbone.fc_1', names[-1]])
    with torch.no_grad():
        features = extractor(x)
        scores = model.predictor(torch.nn.functional.interpolate(x, (32, 32), mode='bilinear', align_corners=False))
        torch.testing.assert_close(features['predictor.classifier'], scores)
        torch.testing.assert_close(features['backbone.fc_1'], model.forward_at(x, 1)[1::3])
        torch.testing.assert_close(features[names[-1]], model(x))
        torch.testing.assert_close(extractor(x[1:2])[names[-1]], model(x[1:2]))  # two branches are empty


def test_fx_graph_trains(make_tiny, images):
    model = make_tiny().train()
    in_training, in_evaluation = get_graph_node_names(model)
    extractor = create_feature_extractor(
        model, train_return_nodes=in_training[-1:], eval_return_nodes=in_evaluation[-1:]).train()
    extractor(images(24))[in_training[-1]].square().sum().backward()
    assert all(p.grad is not None for p in extractor.parameters())


def test_torchscript(routed):
    model, x = routed
    scripted = torch.jit.script(model)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    for script in (scripted, torch.jit.load(file)):
        with torch.no_grad():
            torch.testing.assert_close(script(x), model(x))
            torch.testing.assert_close(script(x[4:5]), model(x[4:5]))


@pytest.mark.parametrize(('way', 'error'), [(torch.jit.script, torch.jit.Error), (torch.fx.symbolic_trace, ValueError)])
def test_scores_that_are_not_finite(routed, way, error):
    model, x = routed
    x[3] = float('nan')
    with pytest.raises(error, match='Invalid choice -1: the scores of the predictor are not finite'):
        way(model)(x)


def test_scripting_leaves_the_model_alone(routed):
    model, x = routed
    before = model(x)
    keys = list(model.state_dict())
    torch.jit.script(model)
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == keys


WAYS = {
    'torch.compile(model)': lambda model, backend: torch.compile(model, backend=backend),
    'model.compile()': lambda model, backend: model.compile(backend=backend) or model,
}


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
def test_compilations_do_not_grow_with_batch_sizes_and_shares(routed, way):
    model, x = routed
    choice = model.predict_resolution(x)
    set_cost_weight(model, 1.5)  # the dial is part of what is compiled
    with torch.no_grad():
        assert not torch.equal(model.predict_resolution(x), choice)
        model.predictor.classifier.bias += torch.tensor(model.prices)  # so that all resolutions are taken as before
        assert torch.equal(model.predict_resolution(x), choice)
    eager = copy.deepcopy(model)
    counter = CompileCounter()
    compiled = WAYS[way](model, counter)
    with torch.no_grad():
        for order in ([*range(9)] * 6, [*range(9)] * 8, [0] * 4 + [1] * 3 + [2] * 2, [0], [1], [2]):
            compiled(x[order])
        # Predictor and three branches, each for the size that it saw first, for others, for a single image, and, as
        # torch would have it, for 16 images and more; and what stands between them.
        seen = counter.frame_count
        assert 8 < seen <= 20
        for n in (5, 6, 10, 11, 17, 23, 90):
            batch = x[torch.randint(len(x), (n,))]
            torch.testing.assert_close(compiled(batch), eager(batch))
        assert counter.frame_count == seen


def test_compile_counts_for_every_way_into_the_model(routed):
    model, x = routed
    choice = torch.arange(len(x)) % 3
    expected = model.forward_at(x, choice), model.forward_at(x, 1), model.predict_resolution(x)
    counter = CompileCounter()
    model.compile(backend=counter)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_at(x, choice), expected[0])
        assert counter.frame_count == 3
        torch.testing.assert_close(model.forward_at(x, 1), expected[1])
        assert torch.equal(model.predict_resolution(x), expected[2])
    assert counter.frame_count == 5  # the same branch with another batch size, and the predictor


@pytest.mark.parametrize('way', WAYS)
def test_results_outlive_the_memory_of_the_graphs(routed, way):
    """With CUDA graphs, as of mode='reduce-overhead', what a graph returns is overwritten by the next one that runs."""
    model, x = routed
    eager, pool = copy.deepcopy(model), torch.empty(1000)

    def backend(graph, inputs):
        def run(*args):
            return tuple(
                pool[:out.numel()].view(out.shape).copy_(out) if out.is_floating_point() else out
                for out in graph(*args))

        return run

    compiled = WAYS[way](model, backend)
    with torch.no_grad():
        assert torch.bincount(eager.predict_resolution(x), minlength=3).min() > 0
        torch.testing.assert_close(compiled(x), eager(x))
        scores = model.predictor_scores(x)
        model.predictor_scores(-x)
        torch.testing.assert_close(scores, eager.predictor_scores(x))


def test_compiled_model_follows_changes(routed):
    model, x = routed
    model.compile(backend='eager')
    with torch.no_grad():
        model(x)
        model.reset_classifier(3)
        next(model.backbone.parameters()).mul_(2)
        eager = copy.deepcopy(model)
        assert eager._compiled == {}
        torch.testing.assert_close(model(x), eager(x))
        pickled = pickle.loads(pickle.dumps(model))
        torch.testing.assert_close(pickled(x), eager(x))


@pytest.mark.slow
@pytest.mark.parametrize(('way', 'kwargs', 'epochs'), [
    ('torch.compile(model)', {}, 2), ('torch.compile(model)', {'stage': 'pretrain'}, 0),
    ('torch.compile(model)', {'joint_resolutions': 'all'}, 0), ('model.compile()', {}, 0)],
    ids=['joint, in turn with evaluation', 'pretrain', 'at all resolutions', 'model.compile()'])
def test_compiled_training(make_tiny, images, way, kwargs, epochs):
    """Losses, gradients and statistics are those without a compiler; torch keeps every graph from epoch to epoch."""
    results = []
    for compile in (False, True):
        model = make_tiny(alpha=0.001, **kwargs).train()
        counter = CompileCounter()
        forward = WAYS[way](model, counter) if compile else model
        torch.manual_seed(0)
        found = []
        with torch._dynamo.config.patch(**FAIL_AT_THE_LIMIT):
            for epoch in range(max(epochs, 1)):
                model.train()
                for n in (6, 2, 5 + epoch):  # some branches get a single image
                    output = forward(images(n))
                    loss = timm_drnet.training_loss(
                        forward, torch.nn.CrossEntropyLoss(), output, torch.arange(n) % 5)
                    loss.backward()
                    found.append(loss.detach())
                if epochs:
                    model.eval()
                    with torch.no_grad():
                        found.extend(forward(images(n)) for n in (8, 1, 5 + epoch))
        assert (counter.frame_count > 0) == compile
        results.append((found, {name: p.grad for name, p in model.named_parameters()}, dict(model.named_buffers())))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize('backbone', ['test_resnet', 'test_efficientnet'])
def test_branch_compiles_as_one_graph(make_tiny, shake, images, backbone):
    model = shake(make_tiny(backbone)).eval()
    x = images(2, 48)
    with torch.no_grad():
        compiled = torch.compile(model.branch(1), backend='eager', fullgraph=True)
        torch.testing.assert_close(compiled(x), model.forward_at(x, 1))


@pytest.mark.parametrize('index', [0, 2])
def test_branch_exports(tiny, images, index):
    r = tiny.resolutions[index]
    x = images(4, r)
    batch = torch.export.Dim('batch', min=1)
    program = torch.export.export(tiny.branch(index), (x,), dynamic_shapes=({0: batch},))
    assert any('running_mean' in name for name in program.state_dict)
    for n in (1, 4):
        torch.testing.assert_close(program.module()(x[:n]), tiny.forward_at(x[:n], index))


def test_predictor_exports(tiny, images):
    x = images(3, 32)
    program = torch.export.export(tiny.predictor, (x,))
    torch.testing.assert_close(program.module()(x), tiny.predictor(x))


def test_meta_tensors_run_the_largest_branch():
    model = timm.create_model('drnet_resnet18d_050', num_classes=5, device='meta')
    for training in (True, False):
        logits = copy.deepcopy(model).train(training)(torch.empty(2, 3, 128, 128, device='meta'))
        assert logits.shape == (2, 5)
        assert logits.is_meta


@pytest.fixture
def branches():
    """Three different linear branches at 8, 6 and 4 px, with a predictor by mean brightness."""
    return [nn.Sequential(nn.Flatten(), nn.Linear(3 * r * r, 4)) for r in (8, 6, 4)]


@pytest.fixture
def predictor():
    """Predictor that scores by the mean of the image."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([1.0, 0, -1])[:, None].expand(3, 3))
        model[2].bias.copy_(torch.tensor([0.0, 0.1, 0]))
    return model


def expected_logits(x, choice, branches):
    rows = []
    for image, j in zip(x, choice.tolist(), strict=True):
        r = (8, 6, 4)[j]
        rows.append(branches[j](F.interpolate(image[None], (r, r), mode='bilinear', align_corners=False)))
    return torch.cat(rows)


@pytest.mark.parametrize('choice', [[0, 1, 2, 1, 0, 2], [1, 1, 1, 1, 1, 1]])
def test_static_routing_is_the_same(branches, choice):
    x, choice = torch.randn(6, 3, 8, 8), torch.tensor(choice)
    output = route_static(x, choice, branches, (8, 6, 4))
    torch.testing.assert_close(output, expected_logits(x, choice, branches))


def test_scripted_routing_is_the_same(branches, predictor):
    x = torch.randn(6, 3, 8, 8) + torch.tensor([-1.0, 0, 1, 1, 0, -1]).view(6, 1, 1, 1)
    choice = predictor(F.interpolate(x, (5, 5), mode='bilinear', align_corners=False)).argmax(dim=1)
    assert set(choice.tolist()) == {0, 1, 2}
    routing = ScriptedRouting(predictor, branches, 5, (8, 6, 4))
    torch.testing.assert_close(routing(x), expected_logits(x, choice, branches))


@pytest.mark.parametrize('way', [torch.jit.script, torch.fx.symbolic_trace])
def test_pretrain_stage_is_captured_as_it_is(make_tiny, shake, images, way):
    model = shake(make_tiny(stage='pretrain')).eval()
    with torch.no_grad():
        torch.testing.assert_close(way(model)(images(4, 80)), model(images(4, 80)))


@pytest.mark.parametrize('deployed', [False, True])
@pytest.mark.parametrize('way', [torch.jit.trace, torch.export.export])
def test_tracing_the_routing_of_an_example_is_refused(tiny, images, deployed, way):
    model = tiny.deploy(micro_batch=0) if deployed else tiny
    x = images(4)
    # torch.export of PyTorch 2.7 names the place instead of the message
    with pytest.raises(RuntimeError, match=r'timm-drnet export|refuse_tracing|DeployedDRNet\.forward'):
        way(model, (x,))
