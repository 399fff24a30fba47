"""fx, TorchScript, torch.compile and torch.export give what the model itself gives."""

import copy
import io

import pytest
import timm
import torch
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import timm_drnet

# TorchScript is deprecated, yet timm's users still export with it; fx notes that the two modes have different nodes.
pytestmark = [
    pytest.mark.filterwarnings('ignore:`torch.jit:FutureWarning'),
    pytest.mark.filterwarnings('ignore:NOTE. The nodes obtained:UserWarning'),
]


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
    extractor(images(6))[in_training[-1]].square().sum().backward()
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


def test_scripting_leaves_the_model_alone(routed):
    model, x = routed
    before = model(x)
    keys = list(model.state_dict())
    torch.jit.script(model)
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == keys


def test_compiled_evaluation_does_not_compile_again_for_other_shares(routed):
    model, x = routed
    compiled = torch.compile(model, backend='eager')
    with torch.no_grad():
        for batch in (x, x[:6]):  # the second makes the batch size dynamic
            torch.testing.assert_close(compiled(batch), model(batch))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for batch in (x[[0, 0, 1, 2]], x[[1, 1, 1, 1]], x[[2, 1, 2, 1, 2]]):
                torch.testing.assert_close(compiled(batch), model(batch))


def test_compiled_training(make_tiny, images):
    results = []
    for compile in (False, True):
        model = make_tiny(alpha=0.001).train()
        forward = torch.compile(model, backend='eager') if compile else model
        torch.manual_seed(0)
        target = torch.tensor([0, 1, 2, 3])
        output = forward(images(4))
        loss = timm_drnet.training_loss(forward, torch.nn.CrossEntropyLoss(), output, target)
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
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
