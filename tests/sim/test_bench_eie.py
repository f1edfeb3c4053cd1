"""The EIE benchmark measures what it says: RTL cycles equal the model's, outputs the reference."""

import pytest

from openese.sim.bench_eie import EIE_MHZ, LAYERS, bench_eie


def test_a_layer_on_few_pes():
    (row,) = bench_eie(["NT-LSTM"], n_pes=4)
    paper = LAYERS["NT-LSTM"]
    assert row["mismatches"] == 0
    assert row["outputs"] == paper.outputs
    assert row["cycles"] == row["predicted_cycles"]
    assert row["entries"] == row["useful"] + row["fillers"]
    weights = paper.inputs * paper.outputs * paper.weight_percent / 100
    assert row["useful"] == pytest.approx(weights, rel=0.02)
    assert row["us"] == row["cycles"] / EIE_MHZ
    assert 0.9 < row["utilisation"] < 1
    assert row["eie_utilisation"] > 1  # its time is that of 16 times as many PEs


def test_unknown_layer():
    with pytest.raises(ValueError, match=r"^unknown layer 'Alex-9'; layers: Alex-6, "):
        bench_eie(["Alex-9"])
