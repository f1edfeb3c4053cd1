"""What forward computes is extracted whatever the nesting; all else is refused, naming the path."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from openese.model.extract import UnsupportedModuleError, extract_chain
from openese.model.peephole import PeepholeLSTM

# On a busy machine threads that wait for each other cost far more than these sizes gain.
torch.set_num_threads(1)


def summary(model):
    return [(layer.name, layer.in_features, layer.out_features, layer.relu)
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


# -- recurrent models -----------------------------------------------------------------------------


def rnn(forward, module=None, **extra):
    return Net(forward, rnn=nn.LSTM(6, 5, batch_first=True) if module is None else module,
               fc=nn.Linear(5, 3), **extra)


@pytest.mark.parametrize(("module", "outputs"), [
    (nn.RNN(6, 4), 4), (nn.RNN(6, 4, nonlinearity="relu", bias=False), 4),
    (nn.GRU(6, 4, num_layers=2, dropout=0.5), 4), (nn.LSTM(6, 4, batch_first=True), 4),
    (nn.LSTM(6, 4, proj_size=3, num_layers=3), 3), (nn.LSTM(6, 4, bidirectional=True), 8),
    (nn.LSTM(6, 4, proj_size=3, bidirectional=True), 6), (nn.GRU(6, 4, bidirectional=True), 8),
    (PeepholeLSTM(6, 4, proj_size=2), 2), (PeepholeLSTM(6, 4, num_layers=2, batch_first=True), 4),
])
def test_recurrent_modules_alone_and_before_linear(module, outputs):
    assert summary(module) == summary(nn.Sequential(module)) == [("0", 6, outputs, False)]
    assert extract_chain(module)[0].module is module
    assert extract_chain(module)[0].recurrent
    model = Net(lambda m, x: m.fc(m.rnn(x)[0]).relu(), rnn=module, fc=nn.Linear(outputs, 3))
    assert summary(model) == [("rnn", 6, outputs, False), ("fc", outputs, 3, True)]
    assert [layer.last for layer in extract_chain(model)] == [False, False]


def unpacked(m, x):
    out, _ = m.rnn(x)
    return m.fc(out)


def unpacked_state(m, x):
    out, (_, _) = m.rnn(x)
    return m.fc(out)


def indexed(m, x):
    return m.fc(m.rnn(x)[0])


def without_a_state(m, x):
    out, _ = m.rnn(x, None)
    return m.fc(out)


def named_none(m, x):
    return m.fc(m.rnn(x, hx=None)[0])


def with_state(m, x):
    out, state = m.rnn(x)
    return m.fc(out), state


def with_parts_of_the_state(m, x):
    out, (h, c) = m.rnn(x)
    return m.fc(out), [h, (c, h[-1])]


@pytest.mark.parametrize("forward", [unpacked, unpacked_state, indexed, without_a_state, named_none,
                                     with_state, with_parts_of_the_state])
def test_every_way_to_take_the_output(forward):
    model = rnn(forward)
    model(torch.zeros(2, 4, 6))
    assert summary(model) == [("rnn", 6, 5, False), ("fc", 5, 3, False)]


def test_all_that_a_recurrent_module_gives_may_be_returned():
    for forward in (lambda m, x: m.rnn(x), lambda m, x: (lambda r: (r[0], r[1]))(m.rnn(x))):
        assert summary(rnn(forward)) == [("rnn", 6, 5, False)]


def test_recurrent_and_linear_layers_in_any_order():
    def forward(m, x):
        y, _ = m.b(m.drop(torch.relu(m.a(x))))
        z, _ = m.c(m.drop(y))
        return m.e(m.d(z)[0])

    model = Net(forward, a=nn.Linear(7, 6), b=nn.GRU(6, 5), drop=nn.Dropout(0.5),
                c=PeepholeLSTM(5, 4), d=nn.RNN(4, 3, bidirectional=True), e=nn.Linear(6, 1))
    assert summary(model) == [("a", 7, 6, True), ("b", 6, 5, False), ("c", 5, 4, False),
                              ("d", 4, 6, False), ("e", 6, 1, False)]


@pytest.mark.parametrize(("batch_first", "forward"), [
    (True, lambda m, x: m.fc(m.rnn(x)[0][:, -1])),
    (True, lambda m, x: m.fc(m.rnn(x)[0][:, -1, :])),
    (True, lambda m, x: m.fc(m.drop(m.rnn(x)[0][:, -1, ...]))),
    (True, lambda m, x: m.fc(m.rnn(x)[0][:, -1].flatten(1))),
    (True, lambda m, x: m.fc(m.rnn(x)[0][:, -1].view(-1, 5))),
    (False, lambda m, x: m.fc(m.rnn(x)[0][-1])),
    (False, lambda m, x: m.fc(m.rnn(x)[0][-1, :, :])),
])
def test_the_last_step_may_be_selected(batch_first, forward):
    model = rnn(forward, nn.LSTM(6, 5, batch_first=batch_first), drop=nn.Dropout())
    assert model(torch.zeros(3, 4, 6)).ndim == 2
    chain = extract_chain(model)
    assert [(layer.name, layer.last) for layer in chain] == [("rnn", True), ("fc", False)]


def test_the_last_step_of_a_linear_layer_may_be_selected():
    model = rnn(lambda m, x: torch.relu(m.fc(m.rnn(x)[0])[:, -1]))
    chain = extract_chain(model)
    assert [(layer.name, layer.last, layer.relu) for layer in chain] == [
        ("rnn", False, False), ("fc", True, True)]


class Subclass(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class LSTMSubclass(nn.LSTM):
    pass


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 4)

    def forward(self, x, state):
        return self.rnn(x, state)


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


def zeros_as_state(m, x):
    h = torch.zeros(1, x.size(0), 5)
    return m.fc(m.rnn(x, (h, h))[0])


def final_state(m, x):
    _, (h, _) = m.rnn(x)
    return m.fc(h[-1])


def tied_inside():
    module = nn.GRU(4, 4, num_layers=2)
    module.weight_hh_l1 = module.weight_hh_l0
    return module


def two_orders():
    return rnn(lambda m, x: m.other(m.rnn(x)[0])[0], other=nn.GRU(5, 2))


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


SUPPORTED = ("supported is one chain of Linear, ReLU, RNN, GRU, LSTM, PeepholeLSTM, Flatten, "
             "Dropout and Identity")
STATE = ("is called with an initial state; states are zero at the start, and others are given to "
         "openese at run time: leave it out of forward")
LAST = "takes the steps of the sequence apart; Linear layers work on every step as it is"
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
    "cell": (lambda: nn.Sequential(nn.LSTMCell(4, 4)), "module '0' (LSTMCell) is not supported"),
    "subclass of lstm": (lambda: nn.Sequential(LSTMSubclass(4, 4)),
                         "module '0' (LSTMSubclass) is not supported"),
    "state argument": (Stateful, f"module 'rnn' (LSTM) {STATE}"),
    "zeros as state": (lambda: rnn(zeros_as_state), f"module 'rnn' (LSTM) {STATE}"),
    "named state": (lambda: rnn(lambda m, x: m.rnn(x, hx=x)[0]), f"module 'rnn' (LSTM) {STATE}"),
    "final state": (lambda: rnn(final_state),
                    "module 'fc' computes with the final state of a recurrent module; take the "
                    "last step of its output instead: out[:, -1] with batch_first, out[-1]"),
    "returned state alone": (lambda: rnn(lambda m, x: m.rnn(x)[1]), "must return the output"),
    "all and states": (lambda: rnn(lambda m, x: (lambda r: (r, r[1]))(m.rnn(x))),
                       "must return the output of its last layer and nothing else but final"),
    "tuple": (lambda: nn.Sequential(nn.GRU(6, 5), nn.Linear(5, 2)),
              "module '1' takes all that module '0' gives; give it the output alone: out, _ ="),
    "first step": (lambda: rnn(lambda m, x: m.fc(m.rnn(x)[0][:, 0])),
                   "'getitem' in the model's forward selects something else than the last step, "
                   "which is out[:, -1] as 'rnn' has batch_first=True"),
    "last of the batch": (lambda: rnn(lambda m, x: m.fc(m.rnn(x)[0][:, -1]), nn.GRU(6, 5)),
                          "which is out[-1] as 'rnn' has batch_first=False"),
    "some steps": (lambda: rnn(lambda m, x: m.fc(m.rnn(x)[0][:, -1:])), "selects something else"),
    "one feature": (lambda: rnn(lambda m, x: m.rnn(x)[0][:, -1, 2]), "selects something else"),
    "mean": (lambda: rnn(lambda m, x: m.fc(m.rnn(x)[0].mean(1))),
             "'mean' in the model's forward is not supported: an engine has an output for every"),
    "mean without time": (lambda: mlp(lambda m, x: m.a(x).mean(1)),
                          f"'mean' in the model's forward is not supported; {SUPPORTED}"),
    "selected without time": (lambda: mlp(lambda m, x: m.a(x)[:, -1]),
                              f"'getitem' in the model's forward is not supported; {SUPPORTED}"),
    "last before recurrent": (
        lambda: rnn(lambda m, x: m.more(m.rnn(x)[0][:, -1])[0], more=nn.GRU(5, 2)),
        "module 'more' (GRU) comes after the last step was selected; only Linear layers may"),
    "relu of a state": (lambda: rnn(lambda m, x: m.fc(m.rnn(x)[0].relu())),
                        "'relu' in the model's forward is a ReLU after the recurrent module 'rnn'"),
    "flattened steps": (lambda: rnn(lambda m, x: m.fc(m.rnn(x)[0].flatten(1))), LAST),
    "all steps as a batch": (lambda: rnn(lambda m, x: m.fc(m.rnn(x)[0].reshape(-1, 5))), LAST),
    "flatten module": (lambda: rnn(lambda m, x: m.fc(m.flat(m.rnn(x)[0])), flat=nn.Flatten()),
                       f"module 'flat' (Flatten) {LAST}"),
    "flat input": (lambda: rnn(lambda m, x: m.rnn(x.view(-1, 6))[0]),
                   "'view' in the model's forward takes the steps apart that module 'rnn' (LSTM)"),
    "two orders": (two_orders, "module 'other' (GRU) has batch_first=False, but 'rnn' before it "
                               "has batch_first=True: one of the two takes the batch for time"),
    "recurrent module twice": (lambda: rnn(lambda m, x: m.rnn(m.rnn(x)[0])[0], nn.GRU(5, 5)),
                               "module 'rnn' (GRU) uses the weight of 'rnn' again; every layer"),
    "tied inside": (tied_inside, "module '0' (GRU) uses a weight twice; every layer needs its own"),
    "recurrent size": (lambda: Net(lambda m, x: m.rnn(m.fc(x))[0], fc=nn.Linear(2, 3),
                                   rnn=nn.GRU(4, 2)),
                       "module 'rnn' (GRU): input_size=4, but 'fc' before it gives 3"),
    "double lstm": (lambda: nn.LSTM(3, 2).double(), "module '0' (LSTM): weight_ih_l0 is"),
    "parametrized lstm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.LSTM(4, 4), "weight_hh_l0")),
        "module '0' (ParametrizedLSTM) is not supported; remove parametrizations"),
    "transposed": (lambda: rnn(lambda m, x: m.rnn(x.transpose(0, 1))[0]),
                   "'transpose' in the model's forward is not supported"),
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
                  f"the model has no Linear or recurrent layer; {SUPPORTED}"),
    "empty": (nn.Sequential, "the model has no Linear or recurrent layer"),
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
