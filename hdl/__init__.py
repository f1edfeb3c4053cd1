"""The accelerator in Amaranth: EIE's sparse matrix-vector engine, built from stream blocks."""
