#include "guest/xen_guest.hpp"

#include "guest/tpm12_questions.hpp"
#include "tpm/header.hpp"

namespace vtpmd::guest {

XenGuest::XenGuest(XenGuestOptions options, xen::Fabric& fabric, Clock& clock, const Log& log)
    : device_({.id = {.domain = options.endpoint.domid, .handle = options.endpoint.handle},
               .uuid = options.uuid,
               .spin = options.spin,
               .patience = options.patience},
              {fabric, clock, log})
    , commands_(options.endpoint.domid, std::move(options.localities), log) {}

void XenGuest::open(TpmService& service) {
    commands_.service = &service;
    device_.open(commands_);
}

void XenGuest::Commands::connected(const Result<std::optional<std::string>>& label) {
    if (label || !policy_.has_labels()) {
        localities_ = policy_.of(domain_, label ? *label : std::nullopt);
        return;
    }
    // It may be the one that a rule is to keep from something.
    localities_ = Localities();
    localities_.allow(0);
    log_.warning_limited(
        limit_, std::chrono::steady_clock::now(),
        "domain {}: locality 0 only, since --locality-policy names labels and its own is not known: {}", domain_,
        label.error().message);
}

Task<Bytes> XenGuest::Commands::execute(Bytes request, std::uint8_t locality) {
    if (!localities_.allows(locality)) {
        ++counters.bad_locality;
        co_return tpm::error_response(service->version(), tpm::Refusal::bad_locality);
    }
    if (request.size() > command_limit) {
        co_return tpm::error_response(service->version(), tpm::Refusal::bad_size);
    }
    if (service->version() == TpmVersion::tpm20) {
        if (auto answer = answer_tpm12_question(request)) {
            ++counters.tpm12_questions;
            co_return std::move(*answer);
        }
    }
    co_return co_await service->execute(std::move(request), locality);
}

} // namespace vtpmd::guest
