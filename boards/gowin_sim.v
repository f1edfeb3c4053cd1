// Simulation models of Gowin primitives that Yosys maps to but does not model: the block RAMs
// SDPB, SDPX9B, DPB and DPX9B, and the multiplier MULT18X18. Every other primitive of a netlist has
// its model in Yosys's own techlibs.
//
// Written for this project from knowledge of the behaviour that Gowin's UG285 (BSRAM and SSRAM
// user guide) and UG287 (DSP user guide) describe; the documents themselves were not at hand. Pins
// and initialisation follow Yosys's mapping rules. Compared neither with the documents, nor with
// silicon, nor with the vendor's own models.
//
// Modelled are the modes that netlists of the engine use. What is left out stops the simulation
// instead of being guessed: a parameter value that is not modelled instantiates a module that does
// not exist, which every simulator refuses; a parameter or port that is not modelled is not
// declared; an asserted reset is fatal.

// verilator lint_off DECLFILENAME
// verilator lint_off GENUNNAMED
// verilator lint_off MULTIDRIVEN
// verilator lint_off MULTITOP
// verilator lint_off SPECIFYIGN
// verilator lint_off WIDTH
// verilator lint_off UNUSED

// What all block RAMs have in common: 512 rows of four bytes, a byte being 8 bits or, in the X9
// primitives, 9. A port sees a row, a half, a byte, or a part (4, 2, 1 bits) of a byte of 8. With a
// half or a row the lowest address bits are the byte enables of a write. Both ports run on one
// clock.
//
// Bits that one port reads while the other writes them are undefined in the device. They are read
// here as the complement of their old value, so that a design that depends on them fails. Writes of
// both ports to one row in one cycle are fatal: defined in the device unless they overlap, but not
// modelled.
module openese_gowin_bsram #(
    parameter BYTE = 9,
    parameter WIDTH_A = 9,
    parameter WIDTH_B = 9,
    // 0: a port that writes keeps its output; 1: it reads what it writes.
    parameter WRITE_MODE_A = 0,
    parameter WRITE_MODE_B = 0,
    parameter [2048*BYTE-1:0] INIT = 0
) (
    input CLKA, CEA, WREA,
    input [13:0] ADA,
    input [35:0] DIA,
    output [35:0] DOA,
    input CLKB, CEB, WREB,
    input [13:0] ADB,
    input [35:0] DIB,
    output [35:0] DOB
);
    localparam ROW = 4 * BYTE;

    generate
        if (WIDTH_A != ROW && WIDTH_A != ROW / 2 && WIDTH_A != BYTE &&
            (BYTE == 9 || WIDTH_A != 4 && WIDTH_A != 2 && WIDTH_A != 1))
            ERROR_GOWIN_BSRAM_BIT_WIDTH_0_IS_NOT_MODELLED error();
        if (WIDTH_B != ROW && WIDTH_B != ROW / 2 && WIDTH_B != BYTE &&
            (BYTE == 9 || WIDTH_B != 4 && WIDTH_B != 2 && WIDTH_B != 1))
            ERROR_GOWIN_BSRAM_BIT_WIDTH_1_IS_NOT_MODELLED error();
        if (WRITE_MODE_A != 0 && WRITE_MODE_A != 1)
            ERROR_GOWIN_BSRAM_WRITE_MODE0_IS_NOT_MODELLED error();
        if (WRITE_MODE_B != 0 && WRITE_MODE_B != 1)
            ERROR_GOWIN_BSRAM_WRITE_MODE1_IS_NOT_MODELLED error();
    endgenerate

    // Position of a port's word in its row.
    function [5:0] offset(input [13:0] ad, input integer width);
        offset = width == ROW ? 6'd0
            : width == ROW / 2 ? 2 * BYTE * ad[4]
            : width == BYTE ? BYTE * ad[4:3]
            : width == 4 ? 4 * ad[4:2]
            : width == 2 ? 2 * ad[4:1]
            : ad[4:0];
    endfunction

    // Bits of the row that a port's word covers.
    function [ROW-1:0] extent(input [13:0] ad, input integer width);
        extent = ({ROW{1'b1}} >> (ROW - width)) << offset(ad, width);
    endfunction

    // Bits of the row that a write to the word may change.
    function [ROW-1:0] enabled(input [13:0] ad, input integer width);
        enabled = width == ROW ? {{BYTE{ad[3]}}, {BYTE{ad[2]}}, {BYTE{ad[1]}}, {BYTE{ad[0]}}}
            : width == ROW / 2 ? {2{{BYTE{ad[1]}}, {BYTE{ad[0]}}}}
            : {ROW{1'b1}};
    endfunction

    reg [ROW-1:0] mem [0:511];
    integer i;
    initial
        for (i = 0; i < 512; i = i + 1)
            mem[i] = INIT[ROW * i +: ROW];

    wire [ROW-1:0] write_a = CEA && WREA ? extent(ADA, WIDTH_A) & enabled(ADA, WIDTH_A) : 0;
    wire [ROW-1:0] write_b = CEB && WREB ? extent(ADB, WIDTH_B) & enabled(ADB, WIDTH_B) : 0;
    wire same_row = ADA[13:5] == ADB[13:5];
    wire [ROW-1:0] in_a = DIA;
    wire [ROW-1:0] in_b = DIB;

    wire [ROW-1:0] old_a = mem[ADA[13:5]];
    wire [ROW-1:0] new_a = old_a & ~write_a | (in_a << offset(ADA, WIDTH_A)) & write_a;
    wire [ROW-1:0] row_a = (WRITE_MODE_A == 1 ? new_a : old_a) ^ (same_row ? write_b : 0);
    reg [ROW-1:0] out_a;
    initial out_a = 0;

    always @(posedge CLKA) begin
        if (write_a != 0)
            mem[ADA[13:5]] <= new_a;
        if (CEA && !(WREA && WRITE_MODE_A == 0))
            out_a <= (row_a & extent(ADA, WIDTH_A)) >> offset(ADA, WIDTH_A);
    end

    wire [ROW-1:0] old_b = mem[ADB[13:5]];
    wire [ROW-1:0] new_b = old_b & ~write_b | (in_b << offset(ADB, WIDTH_B)) & write_b;
    wire [ROW-1:0] row_b = (WRITE_MODE_B == 1 ? new_b : old_b) ^ (same_row ? write_a : 0);
    reg [ROW-1:0] out_b;
    initial out_b = 0;

    always @(posedge CLKB) begin
        if (write_b != 0)
            mem[ADB[13:5]] <= new_b;
        if (CEB && !(WREB && WRITE_MODE_B == 0))
            out_b <= (row_b & extent(ADB, WIDTH_B)) >> offset(ADB, WIDTH_B);
        if (same_row && write_a != 0 && write_b != 0)
            $fatal(1, "Gowin block RAM: two writes to one row");
    end

    assign DOA = out_a;
    assign DOB = out_b;
endmodule


// Semi-dual port: A writes, B reads. Bytes of 8 bits.
module SDPB (
    input CLKA, CEA, CLKB, CEB, OCE, RESETA, RESETB,
    input [13:0] ADA, ADB,
    input [31:0] DI,
    input [2:0] BLKSELA, BLKSELB,
    output [31:0] DO
);
    parameter READ_MODE = 1'b0;
    parameter BIT_WIDTH_0 = 32;
    parameter BIT_WIDTH_1 = 32;
    parameter [2:0] BLK_SEL_0 = 3'b000;
    parameter [2:0] BLK_SEL_1 = 3'b000;
    // Of a reset that stays inactive, so any value will do.
    parameter RESET_MODE = "SYNC";
    parameter [255:0] INIT_RAM_00 = 256'd0;
    parameter [255:0] INIT_RAM_01 = 256'd0;
    parameter [255:0] INIT_RAM_02 = 256'd0;
    parameter [255:0] INIT_RAM_03 = 256'd0;
    parameter [255:0] INIT_RAM_04 = 256'd0;
    parameter [255:0] INIT_RAM_05 = 256'd0;
    parameter [255:0] INIT_RAM_06 = 256'd0;
    parameter [255:0] INIT_RAM_07 = 256'd0;
    parameter [255:0] INIT_RAM_08 = 256'd0;
    parameter [255:0] INIT_RAM_09 = 256'd0;
    parameter [255:0] INIT_RAM_0A = 256'd0;
    parameter [255:0] INIT_RAM_0B = 256'd0;
    parameter [255:0] INIT_RAM_0C = 256'd0;
    parameter [255:0] INIT_RAM_0D = 256'd0;
    parameter [255:0] INIT_RAM_0E = 256'd0;
    parameter [255:0] INIT_RAM_0F = 256'd0;
    parameter [255:0] INIT_RAM_10 = 256'd0;
    parameter [255:0] INIT_RAM_11 = 256'd0;
    parameter [255:0] INIT_RAM_12 = 256'd0;
    parameter [255:0] INIT_RAM_13 = 256'd0;
    parameter [255:0] INIT_RAM_14 = 256'd0;
    parameter [255:0] INIT_RAM_15 = 256'd0;
    parameter [255:0] INIT_RAM_16 = 256'd0;
    parameter [255:0] INIT_RAM_17 = 256'd0;
    parameter [255:0] INIT_RAM_18 = 256'd0;
    parameter [255:0] INIT_RAM_19 = 256'd0;
    parameter [255:0] INIT_RAM_1A = 256'd0;
    parameter [255:0] INIT_RAM_1B = 256'd0;
    parameter [255:0] INIT_RAM_1C = 256'd0;
    parameter [255:0] INIT_RAM_1D = 256'd0;
    parameter [255:0] INIT_RAM_1E = 256'd0;
    parameter [255:0] INIT_RAM_1F = 256'd0;
    parameter [255:0] INIT_RAM_20 = 256'd0;
    parameter [255:0] INIT_RAM_21 = 256'd0;
    parameter [255:0] INIT_RAM_22 = 256'd0;
    parameter [255:0] INIT_RAM_23 = 256'd0;
    parameter [255:0] INIT_RAM_24 = 256'd0;
    parameter [255:0] INIT_RAM_25 = 256'd0;
    parameter [255:0] INIT_RAM_26 = 256'd0;
    parameter [255:0] INIT_RAM_27 = 256'd0;
    parameter [255:0] INIT_RAM_28 = 256'd0;
    parameter [255:0] INIT_RAM_29 = 256'd0;
    parameter [255:0] INIT_RAM_2A = 256'd0;
    parameter [255:0] INIT_RAM_2B = 256'd0;
    parameter [255:0] INIT_RAM_2C = 256'd0;
    parameter [255:0] INIT_RAM_2D = 256'd0;
    parameter [255:0] INIT_RAM_2E = 256'd0;
    parameter [255:0] INIT_RAM_2F = 256'd0;
    parameter [255:0] INIT_RAM_30 = 256'd0;
    parameter [255:0] INIT_RAM_31 = 256'd0;
    parameter [255:0] INIT_RAM_32 = 256'd0;
    parameter [255:0] INIT_RAM_33 = 256'd0;
    parameter [255:0] INIT_RAM_34 = 256'd0;
    parameter [255:0] INIT_RAM_35 = 256'd0;
    parameter [255:0] INIT_RAM_36 = 256'd0;
    parameter [255:0] INIT_RAM_37 = 256'd0;
    parameter [255:0] INIT_RAM_38 = 256'd0;
    parameter [255:0] INIT_RAM_39 = 256'd0;
    parameter [255:0] INIT_RAM_3A = 256'd0;
    parameter [255:0] INIT_RAM_3B = 256'd0;
    parameter [255:0] INIT_RAM_3C = 256'd0;
    parameter [255:0] INIT_RAM_3D = 256'd0;
    parameter [255:0] INIT_RAM_3E = 256'd0;
    parameter [255:0] INIT_RAM_3F = 256'd0;

    generate
        if (READ_MODE != 0)
            ERROR_SDPB_READ_MODE_IS_NOT_MODELLED error();
    endgenerate

    openese_gowin_bsram #(
        .BYTE(8), .WIDTH_A(BIT_WIDTH_0), .WIDTH_B(BIT_WIDTH_1), .INIT({
        INIT_RAM_3F, INIT_RAM_3E, INIT_RAM_3D, INIT_RAM_3C, INIT_RAM_3B, INIT_RAM_3A, INIT_RAM_39,
        INIT_RAM_38, INIT_RAM_37, INIT_RAM_36, INIT_RAM_35, INIT_RAM_34, INIT_RAM_33, INIT_RAM_32,
        INIT_RAM_31, INIT_RAM_30, INIT_RAM_2F, INIT_RAM_2E, INIT_RAM_2D, INIT_RAM_2C, INIT_RAM_2B,
        INIT_RAM_2A, INIT_RAM_29, INIT_RAM_28, INIT_RAM_27, INIT_RAM_26, INIT_RAM_25, INIT_RAM_24,
        INIT_RAM_23, INIT_RAM_22, INIT_RAM_21, INIT_RAM_20, INIT_RAM_1F, INIT_RAM_1E, INIT_RAM_1D,
        INIT_RAM_1C, INIT_RAM_1B, INIT_RAM_1A, INIT_RAM_19, INIT_RAM_18, INIT_RAM_17, INIT_RAM_16,
        INIT_RAM_15, INIT_RAM_14, INIT_RAM_13, INIT_RAM_12, INIT_RAM_11, INIT_RAM_10, INIT_RAM_0F,
        INIT_RAM_0E, INIT_RAM_0D, INIT_RAM_0C, INIT_RAM_0B, INIT_RAM_0A, INIT_RAM_09, INIT_RAM_08,
        INIT_RAM_07, INIT_RAM_06, INIT_RAM_05, INIT_RAM_04, INIT_RAM_03, INIT_RAM_02, INIT_RAM_01,
        INIT_RAM_00
    })
    ) bsram (
        .CLKA(CLKA), .CEA(CEA && BLKSELA == BLK_SEL_0), .WREA(1'b1), .ADA(ADA), .DIA(DI), .DOA(),
        .CLKB(CLKB), .CEB(CEB && BLKSELB == BLK_SEL_1), .WREB(1'b0), .ADB(ADB), .DIB(36'd0),
        .DOB(DO)
    );

    always @(posedge CLKB)
        if (RESETA || RESETB)
            $fatal(1, "SDPB: reset is not modelled");
endmodule


// Semi-dual port: A writes, B reads. Bytes of 9 bits.
module SDPX9B (
    input CLKA, CEA, CLKB, CEB, OCE, RESETA, RESETB,
    input [13:0] ADA, ADB,
    input [35:0] DI,
    input [2:0] BLKSELA, BLKSELB,
    output [35:0] DO
);
    parameter READ_MODE = 1'b0;
    parameter BIT_WIDTH_0 = 36;
    parameter BIT_WIDTH_1 = 36;
    parameter [2:0] BLK_SEL_0 = 3'b000;
    parameter [2:0] BLK_SEL_1 = 3'b000;
    // Of a reset that stays inactive, so any value will do.
    parameter RESET_MODE = "SYNC";
    parameter [287:0] INIT_RAM_00 = 288'd0;
    parameter [287:0] INIT_RAM_01 = 288'd0;
    parameter [287:0] INIT_RAM_02 = 288'd0;
    parameter [287:0] INIT_RAM_03 = 288'd0;
    parameter [287:0] INIT_RAM_04 = 288'd0;
    parameter [287:0] INIT_RAM_05 = 288'd0;
    parameter [287:0] INIT_RAM_06 = 288'd0;
    parameter [287:0] INIT_RAM_07 = 288'd0;
    parameter [287:0] INIT_RAM_08 = 288'd0;
    parameter [287:0] INIT_RAM_09 = 288'd0;
    parameter [287:0] INIT_RAM_0A = 288'd0;
    parameter [287:0] INIT_RAM_0B = 288'd0;
    parameter [287:0] INIT_RAM_0C = 288'd0;
    parameter [287:0] INIT_RAM_0D = 288'd0;
    parameter [287:0] INIT_RAM_0E = 288'd0;
    parameter [287:0] INIT_RAM_0F = 288'd0;
    parameter [287:0] INIT_RAM_10 = 288'd0;
    parameter [287:0] INIT_RAM_11 = 288'd0;
    parameter [287:0] INIT_RAM_12 = 288'd0;
    parameter [287:0] INIT_RAM_13 = 288'd0;
    parameter [287:0] INIT_RAM_14 = 288'd0;
    parameter [287:0] INIT_RAM_15 = 288'd0;
    parameter [287:0] INIT_RAM_16 = 288'd0;
    parameter [287:0] INIT_RAM_17 = 288'd0;
    parameter [287:0] INIT_RAM_18 = 288'd0;
    parameter [287:0] INIT_RAM_19 = 288'd0;
    parameter [287:0] INIT_RAM_1A = 288'd0;
    parameter [287:0] INIT_RAM_1B = 288'd0;
    parameter [287:0] INIT_RAM_1C = 288'd0;
    parameter [287:0] INIT_RAM_1D = 288'd0;
    parameter [287:0] INIT_RAM_1E = 288'd0;
    parameter [287:0] INIT_RAM_1F = 288'd0;
    parameter [287:0] INIT_RAM_20 = 288'd0;
    parameter [287:0] INIT_RAM_21 = 288'd0;
    parameter [287:0] INIT_RAM_22 = 288'd0;
    parameter [287:0] INIT_RAM_23 = 288'd0;
    parameter [287:0] INIT_RAM_24 = 288'd0;
    parameter [287:0] INIT_RAM_25 = 288'd0;
    parameter [287:0] INIT_RAM_26 = 288'd0;
    parameter [287:0] INIT_RAM_27 = 288'd0;
    parameter [287:0] INIT_RAM_28 = 288'd0;
    parameter [287:0] INIT_RAM_29 = 288'd0;
    parameter [287:0] INIT_RAM_2A = 288'd0;
    parameter [287:0] INIT_RAM_2B = 288'd0;
    parameter [287:0] INIT_RAM_2C = 288'd0;
    parameter [287:0] INIT_RAM_2D = 288'd0;
    parameter [287:0] INIT_RAM_2E = 288'd0;
    parameter [287:0] INIT_RAM_2F = 288'd0;
    parameter [287:0] INIT_RAM_30 = 288'd0;
    parameter [287:0] INIT_RAM_31 = 288'd0;
    parameter [287:0] INIT_RAM_32 = 288'd0;
    parameter [287:0] INIT_RAM_33 = 288'd0;
    parameter [287:0] INIT_RAM_34 = 288'd0;
    parameter [287:0] INIT_RAM_35 = 288'd0;
    parameter [287:0] INIT_RAM_36 = 288'd0;
    parameter [287:0] INIT_RAM_37 = 288'd0;
    parameter [287:0] INIT_RAM_38 = 288'd0;
    parameter [287:0] INIT_RAM_39 = 288'd0;
    parameter [287:0] INIT_RAM_3A = 288'd0;
    parameter [287:0] INIT_RAM_3B = 288'd0;
    parameter [287:0] INIT_RAM_3C = 288'd0;
    parameter [287:0] INIT_RAM_3D = 288'd0;
    parameter [287:0] INIT_RAM_3E = 288'd0;
    parameter [287:0] INIT_RAM_3F = 288'd0;

    generate
        if (READ_MODE != 0)
            ERROR_SDPX9B_READ_MODE_IS_NOT_MODELLED error();
    endgenerate

    openese_gowin_bsram #(
        .BYTE(9), .WIDTH_A(BIT_WIDTH_0), .WIDTH_B(BIT_WIDTH_1), .INIT({
        INIT_RAM_3F, INIT_RAM_3E, INIT_RAM_3D, INIT_RAM_3C, INIT_RAM_3B, INIT_RAM_3A, INIT_RAM_39,
        INIT_RAM_38, INIT_RAM_37, INIT_RAM_36, INIT_RAM_35, INIT_RAM_34, INIT_RAM_33, INIT_RAM_32,
        INIT_RAM_31, INIT_RAM_30, INIT_RAM_2F, INIT_RAM_2E, INIT_RAM_2D, INIT_RAM_2C, INIT_RAM_2B,
        INIT_RAM_2A, INIT_RAM_29, INIT_RAM_28, INIT_RAM_27, INIT_RAM_26, INIT_RAM_25, INIT_RAM_24,
        INIT_RAM_23, INIT_RAM_22, INIT_RAM_21, INIT_RAM_20, INIT_RAM_1F, INIT_RAM_1E, INIT_RAM_1D,
        INIT_RAM_1C, INIT_RAM_1B, INIT_RAM_1A, INIT_RAM_19, INIT_RAM_18, INIT_RAM_17, INIT_RAM_16,
        INIT_RAM_15, INIT_RAM_14, INIT_RAM_13, INIT_RAM_12, INIT_RAM_11, INIT_RAM_10, INIT_RAM_0F,
        INIT_RAM_0E, INIT_RAM_0D, INIT_RAM_0C, INIT_RAM_0B, INIT_RAM_0A, INIT_RAM_09, INIT_RAM_08,
        INIT_RAM_07, INIT_RAM_06, INIT_RAM_05, INIT_RAM_04, INIT_RAM_03, INIT_RAM_02, INIT_RAM_01,
        INIT_RAM_00
    })
    ) bsram (
        .CLKA(CLKA), .CEA(CEA && BLKSELA == BLK_SEL_0), .WREA(1'b1), .ADA(ADA), .DIA(DI), .DOA(),
        .CLKB(CLKB), .CEB(CEB && BLKSELB == BLK_SEL_1), .WREB(1'b0), .ADB(ADB), .DIB(36'd0),
        .DOB(DO)
    );

    always @(posedge CLKB)
        if (RESETA || RESETB)
            $fatal(1, "SDPX9B: reset is not modelled");
endmodule


// Dual port. Bytes of 8 bits.
module DPB (
    input CLKA, CEA, WREA, OCEA, RESETA, CLKB, CEB, WREB, OCEB, RESETB,
    input [13:0] ADA, ADB,
    input [15:0] DIA, DIB,
    input [2:0] BLKSELA, BLKSELB,
    output [15:0] DOA, DOB
);
    parameter READ_MODE0 = 1'b0;
    parameter READ_MODE1 = 1'b0;
    parameter WRITE_MODE0 = 2'b00;
    parameter WRITE_MODE1 = 2'b00;
    parameter BIT_WIDTH_0 = 16;
    parameter BIT_WIDTH_1 = 16;
    parameter [2:0] BLK_SEL_0 = 3'b000;
    parameter [2:0] BLK_SEL_1 = 3'b000;
    // Of a reset that stays inactive, so any value will do.
    parameter RESET_MODE = "SYNC";
    parameter [255:0] INIT_RAM_00 = 256'd0;
    parameter [255:0] INIT_RAM_01 = 256'd0;
    parameter [255:0] INIT_RAM_02 = 256'd0;
    parameter [255:0] INIT_RAM_03 = 256'd0;
    parameter [255:0] INIT_RAM_04 = 256'd0;
    parameter [255:0] INIT_RAM_05 = 256'd0;
    parameter [255:0] INIT_RAM_06 = 256'd0;
    parameter [255:0] INIT_RAM_07 = 256'd0;
    parameter [255:0] INIT_RAM_08 = 256'd0;
    parameter [255:0] INIT_RAM_09 = 256'd0;
    parameter [255:0] INIT_RAM_0A = 256'd0;
    parameter [255:0] INIT_RAM_0B = 256'd0;
    parameter [255:0] INIT_RAM_0C = 256'd0;
    parameter [255:0] INIT_RAM_0D = 256'd0;
    parameter [255:0] INIT_RAM_0E = 256'd0;
    parameter [255:0] INIT_RAM_0F = 256'd0;
    parameter [255:0] INIT_RAM_10 = 256'd0;
    parameter [255:0] INIT_RAM_11 = 256'd0;
    parameter [255:0] INIT_RAM_12 = 256'd0;
    parameter [255:0] INIT_RAM_13 = 256'd0;
    parameter [255:0] INIT_RAM_14 = 256'd0;
    parameter [255:0] INIT_RAM_15 = 256'd0;
    parameter [255:0] INIT_RAM_16 = 256'd0;
    parameter [255:0] INIT_RAM_17 = 256'd0;
    parameter [255:0] INIT_RAM_18 = 256'd0;
    parameter [255:0] INIT_RAM_19 = 256'd0;
    parameter [255:0] INIT_RAM_1A = 256'd0;
    parameter [255:0] INIT_RAM_1B = 256'd0;
    parameter [255:0] INIT_RAM_1C = 256'd0;
    parameter [255:0] INIT_RAM_1D = 256'd0;
    parameter [255:0] INIT_RAM_1E = 256'd0;
    parameter [255:0] INIT_RAM_1F = 256'd0;
    parameter [255:0] INIT_RAM_20 = 256'd0;
    parameter [255:0] INIT_RAM_21 = 256'd0;
    parameter [255:0] INIT_RAM_22 = 256'd0;
    parameter [255:0] INIT_RAM_23 = 256'd0;
    parameter [255:0] INIT_RAM_24 = 256'd0;
    parameter [255:0] INIT_RAM_25 = 256'd0;
    parameter [255:0] INIT_RAM_26 = 256'd0;
    parameter [255:0] INIT_RAM_27 = 256'd0;
    parameter [255:0] INIT_RAM_28 = 256'd0;
    parameter [255:0] INIT_RAM_29 = 256'd0;
    parameter [255:0] INIT_RAM_2A = 256'd0;
    parameter [255:0] INIT_RAM_2B = 256'd0;
    parameter [255:0] INIT_RAM_2C = 256'd0;
    parameter [255:0] INIT_RAM_2D = 256'd0;
    parameter [255:0] INIT_RAM_2E = 256'd0;
    parameter [255:0] INIT_RAM_2F = 256'd0;
    parameter [255:0] INIT_RAM_30 = 256'd0;
    parameter [255:0] INIT_RAM_31 = 256'd0;
    parameter [255:0] INIT_RAM_32 = 256'd0;
    parameter [255:0] INIT_RAM_33 = 256'd0;
    parameter [255:0] INIT_RAM_34 = 256'd0;
    parameter [255:0] INIT_RAM_35 = 256'd0;
    parameter [255:0] INIT_RAM_36 = 256'd0;
    parameter [255:0] INIT_RAM_37 = 256'd0;
    parameter [255:0] INIT_RAM_38 = 256'd0;
    parameter [255:0] INIT_RAM_39 = 256'd0;
    parameter [255:0] INIT_RAM_3A = 256'd0;
    parameter [255:0] INIT_RAM_3B = 256'd0;
    parameter [255:0] INIT_RAM_3C = 256'd0;
    parameter [255:0] INIT_RAM_3D = 256'd0;
    parameter [255:0] INIT_RAM_3E = 256'd0;
    parameter [255:0] INIT_RAM_3F = 256'd0;

    generate
        if (READ_MODE0 != 0)
            ERROR_DPB_READ_MODE0_IS_NOT_MODELLED error();
        if (READ_MODE1 != 0)
            ERROR_DPB_READ_MODE1_IS_NOT_MODELLED error();
    endgenerate

    openese_gowin_bsram #(
        .BYTE(8), .WIDTH_A(BIT_WIDTH_0), .WIDTH_B(BIT_WIDTH_1),
        .WRITE_MODE_A(WRITE_MODE0), .WRITE_MODE_B(WRITE_MODE1), .INIT({
        INIT_RAM_3F, INIT_RAM_3E, INIT_RAM_3D, INIT_RAM_3C, INIT_RAM_3B, INIT_RAM_3A, INIT_RAM_39,
        INIT_RAM_38, INIT_RAM_37, INIT_RAM_36, INIT_RAM_35, INIT_RAM_34, INIT_RAM_33, INIT_RAM_32,
        INIT_RAM_31, INIT_RAM_30, INIT_RAM_2F, INIT_RAM_2E, INIT_RAM_2D, INIT_RAM_2C, INIT_RAM_2B,
        INIT_RAM_2A, INIT_RAM_29, INIT_RAM_28, INIT_RAM_27, INIT_RAM_26, INIT_RAM_25, INIT_RAM_24,
        INIT_RAM_23, INIT_RAM_22, INIT_RAM_21, INIT_RAM_20, INIT_RAM_1F, INIT_RAM_1E, INIT_RAM_1D,
        INIT_RAM_1C, INIT_RAM_1B, INIT_RAM_1A, INIT_RAM_19, INIT_RAM_18, INIT_RAM_17, INIT_RAM_16,
        INIT_RAM_15, INIT_RAM_14, INIT_RAM_13, INIT_RAM_12, INIT_RAM_11, INIT_RAM_10, INIT_RAM_0F,
        INIT_RAM_0E, INIT_RAM_0D, INIT_RAM_0C, INIT_RAM_0B, INIT_RAM_0A, INIT_RAM_09, INIT_RAM_08,
        INIT_RAM_07, INIT_RAM_06, INIT_RAM_05, INIT_RAM_04, INIT_RAM_03, INIT_RAM_02, INIT_RAM_01,
        INIT_RAM_00
    })
    ) bsram (
        .CLKA(CLKA), .CEA(CEA && BLKSELA == BLK_SEL_0), .WREA(WREA), .ADA(ADA), .DIA(DIA),
        .DOA(DOA),
        .CLKB(CLKB), .CEB(CEB && BLKSELB == BLK_SEL_1), .WREB(WREB), .ADB(ADB), .DIB(DIB),
        .DOB(DOB)
    );

    always @(posedge CLKB)
        if (RESETA || RESETB)
            $fatal(1, "DPB: reset is not modelled");
endmodule


// Dual port. Bytes of 9 bits.
module DPX9B (
    input CLKA, CEA, WREA, OCEA, RESETA, CLKB, CEB, WREB, OCEB, RESETB,
    input [13:0] ADA, ADB,
    input [17:0] DIA, DIB,
    input [2:0] BLKSELA, BLKSELB,
    output [17:0] DOA, DOB
);
    parameter READ_MODE0 = 1'b0;
    parameter READ_MODE1 = 1'b0;
    parameter WRITE_MODE0 = 2'b00;
    parameter WRITE_MODE1 = 2'b00;
    parameter BIT_WIDTH_0 = 18;
    parameter BIT_WIDTH_1 = 18;
    parameter [2:0] BLK_SEL_0 = 3'b000;
    parameter [2:0] BLK_SEL_1 = 3'b000;
    // Of a reset that stays inactive, so any value will do.
    parameter RESET_MODE = "SYNC";
    parameter [287:0] INIT_RAM_00 = 288'd0;
    parameter [287:0] INIT_RAM_01 = 288'd0;
    parameter [287:0] INIT_RAM_02 = 288'd0;
    parameter [287:0] INIT_RAM_03 = 288'd0;
    parameter [287:0] INIT_RAM_04 = 288'd0;
    parameter [287:0] INIT_RAM_05 = 288'd0;
    parameter [287:0] INIT_RAM_06 = 288'd0;
    parameter [287:0] INIT_RAM_07 = 288'd0;
    parameter [287:0] INIT_RAM_08 = 288'd0;
    parameter [287:0] INIT_RAM_09 = 288'd0;
    parameter [287:0] INIT_RAM_0A = 288'd0;
    parameter [287:0] INIT_RAM_0B = 288'd0;
    parameter [287:0] INIT_RAM_0C = 288'd0;
    parameter [287:0] INIT_RAM_0D = 288'd0;
    parameter [287:0] INIT_RAM_0E = 288'd0;
    parameter [287:0] INIT_RAM_0F = 288'd0;
    parameter [287:0] INIT_RAM_10 = 288'd0;
    parameter [287:0] INIT_RAM_11 = 288'd0;
    parameter [287:0] INIT_RAM_12 = 288'd0;
    parameter [287:0] INIT_RAM_13 = 288'd0;
    parameter [287:0] INIT_RAM_14 = 288'd0;
    parameter [287:0] INIT_RAM_15 = 288'd0;
    parameter [287:0] INIT_RAM_16 = 288'd0;
    parameter [287:0] INIT_RAM_17 = 288'd0;
    parameter [287:0] INIT_RAM_18 = 288'd0;
    parameter [287:0] INIT_RAM_19 = 288'd0;
    parameter [287:0] INIT_RAM_1A = 288'd0;
    parameter [287:0] INIT_RAM_1B = 288'd0;
    parameter [287:0] INIT_RAM_1C = 288'd0;
    parameter [287:0] INIT_RAM_1D = 288'd0;
    parameter [287:0] INIT_RAM_1E = 288'd0;
    parameter [287:0] INIT_RAM_1F = 288'd0;
    parameter [287:0] INIT_RAM_20 = 288'd0;
    parameter [287:0] INIT_RAM_21 = 288'd0;
    parameter [287:0] INIT_RAM_22 = 288'd0;
    parameter [287:0] INIT_RAM_23 = 288'd0;
    parameter [287:0] INIT_RAM_24 = 288'd0;
    parameter [287:0] INIT_RAM_25 = 288'd0;
    parameter [287:0] INIT_RAM_26 = 288'd0;
    parameter [287:0] INIT_RAM_27 = 288'd0;
    parameter [287:0] INIT_RAM_28 = 288'd0;
    parameter [287:0] INIT_RAM_29 = 288'd0;
    parameter [287:0] INIT_RAM_2A = 288'd0;
    parameter [287:0] INIT_RAM_2B = 288'd0;
    parameter [287:0] INIT_RAM_2C = 288'd0;
    parameter [287:0] INIT_RAM_2D = 288'd0;
    parameter [287:0] INIT_RAM_2E = 288'd0;
    parameter [287:0] INIT_RAM_2F = 288'd0;
    parameter [287:0] INIT_RAM_30 = 288'd0;
    parameter [287:0] INIT_RAM_31 = 288'd0;
    parameter [287:0] INIT_RAM_32 = 288'd0;
    parameter [287:0] INIT_RAM_33 = 288'd0;
    parameter [287:0] INIT_RAM_34 = 288'd0;
    parameter [287:0] INIT_RAM_35 = 288'd0;
    parameter [287:0] INIT_RAM_36 = 288'd0;
    parameter [287:0] INIT_RAM_37 = 288'd0;
    parameter [287:0] INIT_RAM_38 = 288'd0;
    parameter [287:0] INIT_RAM_39 = 288'd0;
    parameter [287:0] INIT_RAM_3A = 288'd0;
    parameter [287:0] INIT_RAM_3B = 288'd0;
    parameter [287:0] INIT_RAM_3C = 288'd0;
    parameter [287:0] INIT_RAM_3D = 288'd0;
    parameter [287:0] INIT_RAM_3E = 288'd0;
    parameter [287:0] INIT_RAM_3F = 288'd0;

    generate
        if (READ_MODE0 != 0)
            ERROR_DPX9B_READ_MODE0_IS_NOT_MODELLED error();
        if (READ_MODE1 != 0)
            ERROR_DPX9B_READ_MODE1_IS_NOT_MODELLED error();
    endgenerate

    openese_gowin_bsram #(
        .BYTE(9), .WIDTH_A(BIT_WIDTH_0), .WIDTH_B(BIT_WIDTH_1),
        .WRITE_MODE_A(WRITE_MODE0), .WRITE_MODE_B(WRITE_MODE1), .INIT({
        INIT_RAM_3F, INIT_RAM_3E, INIT_RAM_3D, INIT_RAM_3C, INIT_RAM_3B, INIT_RAM_3A, INIT_RAM_39,
        INIT_RAM_38, INIT_RAM_37, INIT_RAM_36, INIT_RAM_35, INIT_RAM_34, INIT_RAM_33, INIT_RAM_32,
        INIT_RAM_31, INIT_RAM_30, INIT_RAM_2F, INIT_RAM_2E, INIT_RAM_2D, INIT_RAM_2C, INIT_RAM_2B,
        INIT_RAM_2A, INIT_RAM_29, INIT_RAM_28, INIT_RAM_27, INIT_RAM_26, INIT_RAM_25, INIT_RAM_24,
        INIT_RAM_23, INIT_RAM_22, INIT_RAM_21, INIT_RAM_20, INIT_RAM_1F, INIT_RAM_1E, INIT_RAM_1D,
        INIT_RAM_1C, INIT_RAM_1B, INIT_RAM_1A, INIT_RAM_19, INIT_RAM_18, INIT_RAM_17, INIT_RAM_16,
        INIT_RAM_15, INIT_RAM_14, INIT_RAM_13, INIT_RAM_12, INIT_RAM_11, INIT_RAM_10, INIT_RAM_0F,
        INIT_RAM_0E, INIT_RAM_0D, INIT_RAM_0C, INIT_RAM_0B, INIT_RAM_0A, INIT_RAM_09, INIT_RAM_08,
        INIT_RAM_07, INIT_RAM_06, INIT_RAM_05, INIT_RAM_04, INIT_RAM_03, INIT_RAM_02, INIT_RAM_01,
        INIT_RAM_00
    })
    ) bsram (
        .CLKA(CLKA), .CEA(CEA && BLKSELA == BLK_SEL_0), .WREA(WREA), .ADA(ADA), .DIA(DIA),
        .DOA(DOA),
        .CLKB(CLKB), .CEB(CEB && BLKSELB == BLK_SEL_1), .WREB(WREB), .ADB(ADB), .DIB(DIB),
        .DOB(DOB)
    );

    always @(posedge CLKB)
        if (RESETA || RESETB)
            $fatal(1, "DPX9B: reset is not modelled");
endmodule


// Multiplier of two 18-bit operands, with or without registers at its inputs, within and behind.
//
// The sign of an operand travels with it; netlists hold ASIGN and BSIGN constant. The shift chain
// (SIA, SIB) must not be selected, and its outputs (SOA, SOB) are not modelled.
module MULT18X18 (
    input [17:0] A, SIA, B, SIB,
    input ASIGN, BSIGN, ASEL, BSEL, CE, CLK, RESET,
    output [35:0] DOUT
);
    parameter AREG = 1'b0;
    parameter BREG = 1'b0;
    parameter PIPE_REG = 1'b0;
    parameter OUT_REG = 1'b0;
    parameter ASIGN_REG = 1'b0;
    parameter BSIGN_REG = 1'b0;
    // Of a reset that stays inactive, so any value will do.
    parameter MULT_RESET_MODE = "SYNC";

    generate
        if (ASIGN_REG != 0)
            ERROR_MULT18X18_ASIGN_REG_IS_NOT_MODELLED error();
        if (BSIGN_REG != 0)
            ERROR_MULT18X18_BSIGN_REG_IS_NOT_MODELLED error();
    endgenerate

    wire signed [18:0] operand_a = {ASIGN & A[17], A};
    wire signed [18:0] operand_b = {BSIGN & B[17], B};
    reg signed [18:0] a_reg;
    initial a_reg = 19'd0;
    reg signed [18:0] b_reg;
    initial b_reg = 19'd0;
    wire signed [18:0] a = AREG ? a_reg : operand_a;
    wire signed [18:0] b = BREG ? b_reg : operand_b;

    // 36 bits hold the product of two signed or two unsigned operands.
    wire signed [35:0] product = a * b;
    reg [35:0] product_reg;
    initial product_reg = 36'd0;
    wire [35:0] pipeline = PIPE_REG ? product_reg : product;
    reg [35:0] output_reg;
    initial output_reg = 36'd0;

    always @(posedge CLK) begin
        if (CE) begin
            a_reg <= operand_a;
            b_reg <= operand_b;
            product_reg <= product;
            output_reg <= pipeline;
        end
        if (RESET)
            $fatal(1, "MULT18X18: RESET is not modelled");
    end

    always @(*)
        if (ASEL || BSEL)
            $fatal(1, "MULT18X18: the shift chain is not modelled");

    assign DOUT = OUT_REG ? output_reg : pipeline;
endmodule
