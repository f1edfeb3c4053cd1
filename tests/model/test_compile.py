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
from openese.model.network import CompressedLinear, CompressedNetwork
from openese.model.program import Cell, Op
from openese.model.quantise import ModelError, quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import run_reference


def signed(word, bits):
    return int(word) - (1 << bits if int(word) >> (bits - 1) & 1 else 0)


class Machine:
    """All memories of an engine loaded with an image; `run` makes one pass per vector.

    Nothing says when the element-wise unit works between the instruction that starts it and the
    first one that must wait for it. `lazy` tries both ends: at once, or a unit whenever a column is
    asked for and the rest when something waits. Likewise the first units of a linear layer or the
    scan of a state may find accumulators that are still being drained, or not any more.
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
        self.outputs = []

    def weight(self, code, fields, k):
        if self.config.direct_weights:
            return signed(code, k)
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
        place = [fields.get("spmat")] * config.n_pes
        for j, values in enumerate(elements):
            for pe in range(config.n_pes):
                if not config.pointers:
                    row, flag = acc - 1, 0
                    while not flag:
                        row, flag = self.entry(pe, place[pe], row, values, fields)
                        place[pe] += 1
                elif values.any():
                    self.column(pe, fields["base"] + j, values, fields, acc)

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
        total = total + signed(self.image.bias[pe, bias], config.bias_bits)
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
                    pe, acc + row, fields["base"] + row, fields)

    def cell(self, fields, active):
        """A CELL instruction, unit by unit; gives its results."""
        bits, slots = self.config.act_bits, fields["gates"] + 1
        acc = fields["acc_odd" if self.passes % 2 else "acc"]
        for unit, (pe, row) in enumerate(self.span(fields, 0)):
            gates = [self.write_back(pe, acc + row * slots + k, fields["base"] + row * slots + k,
                                     fields) for k in range(slots)]
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
            if fields["to_act"]:
                self.act[pe, fields["act"] + row] = h
            if fields["to_out"]:
                self.outputs.append(h)
            yield h
        # A last row may have fewer units than PEs; the rest has only a bias of 0.
        for pe in range(fields["rem"], self.config.n_pes):
            for k in range(slots):
                row = (fields["rows"] - 1) * slots + k
                assert not self.write_back(pe, acc + row, fields["base"] + row, fields).any()

    def wait(self):
        """The element-wise unit finishes."""
        assert not self.fed, "nothing takes what the element-wise unit gives"
        for _ in self.unit or ():
            pass
        self.unit = None

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
            self.unit, self.fed = self.cell(fields, active), bool(fields["to_feed"])
            if not self.lazy:
                self.unit = iter(list(self.unit))
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
        results = []
        bases = self.image.in_base
        for number, vector in enumerate(vectors):
            for ahead in (number, number + 1):
                if ahead < len(vectors):
                    for i, values in enumerate(np.reshape(
                            vectors[ahead], (self.config.channels, -1)).T):
                        self.act[i % self.config.n_pes,
                                 bases[ahead % 2] + i // self.config.n_pes] = values
            more = bases[(number + 1) % 2] if number + 1 in arrived else None
            mask = np.ones(self.config.channels, bool) if active is None else active[number]
            for fields in self.image.instructions:
                self.instruction(fields, bases[number % 2], mask, more)
                if fields["last"]:
                    break
            self.passes += 1
            self.first = False
            results.append(np.array(self.outputs).T)
            self.outputs = []
        self.wait()
        return np.array(results)

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
    fillers = sum(int(((x != 0) @ table.fillers.sum(axis=0)).sum())
                  for x, table in zip(result.activations, image.layers, strict=True))
    assert entries == sum(int(m.sum()) for m in result.multiplies) + fillers
    return image


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 1 << 32), sizes=st.lists(st.integers(1, 50), min_size=2, max_size=5),
       density=st.one_of(st.floats(0, 1), st.floats(0, 0.1)), code_bits=st.integers(1, 5),
       entry_bits=st.integers(6, 12), n_pes=st.sampled_from([1, 2, 3, 4, 5, 8, 16, 64]),
       headroom=st.integers(-2, 2), bias=st.booleans(), active=st.floats(0, 1))
def test_image_equals_reference(seed, sizes, density, code_bits, entry_bits, n_pes, headroom, bias,
                                active):
    network = random_network(seed, sizes, density, code_bits, headroom=headroom, bias=bias)
    config = size_for(network, n_pes, entry_bits=entry_bits, shift_base=4, shift_bits=4,
                      bias_bits=24)
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
