"""Proves the hold-off after power-up cycle by cycle, and that a restart resets only the engine."""

from amaranth.sim import Simulator

from openese.boards.reset import HOLD_OFF, HoldOff


def test_hold_off():
    dut = HoldOff()

    async def bench(ctx):
        for cycle in range(HOLD_OFF + 1):
            assert (ctx.get(dut.link), ctx.get(dut.engine)) == (1, 1), cycle
            # A host that asks during the wait does not end it.
            ctx.set(dut.restart, cycle % 2)
            await ctx.tick()
        ctx.set(dut.restart, 0)
        assert ctx.get(dut.link) == 0
        await ctx.tick()
        for restart in (0, 1, 1, 0, 0, 1, 0):
            ctx.set(dut.restart, restart)
            await ctx.tick()
            assert (ctx.get(dut.link), ctx.get(dut.engine)) == (0, restart)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
