"""Sequencer: runs the program, broadcasts columns, and knows when a layer is done (EIE's CCU)."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig
from openese.model.program import Op

from .checks import checked_config, checked_contents
from .layouts import (
    Kind,
    act_out_layout,
    broadcast_signature,
    instruction_layout,
    scan_layout,
)

__all__ = ["Sequencer", "program_load_layout"]


def program_load_layout(config: EngineConfig) -> data.StructLayout:
    """A program word and its address."""
    return data.StructLayout({
        "addr": config.program_addr_bits,
        "data": Shape.cast(instruction_layout(config)).width,
    })


class Sequencer(wiring.Component):
    """Executes SPMV, WRITE and OUTPUT instructions, one program pass per input vector.

    SPMV scans a region of activations through the LNZD tree and broadcasts every non-zero one
    with the address of its column pointer; one per cycle while no activation queue is almost
    full. It ends when all PEs are idle again. WRITE has all PEs write their accumulators back.
    OUTPUT scans a region, zeros included, to the output stream. The next instruction is read
    while one executes.

    Parameters
    ----------
    config
        Engine configuration.
    program
        Instructions the memory starts with.

    Members
    -------
    run : ``In(1)``
        Start passes as long as it is high.
    idle : ``Out(1)``
        No pass is running; memories may be loaded.
    computing : ``Out(1)``
        A pass is running and not waiting for input.
    finished : ``Out(1)``
        A pass ends with this cycle.
    i_load : ``In(stream.Signature(program_load_layout(config), always_ready=True))``
    i_scan : ``In(stream.Signature(scan_layout(config, 2 * lnzd_levels)))``
    o : ``Out(broadcast_signature(config))``
    o_act : ``Out(stream.Signature(act_out_layout(config)))``
    busy, stall : ``In(1)``
        From the status tree.
    input_full : ``In(1)``, input_act : ``In(act_addr_bits)``
        An input vector waits in the activation memories, in this region.
    input_release : ``Out(1)``
        It has been scanned.
    writing : ``Out(1)``
        Write-back owns the write ports of the activation memories.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        More words than the memory holds, or a word that is not an unsigned integer of its width.
    """

    def __init__(self, config: EngineConfig, program=()):
        self._config = checked_config(config)
        width = Shape.cast(instruction_layout(config)).width
        self.program = memory.MemoryData(
            shape=width, depth=config.program_depth,
            init=checked_contents("program", program, config.program_depth, width))
        super().__init__({
            "run": In(1), "idle": Out(1), "computing": Out(1), "finished": Out(1),
            "i_load": In(stream.Signature(program_load_layout(config), always_ready=True)),
            "i_scan": In(stream.Signature(scan_layout(config, 2 * config.lnzd_levels))),
            "o": Out(broadcast_signature(config)),
            "o_act": Out(stream.Signature(act_out_layout(config))),
            "busy": In(1), "stall": In(1),
            "input_full": In(1), "input_act": In(config.act_addr_bits), "input_release": Out(1),
            "writing": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.program = program = memory.Memory(self.program)
        write, read = program.write_port(), program.read_port()
        m.d.comb += [
            write.en.eq(self.i_load.valid), write.addr.eq(self.i_load.payload.addr),
            write.data.eq(self.i_load.payload.data),
        ]
        pc = Signal(config.program_addr_bits)
        instruction = data.View(instruction_layout(config), read.data)
        m.d.comb += read.addr.eq(pc)

        # State of the instruction under way; the memory already shows the next one.
        was_last = Signal()
        was_input = Signal()
        clearing = Signal()
        left = Signal(config.rows_bits)
        row_ptr = Signal(config.ptr_addr_bits)
        wait = Signal(range(config.drain_wait + 1))

        kind, args = self.o.payload.kind, self.o.payload.args
        item = self.i_scan.payload
        row_done = self.i_scan.valid & self.i_scan.ready & item.last
        all_done = row_done & (left == 1)
        m.d.comb += [
            self.o_act.payload.data.eq(item.value),
            self.o_act.payload.last.eq(item.last & (left == 1)),
        ]
        with m.If(row_done):
            m.d.sync += [left.eq(left - 1), row_ptr.eq(row_ptr + config.n_pes)]

        def broadcast_scan(dense: int):
            return [
                self.o.valid.eq(1), kind.eq(Kind.SCAN),
                args.scan.act.eq(
                    Mux(instruction.from_input, self.input_act, instruction.act)),
                args.scan.rows.eq(instruction.rows), args.scan.rem.eq(instruction.rem),
                args.scan.codebook.eq(instruction.codebook),
                args.scan.code_sel.eq(instruction.code_sel), args.scan.dense.eq(dense),
            ]

        def end_pass():
            m.d.comb += self.finished.eq(1)
            with m.If(self.run):
                m.next = "EXECUTE"
            with m.Else():
                m.next = "IDLE"

        with m.FSM():
            with m.State("CLEAR"):
                # A reset leaves the accumulators of a broken-off run behind.
                m.d.comb += [
                    self.o.valid.eq(1), kind.eq(Kind.WRITE),
                    args.write.rows.eq(config.acc_depth), args.write.discard.eq(1),
                ]
                m.d.sync += [clearing.eq(1), wait.eq(config.drain_wait - 1)]
                m.next = "DRAIN"

            with m.State("IDLE"):
                m.d.comb += self.idle.eq(~self.run)
                with m.If(self.run):
                    m.next = "FETCH"

            with m.State("FETCH"):
                m.next = "EXECUTE"

            with m.State("EXECUTE"):
                waiting = instruction.from_input & ~self.input_full
                m.d.comb += self.computing.eq(~waiting)
                m.d.sync += [
                    left.eq(instruction.rows), row_ptr.eq(instruction.base),
                    was_last.eq(instruction.last), was_input.eq(instruction.from_input),
                    wait.eq(config.drain_wait - 1),
                ]
                with m.If(waiting & ~self.run):
                    m.next = "IDLE"
                with m.Elif(~waiting):
                    m.d.sync += pc.eq(Mux(instruction.last, 0, pc + 1))
                    with m.Switch(instruction.op):
                        with m.Case(Op.SPMV):
                            m.d.comb += broadcast_scan(dense=0)
                            m.next = "SPMV"
                        with m.Case(Op.OUTPUT):
                            m.d.comb += broadcast_scan(dense=1)
                            m.next = "OUTPUT"
                        with m.Default():
                            m.d.comb += [
                                self.o.valid.eq(1), kind.eq(Kind.WRITE),
                                args.write.act.eq(instruction.act),
                                args.write.rows.eq(instruction.rows),
                                args.write.bias.eq(instruction.base),
                                args.write.shift.eq(instruction.shift),
                                args.write.relu.eq(instruction.relu),
                            ]
                            m.next = "DRAIN"

            with m.State("SPMV"):
                m.d.comb += [
                    self.computing.eq(1), self.i_scan.ready.eq(~self.stall),
                    self.o.valid.eq(self.i_scan.valid & item.nonzero & ~self.stall),
                    kind.eq(Kind.ACT), args.act.value.eq(item.value),
                    args.act.ptr.eq(row_ptr + item.lane),
                    self.input_release.eq(all_done & was_input),
                ]
                with m.If(all_done):
                    m.next = "DRAIN"

            with m.State("DRAIN"):
                m.d.comb += self.computing.eq(~clearing)
                with m.If(wait != 0):
                    m.d.sync += wait.eq(wait - 1)
                with m.Elif(~self.busy):
                    m.d.sync += clearing.eq(0)
                    with m.If(clearing):
                        m.next = "IDLE"
                    with m.Elif(was_last):
                        end_pass()
                    with m.Else():
                        m.next = "EXECUTE"

            with m.State("OUTPUT"):
                m.d.comb += [
                    self.computing.eq(1),
                    self.o_act.valid.eq(self.i_scan.valid & item.nonzero),
                    self.i_scan.ready.eq(self.o_act.ready | ~item.nonzero),
                ]
                with m.If(all_done):
                    with m.If(was_last):
                        end_pass()
                    with m.Else():
                        m.next = "EXECUTE"

        # The write ports are busy from the WRITE message until the PEs are idle again.
        after_write = Signal()
        with m.If(self.o.valid & (kind == Kind.WRITE)):
            m.d.sync += after_write.eq(1)
        with m.Elif((wait == 0) & ~self.busy):
            m.d.sync += after_write.eq(0)
        m.d.comb += self.writing.eq(after_write | (self.o.valid & (kind == Kind.WRITE)))
        return m
