"""Dense-sparse-dense training: masks, restart, rates, logs; a resumed run equals a whole one."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from openese.model.dsd import CheckpointError, Phase, dsd_phases, run_phases

torch.set_num_threads(1)

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] * X[:, 1] > 0).long()

OPTIMIZERS = {
    "sgd": lambda p, rate: torch.optim.SGD(p, lr=rate, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p, rate: torch.optim.AdamW(p, lr=rate, weight_decay=1e-2),
    "adam amsgrad": lambda p, rate: torch.optim.Adam(p, lr=rate, amsgrad=True),
    "rmsprop": lambda p, rate: torch.optim.RMSprop(p, lr=rate, momentum=0.5),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Dropout(0.1), nn.Linear(10, 2))


class Run:
    """A model, an optimizer with a scheduler, a training step, and what the step saw."""

    def __init__(self, optimizer="sgd", stop_before=None):
        self.model = network()
        self.kind, self.stop_before = OPTIMIZERS[optimizer], stop_before
        self.seen = []

    def make_optimizer(self, phase):
        optimizer = self.kind(self.model.parameters(), 0.01 * phase.rate)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    def train_epoch(self, optimizer, epoch):
        if epoch == self.stop_before:
            raise KeyboardInterrupt
        for batch in torch.randperm(64).split(16):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(X[batch]), Y[batch])
            loss.backward()
            optimizer.step()
            self.seen.append((epoch, self.model[0].weight.detach().clone()))
        return {"loss": loss.detach(), "optimizer": type(optimizer).__name__}

    def __call__(self, phases, **options):
        torch.manual_seed(5)
        return run_phases(self.model, self.make_optimizer, self.train_epoch, phases,
                          progress=False, **options)


def test_phases_of_the_paper():
    assert dsd_phases((3, 2, 1), 0.25) == [
        Phase("dense", 3), Phase("sparse", 2, 1.0, 0.25), Phase("redense", 1, 0.1)]
    again = dsd_phases((3, 2, 1), {"0": 0.5}, iterations=2, restart_rate=0.5)
    assert [(p.name, p.epochs, p.rate, p.sparsity) for p in again] == [
        ("dense", 3, 1, None), ("sparse", 2, 1, {"0": 0.5}), ("redense", 1, 0.5, None),
        ("sparse", 2, 0.5, {"0": 0.5}), ("redense", 1, 0.25, None)]


@pytest.mark.parametrize(("make", "text"), [
    (lambda: dsd_phases((1, 1, 1), iterations=0), "iterations must be 1 or more, not 0"),
    (lambda: dsd_phases((1, 1, 1), 1.5), "phase 'sparse': sparsity must be 0 to 1, not 1.5"),
    (lambda: Phase("a", 1, sparsity={"0": -1}), "phase 'a': sparsity must be 0 to 1, not -1"),
    (lambda: Phase("a", -1), "phase 'a': epochs must be 0 or more, not -1"),
    (lambda: Phase("a", 1, rate=0), "phase 'a': rate must be positive, not 0"),
])
def test_numbers_out_of_range(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_fixed_mask_by_magnitude_then_a_restart_at_zero(optimizer):
    run = Run(optimizer)
    records = run(dsd_phases((2, 3, 2), 0.5))
    weights = {epoch: [w for e, w in run.seen if e == epoch] for epoch in range(7)}
    before = weights[1][-1]
    mask = weights[2][0] != 0
    assert int(mask.sum()) == 30
    # The weights kept are the largest of the dense phase.
    assert before[mask].abs().min() > before[~mask].abs().max()
    for epoch in (2, 3, 4):
        for weight in weights[epoch]:
            assert torch.equal(weight != 0, mask)
    # One step into the last phase, pruned weights have moved from 0, and little.
    assert (weights[5][0][~mask] != 0).any()
    assert weights[5][0][~mask].abs().max() < 0.05
    assert (weights[6][-1] != 0).all()
    assert [r["density"] for r in records] == [1, 1, 0.5, 0.5, 0.5, 1, 1]
    assert [r["phase"] for r in records] == ["dense"] * 2 + ["sparse"] * 3 + ["redense"] * 2
    assert [r["phase_number"] for r in records] == [0, 0, 1, 1, 1, 2, 2]
    assert [r["epoch"] for r in records] == list(range(7))


def test_every_phase_has_its_own_rate_and_schedule():
    records = Run()(dsd_phases((2, 2, 2), 0.3))
    assert [r["rate"] for r in records] == pytest.approx(
        [0.01, 0.005, 0.01, 0.005, 0.001, 0.0005])


def test_sparsity_per_layer():
    run = Run()
    run([Phase("dense", 1), Phase("sparse", 1, sparsity={"3": 0.75})])
    assert int((run.model[3].weight != 0).sum()) == 5
    assert (run.model[0].weight != 0).all()


def test_recurrent_layer_by_parameter():
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 4)
    inputs = torch.randn(5, 2, 3)
    pruned = []

    def train_epoch(optimizer, epoch):
        optimizer.zero_grad()
        lstm(inputs)[0].square().sum().backward()
        optimizer.step()
        pruned.append(int((lstm.weight_hh_l0 == 0).sum()))

    run_phases(lstm, lambda phase: torch.optim.Adam(lstm.parameters(), lr=0.01 * phase.rate),
               train_epoch, dsd_phases((1, 2, 1), {"weight_hh_l0": 0.5}), progress=False)
    assert pruned == [0, 32, 32, 0]


def test_a_mask_without_epochs_prunes():
    run = Run()
    assert run([Phase("sparse", 0, sparsity=0.5)]) == []
    assert int((run.model[0].weight != 0).sum()) == 30


def test_log_and_records_agree(tmp_path):
    records = Run()(dsd_phases((1, 1, 1)), log=tmp_path / "log.jsonl")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert all(isinstance(r["loss"], float) and r["optimizer"] == "SGD" for r in records)
    assert all(r["seconds"] >= 0 for r in records)


def test_a_metric_may_not_take_the_name_of_a_driver_s_own():
    model = network()
    with pytest.raises(ValueError, match="train_epoch returned rate, which the driver logs"):
        run_phases(model, lambda phase: torch.optim.SGD(model.parameters(), lr=1),
                   lambda optimizer, epoch: {"rate": 1}, [Phase("dense", 1)], progress=False)


def test_the_mask_is_dropped_when_training_fails():
    run = Run(stop_before=1)
    optimizers = []
    make = run.make_optimizer
    run.make_optimizer = lambda phase: optimizers.append(make(phase)) or optimizers[-1]
    with pytest.raises(KeyboardInterrupt):
        run([Phase("sparse", 2, sparsity=0.5)])
    with torch.no_grad():
        run.model[0].weight.fill_(1)
    optimizers[0][0].step()
    assert (run.model[0].weight != 0).all()


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_anywhere_a_run_equals_an_uninterrupted_one(tmp_path, optimizer):
    phases = dsd_phases((2, 2, 1), 0.5, iterations=2)
    whole = Run(optimizer)
    expected = whole(phases)
    for stop in range(1, len(expected)):
        path = tmp_path / f"{stop}.checkpoint"
        with pytest.raises(KeyboardInterrupt):
            Run(optimizer, stop_before=stop)(phases, checkpoint=path, log=tmp_path / "log")
        run = Run(optimizer)
        records = run(phases, checkpoint=path, log=tmp_path / "log")
        strip = [{k: v for k, v in r.items() if k != "seconds"} for r in records]
        assert strip == [{k: v for k, v in r.items() if k != "seconds"} for r in expected]
        assert [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()] == records
        for mine, theirs in zip(run.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_a_finished_run_is_not_trained_again(tmp_path):
    phases = [*dsd_phases((1, 1, 1)), Phase("sparse", 0, sparsity=0.5)]
    first, second = Run(), Run(stop_before=0)
    records = first(phases, checkpoint=tmp_path / "c")
    assert second(phases, checkpoint=tmp_path / "c") == records
    for mine, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_tied_weights_are_stored(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight

    def run():
        return run_phases(model, lambda phase: torch.optim.SGD(model.parameters(), lr=0.1),
                          lambda optimizer, epoch: None, [Phase("dense", 1)],
                          checkpoint=tmp_path / "c", progress=False)

    assert run() == run()


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "c"
    Run()(dsd_phases((1, 1, 1)), checkpoint=path)
    with pytest.raises(CheckpointError, match="c: was written with other phases"):
        Run()(dsd_phases((1, 1, 2)), checkpoint=path)
    other = Run()
    other.model = nn.Linear(6, 2)
    with pytest.raises(CheckpointError, match="c: is of another model"):
        other(dsd_phases((1, 1, 1)), checkpoint=path)
    data = path.read_bytes()
    for damaged in (b"", data[:100], data[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"c: is damaged \(.*; delete it to start anew"):
            Run()(dsd_phases((1, 1, 1)), checkpoint=path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="c: is no checkpoint of this driver"):
        Run()(dsd_phases((1, 1, 1)), checkpoint=path)
    with pytest.raises(CheckpointError, match="cannot be written"):
        Run()(dsd_phases((1, 1, 1)), checkpoint=tmp_path / "nowhere" / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


def test_what_is_no_plain_data_is_named(tmp_path):
    class Scheduler:
        step = staticmethod(lambda: None)
        state_dict = staticmethod(lambda: {"function": [len]})

    run = Run()
    make = run.make_optimizer
    run.make_optimizer = lambda phase: (make(phase)[0], Scheduler())
    with pytest.raises(CheckpointError, match=r"\['scheduler'\]\['function'\]\[0\] is a builtin"):
        run(dsd_phases((1, 1, 1)), checkpoint=tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
