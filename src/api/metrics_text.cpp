#include "api/routes.hpp"

#include <cmath>

namespace vtpmd::api {

std::string metrics_text(const std::vector<manager::Metric>& metrics) {
    std::string out;
    for (const manager::Metric& m : metrics) {
        out += fmt::format("# HELP {} {}\n# TYPE {} {}\n", m.name, m.help, m.name, m.type);
        for (const auto& s : m.samples) {
            const std::string labels = s.labels.empty() ? "" : fmt::format("{{{}}}", s.labels);
            // Whole numbers in full, so that large counters do not lose their last digits.
            if (std::floor(s.value) == s.value && std::abs(s.value) < 9e15) {
                out += fmt::format("{}{}{} {}\n", m.name, s.suffix, labels, static_cast<std::int64_t>(s.value));
            } else {
                out += fmt::format("{}{}{} {}\n", m.name, s.suffix, labels, s.value);
            }
        }
    }
    return out;
}

} // namespace vtpmd::api
