// Simulation models of two ECP5 primitives that Yosys maps to but does not model: the block RAM
// DP16KD and the multiplier MULT18X18D. Every other primitive of a netlist has its model in
// Yosys's own techlibs.
//
// Written for this project from knowledge of the behaviour that Lattice's FPGA-TN-02204 (memory
// usage guide, formerly TN1264) and FPGA-TN-02205 (sysDSP usage guide) describe; the documents
// themselves were not at hand. Pins and initialisation follow Yosys's mapping rules. Compared
// neither with the documents, nor with silicon, nor with the vendor's own models.
//
// Modelled are the modes that netlists of the engine use. What is left out stops the simulation
// instead of being guessed: a parameter value that is not modelled instantiates a module that does
// not exist, which every simulator refuses; a parameter or port that is not modelled is not
// declared; an asserted reset is fatal. GSR is accepted and means nothing here, since no netlist
// drives the global reset.

// This file comes first: it keeps Yosys's models from including files that are not needed here.
`define NO_INCLUDES

// verilator lint_off DECLFILENAME
// verilator lint_off GENUNNAMED
// verilator lint_off MULTIDRIVEN
// verilator lint_off WIDTH
// verilator lint_off UNUSED

// Block RAM of 18 kbit: 512 rows of 36 bits, of which a port sees a row, a half (18), a byte (9)
// or a part of the low 8 bits of a byte (4, 2, 1).
//
// With 36 bits on either port the memory is pseudo dual port: A writes, B reads. With 18 and 36
// bits the lowest address bits are the byte enables of a write. Both ports run on one clock.
//
// Bits that one port reads while the other writes them are undefined in the device. They are read
// here as the complement of their old value, so that a design that depends on them fails. Writes of
// both ports to one row in one cycle are fatal: defined in the device unless they overlap, but not
// modelled.
module DP16KD (
    input  DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5,
           DIA4, DIA3, DIA2, DIA1, DIA0,
    input  ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0,
    input  CEA, OCEA, CLKA, WEA, RSTA, CSA2, CSA1, CSA0,
    output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5,
           DOA4, DOA3, DOA2, DOA1, DOA0,
    input  DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5,
           DIB4, DIB3, DIB2, DIB1, DIB0,
    input  ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0,
    input  CEB, OCEB, CLKB, WEB, RSTB, CSB2, CSB1, CSB0,
    output DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5,
           DOB4, DOB3, DOB2, DOB1, DOB0
);
    parameter DATA_WIDTH_A = 18;
    parameter DATA_WIDTH_B = 18;
    parameter REGMODE_A = "NOREG";
    parameter REGMODE_B = "NOREG";
    // Modes of a reset that stays inactive, so any value will do.
    parameter RESETMODE = "SYNC";
    parameter ASYNC_RESET_RELEASE = "SYNC";
    parameter CSDECODE_A = "0b000";
    parameter CSDECODE_B = "0b000";
    parameter WRITEMODE_A = "NORMAL";
    parameter WRITEMODE_B = "NORMAL";
    parameter CLKAMUX = "CLKA";
    parameter CLKBMUX = "CLKB";
    parameter GSR = "ENABLED";
    parameter [319:0] INITVAL_00 = 320'd0;
    parameter [319:0] INITVAL_01 = 320'd0;
    parameter [319:0] INITVAL_02 = 320'd0;
    parameter [319:0] INITVAL_03 = 320'd0;
    parameter [319:0] INITVAL_04 = 320'd0;
    parameter [319:0] INITVAL_05 = 320'd0;
    parameter [319:0] INITVAL_06 = 320'd0;
    parameter [319:0] INITVAL_07 = 320'd0;
    parameter [319:0] INITVAL_08 = 320'd0;
    parameter [319:0] INITVAL_09 = 320'd0;
    parameter [319:0] INITVAL_0A = 320'd0;
    parameter [319:0] INITVAL_0B = 320'd0;
    parameter [319:0] INITVAL_0C = 320'd0;
    parameter [319:0] INITVAL_0D = 320'd0;
    parameter [319:0] INITVAL_0E = 320'd0;
    parameter [319:0] INITVAL_0F = 320'd0;
    parameter [319:0] INITVAL_10 = 320'd0;
    parameter [319:0] INITVAL_11 = 320'd0;
    parameter [319:0] INITVAL_12 = 320'd0;
    parameter [319:0] INITVAL_13 = 320'd0;
    parameter [319:0] INITVAL_14 = 320'd0;
    parameter [319:0] INITVAL_15 = 320'd0;
    parameter [319:0] INITVAL_16 = 320'd0;
    parameter [319:0] INITVAL_17 = 320'd0;
    parameter [319:0] INITVAL_18 = 320'd0;
    parameter [319:0] INITVAL_19 = 320'd0;
    parameter [319:0] INITVAL_1A = 320'd0;
    parameter [319:0] INITVAL_1B = 320'd0;
    parameter [319:0] INITVAL_1C = 320'd0;
    parameter [319:0] INITVAL_1D = 320'd0;
    parameter [319:0] INITVAL_1E = 320'd0;
    parameter [319:0] INITVAL_1F = 320'd0;
    parameter [319:0] INITVAL_20 = 320'd0;
    parameter [319:0] INITVAL_21 = 320'd0;
    parameter [319:0] INITVAL_22 = 320'd0;
    parameter [319:0] INITVAL_23 = 320'd0;
    parameter [319:0] INITVAL_24 = 320'd0;
    parameter [319:0] INITVAL_25 = 320'd0;
    parameter [319:0] INITVAL_26 = 320'd0;
    parameter [319:0] INITVAL_27 = 320'd0;
    parameter [319:0] INITVAL_28 = 320'd0;
    parameter [319:0] INITVAL_29 = 320'd0;
    parameter [319:0] INITVAL_2A = 320'd0;
    parameter [319:0] INITVAL_2B = 320'd0;
    parameter [319:0] INITVAL_2C = 320'd0;
    parameter [319:0] INITVAL_2D = 320'd0;
    parameter [319:0] INITVAL_2E = 320'd0;
    parameter [319:0] INITVAL_2F = 320'd0;
    parameter [319:0] INITVAL_30 = 320'd0;
    parameter [319:0] INITVAL_31 = 320'd0;
    parameter [319:0] INITVAL_32 = 320'd0;
    parameter [319:0] INITVAL_33 = 320'd0;
    parameter [319:0] INITVAL_34 = 320'd0;
    parameter [319:0] INITVAL_35 = 320'd0;
    parameter [319:0] INITVAL_36 = 320'd0;
    parameter [319:0] INITVAL_37 = 320'd0;
    parameter [319:0] INITVAL_38 = 320'd0;
    parameter [319:0] INITVAL_39 = 320'd0;
    parameter [319:0] INITVAL_3A = 320'd0;
    parameter [319:0] INITVAL_3B = 320'd0;
    parameter [319:0] INITVAL_3C = 320'd0;
    parameter [319:0] INITVAL_3D = 320'd0;
    parameter [319:0] INITVAL_3E = 320'd0;
    parameter [319:0] INITVAL_3F = 320'd0;

    // Each parameter holds 16 words of 18 bits, 20 bits apart.
    localparam [64*320-1:0] INIT = {
        INITVAL_3F, INITVAL_3E, INITVAL_3D, INITVAL_3C, INITVAL_3B, INITVAL_3A, INITVAL_39,
        INITVAL_38, INITVAL_37, INITVAL_36, INITVAL_35, INITVAL_34, INITVAL_33, INITVAL_32,
        INITVAL_31, INITVAL_30, INITVAL_2F, INITVAL_2E, INITVAL_2D, INITVAL_2C, INITVAL_2B,
        INITVAL_2A, INITVAL_29, INITVAL_28, INITVAL_27, INITVAL_26, INITVAL_25, INITVAL_24,
        INITVAL_23, INITVAL_22, INITVAL_21, INITVAL_20, INITVAL_1F, INITVAL_1E, INITVAL_1D,
        INITVAL_1C, INITVAL_1B, INITVAL_1A, INITVAL_19, INITVAL_18, INITVAL_17, INITVAL_16,
        INITVAL_15, INITVAL_14, INITVAL_13, INITVAL_12, INITVAL_11, INITVAL_10, INITVAL_0F,
        INITVAL_0E, INITVAL_0D, INITVAL_0C, INITVAL_0B, INITVAL_0A, INITVAL_09, INITVAL_08,
        INITVAL_07, INITVAL_06, INITVAL_05, INITVAL_04, INITVAL_03, INITVAL_02, INITVAL_01,
        INITVAL_00
    };

    localparam PSEUDO = DATA_WIDTH_A == 36 || DATA_WIDTH_B == 36;

    generate
        if (DATA_WIDTH_A != 1 && DATA_WIDTH_A != 2 && DATA_WIDTH_A != 4 && DATA_WIDTH_A != 9 &&
            DATA_WIDTH_A != 18 && DATA_WIDTH_A != 36)
            ERROR_DP16KD_DATA_WIDTH_A_IS_NOT_MODELLED error();
        if (REGMODE_A != "NOREG" && REGMODE_A != "OUTREG")
            ERROR_DP16KD_REGMODE_A_IS_NOT_MODELLED error();
        if (CSDECODE_A != "0b000")
            ERROR_DP16KD_CSDECODE_A_IS_NOT_MODELLED error();
        if (CLKAMUX != "CLKA")
            ERROR_DP16KD_CLKAMUX_IS_NOT_MODELLED error();
        if (WRITEMODE_A != "NORMAL" && WRITEMODE_A != "WRITETHROUGH" &&
            WRITEMODE_A != "READBEFOREWRITE")
            ERROR_DP16KD_WRITEMODE_A_IS_NOT_MODELLED error();
        if (DATA_WIDTH_B != 1 && DATA_WIDTH_B != 2 && DATA_WIDTH_B != 4 && DATA_WIDTH_B != 9 &&
            DATA_WIDTH_B != 18 && DATA_WIDTH_B != 36)
            ERROR_DP16KD_DATA_WIDTH_B_IS_NOT_MODELLED error();
        if (REGMODE_B != "NOREG" && REGMODE_B != "OUTREG")
            ERROR_DP16KD_REGMODE_B_IS_NOT_MODELLED error();
        if (DATA_WIDTH_B == 36 && REGMODE_A != REGMODE_B)
            ERROR_DP16KD_REGMODE_A_OTHER_THAN_REGMODE_B_IS_NOT_MODELLED error();
        if (CSDECODE_B != "0b000")
            ERROR_DP16KD_CSDECODE_B_IS_NOT_MODELLED error();
        if (CLKBMUX != "CLKB")
            ERROR_DP16KD_CLKBMUX_IS_NOT_MODELLED error();
        if (WRITEMODE_B != "NORMAL" && WRITEMODE_B != "WRITETHROUGH" &&
            WRITEMODE_B != "READBEFOREWRITE")
            ERROR_DP16KD_WRITEMODE_B_IS_NOT_MODELLED error();
    endgenerate

    wire [13:0] ad_a = {
        ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0
    };
    wire [13:0] ad_b = {
        ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0
    };
    wire [17:0] di_a = {
        DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5,
        DIA4, DIA3, DIA2, DIA1, DIA0
    };
    wire [17:0] di_b = {
        DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5,
        DIB4, DIB3, DIB2, DIB1, DIB0
    };

    // Position of a port's word in its row.
    function [5:0] offset(input [13:0] ad, input integer width);
        offset = width == 36 ? 6'd0
            : width == 18 ? 18 * ad[4]
            : width == 9 ? 9 * ad[4:3]
            : width == 4 ? 9 * ad[4:3] + 4 * ad[2]
            : width == 2 ? 9 * ad[4:3] + 2 * ad[2:1]
            : 9 * ad[4:3] + ad[2:0];
    endfunction

    // Bits of the row that a port's word covers.
    function [35:0] extent(input [13:0] ad, input integer width);
        extent = (36'hfffffffff >> (36 - width)) << offset(ad, width);
    endfunction

    // Bits of the row that a write to the word may change.
    function [35:0] enabled(input [13:0] ad, input integer width);
        enabled = width == 36 ? {{9{ad[3]}}, {9{ad[2]}}, {9{ad[1]}}, {9{ad[0]}}}
            : width == 18 ? {2{{9{ad[1]}}, {9{ad[0]}}}}
            : 36'hfffffffff;
    endfunction

    reg [35:0] mem [0:511];
    integer i;
    initial
        for (i = 0; i < 512; i = i + 1)
            mem[i] = {INIT[40 * i + 20 +: 18], INIT[40 * i +: 18]};

    wire selected_a = CEA && {CSA2, CSA1, CSA0} == 3'b000;
    wire selected_b = CEB && {CSB2, CSB1, CSB0} == 3'b000;
    wire [35:0] write_a = selected_a && WEA
        ? extent(ad_a, DATA_WIDTH_A) & enabled(ad_a, DATA_WIDTH_A) : 36'd0;
    wire [35:0] write_b = selected_b && WEB
        ? extent(ad_b, DATA_WIDTH_B) & enabled(ad_b, DATA_WIDTH_B) : 36'd0;
    wire same_row = ad_a[13:5] == ad_b[13:5];
    wire [35:0] clash_a = same_row ? write_b : 36'd0;
    wire [35:0] clash_b = same_row ? write_a : 36'd0;
    wire [35:0] in_a = {PSEUDO ? di_b : 18'd0, di_a};
    wire [35:0] in_b = {18'd0, di_b};

    wire [35:0] old_a = mem[ad_a[13:5]];
    wire [35:0] new_a =
        old_a & ~write_a | (in_a << offset(ad_a, DATA_WIDTH_A)) & write_a;
    wire [35:0] row_a = (WRITEMODE_A == "WRITETHROUGH" ? new_a : old_a) ^ clash_a;
    reg [35:0] out_a;
    initial out_a = 36'd0;

    always @(posedge CLKA) begin
        if (write_a != 36'd0)
            mem[ad_a[13:5]] <= new_a;
        if (selected_a && !(WEA && WRITEMODE_A == "NORMAL"))
            out_a <= (row_a & extent(ad_a, DATA_WIDTH_A)) >> offset(ad_a, DATA_WIDTH_A);
        if (RSTA)
            $fatal(1, "DP16KD: RSTA is not modelled");
    end

    wire [35:0] old_b = mem[ad_b[13:5]];
    wire [35:0] new_b =
        old_b & ~write_b | (in_b << offset(ad_b, DATA_WIDTH_B)) & write_b;
    wire [35:0] row_b = (WRITEMODE_B == "WRITETHROUGH" ? new_b : old_b) ^ clash_b;
    reg [35:0] out_b;
    initial out_b = 36'd0;

    always @(posedge CLKB) begin
        if (write_b != 36'd0)
            mem[ad_b[13:5]] <= new_b;
        if (selected_b && !(WEB && WRITEMODE_B == "NORMAL"))
            out_b <= (row_b & extent(ad_b, DATA_WIDTH_B)) >> offset(ad_b, DATA_WIDTH_B);
        if (RSTB)
            $fatal(1, "DP16KD: RSTB is not modelled");
    end

    always @(posedge CLKB) begin
        if (PSEUDO && write_b != 36'd0)
            $fatal(1, "DP16KD: write through port B of a pseudo dual-port memory");
        if (same_row && write_a != 36'd0 && write_b != 36'd0)
            $fatal(1, "DP16KD: two writes to one row");
    end

    // Registers at the outputs have an enable of their own. A word of 36 bits has those of both
    // ports, on the clock and the enable of B.
    reg [35:0] reg_a;
    initial reg_a = 36'd0;
    reg [35:0] reg_b;
    initial reg_b = 36'd0;

    always @(posedge CLKA)
        if (OCEA)
            reg_a <= out_a;

    always @(posedge CLKB)
        if (OCEB)
            reg_b <= out_b;

    wire [35:0] do_a = REGMODE_A == "OUTREG" ? reg_a : out_a;
    wire [35:0] do_b = REGMODE_B == "OUTREG" ? reg_b : out_b;

    assign {
        DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5,
        DOB4, DOB3, DOB2, DOB1, DOB0, DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10,
        DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0
    } = DATA_WIDTH_B == 36 ? do_b : {do_b[17:0], do_a[17:0]};
endmodule


// Multiplier of two 18-bit operands, with or without registers at its inputs, within and behind.
//
// The sign of an operand travels with it; netlists hold SIGNEDA and SIGNEDB constant. Register C,
// the shift chains (SRI, SRO) and the operand outputs (ROA, ROB, ROC) are not modelled.
module MULT18X18D (
    input  A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0,
    input  B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0,
    input  C17, C16, C15, C14, C13, C12, C11, C10, C9, C8, C7, C6, C5, C4, C3, C2, C1, C0,
    input  SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
    input  CLK3, CLK2, CLK1, CLK0, CE3, CE2, CE1, CE0, RST3, RST2, RST1, RST0,
    output P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19,
           P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0
);
    parameter REG_INPUTA_CLK = "NONE";
    parameter REG_INPUTB_CLK = "NONE";
    parameter REG_PIPELINE_CLK = "NONE";
    parameter REG_OUTPUT_CLK = "NONE";
    parameter GSR = "ENABLED";

    generate
        if (REG_INPUTA_CLK != "NONE" && REG_INPUTA_CLK != "CLK0")
            ERROR_MULT18X18D_REG_INPUTA_CLK_IS_NOT_MODELLED error();
        if (REG_INPUTB_CLK != "NONE" && REG_INPUTB_CLK != "CLK0")
            ERROR_MULT18X18D_REG_INPUTB_CLK_IS_NOT_MODELLED error();
        if (REG_PIPELINE_CLK != "NONE" && REG_PIPELINE_CLK != "CLK0")
            ERROR_MULT18X18D_REG_PIPELINE_CLK_IS_NOT_MODELLED error();
        if (REG_OUTPUT_CLK != "NONE" && REG_OUTPUT_CLK != "CLK0")
            ERROR_MULT18X18D_REG_OUTPUT_CLK_IS_NOT_MODELLED error();
    endgenerate

    wire [17:0] pin_a = {
        A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0
    };
    wire [17:0] pin_b = {
        B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0
    };

    wire signed [18:0] operand_a = {SIGNEDA & A17, pin_a};
    wire signed [18:0] operand_b = {SIGNEDB & B17, pin_b};
    reg signed [18:0] a_reg;
    initial a_reg = 19'd0;
    reg signed [18:0] b_reg;
    initial b_reg = 19'd0;
    wire signed [18:0] a = REG_INPUTA_CLK == "NONE" ? operand_a : a_reg;
    wire signed [18:0] b = REG_INPUTB_CLK == "NONE" ? operand_b : b_reg;

    // 36 bits hold the product of two signed or two unsigned operands.
    wire signed [35:0] product = a * b;
    reg [35:0] product_reg;
    initial product_reg = 36'd0;
    wire [35:0] pipeline = REG_PIPELINE_CLK == "NONE" ? product : product_reg;
    reg [35:0] output_reg;
    initial output_reg = 36'd0;

    always @(posedge CLK0) begin
        if (CE0) begin
            a_reg <= operand_a;
            b_reg <= operand_b;
            product_reg <= product;
            output_reg <= pipeline;
        end
        if (RST0)
            $fatal(1, "MULT18X18D: RST0 is not modelled");
    end

    always @(*)
        if (SOURCEA || SOURCEB)
            $fatal(1, "MULT18X18D: the shift chain is not modelled");

    assign {
        P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18,
        P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0
    } = REG_OUTPUT_CLK == "NONE" ? pipeline : output_reg;
endmodule
