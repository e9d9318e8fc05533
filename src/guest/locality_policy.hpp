// Which localities a Xen guest may use, as --locality-policy says. Pure.
//
//   SUBJECT=LOCALITIES   SUBJECT: dom:N, label:XSM-LABEL, or * for everybody; LOCALITIES: numbers and ranges, "0,2-3"
//
// A label that begins with "*:" stands for all labels with that role and type, "label:*:vm_r:guest_t", as in Xen's
// vtpmmgr.
//
// The first rule that fits decides; a guest that none fits has locality 0.
#pragma once

#include "util/result.hpp"
#include "xen/types.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vtpmd::guest {

/// PC Client TIS section 4: 0 to 4.
class Localities {
  public:
    Localities() = default;
    void allow(unsigned locality) noexcept { bits_ = static_cast<std::uint8_t>(bits_ | (1U << locality)); }
    [[nodiscard]] bool allows(std::uint8_t locality) const noexcept {
        return locality < 8 && ((bits_ >> locality) & 1U) != 0;
    }
    friend bool operator==(const Localities&, const Localities&) = default;

  private:
    std::uint8_t bits_ = 0;
};

class LocalityPolicy {
  public:
    /// One rule behind those that are there. Errc::usage.
    Result<void> add(std::string_view rule);
    [[nodiscard]] Localities of(xen::DomId domain, const std::optional<std::string>& label) const;
    /// True if a rule asks for a label.
    [[nodiscard]] bool has_labels() const noexcept;
    [[nodiscard]] bool empty() const noexcept { return rules_.empty(); }

  private:
    struct Rule {
        std::optional<xen::DomId> domain;
        std::optional<std::string> label;
        Localities localities;
    };
    std::vector<Rule> rules_;
};

} // namespace vtpmd::guest
