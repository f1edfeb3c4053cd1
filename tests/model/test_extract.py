"""What forward computes is extracted whatever the nesting; all else is refused, naming the path."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from openese.model.extract import UnsupportedModuleError, extract_chain

# On a busy machine threads that wait for each other cost far more than these sizes gain.
torch.set_num_threads(1)


def summary(model):
    return [(layer.name, layer.module.in_features, layer.module.out_features, layer.relu)
            for layer in extract_chain(model)]


class Net(nn.Module):
    """A model whose forward is given by a function of (modules, x)."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def mlp(forward, **extra):
    return Net(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 5), **extra)


def test_sequential_with_everything_that_passes():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 5), nn.Identity(), nn.ReLU(),
                          nn.Dropout(), nn.Linear(5, 4, bias=False), nn.ReLU(inplace=True),
                          nn.ReLU(), nn.Linear(4, 3))
    assert summary(model) == [("2", 6, 5, True), ("6", 5, 4, True), ("9", 4, 3, False)]
    assert extract_chain(model)[0].module is model[2]


def test_nested_modules_and_odd_names():
    block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    model = Net(lambda m, x: m.get_submodule("last layer")(m.inner(x)),
                inner=nn.ModuleDict({"feature-0": block}), **{"last layer": nn.Linear(6, 2)})
    model._forward = lambda m, x: m.get_submodule("last layer")(m.inner["feature-0"](x))
    assert summary(model) == [("inner.feature-0.0", 6, 6, True), ("last layer", 6, 2, False)]


@pytest.mark.parametrize("relu", [
    lambda m, x: functional.relu(x), lambda m, x: functional.relu(x, inplace=True),
    lambda m, x: torch.relu(x), lambda m, x: x.relu(), lambda m, x: x.relu_(),
    lambda m, x: m.r(x),
])
def test_every_way_to_write_relu(relu):
    model = mlp(lambda m, x: relu(m, m.b(relu(m, m.a(x)))), r=nn.ReLU())
    assert summary(model) == [("a", 6, 5, True), ("b", 5, 5, True)]


@pytest.mark.parametrize("flatten", [
    lambda x: torch.flatten(x, 1), lambda x: torch.flatten(x, start_dim=1),
    lambda x: x.flatten(1), lambda x: x.flatten(1, -1),
    lambda x: x.view(x.size(0), -1), lambda x: x.view(x.size(dim=0), -1),
    lambda x: x.reshape(x.shape[0], -1), lambda x: x.view(-1, 6), lambda x: x.view(x.size()[0], 6),
    lambda x: torch.reshape(x, (-1, 6)), lambda x: x.view((x.shape[0], -1)),
])
def test_every_way_to_flatten_a_batch(flatten):
    model = mlp(lambda m, x: m.b(m.a(flatten(x))))
    assert summary(model) == [("a", 6, 5, False), ("b", 5, 5, False)]
    with torch.no_grad():
        assert model(torch.zeros(3, 2, 3)).shape == (3, 5)


def test_a_lone_linear():
    assert summary(nn.Linear(3, 2)) == [("0", 3, 2, False)]


def test_functional_dropout_that_follows_the_mode():
    for forward in (lambda m, x: m.a(functional.dropout(x, 0.5, m.training)),
                    lambda m, x: m.a(functional.dropout(x, training=m.training))):
        assert summary(mlp(forward)) == [("a", 6, 5, False)]


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.Linear(5, 2))
    model.train()
    model[1].eval()
    extract_chain(model)
    assert [m.training for m in model.modules()] == [True, True, False, True]


def test_modules_that_forward_does_not_use_do_not_matter():
    model = mlp(lambda m, x: m.a(x), head=nn.Conv2d(1, 1, 3))
    assert summary(model) == [("a", 6, 5, False)]


def test_an_unused_optional_input_does_not_matter():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x, mask=None):
            return self.fc(x)

    assert summary(Optional()) == [("fc", 2, 2, False)]


class Subclass(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class Data(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x, y):
        return self.fc(x) + y


def tied():
    model = mlp(lambda m, x: m.c(m.b(m.a(x))), c=nn.Linear(5, 5))
    model.c.weight = model.b.weight
    return model


def hooked():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    return model


def pruned_by_torch():
    model = nn.Sequential(nn.Linear(4, 4))
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def patched(*path):
    model = nn.Sequential(nn.Linear(4, 4))
    module = model.get_submodule(".".join(path))
    module.forward = lambda x: 2 * x
    return model


def with_value(value):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].bias[0] = value
    return model


SUPPORTED = "supported is one chain of Linear, ReLU, Flatten, Dropout and Identity"
REFUSED = {
    "module": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Sigmoid())),
               f"module '1.0' (Sigmoid) is not supported; {SUPPORTED}"),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)),
                    f"module '0' (Conv2d) is not supported; {SUPPORTED}"),
    "root": (lambda: nn.Conv2d(1, 2, 3), "module '0' (Conv2d) is not supported"),
    "leaky": (lambda: nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU()),
              "module '1' (LeakyReLU) is not supported"),
    "relu6": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU6()), "module '1' (ReLU6)"),
    "norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
             "module '1' (BatchNorm1d) is not supported"),
    "lstm": (lambda: nn.Sequential(nn.LSTM(4, 4)), "module '0' (LSTM) is not supported"),
    "subclass": (lambda: nn.Sequential(Subclass(4, 4)), "module '0' (Subclass) is not supported"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4)), "module '0' (LazyLinear) has forward hooks"),
    "function": (lambda: mlp(lambda m, x: torch.sigmoid(m.a(x))),
                 f"'sigmoid' in the model's forward is not supported; {SUPPORTED}"),
    "function of a module": (
        lambda: nn.Sequential(nn.Linear(6, 6), mlp(lambda m, x: torch.tanh(m.a(x)))),
        "'tanh' in module '1' is not supported"),
    "method": (lambda: mlp(lambda m, x: m.a(x).abs()),
               "'abs' in the model's forward is not supported"),
    "clamp": (lambda: mlp(lambda m, x: m.a(x).clamp(0, 1)), "'clamp' in the model's forward"),
    "scale": (lambda: mlp(lambda m, x: m.a(x) * 2), "'mul' in the model's forward"),
    "doubled": (lambda: mlp(lambda m, x: m.b(m.a(x) + m.a.bias)), "computes with a parameter"),
    "constant": (lambda: mlp(lambda m, x: m.a(x) + torch.ones(5)), "computes with a parameter"),
    "leaky slope": (lambda: mlp(lambda m, x: functional.leaky_relu(m.a(x))), "'leaky_relu'"),
    "residual": (lambda: mlp(lambda m, x: (lambda y: y + m.b(y))(m.a(x))),
                 "'add' in the model's forward joins or starts a branch"),
    "two branches": (lambda: mlp(lambda m, x: m.a(x) + m.c(x), c=nn.Linear(6, 5)),
                     "module 'c' joins or starts a branch"),
    "in place": (lambda: mlp(lambda m, x: (lambda y: (y.relu_(), m.b(y))[1])(m.a(x))),
                 "module 'b' joins or starts a branch"),
    "unused end": (lambda: mlp(lambda m, x: (lambda y: (m.b(y), y)[1])(m.a(x))),
                   "must return the output of its last layer"),
    "two outputs": (lambda: mlp(lambda m, x: (m.a(x), x)),
                    "must return the output of its last layer"),
    "two inputs": (TwoInputs, "must use exactly one input, not 2 (x, y)"),
    "no input": (lambda: mlp(lambda m, x: torch.zeros(1)),
                 "must use exactly one input, not 0 (none)"),
    "shared linear": (lambda: mlp(lambda m, x: m.b(m.b(m.a(x)))),
                      "module 'b' (Linear) uses the weight of 'b' again"),
    "tied weights": (tied, "module 'c' (Linear) uses the weight of 'b' again"),
    "relu first": (lambda: nn.Sequential(nn.ReLU(), nn.Linear(4, 4)),
                   "module '0' is a ReLU before the first Linear, which is not supported"),
    "function relu first": (lambda: mlp(lambda m, x: m.a(torch.relu(x))),
                            "'relu' in the model's forward is a ReLU before the first Linear"),
    "no linear": (lambda: nn.Sequential(nn.Flatten(), nn.Identity()),
                  f"the model has no Linear layer; {SUPPORTED}"),
    "empty": (nn.Sequential, "the model has no Linear layer"),
    "no module": (lambda: torch.zeros(3), "must be a torch.nn.Module, not Tensor"),
    "no forward": (lambda: nn.ModuleDict({"fc": nn.Linear(2, 2)}), "module '0' (ModuleDict)"),
    "control flow": (Data, "forward of Data cannot be traced"),
    "batch flattened": (lambda: mlp(lambda m, x: m.a(torch.flatten(x))),
                        "must be flatten(x, 1): the batch has to stay apart"),
    "flatten option": (lambda: nn.Sequential(nn.Flatten(0), nn.Linear(4, 4)),
                       "module '0' (Flatten): start_dim=0, end_dim=-1 are not supported"),
    "view": (lambda: mlp(lambda m, x: m.a(x.view(2, 6))), "must give (batch, features)"),
    "view size": (lambda: mlp(lambda m, x: m.a(x.view(-1, 3))),
                  "reshapes to 3 features where the Linear layer has 6"),
    "view after": (lambda: mlp(lambda m, x: m.b(m.a(x).view(-1, 10))),
                   "reshapes to 10 features where the Linear layer has 5"),
    "sizes": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 2)),
              "module '1' (Linear): in_features=4, but '0' before it gives 3"),
    "dropout": (lambda: mlp(lambda m, x: functional.dropout(m.a(x))),
                "drops in evaluation mode too"),
    "dropout on": (lambda: mlp(lambda m, x: functional.dropout(m.a(x), 0.5, True)),
                   "drops in evaluation mode too"),
    "hook": (hooked, "module '0' (Linear) has forward hooks"),
    "torch's pruning": (pruned_by_torch, "module '0' (Linear) has forward hooks"),
    "patched root": (patched, "module '' (Sequential) has a forward of its own"),
    "patched layer": (lambda: patched("0"), "module '0' (Linear) has a forward of its own"),
    "parametrized": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))),
                     "module '0' (ParametrizedLinear) is not supported; remove parametrizations"),
    "double": (lambda: nn.Sequential(nn.Linear(4, 4)).double(),
               "module '0' (Linear): weight is torch.float64; only float32"),
    "half": (lambda: nn.Sequential(nn.Linear(4, 4)).half(), "weight is torch.float16"),
    "meta": (lambda: nn.Sequential(nn.Linear(4, 4, device="meta")),
             "module '0' (Linear): weight has no data (device meta)"),
    "not a number": (lambda: with_value(float("nan")),
                     "module '1' (Linear): bias has values that are not finite"),
    "infinite": (lambda: with_value(float("inf")),
                 "module '1' (Linear): bias has values that are not finite"),
    "keyword": (lambda: mlp(lambda m, x: m.a(input=x)),
                "module 'a' (Linear) must be called with its one input"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_refused_in_one_line_that_names_it(case):
    make, text = REFUSED[case]
    with pytest.raises(UnsupportedModuleError) as caught:
        extract_chain(make())
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)
