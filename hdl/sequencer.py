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
    marker_layout,
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
    """Executes instructions, one program pass per input vector.

    SPMV broadcasts a marker with what its columns have in common, in `EngineConfig.marker_parts`
    messages. It scans a region of activations and broadcasts every non-zero one with the address of
    its column pointer, without pointers every one; one per cycle while no activation queue is
    almost full. It ends when all PEs are idle again. WRITE has all PEs write their accumulators
    back, a row per cycle. OUTPUT scans a region, zeros included, to the output stream. The next
    instruction is read while one executes.

    Of recurrent engines, SPMV also takes its columns from `Cells`, and need not wait for its end
    (``flow``); CELL and STATE start `Cells` and go on at once. A pass leaves behind what the next
    one begins with: accumulators of the state's part, and of the next input's part if that had
    arrived (``prefetch``). After a reset or a load, accumulators are cleared and the instructions
    with ``first`` compute the state's part from the state itself.

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
    restart : ``In(1)``
        Memories have changed: clear the accumulators before the next pass.
    call : ``In(1)``, call_addr : ``In(program_addr_bits)``
        Run the instructions from here to the next ``last`` once; only while `idle`.
    idle : ``Out(1)``
        No pass is running; memories may be loaded.
    computing : ``Out(1)``
        A pass is running and not waiting for input.
    finished : ``Out(1)``
        A pass ends with this cycle.
    stalled : ``Out(1)``
        The broadcast waits for room in the PEs' queues.
    i_load : ``In(stream.Signature(program_load_layout(config), always_ready=True))``
    i_scan : ``In(stream.Signature(scan_layout(config, 2 * lnzd_levels)))``
    i_feed : ``In(stream.Signature(scan_layout(config, 2 * lnzd_levels)))``
        Columns from `Cells`.
    o : ``Out(broadcast_signature(config))``
    o_act : ``Out(stream.Signature(act_out_layout(config)))``
    busy, stall : ``In(1)``
        From the status tree.
    cells_start : ``Out(1)``, cells_command : ``Out(instruction_layout(config))``
        A cycle after the CELL message, if there is one.
    cells_active : ``Out(channels)``
        Channels that have a step in this pass.
    cells_idle : ``In(1)``
    input_full : ``In(1)``, input_act : ``In(act_addr_bits)``, input_active : ``In(channels)``
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
        layout = instruction_layout(config)
        width = Shape.cast(layout).width
        self.program = memory.MemoryData(
            shape=width, depth=config.program_depth,
            init=checked_contents("program", program, config.program_depth, width))
        items = stream.Signature(scan_layout(config, 2 * config.lnzd_levels))
        super().__init__({
            "run": In(1), "restart": In(1), "call": In(1),
            "call_addr": In(config.program_addr_bits),
            "idle": Out(1), "computing": Out(1), "finished": Out(1),
            "stalled": Out(1),
            "i_load": In(stream.Signature(program_load_layout(config), always_ready=True)),
            "i_scan": In(items), "i_feed": In(items),
            "o": Out(broadcast_signature(config)),
            "o_act": Out(stream.Signature(act_out_layout(config))),
            "busy": In(1), "stall": In(1),
            "cells_start": Out(1), "cells_command": Out(layout),
            "cells_active": Out(config.channels), "cells_idle": In(1, init=1),
            "input_full": In(1), "input_act": In(config.act_addr_bits),
            "input_active": In(config.channels), "input_release": Out(1),
            "writing": Out(1, init=1),  # begins with CLEAR
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
        m.d.comb += [read.addr.eq(pc), self.cells_command.eq(instruction)]

        # State of the instruction under way; the memory already shows the next one.
        was_last, was_input = Signal(), Signal()
        flows, fed = Signal(), Signal()
        stopping = Signal()  # be idle when the PEs are
        start_cells = Signal()
        marker = Signal(marker_layout(config), reset_less=True)
        parts_left = Signal(range(config.marker_parts + 1))
        left = Signal(config.rows_bits)
        row_ptr = Signal(config.ptr_addr_bits)
        wait = Signal(range(config.drain_wait + 1))
        # State of the pass.
        dirty = Signal()  # accumulators are to be cleared before the next pass
        called = Signal()
        first, odd, prefetched = Signal(init=1), Signal(), Signal()

        kind, args = self.o.payload.kind, self.o.payload.args
        row = Signal.like(args.write, reset_less=True)  # that WRITE is at
        item_valid, item_ready = Signal(), Signal()
        item = Signal(self.i_scan.payload.shape())
        m.d.comb += [
            item.eq(self.i_scan.payload), item_valid.eq(self.i_scan.valid),
            self.i_scan.ready.eq(item_ready),
        ]
        if config.recurrent:
            with m.If(fed):
                m.d.comb += [
                    item.eq(self.i_feed.payload), item_valid.eq(self.i_feed.valid),
                    self.i_feed.ready.eq(item_ready), self.i_scan.ready.eq(0),
                ]
        row_done = item_valid & item_ready & item.last
        all_done = row_done & (left == 1)
        m.d.comb += [
            self.o_act.payload.data.eq(item.values),
            self.o_act.payload.last.eq(item.last & (left == 1)),
        ]
        with m.If(row_done):
            m.d.sync += [left.eq(left - 1), row_ptr.eq(row_ptr + config.n_pes)]
        with m.If(self.restart):
            m.d.sync += dirty.eq(1)

        parts = self._parts(instruction)
        acc = Mux(odd, parts["acc_odd"], parts["acc"])
        # An SPMV whose work has been done, or cannot be done yet, is passed over.
        skip = ((parts["first"] & ~first) | (parts["prefetch"] & ~self.input_full)
                | (instruction.from_input & ~parts["prefetch"] & prefetched))
        waiting = (instruction.from_input & ~parts["prefetch"] & ~prefetched & ~self.input_full)
        is_cell = (instruction.op == Op.CELL) | (instruction.op == Op.STATE)
        held = (((parts["sync"] | is_cell) & ~self.cells_idle)
                | ((instruction.op == Op.CELL) & self.stall))

        def scan(dense: int):
            return [
                kind.eq(Kind.SCAN),
                args.scan.act.eq(Mux(instruction.from_input, self.input_act, instruction.act)),
                args.scan.rows.eq(instruction.rows), args.scan.rem.eq(instruction.rem),
                args.scan.dense.eq(dense),
            ]

        def mark():
            route = marker.route
            statements = [route.code_sel.eq(instruction.code_sel),
                          parts_left.eq(config.marker_parts)]
            weights = "align" if config.direct_weights else "codebook"
            statements.append(route[weights].eq(instruction[weights]))
            if not config.pointers:
                statements += [marker.spmat.eq(instruction.spmat),
                               marker.drop.eq(-instruction.height),
                               route.acc.eq(acc + instruction.height)]
            elif config.recurrent:
                statements.append(route.acc.eq(acc))
            return statements

        def write_back():
            if config.recurrent:
                return [kind.eq(Kind.CELL), args.write.acc.eq(acc),
                        args.write.gates.eq(instruction.gates)]
            return [
                kind.eq(Kind.WRITE),
                args.write.act.eq(instruction.act), args.write.acc.eq(acc),
                args.write.bias.eq(instruction.base), args.write.shift.eq(instruction.shift),
                args.write.relu.eq(instruction.relu),
            ]

        def go_on(last, fetch: bool):
            """To the next instruction, or to the end of the pass."""
            with m.If(~last):
                m.next = "NEXT" if fetch else "EXECUTE"
            with m.Else():
                m.d.sync += called.eq(0)
                with m.If(~called):
                    m.d.comb += self.finished.eq(1)
                    m.d.sync += [first.eq(0), odd.eq(~odd)]
                with m.If(self.run & ~called):
                    m.next = "NEXT" if fetch else "EXECUTE"
                with m.Else():
                    m.d.sync += [stopping.eq(1), wait.eq(config.drain_wait - 1)]
                    m.next = "DRAIN"

        with m.FSM():
            with m.State("CLEAR"):
                # A reset or a load leaves the accumulators of what was before behind.
                m.d.comb += [self.o.valid.eq(1), kind.eq(Kind.WRITE)]
                if not config.recurrent:
                    m.d.comb += args.write.discard.eq(1)
                m.d.sync += [
                    stopping.eq(1), wait.eq(config.drain_wait - 1), dirty.eq(0), first.eq(1),
                    prefetched.eq(0), left.eq(config.acc_depth), row.eq(args.write),
                ]
                m.next = "WRITE" if config.acc_depth > 1 else "DRAIN"

            with m.State("IDLE"):
                m.d.comb += self.idle.eq(~self.run)
                with m.If(self.call):
                    m.d.sync += [pc.eq(self.call_addr), called.eq(1)]
                    m.next = "FETCH"
                with m.Elif(self.run & dirty):
                    m.next = "CLEAR"
                with m.Elif(self.run):
                    m.next = "FETCH"

            with m.State("FETCH"):
                m.next = "EXECUTE"

            if config.recurrent:
                with m.State("NEXT"):
                    m.d.comb += self.computing.eq(1)
                    m.next = "EXECUTE"

            with m.State("EXECUTE"):
                m.d.comb += self.computing.eq(~waiting)
                # What the message says does not depend on whether it goes out now.
                with m.Switch(instruction.op):
                    with m.Case(Op.SPMV):
                        m.d.comb += scan(int(not config.pointers))
                    with m.Case(Op.OUTPUT):
                        m.d.comb += scan(1)
                    with m.Default():
                        m.d.comb += write_back()
                m.d.sync += [
                    left.eq(instruction.rows), row_ptr.eq(instruction.base), row.eq(args.write),
                    was_last.eq(instruction.last), was_input.eq(instruction.from_input),
                    flows.eq(parts["flow"]), fed.eq(parts["feed"]),
                    wait.eq(config.drain_wait - 1), *mark(),
                ]
                with m.If(waiting & ~self.run):
                    # What `first` instructions have added is added again at the next start.
                    m.d.sync += [pc.eq(0), dirty.eq(dirty | first), stopping.eq(1)]
                    m.next = "DRAIN"
                if config.recurrent:
                    with m.Elif(skip):
                        m.d.sync += pc.eq(Mux(instruction.last, 0, pc + 1))
                        with m.If(instruction.from_input & ~parts["prefetch"]):
                            m.d.comb += self.input_release.eq(1)
                            m.d.sync += [
                                prefetched.eq(0), self.cells_active.eq(self.input_active)]
                        go_on(instruction.last, fetch=True)
                with m.Elif(~waiting & ~held):
                    m.d.sync += pc.eq(Mux(instruction.last, 0, pc + 1))
                    with m.Switch(instruction.op):
                        with m.Case(Op.SPMV):
                            # Columns of the cells are there without a scan.
                            m.d.comb += self.o.valid.eq(~parts["feed"])
                            with m.If(parts["prefetch"]):
                                m.d.sync += [prefetched.eq(1), was_input.eq(0)]
                            with m.Elif(instruction.from_input):
                                m.d.sync += self.cells_active.eq(self.input_active)
                            m.next = "MARK"
                        with m.Case(Op.OUTPUT):
                            m.d.comb += self.o.valid.eq(1)
                            m.next = "OUTPUT"
                        if config.recurrent:
                            with m.Case(Op.CELL):
                                m.d.comb += [self.o.valid.eq(1), start_cells.eq(1)]
                                go_on(instruction.last, fetch=True)
                            with m.Case(Op.STATE):
                                m.d.comb += start_cells.eq(1)
                                go_on(instruction.last, fetch=True)
                        else:
                            with m.Default():
                                m.d.comb += self.o.valid.eq(1)
                                m.next = "WRITE"
                                with m.If(instruction.rows == 1):
                                    m.next = "DRAIN"

            with m.State("WRITE"):
                # The first row has gone out with the instruction.
                m.d.comb += [
                    self.computing.eq(~stopping), self.o.valid.eq(1), kind.eq(Kind.WRITE),
                    args.write.eq(row), args.write.acc.eq(row.acc + 1),
                ]
                if not config.recurrent:
                    m.d.comb += [
                        args.write.act.eq(row.act + 1), args.write.bias.eq(row.bias + 1)]
                m.d.sync += [left.eq(left - 1), row.eq(args.write)]
                with m.If(left == 2):
                    m.next = "DRAIN"

            with m.State("MARK"):
                # Of recurrent engines a part takes a place in the queues as a column does.
                width = len(args.mark.part)
                m.d.comb += [
                    self.computing.eq(1), self.o.valid.eq(~self.stall), kind.eq(Kind.MARK),
                    args.mark.part.eq(marker.as_value()[:width]),
                    args.mark.last.eq(parts_left == 1),
                ]
                with m.If(~self.stall):
                    m.d.sync += [marker.as_value().eq(marker.as_value() >> width),
                                 parts_left.eq(parts_left - 1)]
                    with m.If(parts_left == 1):
                        m.next = "SPMV"

            with m.State("SPMV"):
                m.d.comb += [
                    self.computing.eq(1), item_ready.eq(~self.stall),
                    self.o.valid.eq(item_valid & ~self.stall
                                    & (item.nonzero if config.pointers else 1)),
                    self.stalled.eq(item_valid & self.stall),
                    kind.eq(Kind.ACT), args.act.values.eq(item.values),
                    self.input_release.eq(all_done & was_input),
                ]
                if config.pointers:
                    m.d.comb += args.act.ptr.eq(row_ptr + item.lane)
                with m.If(all_done):
                    m.next = "DRAIN"
                    if config.recurrent:
                        with m.If(flows):
                            go_on(was_last, fetch=False)

            with m.State("DRAIN"):
                m.d.comb += self.computing.eq(~stopping)
                with m.If(wait != 0):
                    m.d.sync += wait.eq(wait - 1)
                with m.Elif(stopping), m.If(~self.busy & self.cells_idle):
                    m.d.sync += stopping.eq(0)
                    m.next = "IDLE"
                with m.Elif(~self.busy):
                    go_on(was_last, fetch=False)

            with m.State("OUTPUT"):
                m.d.comb += [
                    self.computing.eq(1),
                    self.o_act.valid.eq(item_valid & item.nonzero),
                    item_ready.eq(self.o_act.ready | ~item.nonzero),
                ]
                with m.If(all_done):
                    go_on(was_last, fetch=False)

        # The memory shows the instruction for a cycle more, while the next one is fetched.
        m.d.sync += self.cells_start.eq(start_cells)

        # The write ports are busy from the WRITE message until the PEs are idle again. Input of the
        # cycle of the message itself is still there first: results take longer.
        with m.If(self.o.valid & (kind == Kind.WRITE)):
            m.d.sync += self.writing.eq(1)
        with m.Elif((wait == 0) & ~self.busy):
            m.d.sync += self.writing.eq(0)
        return m

    def _parts(self, instruction: data.View) -> dict[str, Value]:
        """Fields that only programs of recurrent engines have; 0 where there are none."""
        names = ("acc", "acc_odd", "first", "prefetch", "flow", "sync", "feed")
        return {name: instruction[name] if self._config.recurrent else Const(0) for name in names}
