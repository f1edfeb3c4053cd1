"""Fixtures of the whole suite, and its longest cases."""

import pytest

#: Test to its cases that `make test` leaves to `make test-all`; none named: all. They take long,
#: and there are quicker ones beside them: fewer PEs, other widths, another family of devices.
SLOW = {
    "boards/test_bench_area.py::test_eses_own_engine_on_eses_device": (),
    "boards/test_bench_area.py::test_parts_are_the_engine": (),
    "boards/test_device.py::test_a_model_that_is_built_in": (),
    "boards/test_device.py::test_states_go_on_and_are_reset": (),
    "boards/test_floorplan.py::test_netlist_of_an_engine": (),
    "boards/test_link_faults.py::test_a_thousand_faults": (),
    "boards/test_netlist_gowin.py::test_engine": (),
    "boards/test_netlist_ice40.py::test_engine": (),
    "boards/test_netlist_ice40.py::test_engine_with_extreme_operands": (),
    "boards/test_netlist_ice40.py::test_engine_with_matrices_in_spram": ("True",),
    "boards/test_resources.py::test_all_memories_of_the_rtl": ("config2", "config3", "config8"),
    "boards/test_resources.py::test_block_rams_of_an_engine": ("False-2",),
    "boards/test_simulated.py::test_a_model_from_power_up_on_amaranths_simulator": (),
    "hdl/test_cells.py::test_beats_of_several_lanes": (
        "parallel-4-2", "parallel-8-4", "serial-4-2", "serial-8-4", "serial-8-8"),
    "hdl/test_cells.py::test_cells_over_several_steps": (
        "GRU-2-False", "GRU-3-False", "LSTM-2-False", "PASS-2-False", "PASS-3-False",
        "TANH-2-False", "TANH-3-False"),
    "hdl/test_cells.py::test_one_unit_per_cycle": ("64-1-0",),
    "hdl/test_cells.py::test_results_go_where_the_instruction_says": (
        "parallel-4", "parallel-5", "parallel-8", "serial-4", "serial-8", "serial-9"),
    "hdl/test_cells.py::test_tokens_stop_while_results_wait": ("1",),
    "hdl/test_elementwise.py::test_cells": ("5-0.0", "5-0.6"),
    "hdl/test_spmat_read.py::test_a_hold_at_any_time_only_delays": ("narrow", "two parts"),
    "hdl/test_spmat_read.py::test_every_short_pair_takes_a_cycle_for_each_entry": (
        "narrow", "two parts"),
    "hdl/test_spmat_read.py::test_markers_and_fences_between_short_columns": (
        "narrow", "two parts"),
    "integration/test_engine.py::test_cycle_model_is_exact": (),
    "integration/test_engine.py::test_cycle_model_is_exact_where_queues_fill": ("16-2", "64-8"),
    "integration/test_engine.py::test_input_lanes": ("2",),
    "integration/test_engine.py::test_pe_counts": ("64",),
    "integration/test_engine.py::test_queue_depths": ("8-16", "8-2"),
    "integration/test_recurrent.py::test_every_cell_and_option_on_one_engine_without_reset": (
        "10 PEs, serial cells, no pointers, direct", "32 PEs, direct, no pointers",
        "6 PEs, no pointers, 3 lanes", "64 PEs", "8 PEs, 5 channels, direct"),
    "integration/test_without_pointers.py::test_outputs_and_cycles": ("5-3-widths2", "9-2-widths1"),
    "sim/test_bench_eie.py::test_a_layer_on_few_pes": (),
    "sim/test_cycle_model.py::test_every_output_of_recurrent_networks": (
        "mixed-4-options12", "projected-3-options10", "projected-8-options3"),
    "test_cli.py::test_demo_on_amaranths_simulator": (),
    "test_cli_recurrent.py::test_bench_ese": (),
    "test_cli_run.py::test_a_model_that_is_too_large": (),
    "test_cli_run.py::test_a_recurrent_model_on_a_board_without_an_element_wise_unit": (),
    "test_cli_run.py::test_lenet_on_a_ulx3s": (),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the slow cases; a name that no case has is a mistake in the list."""
    wanted = {f"{test}[{case}]" for test, cases in SLOW.items() for case in cases}
    wanted |= {test for test, cases in SLOW.items() if not cases}
    found, files = set(), set()
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        files.add(name.partition("::")[0])
        names = wanted.intersection({name, name.partition("[")[0]})
        found |= names
        if names:
            item.add_marker(pytest.mark.slow)
    if not any("::" in argument for argument in config.args):
        for name in sorted(wanted - found):
            if name.partition("::")[0] in files:
                raise pytest.UsageError(f"no test is called {name}: change the list in {__file__}")


@pytest.fixture(params=["amaranth", "cxxrtl"])
def backend(request: pytest.FixtureRequest) -> str:
    """Name of a simulator backend: a test that takes it runs on each of them."""
    return request.param
