#include "manager/options.hpp"

#include "util/text.hpp"

namespace vtpmd::manager {

namespace {
constexpr std::uint64_t most_changes = 100'000'000; // the bucket counts in nanoseconds
constexpr std::uint64_t longest_window = std::uint64_t{365} * 24 * 3600;
} // namespace

Result<FreshnessPolicy> parse_freshness(std::string_view text) {
    using Mode = FreshnessPolicy::Mode;
    if (text == "off") {
        return FreshnessPolicy{.mode = Mode::off};
    }
    if (text == "strict") {
        return FreshnessPolicy{.mode = Mode::strict};
    }
    if (text == "window") {
        return FreshnessPolicy{};
    }
    constexpr std::string_view strict = "strict:";
    if (text.starts_with(strict)) {
        auto changes = parse_number(text.substr(strict.size()), most_changes);
        if (!changes) {
            return in_context(changes.error(), "freshness strict: changes of a vTPM a day");
        }
        return FreshnessPolicy{.mode = Mode::strict, .changes_a_day = static_cast<std::uint32_t>(*changes)};
    }
    constexpr std::string_view prefix = "window:";
    if (!text.starts_with(prefix)) {
        return make_error(Errc::usage, "freshness '{}': say window:SECONDS, strict[:CHANGES] or off", printable(text));
    }
    auto seconds = parse_number(text.substr(prefix.size()), longest_window);
    if (!seconds) {
        return in_context(seconds.error(), "freshness window");
    }
    if (*seconds == 0) {
        return make_error(Errc::usage, "freshness window of 0 seconds: say strict instead");
    }
    return FreshnessPolicy{.window = std::chrono::seconds(*seconds)};
}

std::string to_string(const FreshnessPolicy& policy) {
    switch (policy.mode) {
    case FreshnessPolicy::Mode::off:
        return "off";
    case FreshnessPolicy::Mode::strict:
        return policy.changes_a_day == FreshnessPolicy{}.changes_a_day ? std::string("strict")
                                                                       : fmt::format("strict:{}", policy.changes_a_day);
    case FreshnessPolicy::Mode::window:
        return fmt::format("window:{}", policy.window.count());
    }
    return "?";
}

hwtpm::PcrSelection default_seal_pcrs() { return {.bank = hwtpm::HashAlg::sha256, .pcrs = {0, 2, 4, 7}}; }

} // namespace vtpmd::manager
