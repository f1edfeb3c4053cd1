"""The compiler: an interpreter that knows only the memory image must equal the reference.

`emulate` is written from the description of the machine, entry by entry in Python integers, and
shares no code with the packer, the compiler or the reference.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.model import elementwise
from openese.model.compile import FitError, compile_network, size_for
from openese.model.config import PRESETS, EngineConfig
from openese.model.host import HostOp, Target, dumped, load_state
from openese.model.matrix import FixedMatrix
from openese.model.network import CompressedLinear, CompressedNetwork, CompressedRecurrent
from openese.model.program import Cell, Op
from openese.model.quantise import ModelError, quantise
from openese.model.random_network import (
    RandomLayer,
    random_inputs,
    random_network,
    random_recurrent,
)
from openese.model.reference import run_reference
from openese.model.resources import engine_memories
from openese.sim.bench_ese import ese_on_chip


def signed(word, bits):
    return int(word) - (1 << bits if int(word) >> (bits - 1) & 1 else 0)


class Machine:
    """All memories of an engine loaded with an image; `run` makes one pass per vector.

    Nothing says when the element-wise unit works between the instruction that starts it and the
    first one that must wait for it. `lazy` tries both ends: at once, or a unit whenever a column is
    asked for, and the rest, with all that it writes to the activation memories, when something
    waits.
    """

    def __init__(self, image, lazy=False):
        config = image.config
        self.image, self.config, self.lazy = image, config, lazy
        for words, depth in [*((w, config.spmat_depth) for w in image.spmat),
                             *((w, config.ptr_depth) for w in image.ptr),
                             *((w, config.bias_depth) for w in image.bias),
                             (image.codebook, config.codebook_depth),
                             (image.program, config.program_depth),
                             (image.peephole, config.peephole_depth)]:
            assert len(words) <= depth
        self.act = np.zeros((config.n_pes, config.act_depth, config.channels), np.int64)
        self.acc = np.zeros((config.n_pes, config.acc_depth, config.channels), np.int64)
        self.state = np.zeros((config.state_depth, config.channels), np.int64)
        self.result = np.zeros_like(self.state)
        self.saturations = self.entries = self.passes = 0
        self.first, self.prefetched = True, False
        self.unit = None  # what the element-wise unit has still to do
        self.fed = False  # whether that goes to an SPMV
        self.written = []  # what has not arrived in the activation memories
        self.outputs = []

    def weight(self, code, fields, k):
        if self.config.direct_weights:
            return signed(code, k) << fields["align"]
        book = fields["codebook"] << self.config.code_bits
        return signed(self.image.codebook[book + code], self.config.weight_bits)

    def entry(self, pe, place, row, values, fields):
        """Adds an entry; returns its row and its flag."""
        config = self.config
        entry = int(self.image.spmat[pe][place])
        assert entry >> config.spmat_word_bits == 0
        k = config.min_code_bits + fields["code_sel"]
        row += 1 + (entry >> k & ((1 << (config.entry_bits - k)) - 1))
        self.acc[pe][row] += values * self.weight(entry & ((1 << k) - 1), fields, k)
        assert (np.abs(self.acc[pe][row]) < 1 << (config.acc_bits - 1)).all()
        self.entries += 1
        return row, entry >> config.entry_bits

    def column(self, pe, pointer, values, fields, first_row):
        """One column in one PE."""
        config = self.config
        word = int(self.image.ptr[pe, pointer])
        place, kind = word & ((1 << config.spmat_addr_bits) - 1), word >> config.spmat_addr_bits
        left = kind if kind < 3 else None
        row = first_row - 1
        while left != 0:
            row, flag = self.entry(pe, place, row, values, fields)
            place += 1
            if left is not None:
                left -= 1
            if flag:
                assert left is None
                left = 2

    def columns(self, fields, elements):
        """An SPMV with these activations."""
        config = self.config
        acc = fields.get("acc_odd" if self.passes % 2 else "acc", 0)
        if config.pointers:
            for j, values in enumerate(elements):
                for pe in range(config.n_pes):
                    if values.any():
                        self.column(pe, fields["base"] + j, values, fields, acc)
            return
        k, elements = config.min_code_bits + fields["code_sel"], list(elements)
        for pe in range(config.n_pes):
            place, row = fields["spmat"], -1
            for values in elements:
                # Rows of this column are 0 to height - 1.
                while True:
                    skip = int(self.image.spmat[pe][place]) >> k
                    if row + 1 + skip >= fields["height"]:
                        row -= fields["height"]
                        break
                    row = self.entry(pe, place, acc + row, values, fields)[0] - acc
                    place += 1
            # Where the next column would begin is an entry that counts nowhere.
            word = int(self.image.spmat[pe][place])
            assert (row + 1 + (word >> k), word & ((1 << k) - 1)) == (0, 0)

    def span(self, fields, base):
        """PEs and rows of a region, in the order of its elements."""
        for row in range(fields["rows"]):
            last = row == fields["rows"] - 1
            for pe in range(fields["rem"] if last else self.config.n_pes):
                yield pe, base + row

    def elements(self, fields, base):
        # Copies: what is written later is not seen.
        return [self.act[pe, row].copy() for pe, row in self.span(fields, base)]

    def write_back(self, pe, row, bias, fields):
        """Drains an accumulator; one value per channel."""
        config = self.config
        low, high = -(1 << (config.act_bits - 1)), (1 << (config.act_bits - 1)) - 1
        total = self.acc[pe, row] >> (config.shift_base + fields["shift"])
        total = total + signed(bias, config.bias_bits)
        y = (total + (1 << (config.bias_guard - 1))) >> config.bias_guard
        y = np.maximum(y, 0) if fields["relu"] else y
        self.saturations += int(((y < low) | (y > high)).sum())
        self.acc[pe, row] = 0
        return np.clip(y, low, high)

    def write(self, fields):
        acc = fields.get("acc_odd" if self.passes % 2 else "acc", 0)
        for pe in range(self.config.n_pes):
            for row in range(fields["rows"]):
                self.act[pe, fields["act"] + row] = self.write_back(
                    pe, acc + row, self.image.bias[pe, fields["base"] + row], fields)

    def bias(self, pe, row, k, fields):
        """Of an accumulator of a unit, from its lane, which has them in the order of arrival."""
        lanes = 1 if self.config.serial_cells else 4
        lane, at = pe % lanes, pe // lanes
        pes = len(range(lane, self.config.n_pes, lanes))
        place = (row * pes + at) * (fields["gates"] + 1) + k
        return self.image.bias[lane, fields["base"] + place] if fields["biased"] else 0

    def cell(self, fields, active, acc):
        """A CELL instruction, unit by unit; gives its results."""
        bits, slots = self.config.act_bits, fields["gates"] + 1
        for unit, (pe, row) in enumerate(self.span(fields, 0)):
            gates = [self.write_back(pe, acc + row * slots + k, self.bias(pe, row, k, fields),
                                     fields) for k in range(slots)]
            if not fields["hold"]:
                assert fields["cell"] == Cell.PASS
                self.give(fields, pe, row, gates[0])
                yield gates[0]
                continue
            place = fields["state"] + unit
            state, kept = self.state[place], self.state[place].copy()
            if fields["cell"] == Cell.LSTM:
                word = self.image.peephole[fields["peep"] + unit] if fields["peephole"] else 0
                weights = [signed(word >> k * bits & ((1 << bits) - 1), bits) for k in range(3)]
                h, new, clipped = elementwise.lstm_cell(
                    np.array(gates), state, act_bits=bits, cell_shift=fields["cell_shift"],
                    peephole=np.array(weights)[:, None] if fields["peephole"] else None,
                    peep_shift=fields["peep_shift"])
                self.saturations += int((clipped & active).sum())
            elif fields["cell"] == Cell.GRU:
                h = new = elementwise.gru_cell(np.array(gates), state, act_bits=bits)
            else:
                new = kept
                h = elementwise.tanh(gates[0], bits) if fields["cell"] == Cell.TANH else gates[0]
            self.state[place] = np.where(active, new, kept)
            self.result[place] = h = np.where(active, h, self.result[place])
            self.give(fields, pe, row, h)
            yield h
        # A last row may have fewer units than PEs; the rest has only a bias of 0.
        for pe in range(fields["rem"], self.config.n_pes):
            for k in range(slots):
                row = fields["rows"] - 1
                assert not self.write_back(pe, acc + row * slots + k,
                                           self.bias(pe, row, k, fields), fields).any()

    def give(self, fields, pe, row, h):
        """A result of a CELL to its destinations but a feed."""
        if fields["to_act"]:
            self.written.append(((pe, fields["act"] + row), h))
        if fields["to_out"]:
            self.outputs.append(h)

    def wait(self):
        """The element-wise unit finishes."""
        assert not self.fed, "nothing takes what the element-wise unit gives"
        for _ in self.unit or ():
            pass
        self.unit = None
        for place, values in self.written:
            self.act[place] = values
        self.written = []

    def instruction(self, fields, source, active, more):
        """`source`: address of the input, `more`: that of the next one, if it has arrived."""
        field = {"first": 0, "prefetch": 0, "sync": 0, "feed": 0, **fields}
        if fields["op"] in (Op.CELL, Op.STATE) or field["sync"]:
            self.wait()
        if field["first"] and not self.first:
            return
        base = fields["act"]
        if fields["op"] == Op.SPMV and fields["from_input"]:
            base = source
            if field["prefetch"]:
                if more is None:
                    return
                base, self.prefetched = more, True
            elif self.prefetched:
                self.prefetched = False
                return
        if fields["op"] == Op.SPMV:
            if field["feed"]:
                assert self.fed
                self.fed = False
                self.columns(fields, self.unit)
                assert next(self.unit, None) is None
                self.unit = None
            else:
                self.columns(fields, self.elements(fields, base))
        elif fields["op"] == Op.WRITE:
            self.write(fields)
        elif fields["op"] == Op.OUTPUT:
            self.outputs += self.elements(fields, base)
        elif fields["op"] == Op.CELL:
            acc = fields["acc_odd" if self.passes % 2 else "acc"]
            self.unit, self.fed = self.cell(fields, active, acc), bool(fields["to_feed"])
            if not self.lazy:
                self.unit = iter(list(self.unit))
                for place, values in self.written:
                    self.act[place] = values
        else:
            for place in range(fields["state"], fields["state"] + self.length(fields)):
                self.outputs.append(self.state[place].copy())

    def length(self, fields):
        return (fields["rows"] - 1) * self.config.n_pes + fields["rem"]

    def clear(self):
        """What an engine does before a pass once memories have been loaded."""
        self.wait()
        self.acc[:] = 0
        self.first, self.prefetched = True, False

    def run(self, vectors, active=None, arrived=()):
        """Outputs ``(n, channels, out_features)``; `arrived`: vectors that are never late."""
        bases = self.image.in_base
        for number in range(len(vectors)):
            for ahead in (number, number + 1):
                if ahead < len(vectors):
                    for i, values in enumerate(np.reshape(
                            vectors[ahead], (self.config.channels, -1)).T):
                        self.act[i % self.config.n_pes,
                                 bases[ahead % 2] + i // self.config.n_pes] = values
            early = number + 1 in arrived and number + 1 < len(vectors)
            more = bases[(number + 1) % 2] if early else None
            mask = np.ones(self.config.channels, bool) if active is None else active[number]
            for fields in self.image.instructions:
                self.instruction(fields, bases[number % 2], mask, more)
                if fields["last"]:
                    break
            self.passes += 1
            self.first = False
        self.wait()
        results, self.outputs = np.array(self.outputs), []
        return results.reshape(len(vectors), self.image.out_features, -1).transpose(0, 2, 1)

    def load(self, words):
        """LOAD commands of states."""
        words = [int(word) for word in words]
        while words:
            head, address, count, *words = words
            items, words = np.array(words[:count]), words[count:]
            assert head >> 28 == HostOp.LOAD
            assert (items >> self.config.act_bits == 0).all()
            items -= items >> (self.config.act_bits - 1) << self.config.act_bits
            target, channel, pe = head >> 24 & 15, head >> 16 & 0xFF, head & 0xFFFF
            memory = {Target.ACT: self.act[pe], Target.CELL: self.state,
                      Target.RESULT: self.result}[Target(target)]
            assert pe == 0 or target == Target.ACT
            memory[address:address + count, channel] = items

    def dump(self):
        """What the routine behind the program sends: ``(beats, channels)``."""
        for fields in self.image.instructions[self.image.dump:]:
            self.instruction(fields, None, None, None)
        assert [f["last"] for f in self.image.instructions[self.image.dump:]].count(1) == 1
        result, self.outputs = np.array(self.outputs), []
        return result


def emulate(image, raw):
    """Outputs, saturations and entries read of an engine that runs vector after vector."""
    machine = Machine(image)
    outputs = machine.run(raw)[:, 0]
    assert [f["last"] for f in image.instructions[:-1]] == [0] * (len(image.instructions) - 1)
    assert image.instructions[-1]["last"] == 1
    return outputs.tolist(), machine.saturations, machine.entries


def check(network, config, inputs):
    quantised = quantise(network, config)
    image = compile_network(quantised, config)
    result = run_reference(quantised, inputs)
    outputs, saturations, entries = emulate(image, inputs)
    assert outputs == result.outputs.tolist()
    assert saturations == result.saturations
    # Entries read are the useful ones and the fillers of the columns broadcast.
    if config.pointers:
        fillers = sum(int(((x != 0).reshape(len(inputs), -1) @ table.fillers.sum(axis=0)).sum())
                      for x, table in zip(result.activations, image.layers, strict=True))
        assert entries == sum(int(m.sum()) for m in result.multiplies) + fillers
    else:
        assert entries == len(inputs) * image.entries
    return image


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 1 << 32), sizes=st.lists(st.integers(1, 50), min_size=2, max_size=5),
       density=st.one_of(st.floats(0, 1), st.floats(0, 0.1)), code_bits=st.integers(1, 5),
       entry_bits=st.integers(6, 12), n_pes=st.sampled_from([1, 2, 3, 4, 5, 8, 16, 64]),
       headroom=st.integers(-2, 2), bias=st.booleans(), active=st.floats(0, 1),
       pointers=st.booleans(), recurrent=st.booleans())
def test_image_equals_reference(seed, sizes, density, code_bits, entry_bits, n_pes, headroom, bias,
                                active, pointers, recurrent):
    network = random_network(seed, sizes, density, code_bits, headroom=headroom, bias=bias)
    config = size_for(network, n_pes, entry_bits=entry_bits, shift_base=4, shift_bits=4,
                      bias_bits=24, pointers=pointers, state_depth=int(recurrent))
    check(network, config, random_inputs(seed, network, 3, active))


@pytest.mark.parametrize("n_pes", [1, 2, 3, 5, 16])
def test_edge_shapes_of_layers(n_pes):
    for sizes in ([1, 1], [1, 40], [40, 1], [1, 1, 1], [17, 33, 16], [3, 2, 5, 4]):
        network = random_network(1, sizes, 0.6)
        check(network, size_for(network, n_pes), random_inputs(1, network, 3, 0.7))


@pytest.mark.parametrize("n_pes", [1, 4, 8])
def test_layers_with_codes_of_different_widths(n_pes):
    network = random_network(2, [30, 20, 25, 10], 0.3, [2, 5, 3])
    config = size_for(network, n_pes, min_code_bits=3)
    image = check(network, config, random_inputs(2, network, 3))
    assert [table.code_bits for table in image.layers] == [3, 5, 3]
    assert [f["code_sel"] for f in image.instructions if f["op"] == Op.SPMV] == [0, 2, 0]


@pytest.mark.parametrize("active", [0.0, 1.0])
@pytest.mark.parametrize("negative", [True, False])
def test_all_and_no_activations(active, negative):
    network = random_network(3, [24, 18, 6], 0.4)
    check(network, size_for(network, 4), random_inputs(3, network, 3, active, negative=negative))


def test_layer_without_weights():
    network = random_network(4, [10, 12, 8], [0.0, 0.5])
    image = check(network, size_for(network, 4), random_inputs(4, network, 2))
    assert image.ptr[:, :10].sum() == 0
    network = random_network(4, [10, 12], 0.0, bias=False)
    image = check(network, size_for(network, 4), random_inputs(4, network, 2))
    assert image.entries == 0


def test_long_gaps_reach_the_right_row():
    codes = np.zeros((200, 3), np.uint8)
    codes[[0, 16, 33, 65, 199], [0, 0, 0, 0, 0]] = [1, 2, 3, 4, 5]
    codes[[15, 47, 100], [1, 1, 1]] = [6, 7, 8]
    codebook = np.linspace(0, 1, 16)
    layer = CompressedLinear.from_codes("fc", codes, codebook, np.zeros(200), relu=False,
                                        out_frac=10)
    network = CompressedNetwork([layer], 12)
    for n_pes in (1, 3):
        image = check(network, size_for(network, n_pes), random_inputs(5, network, 4, 0.8))
        assert image.fillers > 0


def test_deep_network_reuses_two_regions():
    sizes = [9, 30, 7, 12, 25, 4]
    network = random_network(6, sizes, 0.5)
    config = size_for(network, 4)
    image = check(network, config, random_inputs(6, network, 4))
    # Inputs take 3 rows each; even layers write at most 8 rows (30), odd ones 7 (25).
    assert (image.in_rows, image.in_base) == (3, (0, 3))
    assert [f["act"] for f in image.instructions if f["op"] == Op.WRITE] == [6, 14, 6, 14, 6]
    assert config.act_depth == 6 + 8 + 7


def test_hand_worked_image():
    codes = np.array([[1, 0], [0, 2], [3, 1]])
    layer = CompressedLinear.from_codes("fc", codes, [0, 1.0, -1.0, 0.5], [1.0, 0, -1.0],
                                        relu=True, out_frac=8)
    config = EngineConfig(n_pes=2, spmat_depth=4, ptr_depth=3, bias_depth=2, act_depth=8,
                          acc_depth=2, code_bits=2, min_code_bits=2, entry_bits=6, codebooks=2)
    image = compile_network(quantise(CompressedNetwork([layer], 8), config), config)
    # PE 0 has rows 0 and 2, PE 1 row 1.
    assert [words.tolist() for words in image.spmat] == [[1, 3, 1 << 2 | 1], [2]]
    one, two = 1 << 2, 2 << 2  # length classes above the 2-bit address
    assert image.ptr.tolist() == [[0 | two, 2 | one], [0, 0 | one]]
    assert image.bias.tolist() == [[1024, (1 << 18) - 1024], [0, 0]]
    assert image.codebook.tolist() == [0, 16384, 0x10000 - 16384, 8192, 0, 0, 0, 0]
    assert (image.in_features, image.out_features, image.entries, image.fillers) == (2, 3, 4, 0)
    assert [(f["op"], f["rows"], f["rem"], f["act"], f["base"], f["shift"], f["relu"])
            for f in image.instructions] == [
        (Op.SPMV, 1, 2, 0, 0, 0, 0), (Op.WRITE, 2, 1, 2, 0, 4, 1), (Op.OUTPUT, 2, 1, 2, 0, 0, 0)]
    table, = image.layers
    assert (table.name, table.in_features, table.out_features, table.code_bits) == ("fc", 2, 3, 2)
    assert table.lengths.tolist() == [[2, 1], [0, 1]]


LIMITS = ["spmat_depth", "ptr_depth", "bias_depth", "act_depth", "acc_depth", "codebooks",
          "program_depth"]


@pytest.mark.parametrize("field", LIMITS)
def test_smallest_engine_fits_and_one_less_does_not(field):
    network = random_network(7, [40, 30, 20], 0.4)
    config = size_for(network, 4)
    quantised = quantise(network, config)
    compile_network(quantised, config)
    need = getattr(config, field)
    with pytest.raises(FitError, match=rf"^the network does not fit: needs {field} {need}, the "
                                       rf"engine has {need - 1}: use \S.*$") as error:
        compile_network(quantised, config.with_(**{field: need - 1}))
    assert "\n" not in str(error.value)


def test_every_exceeded_limit_is_named():
    network = random_network(7, [40, 30, 20], 0.4)
    config = size_for(network, 4)
    small = config.with_(**{field: getattr(config, field) - 1 for field in LIMITS})
    with pytest.raises(FitError) as error:
        compile_network(quantise(network, config), small)
    assert all(f"needs {field} " in str(error.value) for field in LIMITS)
    assert "use more PEs, a lower density or a larger preset" in str(error.value)
    assert isinstance(error.value, ModelError)


def test_codes_wider_than_the_engine_are_refused():
    network = random_network(7, [10, 5], 0.5, 6)
    quantised = quantise(network, PRESETS["demo"])
    with pytest.raises(FitError, match=r"layer 'layers.0' has 6-bit codes, the engine has "
                                       r"code_bits 4: share fewer weights or use an engine"):
        compile_network(quantised, PRESETS["demo"])
    with pytest.raises(FitError, match="has 6-bit codes"):
        size_for(quantised, 4, code_bits=4)


def test_networks_quantised_for_other_widths_are_refused():
    network = random_network(7, [10, 5])
    quantised = quantise(network, PRESETS["demo"])
    with pytest.raises(FitError, match=r"was quantised for acc_bits 32 \(the engine has 40\), "
                                       r"shift_base 8 \(the engine has 6\): quantise it for this"):
        compile_network(quantised, PRESETS["demo"].with_(acc_bits=40, shift_base=6))


def test_size_for_takes_overrides_and_both_kinds_of_network():
    network = random_network(8, [40, 30], 0.5, 5)
    config = size_for(network, 4, spmat_depth=5000, queue_depth=2, input_lanes=2)
    assert (config.spmat_depth, config.queue_depth, config.input_lanes) == (5000, 2, 2)
    assert (config.code_bits, config.min_code_bits, config.entry_bits) == (5, 5, 9)
    quantised = quantise(network, config.with_(acc_bits=40))
    assert size_for(quantised, 4).acc_bits == 40
    assert size_for(network, 4) == size_for(quantise(network, config), 4)
    assert size_for(random_network(8, [9, 9], act_bits=12, in_frac=8), 2).act_bits == 12
    with pytest.raises(ValueError, match="input_lanes must divide n_pes"):
        size_for(network, 4, input_lanes=3)


def test_networks_larger_than_any_engine():
    network = random_network(9, [800, 800], 0.5)
    with pytest.raises(FitError, match=r"no engine of 1 PEs fits: spmat_depth must be an integer "
                                       r"from 1 to 262144, not \d+; use more PEs"):
        size_for(network, 1)


def test_equal_names_do_no_harm():
    network = random_network(10, [8, 8, 8], 0.5)
    for layer in network.layers:
        layer.name = "model.a b.fc"
    check(network, size_for(network, 2), random_inputs(10, network, 2))


def test_pe_counts_give_equal_outputs():
    network = random_network(11, [60, 50, 10], 0.2)
    inputs = random_inputs(11, network, 2, 0.4)
    outputs = set()
    for n_pes in (1, 2, 3, 4, 5, 8, 16, 64):
        config = size_for(network, n_pes)
        image = compile_network(quantise(network, config), config)
        outputs.add(str(emulate(image, inputs)[:2]))
    assert len(outputs) == 1


# -- recurrent networks -----------------------------------------------------------------------


def entries_of(image, result):
    """Entries of all columns that steps broadcast, and of the state they end with."""
    sums = [table.lengths.sum(axis=0) for table in image.layers]
    total = 0
    for lengths, x in zip(sums, result.activations, strict=True):
        used = (x != 0).reshape(len(x), -1, x.shape[-1]).any(axis=1)
        total += int(((used | (not image.config.pointers)) @ lengths).sum())
    names = [table.name for table in image.layers]
    for table, layer in zip(image.states, result.state, strict=True):
        used = (layer.h != 0).any(axis=0) | (not image.config.pointers)
        total += int(used @ sums[names.index(f"{table.name}.weight_hh")])
    return total


def check_sequence(network, config, inputs, *, cut=0, active=None, arrived=()):
    """Both ends of the element-wise unit's freedom, the second half of the steps on a new engine
    that is given the state."""
    quantised = quantise(network, config)
    image = compile_network(quantised, config)

    def masked(part):
        return None if active is None else active[part]

    parts, state = [], None
    for part in (slice(0, cut), slice(cut, None)):
        if len(inputs[part]):
            result = run_reference(quantised, inputs[part], state=state, active=masked(part))
            parts.append((part, state, result))
            state = result.state
    whole = run_reference(quantised, inputs, active=active)
    assert np.array_equal(np.concatenate([result.outputs for *_, result in parts]), whole.outputs)

    for lazy in (False, True):
        for part, before, result in parts:
            machine = Machine(image, lazy)
            if before is not None:
                machine.load(load_state(image, before))
            outputs = machine.run(inputs[part], masked(part), arrived)
            assert outputs.tolist() == result.outputs.reshape(outputs.shape).tolist()
            assert machine.saturations == result.saturations
            assert machine.entries == entries_of(image, result)
            if image.dump is not None:
                assert machine.dump().tolist() == dumped(image, result.state).tolist()
    return image


@st.composite
def random_layers(draw):
    cell = draw(st.sampled_from(["lstm", "lstm", "gru", "rnn_tanh", "rnn_relu", "linear"]))
    size = draw(st.integers(2, 14))
    lstm = cell == "lstm"
    return RandomLayer(
        cell=cell, size=size, proj=draw(st.integers(0, size - 1)) if lstm else 0,
        peepholes=lstm and draw(st.booleans()), bias=draw(st.booleans()), relu=draw(st.booleans()),
        density=draw(st.sampled_from([0.0, 0.1, 0.3, 0.8])))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1 << 32), in_features=st.integers(1, 14),
       layers=st.lists(random_layers(), min_size=1, max_size=4),
       n_pes=st.sampled_from([1, 2, 3, 4, 5, 8, 16, 64]), channels=st.sampled_from([1, 1, 2, 5]),
       fixed=st.booleans(), pointers=st.booleans(), cut=st.integers(0, 5),
       arrived=st.sets(st.integers(0, 5)), headroom=st.integers(-1, 1))
def test_recurrent_image_equals_reference(seed, in_features, layers, n_pes, channels, fixed,
                                          pointers, cut, arrived, headroom):
    network = random_recurrent(seed, in_features, layers, fixed_bits=12 if fixed else None,
                               headroom=headroom)
    config = size_for(network, n_pes, channels=channels, pointers=pointers, shift_base=4,
                      shift_bits=5, bias_bits=28, acc_bits=40)
    many = network.recurrent and channels > 1
    inputs = random_inputs(seed, network, (5, channels) if channels > 1 else 5, 0.6)
    active = np.random.default_rng(seed).random((5, channels)) < 0.7 if many else None
    check_sequence(network, config, inputs, cut=cut, active=active, arrived=arrived)


LSTM = RandomLayer(cell="lstm", size=7)
PROJECTED = RandomLayer(cell="lstm", size=7, proj=4, peepholes=True)
LINEAR = RandomLayer(cell="linear", size=5)


def steps_of(image):
    """The program as text: operation, matrix, and the flags that are set."""
    config, steps = image.config, []
    flags = ["from_input", "first", "prefetch", "flow", "sync", "feed", "to_act", "to_feed",
             "to_out", "last"]
    for fields in image.instructions:
        what = [Op(fields["op"]).name]
        if fields["op"] == Op.SPMV:
            what.append(image.layers[fields["codebook"]].name.removeprefix("layers."))
        if fields["op"] == Op.CELL:
            what.append(Cell(fields["cell"]).name)
        if fields["op"] in (Op.SPMV, Op.CELL):
            what.append(f"acc {fields['acc']}" if fields["acc"] == fields["acc_odd"] else
                        f"acc {fields['acc']}/{fields['acc_odd']}")
        steps.append(" ".join([*what, *(name for name in flags if fields[name])]))
    assert config.recurrent
    return steps


PROGRAMS = {
    "lstm": ([LSTM], """
        SPMV 0.weight_hh acc 0/8 first flow sync
        SPMV 0.weight_ih acc 0/8 from_input flow
        CELL LSTM acc 0/8 flow to_act to_feed to_out
        SPMV 0.weight_ih acc 8/0 from_input prefetch flow
        SPMV 0.weight_hh acc 8/0 flow feed last
        OUTPUT sync
        STATE last"""),
    "projection": ([PROJECTED], """
        SPMV 0.weight_hh acc 0 first flow sync
        SPMV 0.weight_ih acc 0 from_input flow
        CELL LSTM acc 0 flow to_feed
        SPMV 0.weight_hr acc 8 flow feed
        CELL PASS acc 8 flow to_act to_feed to_out
        SPMV 0.weight_ih acc 0 from_input prefetch flow
        SPMV 0.weight_hh acc 0 flow feed last
        OUTPUT sync
        STATE last"""),
    "two layers": ([PROJECTED, LSTM], """
        SPMV 0.weight_hh acc 0 first flow sync
        SPMV 1.weight_hh acc 9/17 first flow sync
        SPMV 0.weight_ih acc 0 from_input flow
        CELL LSTM acc 0 flow to_feed
        SPMV 0.weight_hr acc 8 flow feed
        CELL PASS acc 8 flow to_act to_feed
        SPMV 1.weight_ih acc 9/17 flow feed
        CELL LSTM acc 9/17 flow to_act to_feed to_out
        SPMV 0.weight_hh acc 0 flow
        SPMV 0.weight_ih acc 0 from_input prefetch flow
        SPMV 1.weight_hh acc 17/9 flow feed last
        OUTPUT sync
        OUTPUT sync
        STATE
        STATE last"""),
    "linear behind": ([RandomLayer(cell="gru", size=7), LINEAR, LINEAR], """
        SPMV 0.weight_hh acc 2 first flow sync
        SPMV 0.weight_ih acc 2 from_input flow
        CELL GRU acc 2 flow to_act to_feed
        SPMV 1 acc 0 flow feed
        CELL PASS acc 0 flow to_act
        SPMV 0.weight_hh acc 2 flow
        SPMV 2 acc 0 flow sync
        CELL PASS acc 0 flow to_out
        SPMV 0.weight_ih acc 2 from_input prefetch flow last
        OUTPUT sync last"""),
    "linear before and between": ([LINEAR, RandomLayer(cell="rnn_relu", size=7), LINEAR, LSTM], """
        SPMV 1.weight_hh acc 2 first flow sync
        SPMV 3.weight_hh acc 4/12 first flow sync
        SPMV 0 acc 0 from_input flow sync
        CELL PASS acc 0 flow to_act
        SPMV 1.weight_ih acc 2 flow sync
        CELL PASS acc 2 flow to_act to_feed
        SPMV 2 acc 0 flow feed
        CELL PASS acc 0 flow to_act
        SPMV 3.weight_ih acc 4/12 flow sync
        CELL LSTM acc 4/12 flow to_act to_feed to_out
        SPMV 1.weight_hh acc 2 flow
        SPMV 3.weight_hh acc 12/4 flow feed last
        OUTPUT sync
        OUTPUT sync
        STATE last"""),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    layers, expected = PROGRAMS[name]
    network = random_recurrent(1, 6, layers)
    config = size_for(network, 4)
    image = check_sequence(network, config, random_inputs(1, network, 4), arrived={1, 3})
    assert steps_of(image) == [line.strip() for line in expected.strip().splitlines()]
    # Behind the pass comes the routine.
    assert [f["last"] for f in image.instructions].index(1) + 1 == image.dump


def test_hand_worked_recurrent_image():
    """A GRU of 3 units on 2 PEs: unit 0 and 2 in PE 0, and a unit's four slots side by side."""
    ones = 200 * np.arange(1, 10)[:, None]
    state = np.zeros((9, 3), np.int32)
    state[[0, 4, 8], [0, 1, 2]] = [-400, -800, -1200]
    layer = CompressedRecurrent(
        "gru", "gru", 1, 3, FixedMatrix.from_raw(ones, 12, 11), FixedMatrix.from_raw(state, 12, 11),
        bias=np.arange(12) / 64)
    network = CompressedNetwork([layer], 15)
    config = size_for(network, 2)
    assert (config.direct_weights, config.code_bits, config.entry_bits) == (True, 12, 17)
    image = compile_network(quantise(network, config), config)
    table_x, table_h = image.layers
    assert (table_x.name, table_h.name) == ("gru.weight_ih", "gru.weight_hh")
    # Rows of PE 0: r, z, n_x, n_h of unit 0, then of unit 2. Row 4 of PE 0 follows 1 left out.
    finest = 1 << 12
    skip, flag = finest, 1 << 17
    rows = [200, 800, 1400, skip | 600, 1200, 1800]
    rows[3] |= flag
    assert image.spmat[0].tolist() == [*rows, finest - 400, 7 * skip | (finest - 1200)]
    assert image.spmat[1].tolist() == [400 | flag, 1000, 1600, skip | (finest - 800)]
    assert image.codebook.shape == (0,)
    one = 1 << 13 >> 6  # a 64th at gate_frac + bias_guard
    assert image.bias.tolist() == [[one * k for k in (0, 3, 6, 9, 2, 5, 8, 11)],
                                   [one * k for k in (1, 4, 7, 10)] + [0] * 4]
    table, = image.states
    assert (table.act, table.out_features, table.state, table.units, table.has_cell,
            table.is_gru) == (2, 3, 0, 3, False, True)
    cell, = [f for f in image.instructions if f["op"] == Op.CELL]
    assert (cell["act"], cell["rows"], cell["rem"], cell["gates"]) == (2, 2, 1, 3)
    assert config.acc_depth == 2 * 4 * 2


def test_regions_of_a_stack():
    layers = [RandomLayer(cell="lstm", size=9, proj=3, peepholes=True), LINEAR,
              RandomLayer(cell="gru", size=6), RandomLayer(cell="lstm", size=5, peepholes=True)]
    network = random_recurrent(2, 10, layers)
    config = size_for(network, 4)
    image = compile_network(quantise(network, config), config)
    assert [(t.name, t.act, t.out_features, t.state, t.units, t.results) for t in image.states] == [
        ("layers.0", 8, 3, 0, 9, 9), ("layers.2", 9, 6, 9, 6, 9), ("layers.3", 11, 5, 15, 5, 15)]
    assert (config.act_depth, config.state_depth, config.peephole_depth) == (13, 20, 14)
    # L; A and P of the first; A of the second; twice A of the last.
    assert config.acc_depth == 2 + (12 + 1) + 8 + 2 * 8
    assert config.bias_depth == 12 + 2 + 8 + 8
    assert len(image.peephole) == 14
    cells = [f for f in image.instructions if f["op"] == Op.CELL]
    assert [f["acc"] for f in cells] == [2, 14, 0, 15, 23]
    assert [f["state"] for f in cells] == [0, 0, 0, 9, 15]
    assert [f["peep"] for f in cells] == [0, 0, 0, 0, 9]
    assert [f["base"] for f in cells] == [0, 0, 12, 14, 22]
    assert [f["biased"] for f in cells] == [1, 0, 1, 1, 1]
    assert [f["hold"] for f in cells] == [1, 1, 0, 1, 1]
    # Results of idle channels are kept of projections as well.
    several = size_for(network, 4, channels=2)
    image = compile_network(quantise(network, several), several)
    assert several.state_depth == 23
    assert [f["state"] for f in image.instructions if f["op"] == Op.CELL] == [0, 9, 0, 12, 18]


def test_sequential_matrices_start_at_equal_addresses():
    network = random_recurrent(3, 9, [LSTM, LINEAR], code_bits=3)
    config = size_for(network, 4, pointers=False, min_code_bits=3)
    image = check_sequence(network, config, random_inputs(3, network, 3), arrived={1})
    assert image.ptr.shape == (4, 0)
    assert config.ptr_depth == 1
    starts = {f["codebook"]: f["spmat"] for f in image.instructions if f["op"] == Op.SPMV}
    begin = 0
    for number, table in enumerate(image.layers):
        assert starts[number] == begin
        # An entry behind the last column ends it.
        begin += int(table.lengths.sum(axis=1).max()) + 1
    assert config.spmat_depth == begin
    assert image.entries < sum(len(words) for words in image.spmat)


@pytest.mark.parametrize("field", [*LIMITS, "state_depth", "peephole_depth"])
def test_smallest_recurrent_engine_fits_and_one_less_does_not(field):
    network = random_recurrent(4, 9, [PROJECTED, LINEAR])
    config = size_for(network, 4)
    quantised = quantise(network, config)
    compile_network(quantised, config)
    need = getattr(config, field)
    smaller = {field: need - 1}
    if field == "state_depth":
        smaller["peephole_depth"] = need - 1  # which is never more
    with pytest.raises(FitError, match=rf"needs {field} {need}, the engine has {need - 1}: use \S"):
        compile_network(quantised, config.with_(**smaller))


def test_layer_of_ese_fits_its_preset():
    """And takes all of the block RAM of the device that the preset is for."""
    network, smallest = ese_on_chip()
    preset = PRESETS["ese-85f"]
    compile_network(quantise(network, preset), preset)
    assert preset.with_(**{name: getattr(smallest, name) for name in (
        "spmat_depth", "act_depth", "program_depth")}) == smallest
    assert 204 <= sum(memory.brams for memory in engine_memories(preset)) <= 206


def test_recurrent_networks_need_an_element_wise_unit():
    network = random_recurrent(5, 4, [LSTM])
    config = size_for(network, 2)
    quantised = quantise(network, config)
    with pytest.raises(FitError, match=r"needs state_depth 7, the engine has 0: use an engine for "
                                       r"recurrent layers"):
        compile_network(quantised, config.with_(state_depth=0))


def test_shared_and_direct_weights_do_not_mix():
    network = random_recurrent(6, 4, [LSTM])
    config = size_for(network, 2)
    direct = size_for(network, 2, direct_weights=True)
    assert (direct.code_bits, direct.min_code_bits, direct.entry_bits) == (12, 12, 17)
    assert direct.codebooks == 1
    quantised = quantise(network, config)
    with pytest.raises(FitError, match=r"was quantised for direct_weights False \(the engine has "
                                       r"True\): quantise it for this"):
        compile_network(quantised, direct.with_(acc_bits=config.acc_bits))


def test_size_for_recurrent_networks():
    shared = random_recurrent(7, 6, [LSTM, LINEAR], code_bits=5)
    config = size_for(shared, 4)
    assert (config.acc_bits, config.shift_bits) == (36, 4)
    assert (config.code_bits, config.min_code_bits, config.entry_bits) == (5, 5, 9)
    assert not config.direct_weights
    assert (config.state_depth, config.peephole_depth) == (7, 0)
    assert size_for(shared, 4, acc_bits=40, shift_bits=5).acc_bits == 40
    fixed = random_recurrent(7, 6, [LSTM, LINEAR], fixed_bits=10)
    config = size_for(fixed, 4, channels=3)
    assert (config.direct_weights, config.code_bits, config.entry_bits) == (True, 10, 15)
    assert config.channels == 3
    assert size_for(quantise(fixed, config), 4, channels=3) == config
    with pytest.raises(ValueError, match="act_bits must be 8 to 17 for recurrent layers"):
        size_for(random_recurrent(7, 6, [LSTM], act_bits=7, in_frac=3), 4)


@pytest.mark.parametrize("steps", [1, 300])
def test_long_and_short_sequences(steps):
    network = random_recurrent(8, 3, [PROJECTED])
    inputs = random_inputs(8, network, steps)
    check_sequence(network, size_for(network, 2), inputs, cut=steps // 2, arrived=range(steps))
