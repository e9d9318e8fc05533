// An instance that nobody needs any more: no manager at the other end of its link, no guest, and at its path no image, or another one.
// What it has in memory can be kept nowhere, and nobody will come for it; it says so, and ends. Pure.
//
//              | somebody    | nobody
//   -----------+-------------+-----------------------------------------------------
//   accompanied| -           | alone, "begins"
//   alone      | accompanied | "ends" once it has been so for `patience`, else nothing
//
// Looked at whenever the manager was tried and is away, at most 10 seconds apart: nothing polls for it beside that.
#pragma once

#include "util/clock.hpp"

#include <optional>

namespace vtpmd::instance {

class Orphan {
  public:
    /// As vtpmd(8) says.
    static constexpr Clock::duration patience = std::chrono::seconds(60);
    struct Facts {
        bool manager = false; ///< it answers
        bool guest = false;   ///< one is connected
        bool image = false;   ///< what is at its path is what it has open
        [[nodiscard]] bool nobody() const noexcept { return !manager && !guest && !image; }
    };
    enum class Verdict { nothing, begins, ends };

    Verdict look(const Facts& facts, Clock::time_point now) noexcept {
        if (!facts.nobody()) {
            alone_since_.reset();
            return Verdict::nothing;
        }
        if (!alone_since_) {
            alone_since_ = now;
            return Verdict::begins;
        }
        return now - *alone_since_ >= patience ? Verdict::ends : Verdict::nothing;
    }

  private:
    std::optional<Clock::time_point> alone_since_;
};

} // namespace vtpmd::instance
