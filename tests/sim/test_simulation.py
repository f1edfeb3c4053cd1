# amaranth: UnusedElaboratable=no

"""The interface of a simulation: limits, errors, memories, settings, waveforms, progress."""

import re

import numpy as np
import pytest

from openese.sim.simulation import BACKENDS, Simulation, run
from openese.sim.streams import SimulationTimeout, pack

from .toys import TERM, Lane, Lanes, Pair, Queue, Sum, Table, Wide

EVERY = pytest.mark.parametrize("backend", BACKENDS)


def test_a_deadlock_is_reported_not_waited_for(backend):
    with pytest.raises(SimulationTimeout) as caught:
        run(Pair(), {"a": [1, 2, 3], "b": [1]}, {"total": 2, "difference": None}, backend=backend,
            max_idle=50)
    assert str(caught.value) == (
        f"{backend}: no transfer for 50 cycles, in cycle 52\n"
        "  a: sent 1 of 3, waiting (valid=1 ready=0)\n"
        "  b: sent 1 of 1 (valid=0 ready=0)\n"
        "  total: received 1 of 2, waiting (valid=0 ready=1)\n"
        "  difference: received 1 of any number (valid=0 ready=1)")


def test_an_output_nobody_asked_for_shows_in_the_report(backend):
    with pytest.raises(SimulationTimeout, match=re.escape(
            "difference: received 0 of 0 (valid=1 ready=0)")):
        run(Pair(), {"a": [1, 2], "b": [1, 2]}, {"total": 2}, backend=backend, max_idle=5)


def test_the_cycle_limit(backend):
    with Simulation(Queue(), backend) as simulation:
        with pytest.raises(SimulationTimeout, match=(
                f"^{backend}: not finished after 7 cycles, in cycle 7\n"
                r"  i: sent 4 of 100, waiting \(valid=1 ready=1\)")):
            simulation.run({"i": np.zeros(100, int)}, {"o": 100}, stalls={"i": "10"}, max_cycles=7)
        with pytest.raises(RuntimeError, match=r"^This simulation was closed, or stopped with an "
                                               r"error: call reset\(\) or make another one$"):
            simulation.run()
        simulation.reset()
        assert simulation.run({"i": [5]}, {"o": 1}).outputs["o"].tolist() == [5]


def test_no_more_is_taken_than_was_asked_for(backend):
    with Simulation(Queue(), backend) as simulation:
        first = simulation.run({"i": [1, 2, 3]}, {"o": 1}, extra_cycles=4)
        assert first.outputs["o"].tolist() == [1]
        second = simulation.run(outputs={"o": None}, extra_cycles=5)
        assert second.outputs["o"].tolist() == [2, 3]
        assert second.start == first.cycles
        assert second.cycles == 5
        assert simulation.run().cycles == 0


@EVERY
def test_memories_can_be_read_and_written(backend):
    lanes = Lanes([[1, -1], [1, -1]])
    with Simulation(lanes, backend) as simulation:
        assert sorted(simulation.memories) == ["lane_0.sums", "lane_0.weights", "lane_1.sums",
                                               "lane_1.weights"]
        assert simulation.read_memory("lane_1.weights").tolist() == [1, 255, 0, 0, 0, 0, 0, 0]
        simulation.write_memory("lane_1.weights", [3], first=1)
        simulation.write_memory("lane_0.sums", [(1 << 30) - 5])
        raw = pack(TERM, {"value": [1, 1], "row": [0, 0], "last": [1, 1]})
        assert simulation.run({"i": raw}, {"o": 2}).values("o").tolist() == [[-4, 1], [-5, 4]]
        assert simulation.read_memory("lane_0.sums").tolist() == [(1 << 30) - 5, 0, 0, 0]
        for arguments, text in (
            (("lane_2.sums", [0]), "No memory is called 'lane_2.sums'; there are: lane_0.weights, "
                                   "lane_0.sums, lane_1.weights, lane_1.sums"),
            (("lane_0.sums", [0, 0], 3), "Rows 3 to 4 are not in 'lane_0.sums', which has 4"),
            (("lane_0.weights", [256]), "Payload 256 of 'lane_0.weights' does not fit 8 bits"),
        ):
            with pytest.raises(ValueError, match=f"^{text}$"):
                simulation.write_memory(*arguments)


@EVERY
def test_wide_rows(backend):
    with Simulation(Table(), backend) as simulation:
        assert simulation.read_memory("rows").tolist() == [
            [0, 0, 32], [2, 0, 0], [3, 0, 0], [4, 0, 0], [5, 0, 0]]
        simulation.write_memory("rows", [[1, 2, 3]], first=4)
        assert simulation.read_memory("rows")[4].tolist() == [1, 2, 3]


@EVERY
def test_what_is_read_without_a_clock_follows_what_was_written(backend):
    with Simulation(Sum(), backend) as simulation:
        path, = simulation.memories
        assert path.endswith(".rows")
        assert simulation.run({"i": [0, 1]}, {"o": 2}).outputs["o"].tolist() == [8, 1]
        simulation.write_memory(path, [255, 3])
        assert simulation.run({"i": [0, 1]}, {"o": 2}).outputs["o"].tolist() == [256, 4]
        simulation.write_memory(path, [9], first=1)
        assert simulation.run({"i": [1]}, {"o": 1}).outputs["o"].tolist() == [10]
        assert simulation.read_memory(path).tolist() == [255, 9, 0, 0]
    with Simulation(Sum(), backend) as simulation:  # written before anything has run
        simulation.write_memory(path, [1])
        assert simulation.run({"i": [0]}, {"o": 1}).outputs["o"].tolist() == [2]


def test_settings_last(backend):
    with Simulation(Wide(), backend) as simulation:
        simulation.run(settings={"mask": 0})
        result = simulation.run({"i": [9]}, {"o": 1}, signals=["seen", "mask"])
        assert result.outputs["o"].tolist() == [[9, 0, 0, 0]]
        assert result.values("mask").tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(("arguments", "text"), [
    ({"inputs": {"o": [1]}}, "No input stream is called 'o'; there are: i"),
    ({"outputs": {"level": 1}}, "No output stream is called 'level'; there are: o"),
    ({"outputs": {"o": -1}},
     "Number of payloads wanted of 'o' must be 0 or more, or None, not -1"),
    ({"stalls": {"x": "1"}}, "No stream is called 'x'; there are: i, o"),
    ({"signals": ["o"]}, "No plain signal is called 'o'; there are: level"),
    ({"settings": {"level": 1}}, "No plain input is called 'level'; there are: none"),
    ({"max_idle": 0}, "max_idle must be 1 or more, not 0"),
    ({"max_cycles": 1.5}, "max_cycles must be 1 or more, not 1.5"),
    ({"extra_cycles": -1}, "extra_cycles must be 0 or more, not -1"),
    ({"inputs": {"i": [256]}}, "Payload 256 of 'i' does not fit 8 bits"),
])
def test_wrong_arguments(arguments, text):
    with Simulation(Queue()) as simulation, pytest.raises(ValueError, match=f"^{text}$"):
        simulation.run(**arguments)


def test_an_always_ready_stream_cannot_be_stalled():
    with pytest.raises(ValueError, match=r"^Stream 'o' cannot be stalled: it is always ready$"):
        run(Wide(), stalls={"o": "10"})


def test_an_unknown_backend():
    with pytest.raises(ValueError, match=r"^backend must be one of amaranth, cxxrtl, verilator, "
                                         "not 'cocotb'$"):
        run(Queue(), backend="cocotb")


def test_a_closed_simulation(backend):
    with Simulation(Queue(), backend) as simulation:
        pass
    simulation.close()
    with pytest.raises(RuntimeError, match=r"^This simulation was closed"):
        simulation.run()


def test_waveforms(backend, tmp_path):
    path = tmp_path / "wave.vcd"
    raw = pack(TERM, {"value": [1, 1], "row": [0, 0], "last": [1, 1]})
    plain = run(Lane([1, 2]), {"i": raw}, {"o": 2}, backend=backend)
    traced = run(Lane([1, 2]), {"i": raw}, {"o": 2}, backend=backend, vcd=path)
    assert np.array_equal(plain.outputs["o"], traced.outputs["o"])
    text = path.read_text()
    assert "$enddefinitions" in text
    for name in ("clk", "rst", "busy"):
        assert re.search(rf"\$var \w+ 1 \S+ {name} ", text)
    # The clock of the reset cycle and of each cycle rises once.
    clock = re.search(r"\$var \w+ 1 (\S+) clk ", text)[1]
    assert len(re.findall(rf"^1{re.escape(clock)}$", text, re.M)) == plain.cycles + 1


def test_a_waveform_file_that_cannot_be_written(backend, tmp_path):
    with pytest.raises(OSError, match=r"wave\.vcd"):
        run(Queue(), backend=backend, vcd=tmp_path / "none" / "wave.vcd")


def test_progress(backend):
    calls = []
    values = np.zeros(300, int)
    run(Queue(), {"i": values}, {"o": 300}, backend=backend,
        progress=lambda *call: calls.append(call))
    assert calls[-1][1:] == (600, 600)
    assert calls == sorted(calls)
