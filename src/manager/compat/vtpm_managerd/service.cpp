#include "manager/compat/vtpm_managerd/service.hpp"

#include "util/unix_socket.hpp"

namespace vtpmd::manager {

namespace legacy = proto::legacy;

namespace {

constexpr auto serving_look = std::chrono::milliseconds(20);

std::string startup_of(legacy::Start start) {
    switch (start) {
    case legacy::Start::resume:
        return "save";
    case legacy::Start::deactivated:
        return "deactivated";
    default:
        return "clear";
    }
}

Error no_such_number(std::uint32_t number) {
    return make_error(Errc::not_found, "there is no vTPM with the number {}", number);
}

} // namespace

LegacyService::LegacyService(Options options, Parts parts)
    : options_(std::move(options))
    , parts_(std::move(parts))
    , lock_(parts_.executor) {}

std::string LegacyService::socket_of(std::uint32_t number) const {
    return fmt::format("{}/vtpm-{}.sock", options_.run_dir, number);
}

Task<legacy::Status> LegacyService::answer(legacy::Request request) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return Status::fail;
    }
    Task<Result<Status>> asked = std::visit([this](const auto& r) { return run(r); }, request);
    auto status = co_await std::move(asked);
    if (status) {
        co_return *status;
    }
    parts_.log.warning_limited(refusals_, parts_.clock.now(), "the toolstack's request: {}", status.error().message);
    co_return status.error().code == Errc::not_found ? Status::invalid : Status::fail;
}

Task<Result<legacy::Status>> LegacyService::run(const legacy::Refused& request) {
    parts_.log.warning_limited(refusals_, parts_.clock.now(), "the toolstack's request: {}", request.why);
    co_return request.status;
}

Task<Result<Uuid>> LegacyService::vtpm_of(std::uint32_t number) {
    if (const Uuid* known = parts_.vault.registry().numbered(number)) {
        co_return *known;
    }
    const Uuid uuid = random_uuid();
    auto made = co_await parts_.service.enrol_numbered(uuid, options_.new_vtpms, number);
    if (!made) {
        co_return made.error();
    }
    co_return uuid;
}

Task<Result<legacy::Status>> LegacyService::run(const legacy::Open& request) {
    auto uuid = co_await vtpm_of(request.instance);
    if (!uuid) {
        co_return uuid.error();
    }
    if (parts_.supervisor.in_charge(*uuid) || parts_.service.is_open(*uuid)) {
        co_return make_error(Errc::busy, "OPEN: vTPM {} (number {}) is open already", *uuid, request.instance);
    }
    const Registry::Vtpm* vtpm = parts_.vault.registry().find(*uuid);
    Supervisor::Keeping keeping{.guest = "socket:unix:" + socket_of(request.instance),
                                .startup = startup_of(request.start)};
    if (!vtpm->has_key()) {
        keeping.create = vtpm->version;
    }
    parts_.supervisor.keep(*uuid, std::move(keeping));
    bool serves = co_await wait_until_serving(request.instance, parts_.supervisor.kept(*uuid));
    if (serves) {
        parts_.log.info("vTPM {} (number {}) opened for a {} guest", *uuid, request.instance,
                        request.hvm ? "HVM" : "PV");
        co_return Status::success;
    }
    auto stopped = co_await parts_.stop(*uuid); // whoever was told that it failed does not close it
    parts_.log.warning("OPEN: vTPM {} (number {}) does not start: see its instance's messages{}{}", *uuid,
                       request.instance, stopped ? "" : "; ", stopped ? "" : stopped.error().message);
    co_return request.start == legacy::Start::resume ? Status::restore_failed : Status::fail;
}

Task<bool> LegacyService::wait_until_serving(std::uint32_t number, std::shared_ptr<Charge> charge) {
    const std::string socket = socket_of(number);
    const auto deadline = parts_.clock.now() + options_.patience;
    while (charge && !charge->ended.requested() && parts_.clock.now() < deadline) {
        if (parts_.service.is_open(charge->uuid) && is_socket(socket)) {
            co_return true;
        }
        if (auto stopped = co_await parts_.clock.sleep_for(serving_look)) {
            break;
        }
    }
    co_return false;
}

Task<Result<legacy::Status>> LegacyService::run(const legacy::Close& request) {
    const Uuid* uuid = parts_.vault.registry().numbered(request.instance);
    if (uuid == nullptr) {
        co_return no_such_number(request.instance);
    }
    auto stopped = co_await parts_.stop(*uuid);
    if (!stopped) {
        co_return in_context(stopped.error(), "CLOSE");
    }
    co_return Status::success;
}

Task<Result<legacy::Status>> LegacyService::run(const legacy::Delete& request) {
    const Uuid* known = parts_.vault.registry().numbered(request.instance);
    if (known == nullptr) {
        co_return no_such_number(request.instance);
    }
    const Uuid uuid = *known; // its place in the table goes
    auto stopped = co_await parts_.stop(uuid);
    if (!stopped) {
        co_return in_context(stopped.error(), "DELETE");
    }
    auto removed = co_await parts_.remove(uuid);
    if (!removed) {
        co_return in_context(removed.error(), "DELETE");
    }
    co_return Status::success;
}

} // namespace vtpmd::manager
