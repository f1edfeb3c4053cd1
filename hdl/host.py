"""Host interface: loads memories, starts and stops the engine, answers register reads."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig
from openese.model.host import MAGIC, HostOp, InputRegister, Register, Target

from .checks import checked_config
from .layouts import Kind, broadcast_signature, status_layout
from .sequencer import program_load_layout

__all__ = ["HostInterface"]

#: A target number that LOAD does not know.
NO_TARGET = 15


class HostInterface(wiring.Component):
    """Executes the host's commands in order (``docs/program.md``).

    A load stops the engine as STOP does and waits until it is idle; every item of up to 32 bits
    takes one cycle. An unknown command, target, register or PE sets the error
    flag; its items are dropped.

    Parameters
    ----------
    config
        Engine configuration.
    in_rows, in_base
        Input descriptor at power-up.
    run
        Whether the engine runs from power-up.

    Members
    -------
    i : ``In(stream.Signature(32))``, o : ``Out(stream.Signature(32))``
    o_load : ``Out(broadcast_signature(config))``
    o_program : ``Out(stream.Signature(program_load_layout(config), always_ready=True))``
    rows : ``Out(rows_bits)``, act : ``Out(act_addr_bits).array(2)``, flush : ``Out(1)``
        Input descriptor, and a pulse when it changes.
    run : ``Out(1)``
    restart : ``Out(1)``
        A memory is being loaded: what passes have left in the engine is void.
    call : ``Out(1)``, call_addr : ``Out(program_addr_bits)``
        Run the routine at this address once.
    idle, computing, finished : ``In(1)``
        From the sequencer.
    saturations : ``In``
        Saturations in this cycle, to be added up.
    exposed : ``In(1)``
        The element-wise unit is at work, and no PE is.
    stalled : ``In(1)``
        The broadcast waits for room in the PEs' queues.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        An input descriptor beyond the activation memory.
    """

    def __init__(self, config: EngineConfig, *, in_rows: int = 0, in_base: tuple[int, int] = (0, 0),
                 run: bool = False):
        self._config = checked_config(config)
        if not 0 <= in_rows <= config.act_depth:
            raise ValueError(f"in_rows must be 0 to {config.act_depth}, not {in_rows!r}")
        if len(in_base) != 2 or not all(0 <= base < config.act_depth for base in in_base):
            raise ValueError(f"in_base must be two addresses from 0 to {config.act_depth - 1}, "
                             f"not {in_base!r}")
        self._in_base = in_base
        super().__init__({
            "i": In(stream.Signature(32)), "o": Out(stream.Signature(32)),
            "o_load": Out(broadcast_signature(config)),
            "o_program": Out(
                stream.Signature(program_load_layout(config), always_ready=True)),
            "rows": Out(config.rows_bits, init=in_rows),
            "act": Out(config.act_addr_bits).array(2),
            "flush": Out(1), "run": Out(1, init=run), "restart": Out(1),
            "call": Out(1), "call_addr": Out(config.program_addr_bits),
            "idle": In(1), "computing": In(1), "finished": In(1),
            "exposed": In(1), "stalled": In(1), "saturations": In(
                status_layout(config, config.fan_levels)["saturations"].width + 1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        header = data.View(
            data.StructLayout({"pe": 16, "channel": 8, "target": 4, "op": 4}), self.i.payload)

        cycles, saturations, passes, exposed, stalls = (Signal(32, name=name) for name in (
            "cycles", "saturations", "passes", "exposed", "stalls"))
        error = Signal()
        # Counted a cycle late: what ends a pass is known late in a cycle.
        for counter, event in ((cycles, self.computing), (passes, self.finished),
                               (exposed, self.exposed), (stalls, self.stalled)):
            counts = Signal(name=f"{counter.name}_counts")
            m.d.sync += counts.eq(event)
            with m.If(counts):
                m.d.sync += counter.eq(counter + 1)
        m.d.sync += saturations.eq(saturations + self.saturations)

        bases = [Signal(config.act_addr_bits, init=base, name=f"in_base_{k}")
                 for k, base in enumerate(self._in_base)]
        m.d.comb += [self.act[k].eq(base) for k, base in enumerate(bases)]

        # Load under way: its target, where the next item goes, and how many are left.
        target = Signal(4)
        pe = Signal(config.pe_bits)
        pe_field = Signal(16)
        channel = Signal(range(config.channels))
        addr = Signal(32)
        left = Signal(32)
        # Items wider than a word come in chunks, low word first.
        chunk_bits = 32
        kinds = {
            Target.SPMAT: (Kind.LOAD_SPMAT, config.spmat_word_bits),
            Target.PTR: (Kind.LOAD_PTR, config.ptr_word_bits),
            Target.BIAS: (Kind.LOAD_BIAS, config.bias_bits),
            Target.CODEBOOK: (Kind.LOAD_CODEBOOK, config.weight_bits),
        }
        if config.recurrent:
            kinds |= {
                Target.ACT: (Kind.LOAD_ACT, config.act_bits),
                Target.CELL: (Kind.LOAD_CELL, config.act_bits),
            }
            if config.channels > 1:
                kinds[Target.RESULT] = Kind.LOAD_RESULT, config.act_bits
            if config.peephole_depth:
                kinds[Target.PEEPHOLE] = Kind.LOAD_PEEPHOLE, 3 * config.act_bits
        widths = {target: bits for target, (_, bits) in kinds.items()}
        widths[Target.PROGRAM] = Shape.cast(program_load_layout(config)["data"].shape).width
        chunks = {target: -(-bits // chunk_bits) for target, bits in widths.items()}
        most = max(chunks.values())
        chunk = Signal(range(most + 1))
        # Known before the word comes, on which all else waits.
        last_chunk = Signal()
        gathered = Signal(most * chunk_bits)
        word = Signal(most * chunk_bits)

        answer = Signal(32)
        m.d.comb += self.o.payload.eq(answer)
        load = self.o_load.payload.args.load
        m.d.comb += [
            load.pe.eq(pe), load.addr.eq(addr), load.data.eq(word),
            self.o_program.payload.addr.eq(addr), self.o_program.payload.data.eq(word),
            self.call_addr.eq(pe_field),
        ]
        if config.recurrent:
            m.d.comb += load.channel.eq(channel)

        def whole_item(target: Target):
            """Whether an item is complete with this word; gathers the words before."""
            size = chunks[target]
            after = Mux(last_chunk, 0, chunk + 1)
            m.d.comb += word.eq(Cat(gathered[(most - size + 1) * chunk_bits:], self.i.payload))
            m.d.sync += [
                gathered.eq(Cat(gathered[chunk_bits:], self.i.payload)),
                chunk.eq(after), last_chunk.eq(after == size - 1),
            ]
            m.d.comb += item_done.eq(last_chunk)

        item_done = Signal()
        m.d.sync += self.flush.eq(0)
        with m.FSM():
            with m.State("HEADER"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += [target.eq(header.target), pe.eq(header.pe), pe_field.eq(header.pe),
                             channel.eq(header.channel)]
                with m.If(self.i.valid), m.Switch(header.op):
                    with m.Case(HostOp.LOAD):
                        # Stops as STOP does; else a load sent to a running engine would keep
                        # every later command waiting for ever.
                        m.d.sync += self.run.eq(0)
                        with m.If(header.pe >= config.n_pes):
                            # No such PE; cut to its width the number would name another one.
                            m.d.sync += target.eq(NO_TARGET)
                        with m.If(header.channel >= config.channels):
                            m.d.sync += target.eq(NO_TARGET)
                        m.next = "ADDRESS"
                    with m.Case(HostOp.START):
                        m.d.sync += self.run.eq(1)
                    with m.Case(HostOp.STOP):
                        m.d.sync += self.run.eq(0)
                    with m.Case(HostOp.READ):
                        m.next = "READ"
                    if config.recurrent:
                        with m.Case(HostOp.CALL):
                            m.d.sync += self.run.eq(0)
                            m.next = "CALL"
                    with m.Default():
                        m.d.sync += error.eq(1)

            with m.State("ADDRESS"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += addr.eq(self.i.payload)
                with m.If(self.i.valid):
                    m.next = "COUNT"

            with m.State("COUNT"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += left.eq(self.i.payload)
                with m.Switch(target):
                    for number, size in chunks.items():
                        with m.Case(number):
                            m.d.sync += last_chunk.eq(size == 1)
                with m.If(self.i.valid):
                    m.next = "HEADER"
                    with m.If(self.i.payload != 0):
                        m.next = "LOAD"

            with m.State("LOAD"):
                m.d.comb += self.i.ready.eq(self.idle)
                with m.If(self.i.valid & self.idle):
                    m.d.comb += [item_done.eq(1), self.restart.eq(1)]
                    with m.Switch(target):
                        for number, (kind, _) in kinds.items():
                            with m.Case(number):
                                whole_item(number)
                                m.d.comb += [
                                    self.o_load.valid.eq(item_done),
                                    self.o_load.payload.kind.eq(kind),
                                ]
                        with m.Case(Target.PROGRAM):
                            whole_item(Target.PROGRAM)
                            m.d.comb += self.o_program.valid.eq(item_done)
                        with m.Case(Target.REGISTER), m.Switch(addr):
                            with m.Case(InputRegister.IN_ROWS):
                                m.d.sync += self.flush.eq(1)
                                m.d.sync += self.rows.eq(self.i.payload)
                            for k, base in enumerate(bases):
                                with m.Case(InputRegister.IN_BASE0 + k):
                                    m.d.sync += base.eq(self.i.payload)
                            with m.Default():
                                m.d.sync += error.eq(1)
                        with m.Default():
                            m.d.sync += error.eq(1)
                    with m.If(item_done):
                        m.d.sync += [addr.eq(addr + 1), left.eq(left - 1)]
                        with m.If(left == 1):
                            m.next = "HEADER"

            if config.recurrent:
                with m.State("CALL"):
                    # Not before the pass under way is done, as with a load; the command after
                    # this one is looked at when the routine has begun.
                    m.d.comb += self.call.eq(self.idle)
                    with m.If(self.idle):
                        m.next = "HEADER"

            with m.State("READ"):
                with m.Switch(target):
                    for number, value in {
                        Register.MAGIC: MAGIC, Register.SIGNATURE: config.signature,
                        Register.CYCLES: cycles, Register.SATURATIONS: saturations,
                        Register.PASSES: passes, Register.ERRORS: error,
                        Register.EXPOSED: exposed, Register.STALLS: stalls,
                    }.items():
                        with m.Case(number):
                            m.d.sync += answer.eq(value)
                    with m.Default():
                        m.d.sync += [answer.eq(0), error.eq(1)]
                m.next = "ANSWER"

            with m.State("ANSWER"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "HEADER"
        return m
