# amaranth: UnusedElaboratable=no
"""Proves the serial protocol: framing, credits, independence of the channels, priorities; the
host's end against the board's; and, through real serial waveforms both ways, an engine loaded,
run and read out, equal to the reference, also after a break in the middle of a frame."""

import re

import numpy as np
import pytest
from amaranth import ClockDomain, Module
from amaranth.sim import Simulator

from openese.boards.host import HostEnd, LinkError
from openese.boards.link import BUFFER_BYTES, CREDIT_BYTES, Channel, ChannelBuffer, Link
from openese.boards.top import SerialEngine
from openese.model.compile import compile_network, size_for
from openese.model.config import EngineConfig
from openese.model.host import MAGIC, Register, load_words, pack_inputs, read, start, stop
from openese.model.quantise import quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import run_reference

CONFIG = EngineConfig(n_pes=2, input_lanes=2)


def simulate(dut, *testbenches, background=(), cycles=20_000):
    async def watchdog(ctx):
        for _ in range(cycles):
            await ctx.tick()
        raise TimeoutError(f"not done after {cycles} cycles")

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    for testbench in testbenches:
        sim.add_testbench(testbench)
    for testbench in (watchdog, *background):
        sim.add_testbench(testbench, background=True)
    sim.run()


async def put(ctx, stream, payload):
    ctx.set(stream.payload, payload)
    ctx.set(stream.valid, 1)
    await ctx.tick().until(stream.ready)
    ctx.set(stream.valid, 0)


async def get(ctx, stream):
    ctx.set(stream.ready, 1)
    payload, = await ctx.tick().sample(stream.payload).until(stream.valid)
    ctx.set(stream.ready, 0)
    return payload


async def put_bytes(ctx, dut, values):
    """Bytes from the line: the link takes each at once, whatever it does with it."""
    for value in values:
        ctx.set(dut.i_uart.payload, value)
        ctx.set(dut.i_uart.valid, 1)
        *_, ready = await ctx.tick().sample(dut.i_uart.ready)
        assert ready
        ctx.set(dut.i_uart.valid, 0)


def frame(channel, payload):
    return [channel << 6 | len(payload) - 1, *payload]


def test_incoming_frames_of_any_size():
    """Words and beats cross the boundaries of frames; frames of other channels leave no trace."""
    dut = Link(CONFIG)
    words = [0x04030201, 0x88776655, 0xFFFFFFFF]
    acts = [-1, 2, -0x8000, 0x7FFF]
    host_bytes = b"".join(word.to_bytes(4, "little") for word in words)
    act_bytes = b"".join(act.to_bytes(2, "little", signed=True) for act in acts)
    line = [
        *frame(Channel.HOST, host_bytes[:3]), *frame(Channel.ACT, act_bytes[:1]),
        *frame(Channel.ACT_LAST, bytes(range(64))), *frame(Channel.HOST, host_bytes[3:4]),
        *frame(Channel.ACT, act_bytes[1:]), *frame(Channel.CREDIT, b"\x00"),
        *frame(Channel.HOST, host_bytes[4:]),
    ]

    async def source(ctx):
        await put_bytes(ctx, dut, line)

    async def words_out(ctx):
        assert [await get(ctx, dut.o_host) for _ in words] == words

    async def acts_out(ctx):
        assert [list(await get(ctx, dut.o_act)) for _ in range(2)] == [acts[:2], acts[2:]]

    simulate(dut, source, words_out, acts_out)


def test_outgoing_frames():
    """Every transfer is one frame; a stream that always has more does not keep the other out."""
    dut = Link(CONFIG)
    words = [0xDDCCBBAA, 0, 0xFFFFFFFF, 0x01020304]
    acts = [(-2, 0), (0x1234, 0), (-0x8000, 1)]
    frames = []

    async def host(ctx):
        for word in words:
            await put(ctx, dut.i_host, word)

    async def act(ctx):
        for value, last in acts:
            await put(ctx, dut.i_act, {"data": value, "last": last})

    async def line(ctx):
        for _ in range(len(words) + len(acts)):
            head = await get(ctx, dut.o_uart)
            frames.append((head >> 6, [await get(ctx, dut.o_uart)
                                       for _ in range((head & 63) + 1)]))

    simulate(dut, host, act, line)
    assert [payload for channel, payload in frames if channel == Channel.HOST] == [
        list(word.to_bytes(4, "little")) for word in words]
    assert [(channel, payload) for channel, payload in frames if channel != Channel.HOST] == [
        (Channel.ACT, [0xFE, 0xFF]), (Channel.ACT, [0x34, 0x12]), (Channel.ACT_LAST, [0, 0x80])]
    # While both had more, they took turns.
    assert [channel == Channel.HOST for channel, _ in frames] in (
        [True, False, True, False, True, False, True],
        [False, True, False, True, False, True, True])


def test_narrow_activations_keep_their_sign():
    dut = Link(CONFIG.with_(act_bits=8, input_lanes=1))

    async def testbench(ctx):
        await put_bytes(ctx, dut, frame(Channel.ACT, (-3).to_bytes(2, "little", signed=True)))
        assert list(await get(ctx, dut.o_act)) == [-3]

    async def back(ctx):
        await put(ctx, dut.i_act, {"data": -128, "last": 1})
        expected = frame(Channel.ACT_LAST, b"\x80\xff")
        assert [await get(ctx, dut.o_uart) for _ in expected] == expected

    simulate(dut, testbench, back)


def test_a_full_channel_blocks_neither_the_line_nor_the_other_channel():
    """Nobody takes host words. Everything the host may send meets room; activations pass."""
    dut = Link(CONFIG)
    host = HostEnd()
    words = np.random.default_rng(1).integers(0, 1 << 32, BUFFER_BYTES // 4).tolist()
    host.send_words([*words, 7])

    async def testbench(ctx):
        await put_bytes(ctx, dut, host.outgoing())
        # One word more than there is credit for waits at the host.
        assert host.pending == 4
        host.send_activations([5, -5])
        await put_bytes(ctx, dut, host.outgoing())
        assert host.pending == 4
        assert list(await get(ctx, dut.o_act)) == [5, -5]
        assert [await get(ctx, dut.o_host) for _ in words] == words
        for _ in range(BUFFER_BYTES // CREDIT_BYTES):
            host.incoming(bytes([await get(ctx, dut.o_uart)]))
        await put_bytes(ctx, dut, host.outgoing())
        assert host.pending == 0
        assert await get(ctx, dut.o_host) == 7

    simulate(dut, testbench)


def test_credits_for_every_byte():
    """A long transfer through a slow consumer: all credits come back."""
    dut = Link(CONFIG)
    host = HostEnd()
    rng = np.random.default_rng(2)
    words = rng.integers(0, 1 << 32, 3 * BUFFER_BYTES // 4).tolist()
    host.send_words(words)

    async def line_in(ctx):
        while host.pending:
            await put_bytes(ctx, dut, host.outgoing())
            await ctx.tick()

    async def line_out(ctx):
        for _ in range(3 * BUFFER_BYTES // CREDIT_BYTES):
            host.incoming(bytes([await get(ctx, dut.o_uart)]))

    async def consumer(ctx):
        for word in words:
            assert await get(ctx, dut.o_host) == word
            await ctx.tick().repeat(int(rng.integers(1, 8)))

    simulate(dut, line_in, line_out, consumer, cycles=40_000)
    # Every credit is back: as much may be on the way as at first.
    host.send_words([0] * (BUFFER_BYTES // 4))
    host.outgoing()
    assert host.pending == 0


def test_host_refuses_what_the_board_does_not_send():
    for received, message in (
        ([Channel.CREDIT << 6 | Channel.HOST], "credit for channel 0, which owes none"),
        ([Channel.CREDIT << 6 | 5], "credit for channel 5, which owes none"),
        (frame(Channel.HOST, b"12"), "frame of 2 bytes on channel 0"),
        (frame(Channel.ACT, b"123"), "frame of 3 bytes on channel 1"),
    ):
        with pytest.raises(LinkError, match=f"^{message}$"):
            HostEnd().incoming(bytes(received))


def test_host_takes_pieces_of_any_size():
    line = bytes([*frame(Channel.HOST, b"\x01\x02\x03\x04"), *frame(Channel.ACT, b"\xff\xff"),
                  *frame(Channel.ACT_LAST, b"\x02\x01")])
    host = HostEnd()
    for value in line:
        host.incoming(bytes([value]))
    assert list(host.words) == [0x04030201]
    assert list(host.activations) == [(-1, False), (0x0102, True)]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Link(CONFIG.with_(act_bits=17)),
     "the serial link carries activations of at most 16 bits, not 17; lower act_bits"),
    (lambda: ChannelBuffer(0), "n_bytes must be an integer of 1 or more, not 0"),
])
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_engine_over_serial_waveforms():
    """Load, run and read a network over the line; break off in a frame, and do it again."""
    divisor = 4
    network = random_network(3, [4, 6, 3], 0.4)
    config = size_for(network, 2, input_lanes=2)
    quantised = quantise(network, config)
    image = compile_network(quantised, config)
    inputs = random_inputs(4, network, 2)
    reference = run_reference(quantised, inputs)
    dut = SerialEngine(config, divisor)
    host = [HostEnd()]

    async def send(ctx, value):
        for level in (0, *((value >> bit) & 1 for bit in range(8)), 1):
            ctx.set(dut.rx, level)
            await ctx.tick("board").repeat(divisor)

    async def send_all(ctx):
        while host[0].pending:
            for value in host[0].outgoing():
                await send(ctx, value)
            await ctx.tick("board")

    async def answers(ctx, ready):
        while not ready():
            await ctx.tick("board")

    async def session(ctx):
        host[0].send_words([*load_words(image, config), *start()])
        host[0].send_activations(pack_inputs(inputs, config).ravel())
        await send_all(ctx)
        await answers(ctx, lambda: len(host[0].activations) == reference.outputs.size)
        host[0].send_words([*read(Register.MAGIC), *read(Register.PASSES),
                            *read(Register.ERRORS), *stop()])
        await send_all(ctx)
        await answers(ctx, lambda: len(host[0].words) == 3)
        values, last = zip(*host[0].activations, strict=True)
        np.testing.assert_array_equal(np.reshape(values, reference.outputs.shape),
                                      reference.outputs)
        assert np.flatnonzero(last).tolist() == [2, 5]
        return list(host[0].words)

    async def computer(ctx):
        assert await session(ctx) == [MAGIC, 2, 0]
        # A frame that names 64 bytes, of which 2 come; then a break, and a host that starts anew.
        for value in (Channel.HOST << 6 | 63, 0x12, 0x34):
            await send(ctx, value)
        ctx.set(dut.rx, 0)
        await ctx.tick("board").repeat(20 * divisor)
        host[0] = HostEnd()
        ctx.set(dut.rx, 1)
        await ctx.tick("board").repeat(2 * divisor)
        assert await session(ctx) == [MAGIC, 2, 0]
        assert not ctx.get(dut.overrun)

    async def from_board(ctx):
        while True:
            await ctx.negedge(dut.tx)
            await ctx.delay(1.5 * divisor * 1e-8)
            value = 0
            for bit in range(8):
                value |= ctx.get(dut.tx) << bit
                await ctx.delay(divisor * 1e-8)
            assert ctx.get(dut.tx)
            host[0].incoming(bytes([value]))

    async def watchdog(ctx):
        for _ in range(200_000):
            await ctx.tick("board")
        raise TimeoutError

    m = Module()
    m.domains.sync = sync = ClockDomain()
    m.submodules.dut = dut
    m.d.comb += sync.rst.eq(dut.is_break)
    sim = Simulator(m)
    sim.add_clock(1e-8, domain="sync")
    sim.add_clock(1e-8, domain="board")
    sim.add_testbench(computer)
    sim.add_testbench(from_board, background=True)
    sim.add_testbench(watchdog, background=True)
    sim.run()
