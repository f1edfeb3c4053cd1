"""Time loading a model and running it through the serial link, in clock cycles of a board.

    python bench/link.py --baud 1000000 --latency 1

The board is simulated to its serial pins, as in `openese run --port simulated`, but at the rate of
its line and in step with the host program: a host that takes no time of its own. Of a USB adapter
there is what matters: answers wait until a packet is full or its timer rings.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import openese
from openese.boards.device import Device
from openese.boards.platforms import BOARDS
from openese.boards.protocol import Identification
from openese.boards.reset import HOLD_OFF
from openese.boards.simulated import SerialBench
from openese.boards.top import SerialEngine
from openese.boards.uart import FRAME_BITS, divisor
from openese.model.ese_file import load
from openese.model.mnist import scale_pixels
from openese.model.quantise import quantise
from openese.model.reference import run_reference
from openese.sim.simulation import Simulation

DATA = Path(openese.__file__).with_name("data")

#: Bytes of a packet of an FT231X, without its two of status.
PACKET = 62
#: Bytes on the line between two looks at what has come.
STEP = 8


class Port:
    """A serial port, for `Device`, whose time is that of a simulated board.

    Parameters
    ----------
    simulation
        Of a `SerialBench`.
    byte_cycles
        Clock cycles of a byte on the line.
    latency
        Clock cycles after which a packet is sent to the host even though it is not full.
    """

    def __init__(self, simulation: Simulation, byte_cycles: int, latency: int):
        self._simulation, self._byte_cycles, self._latency = simulation, byte_cycles, latency
        self._out, self._packet, self._in = bytearray(), bytearray(), bytearray()
        self._since = 0
        self.cycles = 0

    @property
    def in_waiting(self) -> int:
        """Bytes to be read."""
        return len(self._in)

    def write(self, data: bytes) -> int:
        """Queue bytes for the board."""
        self._out += data
        return len(data)

    def read(self, size: int) -> bytes:
        """Wait for bytes, a while at the most."""
        for _ in range(200):
            if self._in:
                break
            self._step()
        data = bytes(self._in[:size])
        del self._in[:size]
        return data

    def close(self) -> None:
        """Nothing to do: the simulation is the user's."""

    def _step(self) -> None:
        data = bytes(self._out[:STEP])
        del self._out[:STEP]
        rest = 0 if data else STEP * self._byte_cycles
        result = self._simulation.run({"i": np.frombuffer(data, np.uint8)}, {"o": None},
                                      extra_cycles=rest)
        if not self._packet:
            self._since = self.cycles
        self.cycles += result.cycles
        self._packet += result.outputs["o"].astype(np.uint8).tobytes()
        if self._packet and (len(self._packet) >= PACKET
                             or self.cycles - self._since >= self._latency):
            self._in += self._packet
            self._packet.clear()


def measure(name: str, baud: int, latency_ms: float, digits: int) -> dict:
    """Load the shipped LeNet into a board and run digits."""
    board, network = BOARDS[name], load(DATA / "lenet_300_100.ese")
    config, clock = board.config, board.target_mhz * 1e6
    cycles = divisor(clock, baud)
    quantised = quantise(network, config)
    with np.load(DATA / "mnist_256.npz", allow_pickle=False) as file:
        raw, _ = quantised.quantise_input(scale_pixels(file["images"][:digits]))
    engine = SerialEngine(config, cycles, identification=Identification.of(
        config, board=name, preset=name, clock_hz=round(clock), divisor=cycles))
    with Simulation(SerialBench(engine, cycles), "cxxrtl", flatten=True, optimise=3) as simulation:
        # Power came on a while ago.
        simulation.run(extra_cycles=2 * HOLD_OFF)
        port = Port(simulation, FRAME_BITS * cycles, round(latency_ms * clock / 1e3))
        # Nothing is lost on this line, so silence means only that the simulation takes its time.
        with Device(port, baud=baud, timeout=3600) as device:
            seconds, sent = [], []

            def timed(call):
                before = port.cycles
                result = call()
                seconds.append((port.cycles - before) / clock)
                sent.append(device.counters().link.bytes_out)
                return result

            timed(device.counters)
            timed(lambda: device.load(network, config=config))
            one = timed(lambda: device.run(raw[:1]))
            many = timed(lambda: device.run(raw[1:]))
    outputs = np.concatenate([one.outputs, many.outputs])
    # Reading the counters before and after a run is no part of it.
    asking, loading, first, others = seconds
    engine_cycles = (many.after.cycles - many.before.cycles) / (digits - 1)
    return {
        "board": name, "baud": clock / cycles, "latency_ms": latency_ms, "digits": digits,
        "mismatches": int((outputs != run_reference(quantised, raw).outputs).sum()),
        "load_bytes": sent[1] - sent[0], "load_seconds": loading,
        "digit_ms": 1e3 * (first - 2 * asking),
        "digits_per_second": (digits - 1) / (others - 2 * asking),
        "engine_cycles": engine_cycles, "engine_digits_per_second": clock / engine_cycles,
        "retries": many.after.link.retries,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--board", default="ulx3s-12f", choices=list(BOARDS))
    parser.add_argument("--baud", type=int, default=1_000_000)
    parser.add_argument("--latency", type=float, default=1.0, metavar="MS",
                        help="latency timer of the USB adapter in milliseconds (default 1)")
    parser.add_argument("--digits", type=int, default=20, help="2 or more")
    args = parser.parse_args()
    row = measure(args.board, args.baud, args.latency, args.digits)
    if args.json:
        print(json.dumps(row))
    else:
        print(f"{row['board']}, {row['baud']:,.0f} baud, {row['latency_ms']:g} ms: load "
              f"{row['load_bytes']:,} bytes in {row['load_seconds']:.2f} s; a digit in "
              f"{row['digit_ms']:.2f} ms, {row['digits_per_second']:.1f} digits per second; engine "
              f"{row['engine_cycles']:,.0f} cycles, {row['engine_digits_per_second']:,.0f} digits "
              f"per second; {row['retries']} retries, {row['mismatches']} mismatches")
    sys.exit(row["mismatches"] != 0)


if __name__ == "__main__":
    main()
