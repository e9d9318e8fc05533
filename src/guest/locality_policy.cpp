#include "guest/locality_policy.hpp"

#include "util/text.hpp"

#include <algorithm>

namespace vtpmd::guest {

namespace {

constexpr std::uint64_t highest_in_policy = 4;
constexpr std::uint64_t highest_domain = 0x7FEF; // DOMID_FIRST_RESERVED - 1, xen/xen.h

Error bad_rule(std::string_view rule) {
    return make_error(Errc::usage,
                      "--locality-policy={}: expected SUBJECT=LOCALITIES, with dom:N, label:LABEL or * and localities "
                      "from 0 to {} such as 0,2-3",
                      printable(rule), highest_in_policy);
}

std::optional<Localities> parse_localities(std::string_view text) {
    Localities out;
    for (std::string_view part : split(text, ',')) {
        const auto dash = part.find('-');
        auto first = parse_number(part.substr(0, dash), highest_in_policy);
        auto last = dash == std::string_view::npos ? first : parse_number(part.substr(dash + 1), highest_in_policy);
        if (!first || !last || *first > *last) {
            return std::nullopt;
        }
        for (auto i = *first; i <= *last; ++i) {
            out.allow(static_cast<unsigned>(i));
        }
    }
    return out;
}

/// `pattern` is a label, or "*:ROLE:TYPE" for every user's.
bool label_fits(std::string_view pattern, const std::optional<std::string>& label) {
    if (!label) {
        return false;
    }
    if (!pattern.starts_with("*:")) {
        return pattern == *label;
    }
    const auto colon = label->find(':');
    return colon != std::string::npos && pattern.substr(1) == std::string_view(*label).substr(colon);
}

} // namespace

Result<void> LocalityPolicy::add(std::string_view rule) {
    const auto equals = rule.rfind('='); // a label may have one
    if (equals == std::string_view::npos) {
        return bad_rule(rule);
    }
    const std::string_view subject = rule.substr(0, equals);
    auto localities = parse_localities(rule.substr(equals + 1));
    if (!localities) {
        return bad_rule(rule);
    }
    Rule parsed{.domain = std::nullopt, .label = std::nullopt, .localities = *localities};
    constexpr std::string_view domain_prefix = "dom:";
    constexpr std::string_view label_prefix = "label:";
    if (subject.starts_with(domain_prefix)) {
        auto domain = parse_number(subject.substr(domain_prefix.size()), highest_domain);
        if (!domain) {
            return bad_rule(rule);
        }
        parsed.domain = static_cast<xen::DomId>(*domain);
    } else if (subject.starts_with(label_prefix) && subject.size() > label_prefix.size()) {
        parsed.label = std::string(subject.substr(label_prefix.size()));
    } else if (subject != "*") {
        return bad_rule(rule);
    }
    rules_.push_back(std::move(parsed));
    return {};
}

bool LocalityPolicy::has_labels() const noexcept {
    return std::ranges::any_of(rules_, [](const Rule& rule) { return rule.label.has_value(); });
}

Localities LocalityPolicy::of(xen::DomId domain, const std::optional<std::string>& label) const {
    for (const Rule& rule : rules_) {
        const bool fits = (!rule.domain || *rule.domain == domain) && (!rule.label || label_fits(*rule.label, label));
        if (fits) {
            return rule.localities;
        }
    }
    Localities out;
    out.allow(0);
    return out;
}

} // namespace vtpmd::guest
