# amaranth: UnusedElaboratable=no
"""Proves the UART on the level of the serial waveform: every byte, both ways, back to back, at
mismatched rates; framing errors, breaks, noise and overruns; and which rates are refused."""

import re

import pytest
from amaranth.sim import Simulator

from openese.boards.uart import UartReceiver, UartTransmitter, divisor

DIVISOR = 8


def simulate(dut, *testbenches, background=()):
    sim = Simulator(dut)
    sim.add_clock(1e-8)
    for testbench in testbenches:
        sim.add_testbench(testbench)
    for testbench in background:
        sim.add_testbench(testbench, background=True)
    sim.run()


def levels(byte):
    """Start bit, data, stop bit."""
    return [0, *((byte >> bit) & 1 for bit in range(8)), 1]


async def drive(ctx, line, bits, period=10.0 * DIVISOR):
    """Put levels on a line, `period` nanoseconds each, without regard to the clock."""
    for level in bits:
        ctx.set(line, level)
        await ctx.delay(period * 1e-9)


@pytest.mark.parametrize(("rate", "step"), [(1.0, 1), (0.975, 5), (1.025, 5)])
def test_receiver_takes_every_byte(rate, step):
    dut = UartReceiver(DIVISOR)

    async def line(ctx):
        await ctx.delay(33e-9)
        for byte in range(0, 256, step):
            await drive(ctx, dut.rx, levels(byte), 10 * DIVISOR / rate)

    async def sink(ctx):
        ctx.set(dut.o.ready, 1)
        for byte in range(0, 256, step):
            payload, = await ctx.tick().sample(dut.o.payload).until(dut.o.valid)
            assert payload == byte
        assert not ctx.get(dut.overrun)

    simulate(dut, line, sink)


def test_receiver_latency():
    dut = UartReceiver(DIVISOR)

    async def line(ctx):
        for level in levels(0xA5):
            ctx.set(dut.rx, level)
            await ctx.tick().repeat(DIVISOR)

    async def sink(ctx):
        cycles = 0
        while not ctx.get(dut.o.valid):
            await ctx.tick()
            cycles += 1
        assert cycles == 2 + 9 * DIVISOR + DIVISOR // 2 + 1

    simulate(dut, line, sink)


def test_receiver_keeps_a_byte_until_taken_and_reports_an_overrun():
    dut = UartReceiver(DIVISOR)

    async def line(ctx):
        await drive(ctx, dut.rx, levels(0x12))
        assert ctx.get(dut.o.valid)
        assert not ctx.get(dut.overrun)
        await drive(ctx, dut.rx, levels(0x34))
        assert ctx.get(dut.o.payload) == 0x12
        assert ctx.get(dut.overrun)
        ctx.set(dut.o.ready, 1)
        await ctx.tick()
        await drive(ctx, dut.rx, [*levels(0x56), 1])
        assert ctx.get(dut.o.payload) == 0x56
        assert ctx.get(dut.overrun)

    simulate(dut, line)


def test_receiver_drops_bad_frames_and_noise():
    dut = UartReceiver(DIVISOR)
    taken = []

    async def line(ctx):
        # A stop bit that is low, then the line rests.
        await drive(ctx, dut.rx, [*levels(0xFF)[:-1], 0, 1, 1])
        assert not ctx.get(dut.is_break)
        # A low pulse of a quarter of a bit.
        await drive(ctx, dut.rx, [0], 10.0 * DIVISOR / 4)
        await drive(ctx, dut.rx, [1, *levels(0x77), 1])

    async def sink(ctx):
        ctx.set(dut.o.ready, 1)
        async for _, _, valid, payload in ctx.tick().sample(dut.o.valid, dut.o.payload):
            if valid:
                taken.append(payload)

    simulate(dut, line, background=[sink])
    assert taken == [0x77]


def test_receiver_reports_a_break_until_it_ends():
    dut = UartReceiver(DIVISOR)

    async def line(ctx):
        await drive(ctx, dut.rx, [0] * 11)
        assert ctx.get(dut.is_break)
        assert not ctx.get(dut.o.valid)
        await drive(ctx, dut.rx, [0] * 30)
        assert ctx.get(dut.is_break)
        await drive(ctx, dut.rx, [1])
        assert not ctx.get(dut.is_break)
        await drive(ctx, dut.rx, [*levels(0x42), 1])
        assert ctx.get(dut.o.valid)
        assert ctx.get(dut.o.payload) == 0x42

    simulate(dut, line)


def test_transmitter_sends_every_byte_without_gaps():
    dut = UartTransmitter(DIVISOR)

    async def source(ctx):
        ctx.set(dut.i.valid, 1)
        for byte in range(256):
            ctx.set(dut.i.payload, byte)
            await ctx.tick().until(dut.i.ready)
        ctx.set(dut.i.valid, 0)

    async def line(ctx):
        assert ctx.get(dut.tx)
        while ctx.get(dut.tx):
            await ctx.tick()
        for byte in range(256):
            for level in levels(byte):
                # Constant over the whole bit.
                for _ in range(DIVISOR):
                    assert ctx.get(dut.tx) == level
                    await ctx.tick()
        assert ctx.get(dut.tx)

    simulate(dut, source, line)


@pytest.mark.parametrize(("clock", "baud", "cycles"), [
    (100e6, 1_000_000, 100), (80e6, 1_000_000, 80), (25e6, 115_200, 217),
    (100e6, 3_000_000, 33), (12e6, 3_000_000, 4),
])
def test_divisor(clock, baud, cycles):
    assert divisor(clock, baud) == cycles


@pytest.mark.parametrize(("clock", "baud", "message"), [
    (25e6, 4_000_000, "4000000 baud cannot be made from a clock of 25 MHz within 2%; "
                      "choose a lower rate or one that divides the clock"),
    (3e6, 1_000_000, "1000000 baud cannot be made from a clock of 3 MHz within 2%; "
                     "choose a lower rate or one that divides the clock"),
    (0, 9600, "clock and baud must be positive, not 0 and 9600"),
])
def test_rates_are_checked(clock, baud, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        divisor(clock, baud)


@pytest.mark.parametrize("part", [UartReceiver, UartTransmitter])
@pytest.mark.parametrize("value", [3, 8.0])
def test_divisors_are_checked(part, value):
    message = f"divisor must be an integer of 4 or more, not {value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        part(value)
