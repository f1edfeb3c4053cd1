// Simulation models of three primitives of iCE40 UltraPlus that Yosys models as well: the block RAM
// SB_RAM40_4K and the SPRAM SB_SPRAM256KA, because reads that are undefined in the device give
// plausible data there and wrong data here, so that a design that depends on them fails; and the
// lookup table SB_LUT4, because a simulator compiles a netlist five times faster with one index in
// place of fifteen multiplexers.
//
// Written for this project from knowledge of the behaviour that Lattice's FPGA-TN-02002 (memory
// usage guide, formerly TN1250) and FPGA-TN-02022 (SPRAM usage guide) describe, and checked against
// Yosys's own models, whose pins they have; the documents themselves were not at hand. Not compared
// with silicon.
//
// What is left out stops the simulation instead of being guessed: a mode that is not modelled
// instantiates a module that does not exist; a parameter or port that is not modelled is not
// declared; low-power states are fatal.
//
// This file comes first: Yosys's models of the same names are then left aside.

// verilator lint_off DECLFILENAME
// verilator lint_off GENUNNAMED
// verilator lint_off MODDUP
// verilator lint_off TIMESCALEMOD
// verilator lint_off WIDTH
// verilator lint_off UNUSED

module SB_LUT4 (output O, input I0, I1, I2, I3);
    parameter [15:0] LUT_INIT = 0;
    assign O = LUT_INIT[{I3, I2, I1, I0}];
endmodule

// Block RAM of 4 kbit: 256 rows of 16 bits. A port of mode k sees 2**k words per row, word s at bits
// s, s + 2**k, s + 2 * 2**k, ...; the address bits above the row's are s. Data pins of narrow words
// are spread over the bus. Only mode 0 has write masks (1: keep the bit).
//
// A bit that is read while it is written is undefined in the device. It is read here as the
// complement of its old value.
module SB_RAM40_4K (
    output [15:0] RDATA,
    input         RCLK, RCLKE, RE,
    input  [10:0] RADDR,
    input         WCLK, WCLKE, WE,
    input  [10:0] WADDR,
    input  [15:0] MASK,
    input  [15:0] WDATA
);
    parameter WRITE_MODE = 0;
    parameter READ_MODE = 0;
    parameter [255:0] INIT_0 = 0, INIT_1 = 0, INIT_2 = 0, INIT_3 = 0, INIT_4 = 0, INIT_5 = 0,
                      INIT_6 = 0, INIT_7 = 0, INIT_8 = 0, INIT_9 = 0, INIT_A = 0, INIT_B = 0,
                      INIT_C = 0, INIT_D = 0, INIT_E = 0, INIT_F = 0;

    generate
        if (WRITE_MODE < 0 || WRITE_MODE > 3) SB_RAM40_4K_has_no_such_WRITE_MODE bad_write ();
        if (READ_MODE < 0 || READ_MODE > 3) SB_RAM40_4K_has_no_such_READ_MODE bad_read ();
    endgenerate

    // Words per row, and where in its group of bits a word's data pin is.
    localparam W = 1 << WRITE_MODE, W_PIN = WRITE_MODE == 0 ? 0 : W / 2 - 1;
    localparam R = 1 << READ_MODE, R_PIN = READ_MODE == 0 ? 0 : R / 2 - 1;

    reg [4095:0] bits = {INIT_F, INIT_E, INIT_D, INIT_C, INIT_B, INIT_A, INIT_9, INIT_8, INIT_7,
                         INIT_6, INIT_5, INIT_4, INIT_3, INIT_2, INIT_1, INIT_0};
    reg [15:0] memory [0:255];
    reg [15:0] row = 0;
    reg [2:0] word = 0;
    reg [15:0] enable, value;
    integer i;
    initial for (i = 0; i < 256; i = i + 1) memory[i] = bits[16 * i +: 16];

    // Bits of the row that a write changes, and what to.
    always @* begin
        enable = 0;
        value = 0;
        for (i = 0; i < 16; i = i + 1) begin
            enable[i] = WE && WCLKE && i % W == WADDR[10:8] % W && !(WRITE_MODE == 0 && MASK[i]);
            value[i] = WDATA[i / W * W + W_PIN];
        end
    end

    always @(posedge WCLK)
        if (enable != 0) memory[WADDR[7:0]] <= memory[WADDR[7:0]] & ~enable | value & enable;

    always @(posedge RCLK)
        if (RE && RCLKE) begin
            row <= memory[RADDR[7:0]] ^ (RADDR[7:0] == WADDR[7:0] ? enable : 16'b0);
            word <= RADDR[10:8] % R;
        end

    genvar g;
    generate
        for (g = 0; g < 16; g = g + 1)
            assign RDATA[g] = g % R == R_PIN ? row[g / R * R + word] : 1'b0;
    endgenerate
endmodule

// SPRAM of 16,384 words of 16 bits with one port. Contents at power-up are undefined: here a
// pattern that is no model's. After a write the output is undefined: here the complement of what
// was written.
module SB_SPRAM256KA (
    input  [13:0] ADDRESS,
    input  [15:0] DATAIN,
    input  [3:0]  MASKWREN,
    input         WREN, CHIPSELECT, CLOCK, STANDBY, SLEEP, POWEROFF,
    output reg [15:0] DATAOUT
);
    reg [15:0] memory [0:16383];
    wire [15:0] enable = {{4{MASKWREN[3]}}, {4{MASKWREN[2]}}, {4{MASKWREN[1]}}, {4{MASKWREN[0]}}};
    integer i;
    initial begin
        DATAOUT = 16'hdead;
        for (i = 0; i < 16384; i = i + 1) memory[i] = i * 40503 + 16'h5aa5;
    end

    always @(posedge CLOCK) begin
        if (STANDBY || SLEEP || !POWEROFF) begin
            $display("SB_SPRAM256KA: low-power states are not modelled");
            $fatal;
        end
        if (CHIPSELECT) begin
            if (WREN) begin
                memory[ADDRESS] <= memory[ADDRESS] & ~enable | DATAIN & enable;
                DATAOUT <= ~DATAIN;
            end else
                DATAOUT <= memory[ADDRESS];
        end
    end
endmodule
