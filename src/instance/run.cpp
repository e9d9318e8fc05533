#include "instance/run.hpp"

#include "instance/guests.hpp"
#include "instance/instance.hpp"
#include "instance/links/manager_link.hpp"
#include "instance/links/ring_channel.hpp"
#include "instance/migration/handover.hpp"
#include "instance/orphan.hpp"
#include "instance/state/open_vtpm.hpp"
#include "proto/query/answerer.hpp"
#include "util/named_file.hpp"
#include "util/pid_file.hpp"
#include "util/sandbox.hpp"
#include "util/service.hpp"
#include "util/unix_socket.hpp"
#include "util/when_free.hpp"
#include "xen/kernel_driver.hpp"

#include <algorithm>
#include <boost/asio/experimental/parallel_group.hpp>
#include <filesystem>
#include <fmt/ranges.h>
#include <malloc.h>
#include <optional>
#include <unistd.h>
#include <utility>
#include <variant>
#include <vector>

// GCC 12 takes the operator delete of an inlined coroutine frame for a stranger's.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif

namespace vtpmd::instance {

namespace {

constexpr Clock::duration stop_patience = std::chrono::seconds(10);
constexpr Clock::duration take_patience = std::chrono::seconds(20); ///< a device model waits for it

/// Serves until asked to stop.
Task<> serve(const InstanceOptions& options, RuntimeDeps deps, Instance& instance, Guests& guests,
             std::vector<PidFile>& pid_files) {
    guests.serve(instance);
    for (const std::string& path : options.pid_files) {
        auto file = PidFile::write(path);
        if (!file) {
            deps.log.error("--pid-file={}: {}", path, file.error().message);
            continue;
        }
        pid_files.push_back(std::move(*file));
    }
    (void)::malloc_trim(0); // what the start took; what a change takes is kept from here on (main.cpp)
    notify_ready(fmt::format("vTPM {} (TPM {}) serves", options.uuid, to_string(instance.version())));
    co_await deps.stop.wait();
    co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
    notify_stopping();
    deps.log.info("vTPM {}: stopping", options.uuid);
    instance.hurry();
    co_await guests.stop(stop_patience);
}

/// Runs a part of the start that may wait for others; a request to stop ends it with Errc::canceled.
template <typename T>
Task<Result<T>> unless_stopped(StopSignal& stop, Task<Result<T>> part) {
    auto executor = co_await asio::this_coro::executor;
    std::optional<Result<T>> outcome;
    auto run = [](Task<Result<T>> p, std::optional<Result<T>>& out) -> Task<> { out.emplace(co_await std::move(p)); };
    auto [order, failed, stop_failed] = co_await asio::experimental::make_parallel_group(
                                            asio::co_spawn(executor, run(std::move(part), outcome), asio::deferred),
                                            asio::co_spawn(executor, stop.wait(), asio::deferred))
                                            .async_wait(asio::experimental::wait_for_one(), asio::use_awaitable);
    if (outcome && (outcome->has_value() || !stop.requested())) {
        co_return std::move(*outcome);
    }
    if (failed && !stop.requested()) {
        std::rethrow_exception(failed);
    }
    co_return make_error(Errc::canceled, "asked to stop before it was ready"); // whatever it was waiting for
}

Result<proto::ManagerClient::Connect> connector(const ManagerAddress& address, RuntimeDeps deps, XenAccess& xen) {
    if (!address.xen_handle) {
        return manager_connector(address, deps.executor, deps.clock);
    }
    if (auto ours = xen::not_the_kernels(*address.xen_handle, "give the manager's device a handle of its own, or ");
        !ours) {
        return in_context(ours.error(), fmt::format("--manager=xen:{}", *address.xen_handle));
    }
    auto fabric = xen.get();
    if (!fabric) {
        return in_context(std::move(fabric).error(), "--manager=xen");
    }
    return ring_connector(**fabric, *address.xen_handle);
}

/// What the manager asks of an instance.
class Answers final : public proto::Questioned {
  public:
    explicit Answers(Instance& instance)
        : instance_(instance) {}
    Task<Result<Bytes>> quote(proto::AskQuote question) override {
        return instance_.quote_for_operator(std::move(question));
    }
    Task<> wait_for_news() override { return instance_.figures().wait_for_news(); }
    std::optional<proto::Report> next_report() override { return instance_.figures().next_report(); }
    [[nodiscard]] proto::Report summary() const override { return instance_.figures().summary(); }
    void report_anew() override { instance_.figures().report_anew(); }

  private:
    Instance& instance_;
};

/// Ends the instance once nobody needs it (orphan.hpp).
class Company {
  public:
    Company(const InstanceOptions& options, RuntimeDeps deps, const Guests& guests, const NamedFile& at_path)
        : options_(options)
        , deps_(deps)
        , guests_(guests)
        , at_path_(at_path)
        , image_(at_path_.place()) {}

    void look(bool manager) {
        const auto there = manager ? image_ : at_path_.place(); // while there is a manager it does not matter
        const Orphan::Facts facts{.manager = manager, .guest = guests_.present(), .image = !image_ || there == image_};
        switch (orphan_.look(facts, deps_.clock.now())) {
        case Orphan::Verdict::nothing:
            break;
        case Orphan::Verdict::begins:
            deps_.log.warning(
                "vTPM {}: there is no manager, no guest, and at {} not the image that is open here; if it "
                "stays so for {} s this instance ends",
                options_.uuid, options_.state_path,
                std::chrono::duration_cast<std::chrono::seconds>(Orphan::patience).count());
            break;
        case Orphan::Verdict::ends:
            deps_.log.error(
                "vTPM {}: nobody needs this instance any more (no manager, no guest, no image at {}): it ends",
                options_.uuid, options_.state_path);
            deps_.stop.request();
            break;
        }
    }

  private:
    const InstanceOptions& options_;
    RuntimeDeps deps_;
    const Guests& guests_;
    const NamedFile& at_path_;
    const std::optional<FilePlace> image_; ///< as it is opened; nullopt: it cannot be told
    Orphan orphan_;
};

/// What needs paths or devices after the start; empty: nothing.
std::string_view kept_open_by(const InstanceOptions& options) {
    if (options.manager.xen_handle) {
        return "--manager=xen";
    }
    for (const guest::Endpoint& endpoint : options.guests) {
        if (std::holds_alternative<guest::XenEndpoint>(endpoint) ||
            std::holds_alternative<guest::VtpmxEndpoint>(endpoint)) {
            return "--guest=xen or vtpmx";
        }
    }
    return !options.handover_path.empty()   ? "--handover"
           : !options.incoming_path.empty() ? "--incoming"
           : !options.pid_files.empty()     ? "--pid-file"
                                            : "";
}

bool is_spawned(const InstanceOptions& options) { return options.manager.inherited_fd.has_value(); }

/// Before the link is made and the image is: the way back to a manager is by a name in the working directory from now on, which is
/// the same before and in the sandbox.
Result<void> prepare_sandbox(InstanceOptions& options, const Log& log) {
    const bool wanted =
        options.sandbox == SandboxMode::on || (options.sandbox == SandboxMode::automatic && is_spawned(options));
    if (!wanted) {
        if (options.user) {
            return make_error(Errc::usage, "--user: a part of the sandbox; add --sandbox=on");
        }
        options.sandbox = SandboxMode::off;
        return {};
    }
    if (const std::string_view what = kept_open_by(options); !what.empty()) {
        if (options.sandbox == SandboxMode::on) {
            return make_error(Errc::usage, "--sandbox=on: not with {}, which opens things later; leave either out",
                              what);
        }
        log.info("vTPM {}: no sandbox, since {} opens things later", options.uuid, what);
        options.sandbox = SandboxMode::off;
        return {};
    }
    std::error_code ec;
    options.state_path = std::filesystem::absolute(options.state_path, ec).string();
    if (!options.user || options.manager.path.empty()) {
        return {};
    }
    const std::filesystem::path link = std::filesystem::absolute(options.manager.path, ec);
    if (::chdir(link.parent_path().c_str()) != 0) {
        return errno_error(errno, link.parent_path().string());
    }
    options.manager.path = link.filename().string();
    return {};
}

Result<void> shut_in(const InstanceOptions& options, const Log& log) {
    if (options.sandbox == SandboxMode::off) {
        return {};
    }
    const SandboxReport report =
        enter_sandbox({.user = options.user, .root_here = options.user.has_value() && !options.manager.path.empty()});
    log.info("vTPM {}: sandbox: {}", options.uuid, fmt::join(report.holds, ", "));
    if (report.lacks.empty()) {
        return {};
    }
    const std::string lacks = fmt::format("{}", fmt::join(report.lacks, ", "));
    if (options.sandbox == SandboxMode::on) {
        return make_error(Errc::permission, "--sandbox=on: not to be had here: {}", lacks);
    }
    log.warning("vTPM {}: sandbox: not to be had here: {}", options.uuid, lacks);
    return {};
}

/// From the image that was found to the end.
Task<Result<void>> run_with_image(const InstanceOptions& options, RuntimeDeps deps, FoundImage found, BlockIo& io,
                                  XenAccess& xen, Guests& guests) {
    const TpmVersion version = found.version;
    auto connect = connector(options.manager, deps, xen);
    if (!connect) {
        co_return std::move(connect).error();
    }
    proto::ClientOptions client;
    client.greeting = {options.uuid, version, options.create, options.incoming};
    std::optional<Error> superseded;
    client.superseded = [&superseded, &deps](const Error& e) {
        superseded = e;
        deps.stop.request();
    };
    auto manager = proto::make_manager_client(deps.executor, client, std::move(*connect), deps.clock, deps.log);

    OpenRequest request{options.uuid, options.state_path, options.create, options.incoming};
    auto opened =
        co_await unless_stopped(deps.stop, open_vtpm(std::move(request), std::move(found), io, *manager, deps.log));
    if (!opened) {
        co_return superseded ? std::move(*superseded) : std::move(opened).error();
    }
    const NamedFile image_at(options.state_path);
    // Nothing of the guest's was looked at yet but the image's outside, which is authenticated.
    if (auto shut = shut_in(options, deps.log); !shut) {
        co_return std::move(shut).error();
    }
    auto engine = Engine::create(version);
    if (!engine) {
        co_return std::move(engine).error();
    }
    InstanceConfig config{.uuid = options.uuid,
                          .startup = options.startup,
                          .hwinitpcrs = options.hwinitpcrs,
                          .maintenance_commands = options.maintenance_commands,
                          .pcr_banks = options.pcr_banks,
                          .ek_certificates = options.ek_certificates,
                          .allow_rollback = options.allow_rollback,
                          .incoming = options.incoming,
                          .stop_patience = stop_patience};
    InstanceParts parts{
        deps.executor, **engine, *opened->image, *manager, deps.clock, deps.log, [&deps] { deps.stop.request(); }, {}};
    if (!options.incoming_path.empty()) {
        parts.confirm_incoming = [&options, &deps](store::Digest token) {
            return take_over(options.incoming_path, TakeRequest{options.uuid, token}, deps.clock, take_patience);
        };
    }
    Instance instance(std::move(config), std::move(parts));
    auto started = co_await unless_stopped(deps.stop, instance.start(std::move(opened->state)));
    if (!started) {
        auto ended = co_await instance.close();
        if (superseded) {
            co_return in_context(std::move(*superseded), fmt::format("vTPM {}", options.uuid));
        }
        const bool why_it_stops = !ended && started.error().code == Errc::canceled;
        co_return in_context(why_it_stops ? std::move(ended).error() : std::move(started).error(),
                             fmt::format("vTPM {}: starting", options.uuid));
    }
    deps.log.info("vTPM {}: TPM {} {} {}", options.uuid, to_string(version), opened->fresh ? "made in" : "loaded from",
                  options.state_path);
    std::optional<HandoverServer> handover;
    if (!options.handover_path.empty()) {
        auto listener = guest::listen_unix(options.handover_path, options.socket_group);
        if (!listener) {
            (void)co_await instance.close();
            co_return in_context(std::move(listener).error(), "--handover");
        }
        warn_of_folder(deps.log, options.handover_path);
        handover.emplace(
            deps.executor, std::move(*listener), [&instance](TakeRequest r) { return instance.hand_over(r); },
            deps.clock, deps.log);
        handover->start();
    }
    Company company(options, deps, guests, image_at);
    Answers answers(instance);
    std::optional<proto::Answerer> answerer;
    if (auto questions = question_connector(options.manager, deps.clock)) {
        answerer.emplace(proto::Answerer::Parts{.executor = deps.executor,
                                                .uuid = options.uuid,
                                                .manager = *manager,
                                                .connect = std::move(*questions),
                                                .questioned = answers,
                                                .clock = deps.clock,
                                                .log = deps.log,
                                                .tried = [&company](bool there) { company.look(there); }});
        answerer->start();
    }
    std::vector<PidFile> pid_files; // they go when the image is free again
    co_await serve(options, deps, instance, guests, pid_files);
    if (answerer) {
        co_await answerer->stop();
    }
    if (handover) {
        co_await handover->stop();
    }
    // A Xen guest that was saved is gone like one that was destroyed; only when it comes back is it known (--startup=save).
    auto ended = co_await instance.close(guests.had_xen_guest());
    if (superseded) {
        co_return in_context(std::move(*superseded), fmt::format("vTPM {}", options.uuid));
    }
    if (ended) {
        deps.log.info("vTPM {}: stopped", options.uuid);
    }
    co_return ended;
}

/// A choice that is rarely meant: firmware, which is to start the TPM, finds it started, and takes that for a failure.
void warn_of_startup(const InstanceOptions& options, const Log& log) {
    const bool chosen = options.startup != Startup::wait && options.startup != Startup::none;
    const bool firmware = std::ranges::any_of(
        options.guests, [](const auto& g) { return std::holds_alternative<guest::QemuEndpoint>(g); });
    if (chosen && firmware) {
        log.warning(
            "--startup: with --guest=qemu: a guest's firmware starts its TPM; one that finds it started takes that "
            "for a failure, and SeaBIOS disables the owner's hierarchy: leave --startup out if the guest has any");
    }
}

/// From the image to the end; the guests still have to be stopped.
Task<Result<void>> run_with_guests(InstanceOptions& options, RuntimeDeps deps, XenAccess& xen, Guests& guests) {
    auto io = make_block_io(deps.executor);
    if (!io) {
        co_return std::move(io).error();
    }
    // The image first: its lock keeps a second instance of this vTPM away from all the rest.
    auto found = co_await when_free(deps.clock, dying_process_patience, [&] {
        ImageRequest request{options.uuid, options.state_path, options.tpm_version};
        return find_image(std::move(request), **io, deps.log);
    });
    if (!found) {
        co_return std::move(found).error();
    }
    if (options.startup == Startup::deactivated && found->version == TpmVersion::tpm20) {
        co_return make_error(Errc::usage,
                             "--startup=deactivated: a TPM 2.0 has no such start; clear or save is possible");
    }
    if (options.pcr_banks_of_this && found->version == TpmVersion::tpm12) {
        co_return make_error(Errc::usage,
                             "--pcr-banks: vTPM {} is a TPM 1.2, which has the SHA-1 bank only; leave the "
                             "option out",
                             options.uuid);
    }
    auto opened = co_await guests.open(options);
    if (!opened) {
        co_return opened;
    }
    if (auto prepared = prepare_sandbox(options, deps.log); !prepared) {
        co_return prepared;
    }
    co_return co_await run_with_image(options, deps, std::move(*found), **io, xen, guests);
}

} // namespace

Task<Result<void>> run_instance(InstanceOptions options, RuntimeDeps deps) {
    if (options.state_path.empty()) {
        options.state_path = default_state_path(options.uuid);
    }
    if (options.guests.empty()) {
        options.guests.push_back(default_endpoint(options.uuid));
    }
    warn_of_startup(options, deps.log);
    XenAccess xen(deps);
    Guests guests(deps, xen);
    auto ended = co_await run_with_guests(options, deps, xen, guests);
    co_await guests.stop(Clock::duration::zero());
    co_await xen.stop();
    if (!guests.outcome()) {
        co_return guests.outcome(); // it made everything else end
    }
    if (!ended && ended.error().code == Errc::canceled && deps.stop.requested()) {
        deps.log.info("vTPM {}: stopped before it was ready", options.uuid); // as it was asked to
        co_return Result<void>{};
    }
    co_return ended;
}

} // namespace vtpmd::instance
