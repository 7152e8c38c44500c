// The sampler of one sequence.

#include "../sampler.h"
#include "bindings.h"

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace trilobit {

void bind_sampler(nb::module_ &m) {
    using namespace nb::literals;
    nb::class_<Sampler>(m, "Sampler", "Chooses the tokens of one sequence.")
        .def(
            "__init__",
            [](Sampler *self, float temperature, int top_k, float top_p, float min_p,
               float repetition_penalty, float frequency_penalty, float presence_penalty,
               std::uint64_t seed, const std::map<std::int32_t, float> &logit_bias,
               std::uint64_t min_tokens, std::vector<std::int32_t> ends) {
                std::sort(ends.begin(), ends.end());
                new (self) Sampler({temperature,
                                    top_k,
                                    top_p,
                                    min_p,
                                    repetition_penalty,
                                    frequency_penalty,
                                    presence_penalty,
                                    seed,
                                    {logit_bias.begin(), logit_bias.end()},
                                    min_tokens,
                                    std::move(ends)});
            },
            "temperature"_a = 1.0f, "top_k"_a = 0, "top_p"_a = 1.0f, "min_p"_a = 0.0f,
            "repetition_penalty"_a = 1.0f, "frequency_penalty"_a = 0.0f,
            "presence_penalty"_a = 0.0f, "seed"_a = 0,
            "logit_bias"_a = std::map<std::int32_t, float>{}, "min_tokens"_a = 0,
            "ends"_a = std::vector<std::int32_t>{},
            "ends: tokens that are forbidden until min_tokens were drawn.")
        .def(
            "observe", [](Sampler &s, const Ids &ids) { s.observe(span_of(ids)); }, "ids"_a,
            "Prompt tokens (int32), for the repetition penalty.")
        .def("accept", &Sampler::accept, "id"_a, "A token generated elsewhere.")
        .def(
            "sample",
            [](Sampler &s, const Floats &logits, const std::optional<Masks> &allowed) {
                std::vector<float> copy(logits.data(), logits.data() + logits.size());
                require(!copy.empty(), "no logits");
                require(!allowed || allowed->shape(0) == 1, "one row of a mask");
                if (allowed) s.allow(Allowed(std::span(allowed->data(), allowed->shape(1))));
                const std::int32_t id =
                    s.sample(kernels_in_use(), copy.data(), static_cast<int>(copy.size()));
                s.allow(Allowed());
                return id;
            },
            "logits"_a, "allowed"_a = nb::none(),
            "Choose from float32 logits [vocab], and accept the choice; ALL_FORBIDDEN or "
            "NOT_NUMBERS, which are negative, where none can be chosen. allowed: as of "
            "Decoder.verify, of one row.")
        .def_prop_ro_static("ALL_FORBIDDEN", [](nb::handle) { return kAllForbidden; })
        .def_prop_ro_static("NOT_NUMBERS", [](nb::handle) { return kNotNumbers; });
}

} // namespace trilobit
