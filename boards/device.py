"""A board at a serial port: load a model, run it, read its counters.

```
with Device("/dev/ttyUSB0") as device:
    device.load(network)
    result = device.run(raw)
```
"""

import errno
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import serial
import serial.tools.list_ports
from numpy.typing import ArrayLike, NDArray

from openese.model import host
from openese.model.compile import FitError, Image, compile_network
from openese.model.config import PRESETS, EngineConfig
from openese.model.network import CompressedNetwork
from openese.model.quantise import QuantisedNetwork, quantise
from openese.model.reference import State

from .host import DeviceError, HostEnd, LinkCounters, LinkError, pack_beats
from .protocol import Identification, beat_bytes, model_fingerprint

__all__ = ["Counters", "Device", "DeviceError", "LinkError", "MismatchError", "PortError",
           "RunResult"]

#: Seconds that a read waits for the first byte.
_READ_SECONDS = 0.01

#: A board that answers, but whose engine gives nothing for so many times `timeout`, is given up.
_PATIENCE = 15

Progress = Callable[[int, int], None]


class PortError(DeviceError):
    """The port does not exist, cannot be opened, is in use, or has gone away."""


class MismatchError(DeviceError):
    """The bitstream holds another engine than the model was compiled for, or a smaller one."""


@dataclass(frozen=True)
class Counters:
    """Counters of the engine since it was reset, each modulo 2^32, and of the link.

    Parameters
    ----------
    cycles, saturations, passes, exposed, stalls
        Registers of the engine (``docs/program.md``).
    link
        Of the session.
    """

    cycles: int
    saturations: int
    passes: int
    exposed: int
    stalls: int
    link: LinkCounters = field(default_factory=LinkCounters)


@dataclass(frozen=True)
class RunResult:
    """What `Device.run` gave.

    Parameters
    ----------
    outputs
        int64 ``(n, out_features)``, or ``(n, channels, out_features)`` of engines of several
        channels: raw outputs.
    seconds
        From the first byte sent to the last output received.
    before, after
        Counters.
    """

    outputs: NDArray[np.int64] = field(repr=False)
    seconds: float
    before: Counters
    after: Counters

    @property
    def bytes_out(self) -> int:
        """Bytes sent, those for reading counters included."""
        return self.after.link.bytes_out - self.before.link.bytes_out

    @property
    def bytes_in(self) -> int:
        """Bytes received, those of the counters included."""
        return self.after.link.bytes_in - self.before.link.bytes_in


class Device:
    """An engine on a board, at a serial port; a context manager that closes the port.

    Opening starts the board's engine and link afresh, so whatever was under way is given up.
    Everything that is lost or spoilt on the line is noticed and sent again; a call returns what
    the engine really computed, or raises.

    Parameters
    ----------
    port
        Path of the port, such as ``/dev/ttyUSB0``, a URL that pyserial knows, such as
        ``socket://host:port``, or an open object with pyserial's ``read``, ``write``,
        ``in_waiting`` and ``close``, whose reads return after a short time.
    baud
        Rate of the line; the board's is fixed when its bitstream is made.
    timeout
        Seconds without an answer of the board after which it counts as silent.

    Attributes
    ----------
    identification : Identification
        What the board says about itself.

    Raises
    ------
    PortError
        No such port, or it is in use.
    LinkError
        The board does not answer.
    """

    def __init__(self, port: str | Path | Any, *, baud: int = 1_000_000, timeout: float = 2.0):
        if timeout <= 0:
            raise ValueError(f"timeout must be positive, not {timeout!r}")
        self._timeout, self._baud = timeout, baud
        if isinstance(port, str | Path):
            self._name = str(port)
            self._port = _open_port(self._name, baud, timeout)
        else:
            self._name = getattr(port, "name", None) or "the port"
            self._port = port
        self._image: Image | None = None
        self._quantised: QuantisedNetwork | None = None
        self._end: HostEnd | None = None
        # An operation was begun and not finished, so that answers of it may be on the way.
        self._interrupted = False
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the port. The board keeps what is loaded until the next host opens a session."""
        self._port.close()

    @property
    def identification(self) -> Identification:
        """What the board says about itself."""
        return self._end.identification

    # -- what a user does -------------------------------------------------------------------------

    def load(self, network: CompressedNetwork, *, config: EngineConfig | None = None,
             progress: Progress | None = None) -> None:
        """Compile a network for the board's engine and load it; states are 0.

        A model that was built into the bitstream, and has not been overwritten since, is only
        started.

        Parameters
        ----------
        network
            Without bidirectional layers (`openese.model.stages.split_stages`).
        config
            The board's engine. ``None``: the preset or board whose signature the board gives.
        progress
            Called with bytes loaded and bytes to load.

        Raises
        ------
        MismatchError
            The board has another engine, one that is not known, or one too small.
        LinkError, PortError
            The board or its port has gone away.
        ModelError
            A network that no engine runs.
        """
        config = self._checked_config(config)
        quantised = quantise(network, config)
        try:
            image = compile_network(quantised, config)
        except FitError as error:
            raise MismatchError(
                f"{self._name}: the model is too large for the board's engine: {error}") from None
        self._begin()
        self._image = self._quantised = None
        known = self.identification
        built_in = known.has_model and not self._end.overwritten
        if built_in and known.model == model_fingerprint(image):
            words = host.reset_state(image)
        else:
            words = host.load_words(image, config)
        self._end.send_words(np.concatenate([words, host.start()]))
        total = self._end.pending
        self._exchange(lambda: not self._end.pending,
                       progress and (lambda: progress(total - self._end.pending, total)))
        errors, = self._ask([host.Register.ERRORS])
        if errors:
            raise DeviceError(f"{self._name}: the engine refused a command; another program may "
                              "use the board: load again")
        self._image, self._quantised = image, quantised
        self._interrupted = False

    def run(self, inputs: ArrayLike, *, progress: Progress | None = None) -> RunResult:
        """Send raw inputs and wait for all outputs.

        Parameters
        ----------
        inputs
            Integers ``(n, in_features)``: vectors, or the next steps of the sequence where layers
            are recurrent. ``(n, channels, in_features)`` for engines of several channels.
        progress
            Called with outputs received and outputs expected.

        Raises
        ------
        ValueError
            Inputs of another shape, or values that the engine does not hold.
        DeviceError
            Nothing has been loaded, or the engine gives no outputs.
        LinkError, PortError
            The board or its port has gone away.
        """
        image = self._loaded()
        inputs = np.asarray(inputs)
        if inputs.ndim < 2 or inputs.shape[-1] != image.in_features:
            raise ValueError(f"inputs must have shape (n, {image.in_features}), "
                             f"not {inputs.shape}")
        beats = pack_beats(host.pack_inputs(inputs, image.config))
        self._begin()
        before = self._counters()
        wanted = len(inputs) * image.out_features
        end = self._end
        end.activations.clear()
        end.last.clear()
        began = time.perf_counter()
        end.send_beats(beats, beat_bytes(image.config))
        self._exchange(lambda: len(end.activations) >= wanted,
                       progress and (lambda: progress(len(end.activations), wanted)))
        seconds = time.perf_counter() - began
        after = self._counters()
        last = np.arange(wanted) % image.out_features == image.out_features - 1
        if len(end.activations) != wanted or not np.array_equal(end.last, last):
            raise DeviceError(f"{self._name}: the engine gave {len(end.activations)} outputs and "
                              f"not {wanted}: load the model again")
        self._interrupted = False
        # A beat has an output of every channel.
        channels = image.config.channels
        outputs = np.array(end.activations, dtype=np.int64).reshape(
            len(inputs), image.out_features, channels).transpose(0, 2, 1)
        return RunResult(outputs if channels > 1 else outputs[:, 0], seconds, before, after)

    def reset_state(self) -> None:
        """Set the states of recurrent layers to 0, so that the next step is the first one of a
        sequence. Raises as `run`."""
        image = self._loaded()
        self._begin()
        self._end.send_words(np.concatenate([host.reset_state(image), host.start()]))
        self._ask([host.Register.ERRORS])
        self._interrupted = False

    def read_state(self) -> State:
        """States of recurrent layers, as `openese.model.reference` has them. Raises as `run`."""
        image = self._loaded()
        if image.dump is None:
            return []
        self._begin()
        end = self._end
        end.activations.clear()
        end.last.clear()
        end.send_words(np.concatenate([host.stop(), host.call(image.dump)]))
        self._exchange(lambda: bool(end.last) and end.last[-1])
        end.send_words(host.start())
        self._ask([host.Register.ERRORS])
        self._interrupted = False
        return host.unpack_state(image, end.activations)

    def counters(self) -> Counters:
        """Counters of engine and link. Raises as `run`, but nothing needs to be loaded."""
        self._begin()
        counters = self._counters()
        self._interrupted = False
        return counters

    @property
    def quantised(self) -> QuantisedNetwork | None:
        """The network that is loaded, in the numbers of the engine; ``None`` if none is."""
        return self._quantised

    # -- which engine -----------------------------------------------------------------------------

    def _checked_config(self, config: EngineConfig | None) -> EngineConfig:
        """The configuration of the board's engine: `config`, if it is that."""
        known = self.identification
        there = next((each for each in _known_configs() if each.signature == known.signature),
                     None)
        if config is None and there is not None:
            return there
        if config is None:
            raise MismatchError(
                f"{self._name}: the board's engine (signature {known.signature:#010x}, "
                f"{known.n_pes} PEs) is no preset of this version: give its configuration")
        if config.signature != known.signature:
            raise MismatchError(f"{self._name}: the bitstream holds another engine: "
                                f"{_differences(known, there, config)}; flash the right "
                                "bitstream or compile for the engine on the board")
        return config

    # -- the line ---------------------------------------------------------------------------------

    def _loaded(self) -> Image:
        if self._image is None:
            raise DeviceError(f"{self._name}: no model is loaded: call load() first")
        return self._image

    def _open(self) -> None:
        """Open a session: the engine is reset, memories keep their contents."""
        session = os.urandom(1)[0] if self._end is None else self._end.session + 1
        # The line needs 10 bits for a byte; several buffers full may be under way.
        retry = max(self._timeout / 8, 40_960 / self._baud)
        self._end = HostEnd(session, time.monotonic(), retry=retry,
                            timeout=max(self._timeout, 4 * retry))
        self._exchange(lambda: self._end.identification is not None)
        self._image = self._quantised = None
        self._interrupted = False

    def _begin(self) -> None:
        if self._interrupted:
            loaded = self._image is not None
            self._open()
            if loaded:
                raise DeviceError(f"{self._name}: an operation was interrupted, so the engine was "
                                  "reset: load the model again")
        self._interrupted = True

    def _exchange(self, done: Callable[[], bool], progress: Callable[[], None] | None = None
                  ) -> None:
        """Send and receive until `done`."""
        end = self._end
        now = time.monotonic()
        end.resume(now)
        moved, moved_at = None, now
        try:
            while not done():
                if line := end.outgoing(now):
                    self._port.write(line)
                received = self._port.read(max(1, self._port.in_waiting))
                now = time.monotonic()
                end.incoming(received, now)
                if progress is not None and received:
                    progress()
                place = end.received, end.untaken
                if place != moved:
                    moved, moved_at = place, now
                elif now - moved_at > _PATIENCE * self._timeout:
                    raise DeviceError(
                        f"{self._name}: the board answers, but its engine has given nothing for "
                        f"{now - moved_at:.0f} s: load the model again")
        except LinkError as error:
            raise LinkError(f"{self._name}: {error}; check the cable, the rate ({self._baud} "
                            f"baud) and that the bitstream is loaded") from None
        except OSError as error:
            raise PortError(f"{self._name}: the port has gone away ({_reason(error)}): plug the "
                            "board in and open it again") from None

    def _ask(self, registers: Iterable[host.Register]) -> list[int]:
        """Answers of the engine, which come when it has taken all that was sent before."""
        registers = list(registers)
        end = self._end
        end.words.clear()
        for register in registers:
            end.send_words(host.read(register))
        self._exchange(lambda: len(end.words) >= len(registers))
        return list(end.words)

    def _counters(self) -> Counters:
        names = ("cycles", "saturations", "passes", "exposed", "stalls")
        values = self._ask(host.Register[name.upper()] for name in names)
        return Counters(**dict(zip(names, values, strict=True)),
                        link=replace(self._end.counters))


def _known_configs() -> list[EngineConfig]:
    # Imported where needed: the definitions of all boards take a moment.
    from .platforms import BOARDS

    return [*PRESETS.values(), *(board.config for board in BOARDS.values())]


def _differences(known: Identification, there: EngineConfig | None, asked: EngineConfig) -> str:
    """In what the engine on the board differs from the one asked for."""
    if there is None:
        there = {"n_pes": known.n_pes, "input_lanes": known.input_lanes,
                 "channels": known.channels}
    else:
        there = asdict(there)
    asked = asdict(asked)
    parts = [f"{name} is {value!r}, not {asked[name]!r}" for name, value in there.items()
             if asked[name] != value]
    return ", ".join(parts) or (
        f"its signature is {known.signature:#010x}; its sizes of memories or words differ")


def _open_port(name: str, baud: int, timeout: float) -> Any:
    try:
        port = serial.serial_for_url(name, baud, timeout=_READ_SECONDS,
                                     write_timeout=max(10 * timeout, 40_960 / baud),
                                     exclusive=True)
        port.reset_input_buffer()
    except (OSError, ValueError) as error:
        code = getattr(error, "errno", None)
        if code == errno.ENOENT:
            there = ", ".join(sorted(each.device for each in
                                     serial.tools.list_ports.comports())) or "none"
            raise PortError(f"there is no port {name}; ports of this machine: {there}") from None
        if code == errno.EACCES:
            raise PortError(f"no permission to open {name}: join the group that owns it "
                            "(often `dialout`) and log in again") from None
        if code in (errno.EBUSY, errno.EAGAIN) or "exclusively lock" in str(error):
            raise PortError(f"{name} is in use by another program: close that first") from None
        raise PortError(f"cannot open {name}: {_reason(error)}") from None
    return port


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
