// A design compiled by Verilator, as the harness wants it.

#ifndef OPENESE_VERILATOR_MODEL_H
#define OPENESE_VERILATOR_MODEL_H

#include "verilated.h"
#include "verilated_syms.h"

#include "harness.h"

namespace openese {

template <class T>
Bits bits(T &value, size_t width) {
	return {&value, sizeof(value), (width + 31) / 32};
}

// `Settle` computes everything that follows from registers, memories and inputs.
template <class Top, void Settle(Top &)>
class VerilatorModel : public Model {
public:
	~VerilatorModel() override { top.final(); }

	void settle() override {
		top.clk = 0;
		top.eval();
		if (written) {
			// What is read from a memory is computed anew only after a clock edge.
			Settle(top);
			written = false;
		}
	}

	void edge() override {
		top.clk = 1;
		top.eval();
	}

	Memory memory(const std::string &name) override {
		// The first evaluation gives memories their initial contents.
		top.eval();
		written = true;
		size_t last = name.rfind(' ');
		std::string scope = "TOP.top";
		if (last != std::string::npos)
			scope += "." + name.substr(0, last);
		for (char &c : scope)
			if (c == ' ')
				c = '.';
		const VerilatedScope *found = context.scopeFind(scope.c_str());
		const VerilatedVar *memory = found ? found->varFind(name.substr(last + 1).c_str()) : nullptr;
		if (!memory || memory->udims() != 1)
			return {};
		return {memory->datap(), memory->entSize(), size_t(memory->elements(1))};
	}

private:
	VerilatedContext context;
	bool written = false;

public:
	Top top{&context};
};

} // namespace openese

#endif
