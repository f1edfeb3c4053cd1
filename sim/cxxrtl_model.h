// A design compiled by Yosys' write_cxxrtl, as the harness wants it.

#ifndef OPENESE_CXXRTL_MODEL_H
#define OPENESE_CXXRTL_MODEL_H

#include <cstdio>
#include <iostream>
#include <stdexcept>

#include <cxxrtl/cxxrtl.h>
#ifdef OPENESE_VCD
#include <cxxrtl/cxxrtl_vcd.h>
#endif

#include "harness.h"

namespace openese {

// Standard output belongs to the caller's results, and a failed assertion is no reason to abort.
struct Performer final : cxxrtl::performer {
	void on_print(const cxxrtl::lazy_fmt &formatter, const cxxrtl::metadata_map &) override {
		std::cerr << formatter() << std::flush;
	}
	void on_check(cxxrtl::flavor flavor, bool condition, const cxxrtl::lazy_fmt &formatter,
	              const cxxrtl::metadata_map &) override {
		bool demanded = flavor == cxxrtl::flavor::ASSERT || flavor == cxxrtl::flavor::ASSUME;
		if (demanded && !condition)
			throw std::runtime_error("Assertion violated: " + formatter());
	}
};

template <size_t Width>
Bits bits(cxxrtl::value<Width> &value) {
	return {value.data, sizeof(value.data), cxxrtl::value<Width>::chunks};
}

template <size_t Width>
Bits bits(cxxrtl::wire<Width> &wire) {
	return bits(wire.curr);
}

template <class Top>
class CxxrtlModel : public Model {
public:
	void settle() override {
		top.p_clk.template set<bool>(false);
		evaluate();
	}

	void edge() override {
		top.p_clk.template set<bool>(true);
		evaluate();
	}

	Memory memory(const std::string &name) override {
		list_items();
		if (!items.count(name) || items.at(name)[0].type != cxxrtl::debug_item::MEMORY)
			return {};
		const cxxrtl::debug_item &item = items.at(name)[0];
		return {item.curr, (item.width + 31) / 32 * 4, item.depth};
	}

#ifdef OPENESE_VCD
	~CxxrtlModel() override {
		if (file)
			std::fclose(file);
	}

	bool open_vcd(const std::string &path) override {
		file = std::fopen(path.c_str(), "wb");
		if (!file)
			return false;
		list_items();
		writer.timescale(1, "us");
		writer.add_without_memories(items);
		return true;
	}
#endif

	Top top;

private:
	void evaluate() {
		bool converged;
		do {
			converged = top.eval(&performer);
		} while (top.commit() && !converged);
#ifdef OPENESE_VCD
		if (file) {
			writer.sample(time++);
			std::fwrite(writer.buffer.data(), 1, writer.buffer.size(), file);
			writer.buffer.clear();
		}
#endif
	}

	void list_items() {
		if (items.table.empty())
			top.debug_info(&items, nullptr, "");
	}

	Performer performer;
	cxxrtl::debug_items items;
#ifdef OPENESE_VCD
	cxxrtl::vcd_writer writer;
	std::FILE *file = nullptr;
	uint64_t time = 0;
#endif
};

} // namespace openese

#endif
