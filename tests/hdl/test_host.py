# amaranth: UnusedElaboratable=no
"""Proves every host command: loads, registers, start and stop, routines, and wrong words."""

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.engine import Engine
from openese.hdl.host import HostInterface
from openese.hdl.layouts import Kind
from openese.model import host
from openese.model.compile import compile_network, size_for
from openese.model.host import HostOp, InputRegister, Register, Target
from openese.model.program import instruction_bits
from openese.model.quantise import quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import run_reference
from openese.sim.simulate import run_simulation
from openese.sim.simulation import Simulation

from .helpers import SMALL, plain, recurrent, simulate

PER_PE = {Target.SPMAT: (Kind.LOAD_SPMAT, SMALL.spmat_word_bits),
          Target.PTR: (Kind.LOAD_PTR, SMALL.ptr_word_bits),
          Target.BIAS: (Kind.LOAD_BIAS, SMALL.bias_bits)}
PROGRAM_BITS = instruction_bits(SMALL)
# Instructions wider than one host word, wider than two, and not wider than one.
MIDDLE = SMALL.with_(act_depth=512, ptr_depth=2048)
WIDE = SMALL.with_(act_depth=60000, acc_depth=40000, ptr_depth=65536, shift_bits=5, n_pes=256)
NARROW = SMALL.with_(act_depth=2, acc_depth=2, ptr_depth=2, bias_depth=2, n_pes=1, code_bits=2,
                     codebooks=1)


class Host:
    """A simulated host interface with a scripted engine behind it.

    Attributes
    ----------
    loads, programs
        (kind, pe, addr, data) and (addr, data) of all writes, in order.
    channels
        Channel of each load, of recurrent engines.
    calls
        (cycle, address) of every routine called.
    restarts
        Cycles in which `restart` was high.
    answers
        Words answered.
    taken
        Cycle in which each word was taken.
    trace
        Per cycle: rows, act[0], act[1], flush, run.
    """

    def __init__(self, words, config=SMALL, *, gaps: float = 0.0, stalls: float = 0.0,
                 engine=lambda cycle: {}, extra: int = 6, reset_at=None, **arguments):
        self.loads, self.programs, self.answers = [], [], []
        self.taken, self.trace = [], []
        self.channels, self.calls, self.restarts = [], [], []
        dut = HostInterface(config, **arguments)
        rng = np.random.default_rng(1)
        reset = Signal()
        words = [int(word) for word in words]

        async def testbench(ctx):
            offering, left, cycle = False, extra, 0
            while len(self.taken) < len(words) or left:
                more = len(self.taken) < len(words)
                offering = more and (offering or rng.random() >= gaps)
                signals = {"idle": 1, "computing": 0, "finished": 0, "exposed": 0,
                           "stalled": 0, "saturations": 0}
                for name, value in {**signals, **engine(cycle)}.items():
                    ctx.set(getattr(dut, name), value)
                ctx.set(reset, int(cycle == reset_at))
                ctx.set(dut.i.valid, int(offering))
                ctx.set(dut.i.payload, words[len(self.taken)] if offering
                        else int(rng.integers(1 << 32)))
                ctx.set(dut.o.ready, int(rng.random() >= stalls))
                self.trace.append((ctx.get(dut.rows), ctx.get(dut.act[0]), ctx.get(dut.act[1]),
                                   ctx.get(dut.flush), ctx.get(dut.run)))
                if ctx.get(dut.o_load.valid):
                    message = plain(ctx.get(dut.o_load.payload))
                    load = message["args"]["load"]
                    self.loads.append((message["kind"], load["pe"], load["addr"], load["data"]))
                    self.channels.append(load.get("channel"))
                if ctx.get(dut.call):
                    self.calls.append((cycle, ctx.get(dut.call_addr)))
                if ctx.get(dut.restart):
                    self.restarts.append(cycle)
                if ctx.get(dut.o_program.valid):
                    item = plain(ctx.get(dut.o_program.payload))
                    self.programs.append((item["addr"], item["data"]))
                if ctx.get(dut.o.valid) and ctx.get(dut.o.ready):
                    self.answers.append(ctx.get(dut.o.payload))
                if ctx.get(dut.i.ready) and offering:
                    self.taken.append(cycle)
                    offering = False
                left -= len(self.taken) >= len(words) and left > 0
                await ctx.tick()
                cycle += 1

        simulate(dut, testbench, reset=reset)

    @property
    def last(self):
        """rows, act[0], act[1], run at the end."""
        rows, act_0, act_1, _, run = self.trace[-1]
        return rows, act_0, act_1, run


def concat(*parts) -> list[int]:
    return [int(word) for part in parts for word in part]


def command(op: int, target: int = 0, pe: int = 0) -> list[int]:
    return [op << 28 | target << 24 | pe]


def errors(words, **arguments) -> int:
    """The error flag after `words`, read back by a command after them."""
    return Host(concat(words, host.read(Register.ERRORS)), **arguments).answers[-1]


@pytest.mark.parametrize("gaps", [0.0, 0.6])
@pytest.mark.parametrize("target", PER_PE)
def test_load_of_a_memory_of_one_pe(target, gaps):
    kind, width = PER_PE[target]
    items = np.random.default_rng(target).integers(1 << width, size=12).tolist()
    items[:2] = 0, (1 << width) - 1
    words = concat(host.load(target, items, width, address=5, pe=2),
                   host.load(target, items[:1], width, address=0, pe=0))
    seen = Host(words, gaps=gaps)
    assert seen.loads == [(kind, 2, 5 + k, item) for k, item in enumerate(items)] + [
        (kind, 0, 0, items[0])]
    assert seen.programs == []
    if not gaps:
        assert seen.taken == list(range(len(words)))


def test_load_of_the_codebook_goes_to_all_pes():
    items = [0, 65535, 32768, 5]
    seen = Host(host.load(Target.CODEBOOK, items, SMALL.weight_bits, address=16))
    assert [(kind, addr, data) for kind, _, addr, data in seen.loads] == [
        (Kind.LOAD_CODEBOOK, 16 + k, item) for k, item in enumerate(items)]


@pytest.mark.parametrize(("config", "words_each"), [(NARROW, 1), (MIDDLE, 2), (WIDE, 3)])
@pytest.mark.parametrize("gaps", [0.0, 0.6])
def test_load_of_the_program(config, words_each, gaps):
    width = instruction_bits(config)
    assert -(-width // 32) == words_each
    rng = np.random.default_rng(width)
    items = [int.from_bytes(rng.bytes(16), "little") & ((1 << width) - 1) for _ in range(5)]
    items[0] = (1 << width) - 1
    words = concat(host.load(Target.PROGRAM, items, width),
                   host.load(Target.PROGRAM, items[3:4], width, address=1))
    seen = Host(words, config, gaps=gaps)
    assert seen.programs == [*enumerate(items), (1, items[3])]
    assert seen.loads == []
    if not gaps:
        assert seen.taken == list(range(len(words)))


def test_load_of_the_input_registers():
    words = host.load(Target.REGISTER, [3, 7, 21], 32)
    seen = Host(words)
    assert seen.last == (3, 7, 21, 0)
    # Only loading the number of rows empties the buffers, with the new number.
    assert [cycle for cycle, step in enumerate(seen.trace) if step[3]] == [4]
    assert seen.trace[3][0] == 0
    assert seen.trace[4][0] == 3
    seen = Host(host.load(Target.REGISTER, [9], 32, address=InputRegister.IN_BASE1), in_rows=4,
                in_base=(5, 6))
    assert seen.trace[0][:3] == (4, 5, 6)
    assert seen.last == (4, 5, 9, 0)
    assert not any(step[3] for step in seen.trace)




RECURRENT = recurrent(channels=3)
STATES = {Target.ACT: (Kind.LOAD_ACT, 16), Target.CELL: (Kind.LOAD_CELL, 16),
          Target.RESULT: (Kind.LOAD_RESULT, 16), Target.PEEPHOLE: (Kind.LOAD_PEEPHOLE, 48)}


@pytest.mark.parametrize("gaps", [0.0, 0.6])
@pytest.mark.parametrize("target", STATES)
def test_load_of_states_and_peepholes(target, gaps):
    kind, width = STATES[target]
    rng = np.random.default_rng(target)
    items = [int.from_bytes(rng.bytes(8), "little") & (1 << width) - 1 for _ in range(9)]
    items[:2] = 0, (1 << width) - 1
    words = concat(*(host.load(target, items[channel:], width, address=4 + channel, pe=2,
                               channel=channel) for channel in (2, 0, 1)),
                   host.read(Register.ERRORS))
    seen = Host(words, RECURRENT, gaps=gaps)
    expected = [(channel, (kind, 2, 4 + channel + k, item))
                for channel in (2, 0, 1) for k, item in enumerate(items[channel:])]
    assert list(zip(seen.channels, seen.loads, strict=True)) == expected
    assert seen.answers == [0]
    if not gaps:
        assert seen.taken == list(range(len(words)))


@pytest.mark.parametrize(("config", "known"), [
    (recurrent(), {Target.ACT, Target.CELL, Target.PEEPHOLE}),
    (recurrent(peephole_depth=0, channels=2), {Target.ACT, Target.CELL, Target.RESULT}),
    (recurrent(peephole_depth=0), {Target.ACT, Target.CELL}),
    (recurrent(channels=32), set(STATES))])
def test_targets_are_those_of_the_memories_that_exist(config, known):
    for target, (kind, width) in STATES.items():
        words = concat(host.load(target, [5], width), host.read(Register.ERRORS))
        seen = Host(words, config)
        assert seen.answers == [int(target not in known)], target
        assert [item[0] for item in seen.loads] == [kind] * (target in known)


def test_a_channel_that_does_not_exist():
    good = host.load(Target.BIAS, [9], 18, pe=1)
    for config, wrong in ((RECURRENT, (3, 4, 255)), (SMALL, (1, 16)),
                          (recurrent(channels=32), (32, 64))):
        for channel in wrong:
            for target in (Target.ACT, Target.SPMAT):
                bad = host.load(target, [7, 8], 9, channel=channel)
                seen = Host(concat(bad, good, host.read(Register.ERRORS)), config)
                assert seen.answers == [1], channel
                assert seen.loads == [(Kind.LOAD_BIAS, 1, 0, 9)], channel


def test_loads_tell_the_sequencer_that_memories_have_changed():
    loads = [host.load(Target.ACT, [1, 2], 16),
             host.load(Target.PROGRAM, [4], instruction_bits(RECURRENT)),
             host.load(Target.REGISTER, [3], 32), host.load(Target.BIAS, [], 18)]
    seen = Host(concat(*loads, host.read(Register.MAGIC), host.start(), host.stop()), RECURRENT)
    # In every cycle in which a word of an item is taken, and in no other.
    begin, expected = 0, []
    for load in loads:
        expected += range(begin + 3, begin + len(load))
        begin += len(load)
    assert seen.restarts == [seen.taken[k] for k in expected]


def test_call_runs_a_routine_once_when_the_engine_is_idle():
    address = RECURRENT.program_depth - 1
    words = concat(host.start(), host.call(address), host.read(Register.MAGIC), host.start())
    seen = Host(words, RECURRENT, engine=lambda cycle: {"idle": int(cycle in (0, 20, 21))})
    assert seen.calls == [(20, address)]
    # It stops the engine as STOP does; the next command is looked at when the routine has begun.
    assert [run for *_, run in seen.trace][:22] == [0, 1] + [0] * 20
    assert seen.taken == [0, 1, 21, 24]
    assert seen.last[3] == 1
    assert seen.answers == [host.MAGIC]
    # A load behind it waits for its end.
    words = concat(host.call(2), host.load(Target.BIAS, [6], 18))
    seen = Host(words, RECURRENT, engine=lambda cycle: {"idle": int(cycle == 5 or cycle >= 30)})
    assert seen.calls == [(5, 2)]
    assert seen.taken == [0, 6, 7, 8, 30]
    assert seen.restarts == [30]


@pytest.mark.parametrize("target", Target)
def test_count_0_loads_nothing(target):
    words = concat(host.load(target, [], 32), host.load(Target.BIAS, [77], 18, address=3, pe=1))
    seen = Host(words)
    assert seen.loads == [(Kind.LOAD_BIAS, 1, 3, 77)]
    assert seen.programs == []
    assert seen.last == (0, 0, 0, 0)
    assert errors(words) == 0


def test_load_waits_until_the_engine_is_idle():
    words = concat(host.load(Target.PTR, [1, 2, 3], SMALL.ptr_word_bits),
                   host.load(Target.PROGRAM, [4], PROGRAM_BITS),
                   host.load(Target.REGISTER, [5], 32))
    seen = Host(words, engine=lambda cycle: {"idle": int(cycle >= 20 and cycle != 22)})
    # Command, address and count are taken at once, items only while idle.
    assert seen.taken[:6] == [0, 1, 2, 20, 21, 23]
    seen = Host(words, engine=lambda cycle: {"idle": int(cycle % 7 == 0)})
    assert [data for *_, data in seen.loads] == [1, 2, 3]
    assert seen.programs == [(0, 4)]
    assert seen.last[0] == 5
    items = [3, 4, 5, 9, 13]
    assert all(seen.taken[k] % 7 == 0 for k in items)
    assert sum(step[3] for step in seen.trace) == 1


def test_start_and_stop():
    seen = Host(concat(host.start(), host.stop(), host.start(), host.start(), host.stop()))
    assert [run for *_, run in seen.trace] == [0, 1, 0, 1, 1] + [0] * 5
    assert Host([], run=True).last == (0, 0, 0, 1)
    assert Host(host.stop(), run=True).last == (0, 0, 0, 0)


def test_load_stops_a_running_engine():
    """Or it would wait for ever for an engine that goes on."""
    words = concat(host.start(), host.read(Register.MAGIC),
                   host.load(Target.BIAS, [5], SMALL.bias_bits), host.start())
    seen = Host(words, engine=lambda cycle: {"idle": int(cycle >= 30)})
    load = seen.taken[2]
    assert [run for *_, run in seen.trace][:30] == [0] + [1] * load + [0] * (29 - load)
    assert seen.taken[5] == 30
    assert seen.last[3] == 1


@pytest.mark.parametrize("stalls", [0.0, 0.7])
def test_read_of_every_register(stalls):
    def engine(cycle):
        return {"computing": int(cycle < 13 and cycle % 3 == 0), "finished": int(cycle in (2, 7)),
                "exposed": int(cycle in (0, 3, 4, 9)), "stalled": int(4 <= cycle < 10),
                "saturations": 5 if cycle in (1, 2, 12) else 0, "idle": 0}

    # An unknown command first; reading must work while the engine is not idle.
    words = concat(command(0), *([0] for _ in range(14)), *(host.read(r) for r in Register))
    seen = Host(words, engine=engine, stalls=stalls)
    assert seen.answers == [0x0E5E0001, SMALL.signature, 5, 15, 2, 1, 4, 6]


def test_counters_take_the_widest_count_every_cycle():
    config = SMALL.with_(n_pes=64)
    seen = Host([], config, engine=lambda cycle: {"saturations": 64}, extra=20)
    assert seen.answers == []
    words = concat(*([0xF0000000] for _ in range(20)), host.read(Register.SATURATIONS))
    seen = Host(words, config, engine=lambda cycle: {"saturations": 64 if cycle < 10 else 0})
    assert seen.answers == [640]


def test_wrong_words_set_the_error_flag_and_the_stream_goes_on():
    assert errors([]) == 0
    good = host.load(Target.BIAS, [9], 18, pe=1)
    # An engine without an element-wise unit knows no routines, states or peepholes.
    for op in {*range(16)} - {*HostOp} | {HostOp.CALL}:
        seen = Host(concat(command(op, 3, 2), good, host.read(Register.ERRORS)))
        assert seen.answers == [1], op
        assert seen.loads == [(Kind.LOAD_BIAS, 1, 0, 9)], op
        assert seen.last == (0, 0, 0, 0)
    for target in {*range(16)} - {*Target} | {
            Target.ACT, Target.CELL, Target.RESULT, Target.PEEPHOLE}:
        wrong = [*command(HostOp.LOAD, target), 4, 3, 7, 8, 9]
        seen = Host(concat(wrong, good, host.read(Register.ERRORS)))
        assert seen.answers == [1], target
        assert seen.loads == [(Kind.LOAD_BIAS, 1, 0, 9)], target
        assert seen.programs == []
        assert seen.last == (0, 0, 0, 0)
    for number in (SMALL.n_pes, SMALL.n_pes + 1, 1 << 15):
        wrong = host.load(Target.SPMAT, [7, 8], SMALL.spmat_word_bits, pe=number)
        seen = Host(concat(wrong, good, host.read(Register.ERRORS)))
        assert seen.answers == [1], number
        assert seen.loads == [(Kind.LOAD_BIAS, 1, 0, 9)], number
    for number in set(range(16)) - set(Register):
        seen = Host(concat(command(HostOp.READ, number), good, host.read(Register.ERRORS)))
        assert seen.answers == [0, 1], number
        assert seen.loads == [(Kind.LOAD_BIAS, 1, 0, 9)], number
    unknown = host.load(Target.REGISTER, [1, 2], 32, address=2)
    seen = Host(concat(unknown, good, host.read(Register.ERRORS)))
    assert seen.answers == [1]
    assert seen.last == (0, 0, 1, 0)
    assert seen.loads == [(Kind.LOAD_BIAS, 1, 0, 9)]


def test_reset_in_the_middle_of_a_load():
    words = concat([*command(HostOp.LOAD, Target.BIAS), 0, 9, 1, 2], host.read(Register.MAGIC))
    seen = Host(words, reset_at=4, in_rows=2, run=True)
    assert seen.answers == [host.MAGIC]
    assert seen.last == (2, 0, 0, 1)


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 'small'$"):
        HostInterface("small")
    with pytest.raises(ValueError, match=r"^in_rows must be 0 to 30, not 31$"):
        HostInterface(SMALL, in_rows=31)
    for bases in ((0, 30), (-1, 0), (0,)):
        with pytest.raises(ValueError, match=r"^in_base must be two addresses from 0 to 29, not "):
            HostInterface(SMALL, in_base=bases)


def test_stalls_of_an_engine():
    """Columns of several entries fill a short queue, and the broadcast waits; a long one takes all
    of them."""
    network = random_network(1, [24, 16], 0.9)
    counts = []
    for depth in (1, 32):
        config = size_for(network, 2, queue_depth=depth)
        quantised = quantise(network, config)
        inputs = random_inputs(2, network, 2)
        with Simulation(Engine(config)) as simulation:
            report = run_simulation(simulation, compile_network(quantised, config), inputs,
                                    run_reference(quantised, inputs))
            answer = simulation.run({"i_host": host.read(Register.STALLS)}, {"o_host": 1})
        assert report.mismatches == 0
        counts.append(int(answer.outputs["o_host"][0]))
    # Each PE needs 8 cycles for a column.
    assert counts[0] > 50
    assert counts[1] == 0
