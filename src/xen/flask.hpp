// XSM labels of peers (FLASK), asked of the hypervisor by event channel.
#pragma once

#include "util/result.hpp"
#include "xen/types.hpp"

#include <memory>
#include <optional>
#include <string>

namespace vtpmd::xen {

class FlaskLabels {
  public:
    FlaskLabels();
    FlaskLabels(const FlaskLabels&) = delete;
    FlaskLabels& operator=(const FlaskLabels&) = delete;
    ~FlaskLabels();

    /// "user:role:type" of the domain at the other end of one of our bound ports; nullopt if Xen has no labels, which
    /// is so where it was built or booted without FLASK. An error: it has some, and does not tell.
    [[nodiscard]] Result<std::optional<std::string>> of_peer(Port port);

  private:
    struct Calls;
    std::unique_ptr<Calls> calls_; ///< made when first needed
    bool absent_ = false;
};

} // namespace vtpmd::xen
