// A design compiled by Verilator, as the harness wants it.

#ifndef OPENESE_VERILATOR_MODEL_H
#define OPENESE_VERILATOR_MODEL_H

#include "verilated.h"

#include "harness.h"

namespace openese {

template <class T>
Bits bits(T &value, size_t width) {
	return {&value, sizeof(value), (width + 31) / 32};
}

template <class Top>
class VerilatorModel : public Model {
public:
	~VerilatorModel() override { top.final(); }

	void settle() override {
		top.clk = 0;
		top.eval();
	}

	void edge() override {
		top.clk = 1;
		top.eval();
	}

private:
	VerilatedContext context;

public:
	Top top{&context};
};

} // namespace openese

#endif
