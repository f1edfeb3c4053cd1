"""The engine: PEs, LNZD tree, sequencer, element-wise unit, and the streams to the outside."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.compile import Image
from openese.model.config import EngineConfig

from .act_store import ActStore
from .cells import Cells
from .cells_serial import SerialCells
from .checks import checked_config
from .cluster import Cluster, cluster_sizes
from .fan import ARITY, BroadcastTree, Relay, StatusTree
from .gather import GatherTree
from .host import HostInterface
from .input_buffer import InputBuffer
from .layouts import (
    act_out_layout,
    act_signature,
    broadcast_signature,
    input_signature,
)
from .lnzd import ARITY as LNZD_ARITY
from .lnzd import LnzdTree
from .sequencer import Sequencer

__all__ = ["Engine"]


#: Memories of a PE.
_MEMORIES = {"spmat": "spmat_read.words", "ptr": "ptr_read.words", "codebook": "decode.codebook",
             "bias": "write_back.biases"}


class Engine(wiring.Component):
    """A programmable sparse matrix-vector engine in the manner of EIE, and of ESE where the
    configuration has an element-wise unit.

    One engine runs every compressed model that fits its memories. The model comes over `i_host`
    or as contents of the memories at power-up, in which case the engine also runs from power-up.

    Throughput: each PE multiplies one matrix entry per cycle. A vector takes the cycles that
    `openese.sim.cycle_model` predicts.

    Parameters
    ----------
    config
        Engine configuration.
    image
        Compiled model for the memories to start with, or ``None``.

    Members
    -------
    reset : ``In(1)``
        Does what the reset of the clock domain does, but reaches the PEs through registers. A
        device with many PEs uses this one and leaves the domain without: a single net to all
        registers is slow. Two cycles or more; the engine is ready four cycles later.
    i_host, o_host : streams of 32-bit words
        Commands and answers, see ``docs/program.md``.
    i_act : ``In(act_signature(config))``
        Input vectors.
    o_act : ``Out(stream.Signature(act_out_layout(config)))``
        Output vectors, one activation per beat.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`, or ``image`` no `Image`.
    ValueError
        The image was compiled for another configuration.
    """

    def __init__(self, config: EngineConfig, image: Image | None = None):
        checked_config(config)
        if image is not None and not isinstance(image, Image):
            raise TypeError(f"image must be a compiled Image or None, not {image!r}")
        if image is not None and image.config != config:
            raise ValueError(
                "image was compiled for another engine configuration; compile it for this one")
        self.config = config
        self.image = image
        super().__init__({
            "reset": In(1),
            "i_host": In(stream.Signature(32)), "o_host": Out(stream.Signature(32)),
            "i_act": In(act_signature(config)),
            "o_act": Out(stream.Signature(act_out_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config, image = self.config, self.image
        if image is None:
            host, program = HostInterface(config), ()
        else:
            host = HostInterface(
                config, in_rows=image.in_rows, in_base=image.in_base, run=True)
            program = image.program
        # Longer than that of the clusters, which must not miss the first message.
        was_reset, reset = Signal(reset_less=True), Signal(reset_less=True)
        m.d.sync += [was_reset.eq(self.reset), reset.eq(self.reset | was_reset)]

        def place(name: str, part):
            m.submodules[name] = ResetInserter(reset)(part)
            return part

        place("host", host)
        load = place("load", Relay(broadcast_signature(config)))
        sequencer = place("sequencer", Sequencer(config, program))
        input_buffer = place("input_buffer", InputBuffer(config))
        broadcast = place("broadcast", BroadcastTree(config, broadcast_signature(config)))
        status = place("status", StatusTree(config))
        if config.central_acts:
            acts = place("acts", ActStore(config))
        else:
            acts = place("lnzd", LnzdTree(config))
            spread = place("spread", BroadcastTree(config, input_signature(config)))

        wiring.connect(m, wiring.flipped(self.i_host), host.i)
        wiring.connect(m, host.o, wiring.flipped(self.o_host))
        wiring.connect(m, wiring.flipped(self.i_act), input_buffer.i)
        # A register, for the host interface decides late in a cycle whether a word is complete.
        program_load = place("program_load", Relay(host.o_program.signature))
        wiring.connect(m, host.o_program, program_load.i)
        wiring.connect(m, program_load.o, sequencer.i_load)
        wiring.connect(m, host.o_load, load.i)
        m.d.comb += [
            # The host loads only while the sequencer is idle.
            broadcast.i.valid.eq(sequencer.o.valid | load.o.valid),
            broadcast.i.payload.eq(Mux(load.o.valid, load.o.payload, sequencer.o.payload)),
            sequencer.i_scan.valid.eq(acts.o.valid),
            *(sequencer.i_scan.payload[name].eq(acts.o.payload[name])
              for name, _ in acts.o.payload.shape()),
            acts.o.ready.eq(sequencer.i_scan.ready),
            sequencer.run.eq(host.run), host.idle.eq(sequencer.idle),
            host.computing.eq(sequencer.computing), host.finished.eq(sequencer.finished),
            host.stalled.eq(sequencer.stalled),
            sequencer.restart.eq(host.restart), sequencer.call.eq(host.call),
            sequencer.call_addr.eq(host.call_addr),
            sequencer.busy.eq(status.o.busy), sequencer.stall.eq(status.o.stall),
            sequencer.input_full.eq(input_buffer.full),
            sequencer.input_act.eq(input_buffer.full_act),
            sequencer.input_active.eq(input_buffer.full_active),
            input_buffer.release.eq(sequencer.input_release),
            input_buffer.rows.eq(host.rows), input_buffer.flush.eq(host.flush),
            input_buffer.act[0].eq(host.act[0]), input_buffer.act[1].eq(host.act[1]),
        ]

        clusters, first = [], 0
        for k, size in enumerate(cluster_sizes(config)):
            pes = range(first, first + size)
            cluster = Cluster(config, [self._contents(p) for p in pes])
            m.submodules[f"cluster_{k}"] = cluster
            m.d.comb += [
                # An expression, or the constant would make every cluster a module of its own.
                cluster.first.eq(Const(first, config.pe_bits) | 0),
                cluster.reset.eq(self.reset),
                cluster.i.valid.eq(broadcast.o[k].valid),
                cluster.i.payload.eq(broadcast.o[k].payload),
                status.i[k].eq(cluster.status),
            ]
            if not config.central_acts:
                self._join_acts(m, cluster, pes, spread.o[k], acts)
            clusters.append(cluster)
            first += size
        if config.recurrent:
            kind = SerialCells if config.serial_cells else Cells
            memories = () if image is None else (image.peephole, image.bias.tolist())
            cells = place("cells", kind(config, *memories))
            gather = place("gather", GatherTree(config))
            self._join_cells(m, cells, gather, clusters, sequencer, host, load, status)
            beats = cells.o_beat
        else:
            wiring.connect(m, sequencer.o_act, wiring.flipped(self.o_act))
            m.d.comb += [host.saturations.eq(status.o.saturations), sequencer.cells_idle.eq(1)]
            beats = None
        # A load is one register longer on its way than a beat, unless there is none for scans.
        loaded, later = load.o.valid, Signal()
        m.d.sync += later.eq(loaded)
        if config.central_acts:
            scans, hold = wiring.flipped(broadcast.i), loaded
            # An instruction comes from block RAM, late in a cycle. Small devices have other limits.
            if not config.serial_cells:
                relay = place("scans", Relay(broadcast_signature(config)))
                m.d.comb += [relay.i.valid.eq(broadcast.i.valid),
                             relay.i.payload.eq(broadcast.i.payload)]
                scans, hold = relay.o, later
            m.d.comb += [acts.i.valid.eq(scans.valid), acts.i.payload.eq(scans.payload)]
            self._join_inputs(m, acts.i_input, input_buffer, beats, hold)
        else:
            self._join_inputs(m, spread.i, input_buffer, beats, sequencer.writing | later)
        return m

    def _join_acts(self, m, cluster, pes, beat, lnzd):
        """Activation memories of a cluster to what writes and what reads them."""
        lanes = self.config.input_lanes
        m.d.comb += [
            # Expressions, as above.
            *(group.eq(Const(p // lanes, len(group)) | 0)
              for p, group in zip(pes, cluster.groups, strict=True)),
            cluster.i_input.valid.eq(beat.valid),
            cluster.i_input.payload.group.eq(beat.payload.group),
            cluster.i_input.payload.act.eq(beat.payload.act),
            *(lane.eq(beat.payload.values[(pes[0] + j) % lanes])
              for j, lane in enumerate(cluster.i_input.payload.values)),
        ]
        for j, port in enumerate(cluster.o):
            wiring.connect(m, port, lnzd.i[pes[0] // LNZD_ARITY + j])

    def _join_inputs(self, m, writes, input_buffer, beats, hold):
        """Input vectors, results of cells and loads share the write ports of the activations."""
        m.d.comb += [
            writes.valid.eq(input_buffer.o.valid), writes.payload.eq(input_buffer.o.payload),
            input_buffer.hold.eq(hold),
        ]
        if beats is not None:
            with m.If(beats.valid):
                m.d.comb += [
                    writes.valid.eq(1), writes.payload.eq(beats.payload),
                    input_buffer.hold.eq(1),
                ]

    def _join_cells(self, m, cells, gather, clusters, sequencer, host, load, status):
        wiring.connect(m, cells.o_feed, sequencer.i_feed)
        for port, out in zip(cells.i, gather.o, strict=True):
            m.d.comb += port.eq(out)
        token = cells.o_token
        pes = [(cluster, k) for cluster in clusters for k in range(len(cluster.gate))]
        for p, ((cluster, k), port) in enumerate(zip(pes, gather.i, strict=True)):
            if self.config.serial_cells:
                token = cells.o_token & (cells.o_pe == p)
            m.d.comb += [port.eq(cluster.gate[k]), cluster.i_token[k].eq(token)]
            token = cluster.o_token[k]
        m.d.comb += [
            cells.start.eq(sequencer.cells_start), cells.command.eq(sequencer.cells_command),
            cells.active.eq(sequencer.cells_active), sequencer.cells_idle.eq(cells.idle),
            cells.fence.eq(status.o.fence),
            host.exposed.eq(~cells.idle & ~status.o.working),
            cells.i_load.valid.eq(load.o.valid), cells.i_load.payload.eq(load.o.payload),
            host.saturations.eq(status.o.saturations + cells.saturations),
            # Never both: OUTPUT waits for the cells.
            self.o_act.valid.eq(sequencer.o_act.valid | cells.o_act.valid),
            self.o_act.payload.eq(
                Mux(cells.o_act.valid, cells.o_act.payload, sequencer.o_act.payload)),
            sequencer.o_act.ready.eq(self.o_act.ready), cells.o_act.ready.eq(self.o_act.ready),
        ]

    def blank(self) -> "Engine":
        """The same circuit with empty memories, see `contents`."""
        return Engine(self.config, self.image and self.image.without_contents())

    def contents(self) -> dict[str, list[int]]:
        """What the memories start with that `blank` leaves empty: path of the memory, as in
        `openese.hdl.export.take_memories`, to its first words."""
        if self.image is None:
            return {}
        config, image = self.config, self.image
        memories = {"sequencer.program": image.program}
        for pe in range(config.n_pes):
            path = f"cluster_{pe // ARITY}.pe_{pe % ARITY}"
            memories |= {f"{path}.{_MEMORIES[name]}": words
                         for name, words in self._contents(pe).items()}
        if config.recurrent:
            memories["cells.elementwise.peepholes"] = image.peephole
            memories |= {f"cells.pre_activations.biases_{k}": words
                         for k, words in enumerate(image.bias.tolist())}
        return {path: words for path, words in memories.items() if words}

    def _contents(self, pe: int) -> dict[str, list[int]]:
        """What the memories of a PE start with, as the integers Amaranth takes."""
        if self.image is None:
            return {}
        contents = {
            "spmat": self.image.spmat[pe].tolist(), "ptr": self.image.ptr[pe].tolist(),
            "codebook": self.image.codebook.tolist(),
        }
        # Biases of a recurrent engine are at its element-wise unit.
        return contents if self.config.recurrent else contents | {
            "bias": self.image.bias[pe].tolist()}
