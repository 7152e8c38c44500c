// A model as Python hands it over: its config and tensors, checked, as the structs of the core.
#pragma once

#include "../decoder.h"
#include "arguments.h"

#include <vector>

namespace trilobit {

struct Model {
    Config config;
    Weights weights;
    std::vector<Any> arrays; // whose memory the weights borrow
};

// config: as of ModelConfig.to_dict(). inv_freq: rotary frequencies of full layers, and behind them
// those of sliding layers; borrowed too. files: name: (open file, offset) of tables whose rows are
// read from there. layout: of ternary weights. ValueError for what does not fit.
Model read_model(const nb::dict &config, const nb::dict &tensors, const Floats &inv_freq,
                 const nb::dict &files, Layout layout);

} // namespace trilobit
