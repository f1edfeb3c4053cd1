"""Fixtures of the whole suite, and its longest cases."""

import pytest

#: Test to its cases that `make test` leaves to `make test-all`; none named: all. They take long,
#: and there are quicker ones beside them: fewer PEs, other widths, another family of devices.
SLOW = {
    "boards/test_bench_area.py::test_a_multiplier_is_one_primitive_everywhere": (),
    "boards/test_bench_area.py::test_eses_own_engine_on_eses_device": (),
    "boards/test_bench_area.py::test_every_unit_can_be_alone": ("central", "ese"),
    "boards/test_bench_area.py::test_parts_are_the_engine": (),
    "boards/test_device.py::test_a_model_that_is_built_in": (),
    "boards/test_device.py::test_states_go_on_and_are_reset": (),
    "boards/test_ecp5_contents.py::test_netlist": (
        "1000-25-False-2", "4096-13-False-4", "9000-5-False-5"),
    "boards/test_ecp5_contents.py::test_taken_contents": (),
    "boards/test_floorplan.py::test_netlist_of_an_engine": (),
    "boards/test_link_faults.py::test_a_thousand_faults": (),
    "boards/test_link_faults.py::test_breaks_at_any_time": (),
    "boards/test_netlist_gowin.py::test_engine": (),
    "boards/test_netlist_ice40.py::test_block_ram": (
        "13-512-13-2", "4-1024-4-1", "8-512-8-1", "9-1024-9-3"),
    "boards/test_netlist_ice40.py::test_engine": (),
    "boards/test_netlist_ice40.py::test_engine_with_extreme_operands": (),
    "boards/test_netlist_ice40.py::test_engine_with_matrices_in_spram": (),
    "boards/test_platforms.py::test_top": ("orangecrab-25f", "tang-nano-20k", "ulx3s-25f"),
    "boards/test_resources.py::test_all_memories_of_the_rtl": (
        "config2", "config3", "config4", "config7", "config8", "config9"),
    "boards/test_resources.py::test_block_rams_of_an_engine": (),
    "boards/test_simulated.py::test_a_line_that_spoils_bytes": (),
    "boards/test_simulated.py::test_a_model_from_power_up_on_amaranths_simulator": (),
    "boards/test_synthesis.py::test_block_rams_and_multipliers": (),
    "hdl/test_cells.py::test_beats_of_several_lanes": (
        "parallel-4-2", "parallel-8-4", "parallel-8-8", "serial-4-2", "serial-8-4", "serial-8-8"),
    "hdl/test_cells.py::test_cells_over_several_steps": (
        "GRU-1-True", "GRU-2-False", "GRU-3-False", "LSTM-2-False", "LSTM-3-False", "PASS-1-True",
        "PASS-2-False", "PASS-3-False", "TANH-1-False", "TANH-1-True", "TANH-2-False",
        "TANH-3-False"),
    "hdl/test_cells.py::test_one_unit_per_cycle": ("64-1-0", "64-1-3"),
    "hdl/test_cells.py::test_results_go_where_the_instruction_says": (
        "parallel-4", "parallel-5", "parallel-8", "parallel-9", "serial-4", "serial-5",
        "serial-8", "serial-9"),
    "hdl/test_cells.py::test_states_in_order": ("1-True-15-4-0.7", "2-False-15-4-0.0"),
    "hdl/test_cells.py::test_tokens_stop_while_results_wait": ("1", "9"),
    "hdl/test_elementwise.py::test_cells": ("2-0.0", "2-0.6", "5-0.0", "5-0.6"),
    "hdl/test_elementwise.py::test_channels_without_a_step": (),
    "hdl/test_elementwise.py::test_lstm_of_every_cell_shift": ("False",),
    "hdl/test_elementwise.py::test_peepholes_of_every_shift": ("10", "17"),
    "hdl/test_elementwise_serial.py::test_cells": ("0.0-0.9", "0.6-0.0"),
    "hdl/test_elementwise_serial.py::test_lstm_of_every_cell_shift": ("False",),
    "hdl/test_elementwise_serial.py::test_peepholes_of_every_shift": ("13", "17"),
    "hdl/test_gather.py::test_one_unit_per_cycle_in_order": (
        "64-False-1", "64-False-2", "64-True-1"),
    "hdl/test_gather.py::test_tokens_farther_apart": ("64-False", "64-True"),
    "hdl/test_sequencer_recurrent.py::test_random_programs": (
        "12", "13", "14", "15", "16", "17", "18", "19", "20", "21", "22", "23"),
    "hdl/test_spmat_read.py::test_a_hold_at_any_time_only_delays": (
        "direct", "narrow", "three parts", "two parts"),
    "hdl/test_spmat_read.py::test_every_short_pair_takes_a_cycle_for_each_entry": (
        "direct", "narrow", "three parts", "two parts"),
    "hdl/test_spmat_read.py::test_markers_and_fences_between_short_columns": (
        "direct", "narrow", "three parts", "two parts"),
    "hdl/test_write_back.py::test_every_accumulator_around_ties_and_both_rails": ("3-0", "3-1"),
    "integration/test_engine.py::test_another_model_without_reset": ("amaranth",),
    "integration/test_engine.py::test_cycle_model_is_exact": (),
    "integration/test_engine.py::test_cycle_model_is_exact_where_queues_fill": ("16-2", "64-8"),
    "integration/test_engine.py::test_index_widths": ("4-3", "4-4", "4-5", "4-6", "4-7"),
    "integration/test_engine.py::test_input_lanes": ("2", "8"),
    "integration/test_engine.py::test_load_into_a_running_engine": ("amaranth",),
    "integration/test_engine.py::test_pe_counts": ("16", "64"),
    "integration/test_engine.py::test_queue_depths": ("1-1", "3-16", "8-1", "8-16", "8-2", "8-8"),
    "integration/test_engine.py::test_stalls_on_both_streams": ("3", "4", "5"),
    "integration/test_recurrent.py::test_bidirectional_layers_in_two_passes": ("lstm",),
    "integration/test_recurrent.py::test_every_cell_and_option_on_one_engine_without_reset": (
        "1 PE", "10 PEs, serial cells, no pointers, direct", "3 PEs, 2 channels",
        "32 PEs, direct, no pointers", "4 PEs, serial cells", "6 PEs, no pointers, 3 lanes",
        "64 PEs", "8 PEs, 5 channels, direct"),
    "integration/test_recurrent_examples.py::test_all_programs_of_the_adder_add": (),
    "integration/test_recurrent_examples.py::test_spoken_digits_from_training_to_rtl": (),
    "integration/test_recurrent_examples.py::test_the_adder_trains": (),
    "integration/test_training_examples.py::test_dsd_on_spoken_digits": (),
    "integration/test_without_pointers.py::test_outputs_and_cycles": ("5-3-widths2", "9-2-widths1"),
    "sim/test_bench_eie.py::test_a_layer_on_few_pes": (),
    "sim/test_cache.py::test_engine_from_the_cache_gives_the_same": ("verilator",),
    "sim/test_cycle_model.py::test_any_recurrent_engine": (),
    "sim/test_cycle_model.py::test_channels_and_steps_that_some_of_them_lack": ("True",),
    "sim/test_cycle_model.py::test_every_output_of_recurrent_networks": (
        "last_linear-3-options8", "lstm-5-options9", "mixed-1-options7", "mixed-4-options12",
        "mixed-4-options6", "projected-3-options10", "projected-3-options2",
        "projected-8-options3"),
    "sim/test_cycle_model.py::test_linear_networks_on_recurrent_engines": (
        "{'serial_cells': True}", "{}"),
    "test_cli.py::test_demo_on_amaranths_simulator": (),
    "test_cli_bench.py::test_cpu": (),
    "test_cli_bench.py::test_sim": (),
    "test_cli_recurrent.py::test_a_sequence": ("options1-both.ese", "options1-gru.ese"),
    "test_cli_recurrent.py::test_bench_ese": (),
    "test_cli_recurrent.py::test_inspect_the_layer_of_ese": (),
    "test_cli_recurrent.py::test_verilog_of_channels": (),
    "test_cli_run.py::test_a_model_that_is_too_large": (),
    "test_cli_run.py::test_a_recurrent_model_on_a_board_without_an_element_wise_unit": (),
    "test_cli_run.py::test_lenet_on_a_ulx3s": (),
    "test_cli_run.py::test_what_a_simulated_board_prints": (),
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
