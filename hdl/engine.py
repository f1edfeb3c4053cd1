"""The engine: PEs, LNZD tree, sequencer, and the streams to the outside."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.compile import Image
from openese.model.config import EngineConfig

from .checks import checked_config
from .fan import ARITY, BroadcastTree, StatusTree
from .host import HostInterface
from .input_buffer import InputBuffer
from .layouts import (
    act_out_layout,
    act_signature,
    broadcast_signature,
    input_signature,
)
from .lnzd import LnzdTree
from .pe import ProcessingElement
from .sequencer import Sequencer

__all__ = ["Engine"]


class Engine(wiring.Component):
    """A programmable sparse matrix-vector engine in the manner of EIE.

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
        m.submodules.host = host
        m.submodules.sequencer = sequencer = Sequencer(config, program)
        m.submodules.input_buffer = input_buffer = InputBuffer(config)
        m.submodules.broadcast = broadcast = BroadcastTree(config, broadcast_signature(config))
        m.submodules.spread = spread = BroadcastTree(config, input_signature(config))
        m.submodules.status = status = StatusTree(config)
        m.submodules.lnzd = lnzd = LnzdTree(config)

        wiring.connect(m, wiring.flipped(self.i_host), host.i)
        wiring.connect(m, host.o, wiring.flipped(self.o_host))
        wiring.connect(m, wiring.flipped(self.i_act), input_buffer.i)
        wiring.connect(m, sequencer.o_act, wiring.flipped(self.o_act))
        wiring.connect(m, host.o_program, sequencer.i_load)
        wiring.connect(m, lnzd.o, sequencer.i_scan)
        wiring.connect(m, input_buffer.o, spread.i)
        m.d.comb += [
            # The host loads only while the sequencer is idle.
            broadcast.i.valid.eq(sequencer.o.valid | host.o_load.valid),
            broadcast.i.payload.eq(
                Mux(host.o_load.valid, host.o_load.payload, sequencer.o.payload)),
            sequencer.run.eq(host.run), host.idle.eq(sequencer.idle),
            host.computing.eq(sequencer.computing), host.finished.eq(sequencer.finished),
            host.saturations.eq(status.saturations),
            sequencer.busy.eq(status.any_busy), sequencer.stall.eq(status.any_stall),
            sequencer.input_full.eq(input_buffer.full),
            sequencer.input_act.eq(input_buffer.full_act),
            input_buffer.release.eq(sequencer.input_release),
            input_buffer.hold.eq(sequencer.writing),
            input_buffer.rows.eq(host.rows), input_buffer.flush.eq(host.flush),
            input_buffer.act[0].eq(host.act[0]), input_buffer.act[1].eq(host.act[1]),
        ]

        for p in range(config.n_pes):
            pe = ProcessingElement(config, **self._contents(p))
            m.submodules[f"pe_{p}"] = pe
            message, beat = broadcast.o[p // ARITY], spread.o[p // ARITY]
            m.d.comb += [
                # Amaranth would move a plain constant into the PE, which then were a module of its
                # own; an expression stays outside and all PEs are one module.
                pe.id.eq(Const(p, config.pe_bits) | 0),
                pe.group.eq(Const(p // config.input_lanes, len(pe.group)) | 0),
                pe.i.valid.eq(message.valid), pe.i.payload.eq(message.payload),
                pe.i_input.valid.eq(beat.valid),
                pe.i_input.payload.group.eq(beat.payload.group),
                pe.i_input.payload.act.eq(beat.payload.act),
                pe.i_input.payload.value.eq(beat.payload.values[p % config.input_lanes]),
                status.busy[p].eq(pe.busy), status.stall[p].eq(pe.almost_full),
                status.saturated[p].eq(pe.saturated),
            ]
            wiring.connect(m, pe.o, lnzd.i[p])
        return m

    def _contents(self, pe: int) -> dict[str, list[int]]:
        """What the memories of a PE start with, as the integers Amaranth takes."""
        if self.image is None:
            return {}
        return {
            "spmat": self.image.spmat[pe].tolist(), "ptr": self.image.ptr[pe].tolist(),
            "bias": self.image.bias[pe].tolist(), "codebook": self.image.codebook.tolist(),
        }
